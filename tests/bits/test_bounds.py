"""Variational bounds of known integers: their values against quadrature, and their gaps from the entropy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import oracles
from flowjax.bits import Bins
from flowjax.bits.chain import chain_bound, noised
from flowjax.bits.continuous import LogSnrDensity, continuous_bound
from flowjax.bits.decoders import log_mass_in_bin, log_posterior_of_bin
from flowjax.keys import fold_rows
from flowjax.paths import GaussianPath
from flowjax.paths.transition import transition
from flowjax.schedules import VP, CondOT
from flowjax.sources import Normal
from tests.bits.known import PROBABILITIES, pixels, points

pytestmark = pytest.mark.analytic

SPEC = pixels((1,))
CENTRES = np.asarray(SPEC.to_model(np.arange(4.0)[:, None] + 0.5))[:, 0].astype(float)
WIDTH = SPEC.bins.smallest
ENTROPY = -float(PROBABILITIES @ np.log(PROBABILITIES))
GRID = np.linspace(-9, 9, 4_001)
ROWS = 20_000


def levels_of(path, times):
    """alpha and sigma at the times, in float64."""
    with jax.enable_x64(True):
        r = path.rates(jnp.asarray(times, float), jnp.zeros((len(times), 1)))
        return np.asarray(r.alpha)[:, 0], np.asarray(r.sigma)[:, 0]


def posterior_mean(z, alpha, sigma):
    """E[c | z] of the four points, with z (N,)."""
    weights = PROBABILITIES * stats.norm.pdf(z[:, None], alpha * CENTRES, sigma)
    return weights @ CENTRES / weights.sum(1)


def normal_divergence(mean, var, other, other_var):
    return 0.5 * (var / other_var + (mean - other) ** 2 / other_var - 1 - np.log(var / other_var))


def expected_chain(path, times, scale):
    """The three terms of the bound for each of the four integers, by quadrature in float64. The posterior of a step is
    Bayes' rule for the product of two normals, not the formula of the code."""
    a, s = levels_of(path, times)
    terms = np.zeros((4, 3))
    for x, c in enumerate(CENTRES):
        terms[x, 0] = normal_divergence(a[0] * c, s[0] ** 2, 0, scale**2)
        for k in range(len(times) - 1):
            z = a[k] * c + s[k] * GRID
            ratio = a[k] / a[k + 1]
            noise = s[k] ** 2 - ratio**2 * s[k + 1] ** 2
            var = 1 / (1 / s[k + 1] ** 2 + ratio**2 / noise)
            mean = lambda c, z=z, k=k, var=var, ratio=ratio, noise=noise: (
                var * (a[k + 1] * c / s[k + 1] ** 2 + ratio * z / noise)
            )
            guess = posterior_mean(z, a[k], s[k])
            kl = normal_divergence(mean(c), var, mean(guess), var)
            terms[x, 1] += np.trapezoid(stats.norm.pdf(GRID) * kl, GRID)
        z = a[-1] * c + s[-1] * GRID
        guess, std = posterior_mean(z, a[-1], s[-1]), s[-1] / a[-1]
        low = -np.inf if x == 0 else (c - WIDTH / 2 - guess) / std
        high = np.inf if x == 3 else (c + WIDTH / 2 - guess) / std
        mass = stats.norm.cdf(high) - stats.norm.cdf(low)
        terms[x, 2] = -np.trapezoid(stats.norm.pdf(GRID) * np.log(np.maximum(mass, 1e-300)), GRID)
    return terms


def estimated(bound):
    """The mean terms of the bound for each of the four integers, with the standard error of their sum."""
    found = []
    for x in range(4):
        edges = jnp.broadcast_to(jnp.asarray(SPEC.to_model(np.full((1, 1), float(x)))), (ROWS, 1))
        keys = jax.random.split(jax.random.key(x), ROWS)
        found.append(bound(keys, edges))
    means = np.array([[float(term.mean()) for term in one] for one in found])
    return means, np.array([float(one.total.std()) / math.sqrt(ROWS) for one in found])


@pytest.mark.parametrize("draws", [5, 2])
def test_the_bound_of_a_chain_is_that_of_quadrature_and_above_the_entropy(draws):
    """Six levels of VP from t = 0.4 to a last one where half a bin is two standard deviations of the noise, so that no
    term vanishes. Means of 20,000 rows, within 4 standard errors, with all steps and with two at random."""
    path = GaussianPath(VP())
    end = float(VP().time_of_log_snr(2 * math.log(2 / (WIDTH / 2))))
    times = np.linspace(0.4, end, 6).astype(np.float32)
    oracle, scale = points(path, SPEC, np.arange(4)[:, None], PROBABILITIES), 1.1
    bound = jax.jit(
        lambda keys, edges: chain_bound(
            oracle, Normal((1,), scale=scale), SPEC.bins, keys, edges, times=jnp.asarray(times), draws=draws
        )
    )
    means, errors = estimated(bound)
    expected = expected_chain(path, times, scale)
    assert expected.min() > 1e-3
    np.testing.assert_allclose(means[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(means.sum(1) - expected.sum(1)) < 4 * errors + 1e-4)
    assert np.all(np.abs(means[:, 2] - expected[:, 2]) < 4 * errors + 1e-4)
    assert PROBABILITIES @ expected.sum(1) > ENTROPY


def test_all_steps_of_a_chain_take_no_random_numbers_for_the_choice():
    """With the same noise, a chain whose draws are all its steps is the sum of the terms of each step."""
    path, times = GaussianPath(VP()), jnp.linspace(0.4, 0.9, 5)
    oracle = points(path, SPEC, np.arange(4)[:, None], PROBABILITIES)
    keys, edges = jax.random.split(jax.random.key(0), 8), jnp.asarray(SPEC.to_model(np.full((8, 1), 1.0)))
    found = chain_bound(oracle, Normal((1,)), SPEC.bins, keys, edges, times=times, draws=4)
    total, centres = jnp.zeros(8), SPEC.bins.centres(edges)
    for i in range(4):
        z, _ = noised(path, fold_rows(keys, i), jnp.full(8, times[i]), centres)
        q = transition(path, times[i], times[i + 1], z)
        total += 0.5 * ((q.from_x1 * (centres - oracle.ends(times[i], z).x1)) ** 2 / q.small)[:, 0]
    np.testing.assert_allclose(found.diffusion, total, rtol=1e-4)


def test_more_steps_tighten_the_bound_to_the_entropy():
    """By quadrature, for a last level whose noise stays within the bin and a first one with alpha = 0.0066. The gap
    falls as 1 / n."""
    path = GaussianPath(VP())
    end = float(VP().time_of_log_snr(2 * math.log(4 / (WIDTH / 2))))
    gaps = []
    for n in (20, 160, 640):
        terms = expected_chain(path, np.linspace(0, end, n), float(VP().sigma(0.0)))
        gaps.append(float(PROBABILITIES @ terms.sum(1)) - ENTROPY)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert 3.2 < gaps[1] / gaps[2] < 4.8


@pytest.mark.parametrize("schedule", [VP(), CondOT()])
def test_the_gap_of_the_continuous_bound_is_that_of_its_ends(schedule):
    """With the exact network, the mean over the integers of the bound minus the entropy is the divergence of q(z_0)
    from the prior plus the mean divergence of the integers given z_1 from the decoder, which gives all integers the
    same prior probability. Both are 0.02 or more here, by quadrature. Means of 20,000 rows with 8 values each, within 4
    standard errors. The density of the log-SNR is uneven, which changes the variance only."""
    path, half = GaussianPath(schedule), WIDTH / 2
    start, end = (float(schedule.time_of_log_snr(2 * math.log(r))) for r in (0.35, 1.2 / half))
    times = (start, end)
    (a, s), low, high = levels_of(path, times), *(float(schedule.log_snr(t)) for t in times)
    oracle, scale = points(path, SPEC, np.arange(4)[:, None], PROBABILITIES), 1.2 * s_of(schedule, start)
    density = LogSnrDensity(low, high, jnp.array([0.5, 1.0, 0.0, -1.0]))
    bound = jax.jit(
        lambda keys, edges: continuous_bound(
            oracle, Normal((1,), scale=scale), SPEC.bins, keys, edges, interval=times, density=density, draws=8
        )
    )
    means, errors = estimated(bound)
    grid = np.linspace(-14, 14, 40_001)
    of = lambda z, k: PROBABILITIES * stats.norm.pdf(z[:, None], a[k] * CENTRES, s[k])
    q0 = of(grid, 0).sum(1)
    log_prior = stats.norm.logpdf(grid, 0, scale)
    gap_prior = np.trapezoid(q0 * (np.log(np.maximum(q0, 1e-300)) - log_prior), grid)
    z = np.concatenate([a[1] * c + s[1] * GRID for c in CENTRES])
    joint = of(z, 1)
    same = stats.norm.pdf(z[:, None], a[1] * CENTRES, s[1])
    log_ratio = np.log(joint.sum(1) / same.sum(1))[:, None] - np.log(PROBABILITIES)  # log p(x | z) / q(x | z)
    weights = np.repeat(PROBABILITIES, GRID.size) * np.tile(stats.norm.pdf(GRID) * (GRID[1] - GRID[0]), 4)
    own = np.repeat(np.arange(4), GRID.size)
    gap_decoder = float(weights @ -log_ratio[np.arange(z.size), own])
    assert gap_prior > 0.02
    assert gap_decoder > 0.02
    stderr = math.sqrt(float(PROBABILITIES**2 @ errors**2))
    assert abs(float(PROBABILITIES @ means.sum(1)) - ENTROPY - gap_prior - gap_decoder) < 4 * stderr + 1e-3
    assert stderr < 0.01


def s_of(schedule, t):
    return float(schedule.sigma(t))


def test_the_mass_in_a_bin_is_that_of_scipy_and_far_away_it_is_finite():
    """Against differences of distribution functions in float64, where these do not vanish; the bins of all pixels sum
    to one. 200 standard deviations away the mass is about exp(-(200 - 1/2)^2 / 2) up to a factor of 400."""
    bins = Bins((0.5,), (-0.75,), 4)
    edges = jnp.array([[-1.0], [-0.5], [0.0], [0.5]])
    mean, std = jnp.full((4, 1), 0.1), 0.3
    found = np.asarray(log_mass_in_bin(mean, jnp.asarray(std), edges, bins))
    cuts = np.array([-np.inf, -0.5, 0.0, 0.5, np.inf])
    exact = np.diff(stats.norm.cdf(cuts, 0.1, 0.3))
    np.testing.assert_allclose(found, np.log(exact), rtol=2e-5)
    assert np.exp(found.astype(float)).sum() == pytest.approx(1, abs=1e-5)
    inner = log_mass_in_bin(mean[:1], jnp.asarray(std), edges[:1], Bins((0.5,)))  # every integer is possible
    low, high = stats.norm.cdf([-1.0, -0.5], 0.1, 0.3)
    np.testing.assert_allclose(inner, np.log(high - low), rtol=2e-5)
    far = float(log_mass_in_bin(jnp.full((1, 1), 100.0), jnp.asarray(0.5), edges[1:2], bins)[0])
    assert far == pytest.approx(-0.5 * 200.0**2, rel=0.01)
    assert math.isfinite(float(log_mass_in_bin(jnp.full((1, 1), -100.0), jnp.asarray(0.5), edges[1:2], bins)[0]))


@pytest.mark.parametrize("std", [0.05, 0.4, 3.0])
def test_the_posterior_of_a_bin_is_that_of_all_bins(std):
    bins = Bins((0.5,), (-0.75,), 4)
    edges = jnp.array([[-1.0], [-0.5], [0.0], [0.5]])
    z = jnp.array([[-0.9], [-0.1], [0.4], [1.5]])
    found = log_posterior_of_bin(z, std, edges, bins)
    centres = np.arange(4) * 0.5 - 0.75
    logits = stats.norm.logpdf(np.asarray(z, float), centres, std)
    exact = (logits - np.logaddexp.reduce(logits, 1, keepdims=True))[np.arange(4), np.arange(4)]
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    counts = log_posterior_of_bin(z, std, edges, Bins((0.5,), (-0.75,)))
    many = np.arange(-400, 400) * 0.5 - 0.75
    all_logits = stats.norm.logpdf(np.asarray(z, float), many, std)
    own = np.diag(stats.norm.logpdf(np.asarray(z, float), centres, std))
    expected = own - np.logaddexp.reduce(all_logits, 1)
    np.testing.assert_allclose(counts, expected, rtol=1e-4, atol=1e-5)
    of_array = jax.jit(lambda s: log_posterior_of_bin(z, s, edges, Bins((0.5,), (-0.75,)), largest=std))
    np.testing.assert_allclose(of_array(jnp.asarray(std)), expected, rtol=1e-4, atol=1e-5)


def test_the_schedule_of_a_density_is_the_inverse_of_its_distribution_function():
    density = LogSnrDensity(-3.0, 5.0, jnp.array([0.0, 1.0, -2.0, 0.3]))
    s = jnp.linspace(0.001, 0.999, 57)
    slope = jax.vmap(jax.grad(density.schedule))(s)
    np.testing.assert_allclose(slope, jnp.exp(-density.log_density(density.schedule(s))), rtol=1e-3)
    np.testing.assert_allclose(density.schedule(jnp.array([0.0, 1.0])), [-3.0, 5.0], atol=1e-5)


def test_an_oracle_of_points_is_the_denoiser_of_the_quadrature():
    path = GaussianPath(VP())
    oracle = oracles.Oracle(path, jnp.asarray(CENTRES[:, None]), jnp.zeros(4), jnp.log(jnp.asarray(PROBABILITIES)))
    a, s = levels_of(path, [0.6])
    z = np.linspace(-2, 2, 9)
    got = oracle.ends(0.6, jnp.asarray(z[:, None], jnp.float32)).x1[:, 0]
    np.testing.assert_allclose(got, posterior_mean(z, a[0], s[0]), atol=1e-4)
