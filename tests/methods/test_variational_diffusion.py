"""The loss of variational diffusion against quadrature, and its learned schedule against that of least variance."""

import dataclasses
import itertools
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.errors import ConfigError
from flowjax.inference.integer_bounds import integer_bound
from flowjax.inference.run import Run
from flowjax.methods import Context, Network, VariationalDiffusion
from flowjax.paths import GaussianPath
from flowjax.predictions import noise
from flowjax.schedules import VP, bisect_log_snr
from flowjax.sources import Normal
from tests.bits.known import PROBABILITIES, pixels, points

SPEC = pixels((1,))
PATH = GaussianPath(VP())
ORACLE = points(PATH, SPEC, np.arange(4)[:, None], PROBABILITIES)
METHOD = VariationalDiffusion(
    Network.from_function(lambda params, t, x, cond: ORACLE.ends(t, x).x0), PATH, Normal((1,)), noise, SPEC.bins, 8
)
CENTRES = np.asarray(ORACLE.means)[:, 0].astype(float)
ROWS = 4096


@dataclasses.dataclass(frozen=True)
class ByBisection(VP):
    """VP whose inverse has no derivative."""

    def time_of_log_snr(self, log_snr):
        return bisect_log_snr(self, log_snr)


@cache
def moments(power):
    """E |e - e_hat|^power at 801 values of the log-SNR, in float64."""
    log_snr = np.linspace(*METHOD.fixed_ends(), 801)
    grid = np.linspace(-7, 7, 1401)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    found = np.zeros(len(log_snr))
    for i, (a, s) in enumerate(zip(alpha, sigma, strict=True)):
        for weight, c in zip(PROBABILITIES, CENTRES, strict=True):
            z = a * c + s * grid
            likely = PROBABILITIES * stats.norm.pdf(z[:, None], a * CENTRES, s)
            error = grid - (z - a * (likely @ CENTRES / likely.sum(1))) / s
            found[i] += weight * np.trapezoid(stats.norm.pdf(grid) * np.abs(error) ** power, grid)
    return log_snr, found


def batch(key):
    x = jax.random.choice(key, 4, (ROWS, 1), p=jnp.asarray(PROBABILITIES))
    return Batch(SPEC.prepare(key, x))


@jax.jit
def value_and_grad(logits, i):
    """The loss of a batch with the logits of the schedule, and its gradient with respect to them."""
    key_data, key = (jax.random.fold_in(jax.random.key(seed), i) for seed in (0, 1))

    def loss(logits):
        found = METHOD.loss({"network": None, "log_snr": logits}, Context(), key, batch(key_data))
        return found.value, found.metrics["loss_std"]

    return jax.value_and_grad(loss, has_aux=True)(logits)


@pytest.mark.analytic
def test_the_loss_is_the_integral_over_the_log_snr_for_every_schedule():
    """Within 4 standard errors of 60 batches of 4,096 rows, for an even and an uneven schedule."""
    log_snr, square = moments(2)
    expected = 0.5 * np.trapezoid(square, log_snr)
    for logits in (jnp.zeros(8), jnp.linspace(-1.0, 1.0, 8)):
        values = np.array([float(value_and_grad(logits, i)[0][0]) for i in range(60)])
        assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(60) + 1e-4 * expected
        assert values.std() < 0.1 * expected


@pytest.mark.analytic
def test_the_gradient_of_the_schedule_leads_to_the_least_variance():
    """E w^2 is the integral of m / rho with m = E |e - e_hat|^4 / 4. It is least for masses proportional to the root of
    the integral of m over each bin, which 600 steps of gradient descent find: E w^2 within 2% of its minimum, from more
    than 1.5 times that. Where the minimum is, the gradient is zero within its noise."""
    log_snr, fourth = moments(4)
    edges = np.linspace(log_snr[0], log_snr[-1], 9)
    integral = np.array(
        [
            np.trapezoid(fourth[(log_snr >= low - 1e-9) & (log_snr <= high + 1e-9)], dx=log_snr[1] - log_snr[0])
            for low, high in itertools.pairwise(edges)
        ]
    )
    second = lambda masses: float((integral / 4 / (masses / (edges[1] - edges[0]))).sum())
    best = np.sqrt(integral) / np.sqrt(integral).sum()
    logits = jnp.zeros(8)
    for i in range(600):
        logits = logits - 0.5 * value_and_grad(logits, i)[1]
    found = np.asarray(jax.nn.softmax(logits), float)
    assert second(np.full(8, 1 / 8)) > 1.5 * second(best)
    assert second(found) < 1.02 * second(best)
    gradients = np.array([value_and_grad(jnp.log(jnp.asarray(best, jnp.float32)), i)[1] for i in range(40)])
    assert np.all(np.abs(gradients.mean(0)) < 5 * gradients.std(0) / np.sqrt(40) + 1e-3)


LEARNED = dataclasses.replace(METHOD, learn_ends=True)


def whole_bound(method, ends, key, x1):
    params = {"network": None, "log_snr": jnp.linspace(-1.0, 1.0, 8).astype(x1.dtype), "ends": ends}
    return method.loss(params, Context(), key, Batch(x1)).value


@pytest.mark.analytic
@pytest.mark.parametrize("schedule", [VP(), ByBisection()])
def test_the_gradient_of_the_ends_is_that_of_finite_differences(schedule):
    """In float64 with fixed random numbers. Central differences of step 1e-5 err by 1e-10 times the third derivative,
    which the scale 8 of the parameters makes about 1e3, and by rounding, 1e-11: 1e-6 of values near 1. With an inverse
    of the log-SNR by bisection to 2^-40, the rounding is 1e-12 / 1e-5."""
    with jax.enable_x64(True):
        method, key = dataclasses.replace(LEARNED, path=GaussianPath(schedule)), jax.random.key(3)
        x1 = jnp.asarray(np.asarray(batch(key).x1)[:64], jnp.float64)
        value = jax.jit(partial(whole_bound, method))
        ends = jnp.array([0.05, -0.03])
        found = jax.jit(jax.grad(partial(whole_bound, method)))(ends, key, x1)
        for i, step in enumerate(1e-5 * np.eye(2)):
            slope = (value(ends + step, key, x1) - value(ends - step, key, x1)) / 2e-5
            assert float(found[i]) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)
            assert abs(float(slope)) > 1e-4


def divergence_from_the_prior(log_snr, centre):
    """KL(N(alpha c, sigma^2) || N(0, 1)) of a VP path in float64."""
    alpha2, sigma2 = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    return 0.5 * (sigma2 + alpha2 * centre**2 - 1 - np.log(sigma2))


def reconstruction(log_snr, centre, centres):
    """-E log P(c | z) with z = c + e / sqrt(SNR) by quadrature in float64, if all integers are equally likely."""
    std, e = np.exp(-log_snr / 2), np.linspace(-9, 9, 4001)
    logits = -0.5 * ((centre + std * e[:, None] - centres) / std) ** 2
    return np.trapezoid(stats.norm.pdf(e) * (np.logaddexp.reduce(logits, axis=1) + 0.5 * e**2), e)


@pytest.mark.analytic
@pytest.mark.parametrize("levels", [4, 0])
def test_the_terms_of_both_ends_are_a_closed_form_and_a_quadrature(levels):
    """Means over 2^17 draws, whose 4 standard errors are below 0.01, in a bounded and an unbounded range of integers.
    At this first log-SNR the divergence is 0.17 and 0.07; the last one is that of the most noise."""
    method = dataclasses.replace(LEARNED, integers=dataclasses.replace(SPEC.bins, levels=levels))
    low, high = -0.2, method.fixed_ends()[1] - 2 * np.log(16)
    integers = CENTRES if levels else CENTRES[0] + (CENTRES[1] - CENTRES[0]) * np.arange(-200, 200)
    terms = jax.jit(lambda x, key: method._end_terms(jnp.asarray(low), jnp.asarray(high), x, key))
    for centre in (CENTRES[0], CENTRES[1]):
        found = np.asarray(terms(jnp.full((2**17, 1), centre), jax.random.key(4)), float)
        error = 4 * found.std() / np.sqrt(len(found))
        expected = divergence_from_the_prior(low, centre) + reconstruction(high, centre, integers)
        assert abs(found.mean() - expected) < error + 1e-5
        assert error < 0.01


@pytest.mark.analytic
def test_the_loss_with_learned_ends_adds_the_terms_of_both_ends_per_dimension():
    """In float64, where the learned ends are the fixed ones, since sigmoid(-80) is 1e-35: the same key then gives the
    same middle term."""
    with jax.enable_x64(True):
        network = Network.from_function(lambda params, t, x, cond: jnp.zeros_like(x))
        learned = dataclasses.replace(LEARNED, network=network, source=Normal((2,)))
        x1, key, ends = jnp.asarray(CENTRES.reshape(2, 2)), jax.random.key(5), jnp.full(2, -10.0)
        added, low, high = whole_bound(learned, ends, key, x1), *map(jnp.asarray, learned.fixed_ends())
        added -= whole_bound(dataclasses.replace(learned, learn_ends=False), ends, key, x1)
        terms = learned._end_terms(low, high, x1, jax.random.fold_in(key, 1))
        assert float(terms.mean()) > 1e-5
        assert float(added) == pytest.approx(float(terms.mean()) / 2, rel=1e-6)


@pytest.mark.analytic
def test_the_middle_term_runs_between_the_learned_ends():
    """60 batches of 4,096 rows, within 4 standard errors, against the quadrature over the log-SNR between the ends."""
    value, ends = jax.jit(partial(whole_bound, LEARNED)), jnp.array([0.4, 0.1])
    keys = [tuple(jax.random.fold_in(jax.random.key(seed), i) for seed in (0, 1)) for i in range(60)]
    values = np.array([float(value(ends, key, batch(data).x1)) for data, key in keys])
    low, high = (float(end) for end in LEARNED.ends({"ends": ends}))
    log_snr, square = moments(2)
    between = np.linspace(low, high, 801)
    expected = 0.5 * np.trapezoid(np.interp(between, log_snr, square), between)
    for probability, centre in zip(PROBABILITIES, CENTRES, strict=True):
        expected += probability * (divergence_from_the_prior(low, centre) + reconstruction(high, centre, CENTRES))
    error = 4 * values.std() / np.sqrt(60)
    assert abs(values.mean() - expected) < error + 1e-4 * expected
    assert error < 0.05 * expected


def test_a_run_with_learned_ends_is_defined_between_them():
    params = {"log_snr": jnp.zeros(8), "ends": jnp.array([0.1, -0.1]), "network": None}
    low, high = LEARNED.ends(params)
    for time, end in zip(LEARNED.interval_of(params), (low, high), strict=True):
        assert float(PATH.schedule.log_snr(time)) == pytest.approx(float(end), abs=1e-3)
    assert LEARNED.model(params, None).interval == LEARNED.interval_of(params)
    assert LEARNED.interval[0] < LEARNED.interval_of(params)[0] < LEARNED.interval_of(params)[1] < LEARNED.interval[1]
    spec = pixels((1,))
    run = Run(Path("run"), defaults("mlp", "variational_diffusion"), 0, spec, LEARNED, params)
    assert run.interval == LEARNED.interval_of(params)
    found = integer_bound(run, np.zeros((4, 1), np.float32), bound="vdm(2)").terms
    fixed = integer_bound(dataclasses.replace(run, method=METHOD), np.zeros((4, 1), np.float32), bound="vdm(2)").terms
    assert float(np.mean(found.reconstruction)) > 10 * float(np.mean(fixed.reconstruction))


def test_the_interval_of_learned_ends_under_jit_is_that_of_the_run():
    params = {"log_snr": jnp.zeros(8), "ends": jnp.array([0.1, -0.1]), "network": None}
    run = Run(Path("run"), defaults("mlp", "variational_diffusion"), 0, pixels((1,)), LEARNED, params)
    other = params | {"ends": jnp.array([-0.3, 0.2])}
    assert run.model(other).interval == LEARNED.interval_of(other) != run.interval
    assert run.identity != dataclasses.replace(run, params=other).identity
    without = run.without_arrays()
    assert without.interval == run.interval
    intervals = []
    for opened in (run, without):
        jax.jit(lambda p, opened=opened: intervals.append(opened.model(p, {}).interval))(params)
    assert intervals == [run.interval] * 2
    with pytest.raises(ValueError, match=r"not known under jax\.jit or jax\.grad: use run\.model"):
        jax.jit(lambda p: intervals.append(LEARNED.model(p, {}).interval))(params)


@pytest.mark.parametrize(
    ("keys", "dequantisation", "message"),
    [
        ({}, "uniform", "with data.dequantisation 'none'"),
        ({"source.name": "uniform", "prediction": "data", "path.schedule": "condot"}, "none", "needs a Gaussian path"),
        ({"prediction": "noise_variance"}, "none", "needs a prediction with one head"),
    ],
)
def test_refusals(keys, dequantisation, message):
    spec = pixels((2,), dequantisation)
    config = changed(defaults("mlp", "variational_diffusion"), {"data.name": "npz", "path.schedule": "vp", **keys})
    with pytest.raises(ConfigError, match=message):
        build(config, spec)


def test_the_model_is_defined_where_the_network_was_trained():
    config = changed(defaults("mlp", "variational_diffusion"), {"data.name": "npz", "path.schedule": "vp"})
    method = build(config, pixels((2,)))
    params, state = method.init(jax.random.key(0))
    model = method.model(params, state)
    assert model.interval == method.interval
    r = method.path.rates(model.interval[1], jnp.zeros((1, 2)))
    assert float((SPEC.bins.smallest / 2) / (r.sigma / r.alpha).squeeze()) == pytest.approx(4, rel=1e-3)
    assert np.isfinite(model.ends(model.interval[1], jnp.zeros((3, 2))).x1).all()
