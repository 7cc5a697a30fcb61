"""The variational bound of a chain, against the entropy of Gaussian data and against Gaussian divergences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles
from flowjax.batch import Batch
from flowjax.methods import Context, Network, Variational, times
from flowjax.methods.variational import bound_term
from flowjax.paths import GaussianPath
from flowjax.paths.transition import transition
from flowjax.predictions import Ends, noise, noise_variance
from flowjax.schedules import VP, CondOT, ddpm_linear
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic


def expected_bound(n, variance, std):
    """Every term of the bound for N(0, std^2) data and the exact denoiser, in closed form: errors are linear in x_t."""
    path = GaussianPath(VP())
    t = jnp.linspace(0.0, VP.t_max, n)
    r = path.rates(t, jnp.zeros(n))
    total = r.alpha**2 * std**2 + r.sigma**2
    posterior = std**2 * r.sigma**2 / total  # variance of x1 given x_t
    q = transition(path, t[:-1], t[1:], jnp.zeros(n - 1))
    var = q.small if variance == "small" else q.large
    nats = 0.5 * float((q.small / var - 1 - jnp.log(q.small / var) + q.from_x1**2 * posterior[:-1] / var).sum())
    decoder = (r.sigma[-1] / r.alpha[-1]) ** 2
    nats += 0.5 * float(posterior[-1] / decoder + jnp.log(2 * jnp.pi * decoder))
    prior = 0.5 * float(total[0] / r.sigma[0] ** 2 - 1 - jnp.log(r.sigma[0] ** 2 / r.sigma[0] ** 2))
    return nats + prior - 0.5 * float(r.alpha[0] ** 2 * std**2 / r.sigma[0] ** 2)


def bound(apply, *arguments):
    """`loss(params, key, batch)` of the bound with a plain function as the network."""
    method = Variational(Network.from_function(apply), *arguments)
    return lambda params, key, batch: method.loss(params, Context(), key, batch)


def test_the_loss_estimates_the_sum_of_its_terms():
    """Mean of the loss over many draws = closed form without the constant first term, within 5 standard errors."""
    path = GaussianPath(VP())
    oracle, n = oracles.gaussian(path, 0.0, 0.5), 20
    apply = lambda params, t, x, cond: oracle.ends(t, x).x0
    loss = jax.jit(bound(apply, path, Normal((1,)), noise, times.Levels(n), "large"))
    x1 = 0.5 * jax.random.normal(jax.random.key(0), (20_000, 1))
    values = np.array([float(loss(None, jax.random.key(i), Batch(x1)).value) for i in range(20)])
    low = noise.interval(path)[0]
    assert low == 0.0  # VP's alpha never falls below a thousandth
    assert values.mean() == pytest.approx(expected_bound(n, "large", 0.5), abs=5 * values.std() / np.sqrt(20) + 1e-3)


def test_the_bound_tightens_to_the_entropy():
    """For N(0, s^2) data the bound falls to the entropy 1/2 log(2 pi e s^2) as 1 / n: halving the steps doubles the
    gap."""
    with jax.enable_x64(True):
        entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
        gaps = [expected_bound(n, "large", 0.5) - entropy for n in (200, 400, 800)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.35)


def test_a_term_is_the_divergence_of_two_normals():
    """KL of q(x_s | x_t, x1) from N(model mean, variance), by quadrature."""
    path = GaussianPath(VP())
    t, s = jnp.array([0.5]), jnp.array([0.6])
    x, x1 = jnp.array([[0.7]]), jnp.array([[1.0]])
    ends = Ends(jnp.array([[0.3]]), jnp.array([[0.4]]), None, jnp.array([[0.3]]))
    q = transition(path, t, s, x)
    grid = np.linspace(-6, 6, 400_001)
    normal = lambda m, v: np.exp(-((grid - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
    for kind, var in (("small", q.small), ("large", q.large), ("learned", q.large**0.3 * q.small**0.7)):
        a = normal(float((q.from_x * x + q.from_x1 * x1).squeeze()), float(q.small.squeeze()))
        b = normal(float((q.from_x * x + q.from_x1 * ends.x1).squeeze()), float(var.squeeze()))
        kl = np.trapezoid(a * np.log(np.maximum(a, 1e-300) / np.maximum(b, 1e-300)), grid)
        got = bound_term(path, t, s, jnp.array([False]), x, x1, ends, kind)
        assert float(got[0]) == pytest.approx(kl, rel=1e-3)


def test_the_hybrid_teaches_the_variance_and_the_simple_loss_the_mean():
    """The bound's gradient reaches the second head alone; the first has that of the squared error of the noise."""
    path = GaussianPath(ddpm_linear(50))
    apply = lambda params, t, x, cond: jnp.concatenate([params["mean"] * x, params["spread"] + 0 * x], -1)
    params = {"mean": jnp.asarray(0.3), "spread": jnp.asarray(0.0)}
    make = lambda hybrid: bound(apply, path, Normal((2,)), noise_variance, times.Levels(50), "learned", hybrid)
    batch = Batch(0.5 * jax.random.normal(jax.random.key(0), (512, 2)))
    value = lambda hybrid: lambda p: make(hybrid)(p, jax.random.key(1), batch).value
    grad, full = jax.grad(value(True))(params), jax.grad(value(False))(params)
    assert abs(float(grad["spread"])) == pytest.approx(1e-3 * abs(float(full["spread"])), rel=1e-3)
    assert float(grad["spread"]) != 0
    assert float(grad["mean"]) != pytest.approx(float(full["mean"]), rel=0.1)


def test_a_learned_variance_needs_its_head():
    path = GaussianPath(VP())
    loss = bound(lambda p, t, x, c: x, path, Normal((1,)), noise, times.Levels(5), "learned")
    with pytest.raises(ValueError, match="noise_variance"):
        loss(None, jax.random.key(0), Batch(jnp.ones((4, 1))))


def test_a_chain_that_ends_in_the_data_is_refused():
    with pytest.raises(ValueError, match="needs noise at its last level"):
        bound(lambda p, t, x, c: x, GaussianPath(CondOT()), Normal((1,)), noise, times.Levels(5))
