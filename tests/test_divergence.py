"""Divergence estimators against the trace of a Jacobian that is known, and their standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import likelihood
from flowjax.keys import row_keys
from flowjax.likelihood import Exact, Hutchinson, HutchPlusPlus, memory
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic

A = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
"""A matrix that is not symmetric."""

KINDS = [
    Hutchinson(2),
    Hutchinson(2, "gaussian"),
    Hutchinson(8, "orthogonal"),
    HutchPlusPlus(3),
    HutchPlusPlus(6),
]


def linear(x):
    """Events (5, 1), to cover those with more than one axis."""
    return jnp.einsum("ij,bjk->bik", A, x)


def estimates(estimator, rows, v=linear, shape=(5, 1), seed=0):
    """K estimates at the same point with the probes of different rows, (rows, K)."""
    keys = row_keys(jax.random.key(seed), rows)
    probes = jax.vmap(lambda key: estimator.draw(key, shape, jnp.float32))(keys)
    x = jnp.ones((rows, *shape))
    y, found = jax.jit(lambda x, probes: estimator(v, x, probes))(x, probes)
    np.testing.assert_allclose(y, v(x), rtol=1e-5)
    assert found.shape == (rows, estimator.estimates)
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("at_once", [None, 2])
def test_the_exact_divergence_is_the_trace_in_both_modes_and_in_chunks(mode, at_once):
    """div of tanh(x W) is sum_i W_ii (1 - tanh^2), whatever chunks the 5 coordinates are taken in."""
    x = jax.random.normal(jax.random.key(1), (3, 5))
    y, found = Exact(mode, at_once)(lambda x: jnp.tanh(x @ A), x)
    expected = ((1 - np.tanh(np.asarray(x) @ A) ** 2) * np.diag(A)).sum(1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y, np.tanh(np.asarray(x) @ A), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", KINDS, ids=str)
def test_each_estimate_is_unbiased_and_the_estimates_of_a_row_are_uncorrelated(estimator):
    """Within 4.5 standard errors over 4,000 rows; the covariance of two uncorrelated estimates a, b has the standard
    error sd(a) sd(b) / sqrt(rows)."""
    found = estimates(estimator, 4000)
    spread = found.std(0)
    assert (spread > 0.1).all()
    assert (np.abs(found.mean(0) - np.trace(A)) < 4.5 * spread / np.sqrt(4000)).all()
    correlation = np.corrcoef(found.T).reshape(estimator.estimates, -1)
    assert (np.abs(correlation - np.eye(estimator.estimates)) < 4.5 / np.sqrt(4000)).all()


@pytest.mark.parametrize(
    ("kind", "variance"),
    [
        ("gaussian", np.sum((A + A.T) ** 2) / 2),
        ("rademacher", np.sum((A + A.T) ** 2) / 2 - 2 * np.sum(np.diag(A) ** 2)),
    ],
)
def test_the_variance_of_one_probe(kind, variance):
    """|A + A^T|_F^2 / 2 for normal numbers; for signs without the diagonal. The relative standard error of a variance
    from n draws is below sqrt((kurtosis - 1) / n), and the kurtosis of a quadratic form of normals below 15."""
    found = estimates(Hutchinson(1, kind), 20_000)
    assert found.var() == pytest.approx(variance, rel=4 * np.sqrt(14 / 20_000))


def test_a_full_group_of_orthogonal_probes_gives_the_trace():
    found = estimates(Hutchinson(20, "orthogonal"), 3)
    np.testing.assert_allclose(found, np.trace(A), rtol=1e-5)
    np.testing.assert_allclose(estimates(Hutchinson(40, "orthogonal"), 3), np.trace(A), rtol=1e-5)


def test_orthogonal_probes_have_less_variance_than_independent_ones():
    """With 4 of 5 directions per group the mean of 16 probes has a fraction of the variance of 16 normal probes."""
    one = estimates(Hutchinson(16, "orthogonal"), 2000).mean(1).var()
    other = estimates(Hutchinson(16, "gaussian"), 2000).mean(1).var()
    assert one < 0.5 * other


def test_hutch_plus_plus_is_exact_for_a_jacobian_of_its_rank():
    """J = u w^T has rank 1: Q holds u, and nothing is left. A zero Jacobian and too many probes are exact too."""
    u, w = A[0], A[1]
    v = lambda x: jnp.einsum("i,bjk,j->bik", u, x, w)
    np.testing.assert_allclose(estimates(HutchPlusPlus(6), 5, v), u @ w, rtol=1e-4)
    np.testing.assert_allclose(estimates(HutchPlusPlus(6), 5, jnp.zeros_like), 0, atol=1e-6)
    np.testing.assert_allclose(estimates(HutchPlusPlus(24), 5), np.trace(A), rtol=1e-4)


def test_the_gradient_of_hutch_plus_plus_is_unbiased():
    """d tr(s A) / ds = tr A, as Q is a constant of the gradient."""
    rows, estimator = 2000, HutchPlusPlus(6)
    probes = jax.vmap(lambda key: estimator.draw(key, (5, 1), jnp.float32))(row_keys(jax.random.key(0), rows))
    x, slope = jnp.ones((rows, 5, 1)), jnp.ones(rows)
    of = lambda s: estimator(lambda x: s[:, None, None] * linear(x) + x * s[:, None, None] ** 2, x, probes)[1].mean(1)
    found = np.asarray(jax.jvp(of, (jnp.ones(rows),), (slope,))[1], np.float64)
    assert found.std() > 0.1
    assert abs(found.mean() - (np.trace(A) + 10)) < 4.5 * found.std() / np.sqrt(rows)


@pytest.mark.parametrize("estimator", [Hutchinson(64), pytest.param(HutchPlusPlus(192), marks=pytest.mark.slow)])
def test_errors_over_standard_errors_look_standard_normal(estimator):
    """1,000 repetitions with 64 estimates: Student's t of 63 degrees of freedom has a deviation of 1.016; the mean of
    1,000 values has a standard error of 0.03, and their deviation one of 0.023. D = 80 > 64, so that Hutch++ does not
    see the whole Jacobian; the field turns, so that its trace along the solve is not constant."""
    d = 80
    w = jax.random.normal(jax.random.key(3), (d, d)) / np.sqrt(d)
    field = lambda t, x, cond: jnp.tanh(x @ w) * (1 + t)
    x = jnp.tile(0.5 * jax.random.normal(jax.random.key(4), (1, d)), (1000, 1))
    score = lambda x, how: likelihood.log_prob(
        field, x, Normal((d,)), divergence=how, key=jax.random.key(5), solver="rk4", steps=4
    )
    exact = score(x[:1], "exact")
    found = score(x, estimator)
    assert exact.standard_error is not None
    assert found.standard_error is not None
    assert float(exact.standard_error[0]) == 0
    z = np.asarray((found.log_prob - exact.log_prob) / found.standard_error, np.float64)
    assert abs(z.mean()) < 0.1
    assert abs(z.std() - 1) < 0.1


def test_the_standard_error_of_one_estimate_is_unknown():
    x = jnp.ones((2, 5))
    found = likelihood.log_prob(
        lambda t, x, cond: x @ A, x, Normal((5,)), divergence="hutchinson", key=jax.random.key(0), steps=2
    )
    assert found.standard_error is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hutchinson(6, "orthogonal"), "multiple of 4, not 6"),
        (lambda: Hutchinson(1, "gausian"), "did you mean 'gaussian'"),  # pyright: ignore
        (lambda: HutchPlusPlus(4), "multiple of 3, such as 6, not 4"),
        (lambda: Exact("backward"), "unknown mode 'backward'"),  # pyright: ignore
        (lambda: Exact(at_once=0), "at least 1, not 0"),
        (lambda: likelihood.divergence_of("exact", kind="gaussian"), "is for divergence='hutchinson'"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_derivatives_at_once_follow_from_the_memory():
    """y = sin(x W) W': the array cos(x W) of (4, 50) is kept, and two of them are alive at once, the direction times W
    and its product with the cosine. The bound for three directions gives three."""
    w = jnp.ones((5, 50))
    _, push = jax.linearize(lambda x: jnp.sin(x @ w) @ w.T, jnp.ones((4, 5)))
    one, kept = 2 * 4 * 50 * 4, 4 * 50 * 4
    at_once = lambda bound, rows=None: memory.directions_at_once(push, jnp.ones((4, 5)), rows, bound)
    assert at_once(kept + 3 * one + 100) == 3
    assert at_once(10 * (kept + 3 * one) + 100, rows=40) == 3
    assert at_once(10**9) == 5
    with pytest.raises(likelihood.TooLarge, match="divergence='hutchinson'"):
        at_once(kept + one // 2)


def test_an_exact_divergence_that_does_not_fit_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "UNREPORTED", 100)
    score = lambda how: likelihood.log_prob(
        lambda t, x, cond: jnp.tanh(x @ A), jnp.ones((8, 5)), Normal((5,)), divergence=how, key=jax.random.key(0)
    )
    with pytest.raises(likelihood.TooLarge, match="8 rows of 5 numbers needs about"):
        score("exact")
    assert np.isfinite(score("hutchinson").log_prob).all()
