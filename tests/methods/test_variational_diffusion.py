"""The loss of variational diffusion against quadrature, and its learned schedule against that of least variance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.errors import ConfigError
from flowjax.methods import Context, Network, VariationalDiffusion
from flowjax.paths import GaussianPath
from flowjax.predictions import noise
from flowjax.schedules import VP
from flowjax.sources import Normal
from tests.bits.known import PROBABILITIES, pixels, points

SPEC = pixels((1,))
PATH = GaussianPath(VP())
ORACLE = points(PATH, SPEC, np.arange(4)[:, None], PROBABILITIES)
METHOD = VariationalDiffusion(
    Network.from_function(lambda params, t, x, cond: ORACLE.ends(t, x).x0), PATH, Normal((1,)), noise, SPEC.bins, 8
)
ROWS = 4096


def moments(power):
    """E |e - e_hat|^power at 801 values of the log-SNR, in float64."""
    density = METHOD.density(jnp.zeros(8))
    log_snr = np.linspace(density.low, density.high, 801)
    grid = np.linspace(-7, 7, 1401)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    centres = np.asarray(ORACLE.means)[:, 0].astype(float)
    found = np.zeros(len(log_snr))
    for i, (a, s) in enumerate(zip(alpha, sigma, strict=True)):
        for weight, c in zip(PROBABILITIES, centres, strict=True):
            z = a * c + s * grid
            likely = PROBABILITIES * stats.norm.pdf(z[:, None], a * centres, s)
            error = grid - (z - a * (likely @ centres / likely.sum(1))) / s
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
