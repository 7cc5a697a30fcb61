"""Sources against SciPy's densities, known constants and their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.data.densities import eight_gaussians
from flowjax.sources import GaussianMixture, Normal, Source, Uniform

pytestmark = pytest.mark.analytic
KEY = jax.random.key(0)


def test_normal_log_prob_is_scipys():
    x = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(np.float32)
    loc, scale = np.arange(6.0).reshape(3, 2), np.array([0.5, 2.0])
    ours = Normal((3, 2), loc, scale).log_prob(jnp.asarray(x))
    np.testing.assert_allclose(ours, stats.norm(loc, scale).logpdf(x).sum((1, 2)), rtol=1e-5)


def test_uniform_log_prob_is_scipys_also_outside():
    x = np.array([[0.0, 0.0], [1.5, 0.2], [3.0, 0.0], [-1.0, 0.0]], np.float32)
    ours = Uniform((2,), -1.0, 2.0).log_prob(jnp.asarray(x))
    np.testing.assert_allclose(ours, [-2 * np.log(3), -2 * np.log(3), -np.inf, -2 * np.log(3)], rtol=1e-6)


def test_mixture_log_prob_is_the_sum_of_scipys_normals():
    means, scales, weights = (
        np.array([[0.0, 1.0], [3.0, -2.0], [1.0, 1.0]]),
        np.array([0.5, 1.0, 2.0]),
        np.array([1, 2, 5.0]),
    )
    x = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32) * 3
    p = sum(w / 8 * stats.multivariate_normal(m, s**2).pdf(x) for m, s, w in zip(means, scales, weights, strict=True))
    np.testing.assert_allclose(
        GaussianMixture(means, scales, weights).log_prob(jnp.asarray(x)), np.log(p), rtol=2e-5, atol=2e-5
    )


def test_eight_gaussians_have_the_entropy_of_the_literature():
    """3.766 nats = log 8 + log(2 pi e s^2), s = 0.5623; the modes' overlap takes away less than 1e-3."""
    mixture = eight_gaussians()
    log_prob = mixture.log_prob(mixture.sample(KEY, 200_000))
    stderr = float(log_prob.std()) / np.sqrt(200_000)
    assert -float(log_prob.mean()) == pytest.approx(3.7657, abs=4 * stderr + 1e-3)


@pytest.mark.parametrize(
    "source",
    [
        Normal((2,), 1.0, 2.0),
        Uniform((2,), -1.0, 3.0),
        GaussianMixture(*map(np.array, ([[0.0, 0.0], [4.0, 1.0]], [0.5, 1.0], [1.0, 3.0]))),
    ],
)
def test_samples_follow_the_density(source):
    """E[f(x)] by samples against the integral of f p on a grid, for f = x and x^2: within 5 standard errors."""
    assert isinstance(source, Source)
    x = np.asarray(source.sample(KEY, 40_000))
    assert x.shape == (40_000, 2)
    axis = np.linspace(-9, 11, 801)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    p = np.exp(np.asarray(source.log_prob(jnp.asarray(grid)), np.float64)) * (axis[1] - axis[0]) ** 2
    assert p.sum() == pytest.approx(1.0, abs=0.02)  # the uniform's edges fall between grid points
    for power in (1, 2):
        expected = (p[:, None] * grid.astype(np.float64) ** power).sum(0) / p.sum()
        stderr = (x**power).std(0) / np.sqrt(len(x))
        assert np.all(np.abs((x**power).mean(0) - expected) < 5 * stderr + 0.02 * np.abs(expected))


@pytest.mark.parametrize("source", [Normal((2, 3, 1)), Uniform((4,)), GaussianMixture(np.zeros((2, 4)), 1.0)])
def test_same_key_same_bits_and_jit_and_pytree(source):
    a, b = source.sample(KEY, 5), jax.jit(lambda s, k: s.sample(k, 5))(source, KEY)
    np.testing.assert_array_equal(source.sample(KEY, 5), a)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert a.shape == (5, *source.shape)


def test_wrong_shape_is_told():
    with pytest.raises(ValueError, match=r"expected rows of shape \(2,\)"):
        Normal((2,)).log_prob(jnp.zeros((3, 4)))
