"""The theorem flow matching rests on, and that each prediction's minimiser is the oracle's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import methods, oracles
from flowjax.batch import Batch
from flowjax.couplings import MinibatchOT
from flowjax.paths import AffinePath, GaussianPath
from flowjax.predictions import data, noise, score, velocity
from flowjax.schedules import CondOT, Cosine
from flowjax.sources import GaussianMixture, Normal, Uniform

pytestmark = pytest.mark.analytic
MIXTURE = GaussianMixture(jnp.array([[2.0, 0.0], [-1.0, 1.0]]), jnp.array([0.5, 0.8]))
SOURCE = Normal((2,))
PATH = GaussianPath(Cosine())
ORACLE = oracles.mixture(PATH, MIXTURE)
N, DRAWS = 2048, 64


def apply(params, t, x, cond):
    """A small network with smooth features of (t, x): any function class will do."""
    features = jnp.concatenate([x, jnp.sin(x), t[:, None] * x, t[:, None]], -1)
    return features @ params["w"] + params["b"]


def params(seed):
    key = jax.random.key(seed)
    return {"w": 0.5 * jax.random.normal(key, (7, 2)), "b": jnp.zeros(2)}


def draws(loss, p):
    """Values and gradients of a loss on many independent batches."""

    def one(key):
        x1 = MIXTURE.sample(jax.random.fold_in(key, 1), N)
        return jax.value_and_grad(loss)(p, key, Batch(x1))

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), DRAWS))


@pytest.mark.parametrize(
    "prediction",
    [velocity, *(pytest.param(p, marks=pytest.mark.slow) for p in (score, noise, data))],
    ids=lambda p: p.name,
)
def test_conditional_and_marginal_losses_differ_by_a_constant(prediction):
    """Same gradient in expectation; values apart by a constant that does not depend on the parameters.

    Both losses see the same draws, so differences are averaged: within 5 standard errors of their mean.
    """
    conditional = methods.conditional(apply, PATH, SOURCE, prediction=prediction)
    marginal = methods.marginal(apply, PATH, SOURCE, ORACLE, prediction)
    gaps = []
    for seed in (0, 1):
        (value_c, grad_c), (value_m, grad_m) = draws(conditional, params(seed)), draws(marginal, params(seed))
        for a, b in zip(jax.tree.leaves(grad_c), jax.tree.leaves(grad_m), strict=True):
            gap = np.asarray(a - b)
            assert np.all(np.abs(gap.mean(0)) <= 5 * gap.std(0) / np.sqrt(DRAWS))
            assert np.abs(np.asarray(a).mean(0)).max() > 10 * gap.std(0).max() / np.sqrt(
                DRAWS
            )  # and they are not just zero
        gaps.append(np.asarray(value_c - value_m))
    stderr = np.sqrt(sum(g.var() for g in gaps) / DRAWS)
    assert abs(gaps[0].mean() - gaps[1].mean()) <= 5 * stderr
    assert gaps[0].mean() > 20 * stderr  # the constant itself is far from zero


def test_the_oracle_reaches_zero_marginal_loss_and_the_variance_as_conditional_loss():
    """CondOT, data N(m, s^2): E Var[x1 - x0 | x_t] is the integral of s^2 / (t^2 s^2 + (1 - t)^2) over t."""
    path, s = GaussianPath(CondOT()), 0.5
    oracle = oracles.gaussian(path, 1.0, s)
    net = lambda p, t, x, cond: oracle.velocity(t, x)
    x1 = 1.0 + s * jax.random.normal(jax.random.key(5), (200_000, 1))
    key, source = jax.random.key(0), Normal((1,))
    assert float(methods.marginal(net, path, source, oracle)({}, key, Batch(x1))) < 1e-9
    t = np.linspace(0, 1, 100_001)
    expected = np.trapezoid(s**2 / (t**2 * s**2 + (1 - t) ** 2), t)
    got = float(methods.conditional(net, path, source)({}, key, Batch(x1)))
    assert got == pytest.approx(expected, rel=5 * np.sqrt(2.5 / 200_000) * 2)


def test_the_marginal_loss_leaves_out_elements_that_do_not_exist():
    """Elements behind the mask change neither the value nor what the network returns for the others."""
    oracle = oracles.gaussian(PATH, 1.0, 0.5)
    masks = []

    def net(p, t, x, cond, mask):
        masks.append(mask)
        return jnp.where(mask[..., None], x, 1e6)

    x1, mask = jax.random.normal(jax.random.key(0), (4, 3, 2)), jnp.arange(3) < jnp.array([[1], [2], [3], [0]])
    loss = methods.marginal(net, PATH, Normal((3, 2)), oracle)
    value = float(loss({}, jax.random.key(1), Batch(x1, mask=mask)))
    assert masks[0] is mask
    assert 0 < value < 100
    with pytest.raises(ValueError, match="leave x0 out of the batch"):
        loss({}, jax.random.key(1), Batch(x1, x0=x1, mask=mask))


def test_ot_pairs_lower_the_conditional_loss():
    """The target is less noisy under optimal transport: Pooladian et al. 2023."""
    x1 = MIXTURE.sample(jax.random.key(0), 128)
    net = lambda p, t, x, cond: ORACLE.velocity(t, x)
    path = AffinePath(Cosine())
    loss = lambda coupling: float(methods.conditional(net, path, SOURCE, coupling)({}, jax.random.key(1), Batch(x1)))
    assert loss(MinibatchOT()) < loss(None)


def test_same_key_same_bits():
    loss = methods.conditional(apply, PATH, SOURCE)
    batch = Batch(MIXTURE.sample(jax.random.key(0), 8))
    assert float(loss(params(0), jax.random.key(1), batch)) == float(loss(params(0), jax.random.key(1), batch))
    assert float(loss(params(0), jax.random.key(1), batch)) != float(loss(params(0), jax.random.key(2), batch))


def test_a_batch_of_one_and_none():
    loss = methods.conditional(apply, PATH, SOURCE)
    assert np.isfinite(loss(params(0), jax.random.key(1), Batch(jnp.ones((1, 2)))))
    with pytest.raises(ValueError, match="empty"):
        loss(params(0), jax.random.key(1), Batch(jnp.ones((0, 2))))


def test_a_gaussian_path_keeps_its_promise():
    with pytest.raises(ValueError, match="use AffinePath"):
        methods.conditional(apply, PATH, SOURCE, MinibatchOT())
    with pytest.raises(ValueError, match=r"needs the source N\(0, I\)"):
        methods.conditional(apply, PATH, Uniform((2,)))
