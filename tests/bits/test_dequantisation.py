"""Dequantisation bounds against probabilities of integers in closed form, and their gaps against quadrature."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from flowjax import oracles
from flowjax.bits import Bins, TruncatedNormal, Uniform, time_of_truncated_normal
from flowjax.errors import ConfigError
from flowjax.inference import scoring
from flowjax.inference.choose import SolverSettings
from flowjax.paths import AffinePath, GaussianPath
from flowjax.schedules import VP, CondOT, Cosine
from tests.bits.known import IMAGES, PROBABILITIES, SHARES, pixels, points, run_of

FINE = SolverSettings(rtol=1e-6, atol=1e-6)
ROWS = 4000


def draws(noise, edges, k, rows=ROWS):
    """K x rows draws of the noise of one example, each from its own key."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(k * rows))
    found = noise(keys, jnp.broadcast_to(edges, (k * rows, *edges.shape)))
    return found.z.reshape(k, rows, *edges.shape), np.asarray(found.log_q).reshape(k, rows)


def averaged(log_weights):
    """log (1 / K) sum_k w_k of log-weights (K, rows), as `scoring.log_prob` computes it from the draws."""
    k = len(log_weights)
    return scoring.log_sum([scoring.LogDensities(one, 1) for one in log_weights], [-math.log(k)] * k).log_prob


def uniform_bound(k, mean, std):
    """E log (1 / K) sum p(u_k) for u uniform on [0, 1) and p = N(mean, std^2), by quadrature with K = 1 or 2."""
    p = lambda u: stats.norm.pdf(u, mean, std)
    if k == 1:
        return integrate.quad(lambda u: np.log(p(u)), 0, 1)[0]
    return integrate.dblquad(lambda u, v: np.log((p(u) + p(v)) / 2), 0, 1, 0, 1)[0]


@pytest.mark.analytic
def test_uniform_noise_has_the_bound_of_quadrature_and_k_draws_tighten_it():
    """p = N(0.9, 0.5^2) on the bin [0, 1). The gap at K = 1 is the KL divergence of the uniform distribution from p
    given the bin. For large K the gap is Var(w) / (2 K E[w]^2) up to K^-2. Means over 4,000 rows, within 4 standard
    errors."""
    mean, std = 0.9, 0.5
    log_p = np.log(stats.norm.cdf(1, mean, std) - stats.norm.cdf(0, mean, std))
    kl = integrate.quad(lambda u: log_p - stats.norm.logpdf(u, mean, std), 0, 1)[0]
    moment = integrate.quad(lambda u: stats.norm.pdf(u, mean, std) ** 2, 0, 1)[0]
    slope = (moment / math.exp(2 * log_p) - 1) / 2
    expected = {1: log_p - kl, 2: uniform_bound(2, mean, std), 64: log_p - slope / 64}
    assert uniform_bound(1, mean, std) == pytest.approx(log_p - kl)
    found = {}
    for k, value in expected.items():
        z, log_q = draws(Uniform(Bins((1.0,))), jnp.zeros(1), k)
        bound = averaged(stats.norm.logpdf(np.asarray(z)[..., 0], mean, std) - log_q)
        found[k] = bound.mean()
        assert abs(found[k] - value) < 4 * bound.std() / math.sqrt(ROWS)
    assert found[1] + 0.05 < found[2] < found[64] < log_p


def _expected(p, centre, sigma, tau):
    """q log(p / q) for the normal distribution at the centre, truncated to tau standard deviations."""
    q = lambda z: stats.norm.pdf(z, centre, sigma) / (2 * stats.norm.cdf(tau) - 1)
    return lambda z: q(z) * math.log(p(z) / q(z))


@pytest.mark.analytic
@pytest.mark.parametrize("schedule", [CondOT(), VP()])
@pytest.mark.parametrize("tau", [0.7, 2.0])
def test_truncated_normal_noise_has_the_bound_of_quadrature(schedule, tau):
    """Points at the centres of four bins. The noise of neighbours reaches into the box, so that the probability of the
    box differs from the weight of its point; the bound, by quadrature of E_q log(p / q), is below it. Means over 4,000
    rows, within 4 standard errors and the rounding of 1e-5 of float32."""
    path, spec = GaussianPath(schedule), pixels((1,))
    time = float(schedule.time_of_log_snr(2 * math.log(2 * tau / spec.bins.smallest)))
    noise = TruncatedNormal(spec.bins, path, time)
    alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
    width = alpha * spec.bins.smallest
    assert width / (2 * sigma) == pytest.approx(tau, rel=1e-4)
    oracle = points(path, spec, np.arange(4)[:, None], PROBABILITIES)
    centres = alpha * np.asarray(oracle.means)[:, 0].astype(float)
    p = lambda z: float((PROBABILITIES * stats.norm.pdf(z, centres, sigma)).sum())
    for k in (0, 3):
        low, high = centres[k] - width / 2, centres[k] + width / 2
        exact = math.log(integrate.quad(p, low, high)[0])
        bound = integrate.quad(_expected(p, centres[k], sigma, tau), low, high)[0]
        edges = jnp.asarray(spec.to_model(np.full((1, 1), float(k))))[0]
        z, log_q = draws(noise, edges, 1)
        assert float(jnp.abs(z - centres[k]).max()) <= width / 2 * (1 + 1e-5)
        log_p = np.asarray(oracle.log_prob(time, z[0])) + math.log(spec.bins.smallest)
        found = log_p - log_q[0]
        assert abs(found.mean() - bound) < 4 * found.std() / math.sqrt(ROWS) + 1e-5
        assert bound < exact
        several = draws(noise, edges, 50)
        weights = np.asarray(oracle.log_prob(time, several[0].reshape(-1, 1))).reshape(50, ROWS) - several[1]
        tight = averaged(weights + math.log(spec.bins.smallest))
        assert abs(tight.mean() - exact) < (exact - bound) / 20 + 4 * tight.std() / math.sqrt(ROWS) + 1e-5


@pytest.mark.analytic
@pytest.mark.parametrize("schedule", ["condot", pytest.param("cosine", marks=pytest.mark.slow)])
def test_of_an_exact_network_truncated_normal_noise_loses_only_the_noise_outside_the_box(schedule):
    """Three images of 2 x 2 pixels with known probabilities: log P + 4 log(2 Phi(4) - 1) for each draw, where the ODE
    at a tolerance of 1e-6 leaves 2e-3. The noise of the nearest other image is 8 standard deviations away."""
    run = run_of(pixels((2, 2, 1)), schedule, lambda path: points(path, pixels((2, 2, 1)), IMAGES, SHARES))
    given = {"solver": FINE, "dequantisation": "truncated_normal"}
    found = scoring.log_prob(run, IMAGES.astype(np.float32), **given).log_prob
    np.testing.assert_allclose(found, np.log(SHARES) + 4 * math.log(2 * stats.norm.cdf(4) - 1), atol=2e-3)


@pytest.mark.analytic
def test_the_density_and_all_draws_of_a_run_give_the_probability_of_normal_integers():
    """A model with the density N(1.2, 0.6^2) of the dequantised data, in model space: its integers have known
    probabilities. The mean of 512 equal rows at K = 1 against quadrature, within 4 standard errors."""
    spec = dataclasses.replace(pixels((1,)), dequantisation="uniform")
    scale, shift = spec.normalise.scale, spec.normalise.shift
    run = run_of(spec, "condot", lambda path: oracles.gaussian(path, (1.2 - shift) / scale, 0.6 / scale))
    x = np.ones((512, 1), np.float32)
    exact = math.log(stats.norm.cdf(2, 1.2, 0.6) - stats.norm.cdf(1, 1.2, 0.6))
    one = scoring.log_prob(run, x, solver=FINE).log_prob
    expected = integrate.quad(lambda u: stats.norm.logpdf(1 + u, 1.2, 0.6), 0, 1)[0]
    assert abs(one.mean() - expected) < 4 * one.std() / math.sqrt(512) + 1e-4
    several = scoring.log_prob(run, x, solver=FINE, importance_samples=8).log_prob
    assert one.mean() < several.mean() < exact + 4 * several.std() / math.sqrt(512)
    assert exact - several.mean() < (exact - expected) / 4
    again = scoring.log_prob(run, x[:5], solver=FINE, importance_samples=8, batch=16).log_prob
    np.testing.assert_allclose(again, several[:5], atol=1e-4)  # a row depends on the seed and its number only


@pytest.mark.analytic
def test_the_time_of_the_noise_is_where_half_a_bin_is_four_standard_deviations():
    bins = Bins((0.5, 0.25))
    for schedule in (CondOT(), Cosine(), VP()):
        time = time_of_truncated_normal(GaussianPath(schedule), bins, (schedule.t_min, schedule.t_max))
        assert 0.125 * float(schedule.alpha(time) / schedule.sigma(time)) == pytest.approx(4, rel=1e-3)
    assert time_of_truncated_normal(GaussianPath(CondOT()), bins, (0.0, 0.9)) == 0.9


def test_uniform_noise_leaves_real_numbers_as_they_are():
    z, log_q = draws(Uniform(Bins((0.0, 0.5))), jnp.array([0.3, -0.1]), 1, 50)
    assert set(np.asarray(z[0, :, 0]).tolist()) == {np.float32(0.3)}
    assert np.asarray(z[0, :, 1]).min() >= np.float32(-0.1)
    assert np.asarray(z[0, :, 1]).max() < 0.4
    assert not log_q.any()


@pytest.mark.parametrize(
    ("path", "x", "options", "message"),
    [
        ("gaussian", [[1.0]], {"importance_samples": 0}, "importance_samples must be at least 1, not 0"),
        ("gaussian", [[1.0]], {"dequantisation": "normal"}, "unknown dequantisation 'normal'"),
        ("gaussian", [[1.5]], {"dequantisation": "uniform"}, "are for integers, and the points are real numbers"),
        ("gaussian", [[1.5]], {"importance_samples": 2}, "are for integers, and the points are real numbers"),
        ("affine", [[1.0]], {"dequantisation": "truncated_normal"}, "needs a model with a Gaussian path"),
        ("gaussian", [[1.0]], {"dequantisation": "variational"}, "needs a model that has learned the noise"),
    ],
)
def test_refusals(path, x, options, message):
    spec = pixels((1,))
    run = run_of(spec, "condot", lambda path: oracles.gaussian(path, 0.0, 0.5))
    if path == "affine":
        run = dataclasses.replace(run, method=dataclasses.replace(run.method, path=AffinePath(CondOT())))
    with pytest.raises(ConfigError, match=message):
        scoring.log_prob(run, np.asarray(x, np.float32), **options)


def test_data_of_real_numbers_have_no_dequantisation():
    spec = dataclasses.replace(pixels((1,)), levels=0, dequantisation="uniform")
    run = run_of(spec, "condot", lambda path: oracles.gaussian(path, 0.0, 0.5))
    with pytest.raises(ConfigError, match=r"the data of this run \(npz\) are real numbers"):
        scoring.log_prob(run, np.ones((1, 1), np.float32), importance_samples=5)
