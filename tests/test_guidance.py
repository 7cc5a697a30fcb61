"""Guidance: Bayes' rule on Gaussians, and that every guide keeps the ends consistent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import likelihood, oracles, solvers
from flowjax.conditions import NO_LABEL, Field
from flowjax.guidance import Auto, Classifier, ClassifierFree, Posterior, linear_measurement
from flowjax.paths import AffinePath, GaussianPath
from flowjax.predictions import Ends, model, noise, read, velocity
from flowjax.schedules import VP, CondOT
from flowjax.sources import GaussianMixture, Normal

pytestmark = pytest.mark.analytic
PATH = GaussianPath(CondOT())
MEANS = jnp.array([[2.0, 0.0], [-1.0, 1.0]])
WHOLE = oracles.mixture(PATH, GaussianMixture(MEANS, 0.5))
EACH = [oracles.gaussian(PATH, m, 0.5) for m in MEANS]
X = jax.random.normal(jax.random.key(0), (6, 2))


FIELDS = (Field("label", "label", num_classes=2, dropout=0.1),)


def exact_ends(t, x, cond):
    """The exact conditional ends of two classes, and the unconditional ones for NO_LABEL."""
    all_three = [o.ends(t, x) for o in (*EACH, WHOLE)]
    pick = jnp.where(cond["label"] == NO_LABEL, 2, cond["label"])[:, None]
    return Ends(*(jnp.choose(pick, [e[i] for e in all_three], mode="clip") for i in (0, 1)))


BY_LABEL = model(exact_ends, PATH)


def adds_up(ends, t, x, path=PATH):
    r = path.rates(t, x)
    np.testing.assert_allclose(r.alpha * ends.x1 + r.sigma * ends.x0, x, atol=2e-5)


@pytest.mark.parametrize("t", [0.3, jnp.linspace(0.1, 0.9, 6)])
def test_classifier_free_scales(t):
    """0 is unconditional, 1 conditional, 2 as far again; a scalar time and one a row."""
    labels = {"label": jnp.array([0, 1, 0, 1, 0, 1])}
    at = jax.jit(lambda scale: ClassifierFree(BY_LABEL, scale, FIELDS).ends(t, X, labels), static_argnums=0)
    none, plain = jax.jit(lambda: (WHOLE.ends(t, X), BY_LABEL.ends(t, X, labels)))()
    np.testing.assert_allclose(at(0.0).x1, none.x1, atol=1e-5)
    np.testing.assert_allclose(at(1.0).x1, plain.x1, atol=1e-5)
    np.testing.assert_allclose(at(2.0).x0, 2 * plain.x0 - none.x0, atol=1e-5)
    adds_up(at(2.0), t, X)


def test_the_interval_and_the_rescaling():
    labels = {"label": jnp.zeros(6, int)}
    guide = ClassifierFree(BY_LABEL, 3.0, FIELDS, guidance_interval=(0.4, 0.6))
    np.testing.assert_allclose(guide.ends(0.3, X, labels).x1, BY_LABEL.ends(0.3, X, labels).x1, atol=1e-5)
    np.testing.assert_allclose(
        guide.ends(0.5, X, labels).x1, ClassifierFree(BY_LABEL, 3.0, FIELDS).ends(0.5, X, labels).x1, atol=1e-5
    )
    mixed = guide.ends(jnp.array([0.3, 0.5] * 3), X, labels)
    np.testing.assert_allclose(mixed.x1[::2], BY_LABEL.ends(0.3, X, labels).x1[::2], atol=1e-5)
    rescaled = ClassifierFree(BY_LABEL, 3.0, FIELDS, rescale=1.0).ends(0.5, X, labels)
    np.testing.assert_allclose(rescaled.x1.std(1), BY_LABEL.ends(0.5, X, labels).x1.std(1), rtol=1e-4)
    adds_up(rescaled, 0.5, X)
    assert np.isfinite(ClassifierFree(BY_LABEL, 3.0, FIELDS, rescale=1.0).ends(1.0, X, labels).x0).all()


def test_autoguidance():
    strong, weak = EACH[0], oracles.gaussian(PATH, MEANS[0], 1.0)
    got = Auto(strong, weak, 2.0).ends(0.4, X)
    np.testing.assert_allclose(got.x1, 2 * strong.ends(0.4, X).x1 - weak.ends(0.4, X).x1, atol=1e-5)
    np.testing.assert_allclose(Auto(strong, weak, 1.0).ends(0.4, X).x0, strong.ends(0.4, X).x0, atol=1e-5)


def test_a_guide_is_defined_where_all_its_networks_are():
    strong, weak = (read(lambda t, x, cond: x, PATH, p) for p in (velocity, noise))
    assert Auto(strong, weak, 2.0).interval == weak.interval
    assert ClassifierFree(weak, 2.0).interval == weak.interval
    x, _ = solvers.sample(Auto(strong, weak, 2.0), X, solver="heun", steps=4)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("path", [PATH, GaussianPath(VP())])
def test_classifier_guidance_is_bayes_rule(path):
    """The mixture guided by log p(class | x_t), from its own densities, is the class: at every t."""
    whole, one = oracles.mixture(path, GaussianMixture(MEANS, 0.5)), oracles.gaussian(path, MEANS[0], 0.5)
    log_posterior = lambda t, x, cond: jnp.log(0.5) + one.log_prob(t, x) - whole.log_prob(t, x)
    guide = Classifier(whole, log_posterior)
    for t in (0.1, 0.5, 0.9):
        got, true = guide.ends(t, X), one.ends(t, X)
        np.testing.assert_allclose(got.x1, true.x1, atol=2e-4)
        np.testing.assert_allclose(got.x0, true.x0, atol=2e-4)


def test_the_posterior_of_normal_data_is_exact():
    """x ~ N(1, 0.7^2 I) in three dimensions, the first two measured with noise 0.5: guided ends are those of the normal
    posterior, at every t; float64."""
    with jax.enable_x64(True):
        s, noise = 0.7, 0.5
        y = jnp.array([[2.0, 0.0]])
        oracle = oracles.gaussian(PATH, jnp.asarray(1.0), s)
        x = jax.random.normal(jax.random.key(0), (5, 3))
        measured = jnp.repeat(y, 5, 0)
        guide = Posterior(oracle, linear_measurement(lambda x: x[:, :2], measured, noise), s)
        gain = s**2 / (s**2 + noise**2)
        mean = jnp.array([1 + gain * 1.0, 1 - gain * 1.0, 1.0])
        variance = jnp.array([s**2 * (1 - gain)] * 2 + [s**2])
        for t in (0.0, 0.2, 0.6, 0.95):
            v = t**2 * variance + (1 - t) ** 2
            np.testing.assert_allclose(guide.ends(t, x).x1, mean + t * variance / v * (x - t * mean), rtol=1e-8)
            adds_up(guide.ends(t, x), t, x)


def test_a_guided_denoiser_goes_into_any_sampler():
    y = jnp.full((3000, 1), 2.0)
    oracle = oracles.gaussian(PATH, 1.0, 0.7)
    guide = Posterior(oracle, linear_measurement(lambda x: x[:, :1], y, 0.5), 0.7)
    x = jax.random.normal(jax.random.key(0), (3000, 2))
    for solver in ("unipc", "ddpm"):
        out, _ = solvers.sample(guide, x, solver=solver, steps=60, key=jax.random.key(1))
        gain = 0.49 / 0.74
        np.testing.assert_allclose(out.mean(0), [1 + gain, 1.0], atol=5 * 0.7 / np.sqrt(3000) + 0.01)
        np.testing.assert_allclose(out[:, 0].std(), 0.7 * np.sqrt(1 - gain), rtol=0.06)


S, NOISE = 0.7, 0.5
GAIN = S**2 / (S**2 + NOISE**2)


def measured(y):
    """Data N(1, S^2 I) in two dimensions guided by y, a measurement of the first coordinate, and the mean and the
    standard deviation of the normal posterior."""
    oracle = oracles.gaussian(PATH, 1.0, S)
    guide = Posterior(oracle, linear_measurement(lambda x: x[:, :1], y, NOISE), S)
    mean = np.concatenate([1 + GAIN * (np.asarray(y) - 1), np.ones_like(y)], 1)
    return guide, mean, S * np.sqrt([1 - GAIN, 1.0])


@pytest.mark.parametrize(
    ("rows", "wrap"),
    [(6, lambda guide: guide), (1, lambda guide: Auto(guide, guide, 2.0)), (6, lambda guide: Auto(guide, guide, 2.0))],
    ids=["one a row", "one for all", "one a row inside another guide"],
)
def test_adaptive_solves_of_a_posterior_are_exact(rows, wrap):
    """The flow from N(0, I) to the normal posterior is x -> mean + std x, with each sample's own measurement or with
    one for all. At rtol = atol = 1e-6 a few dozen steps leave less than 1e-4, also in the log-density."""
    guide, mean, std = measured(jnp.linspace(-2.0, 2.0, rows)[:, None])
    x, _ = solvers.sample(wrap(guide), X, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(x, mean + std * np.asarray(X), atol=1e-4)
    if rows == 6 and wrap(guide) is guide:
        got, *_ = likelihood.log_prob(guide, x, Normal((2,)), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got, stats.norm(mean, std).logpdf(np.asarray(x)).sum(1), atol=1e-3)


@pytest.mark.slow
def test_an_sde_solver_takes_each_sample_with_its_own_measurement():
    """1,000 samples of each of two measurements, by SRA1 with 50 steps: means within 5 standard errors and 0.02."""
    guide, mean, std = measured(jnp.repeat(jnp.array([[-2.0], [2.0]]), 1000, 0))
    x0 = jax.random.normal(jax.random.key(0), (2000, 2))
    x, _ = solvers.sample(guide, x0, solver="sra1", steps=50, key=jax.random.key(1))
    for half in (slice(0, 1000), slice(1000, None)):
        np.testing.assert_allclose(x[half].mean(0), mean[half][0], atol=5 * S / np.sqrt(1000) + 0.02)
        np.testing.assert_allclose(x[half].std(0), std, rtol=0.1)


def test_a_posterior_takes_one_time_a_row_with_a_flat_measurement():
    """Images (2, 2, 1) of which three pixels were measured as a vector: the normal posterior's ends, in float64."""
    with jax.enable_x64(True):
        x, t = jax.random.normal(jax.random.key(0), (4, 2, 2, 1)), jnp.array([0.2, 0.5, 0.7, 0.95])
        y = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
        oracle = oracles.gaussian(PATH, jnp.asarray(1.0), S)
        measurement = linear_measurement(lambda x: x.reshape(x.shape[0], -1)[:, :3], y, NOISE)
        got = Posterior(oracle, measurement, S).ends(t, x).x1.reshape(4, 4)
        mean = jnp.concatenate([1 + GAIN * (y - 1), jnp.ones((4, 1))], 1)
        variance = S**2 * jnp.array([1 - GAIN, 1 - GAIN, 1 - GAIN, 1.0])
        t = t[:, None]
        v = t**2 * variance + (1 - t) ** 2
        np.testing.assert_allclose(got, mean + t * variance / v * (x.reshape(4, 4) - t * mean), rtol=1e-8)


def test_a_measurement_of_another_batch_is_refused():
    guide, _, _ = measured(jnp.zeros((5, 1)))
    for keywords in ({}, {"solver": "heun", "steps": 2}):
        with pytest.raises(ValueError, match="a single row"):
            solvers.sample(guide, X, **keywords)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: ClassifierFree(BY_LABEL, 2.0, FIELDS).ends(0.5, X), "needs a condition"),
        (
            lambda: ClassifierFree(BY_LABEL, 2.0, FIELDS).ends(0.5, X, {"text": jnp.ones((6, 1))}),
            "condition text: pass",
        ),
        (lambda: ClassifierFree(BY_LABEL, 2.0, FIELDS, rescale=1.5), "between 0 and 1"),
        (lambda: ClassifierFree(BY_LABEL, 2.0, FIELDS, (0.8, 0.2)), "in order"),
        (
            lambda: Classifier(model(exact_ends, AffinePath(CondOT())), lambda t, x, c: x[:, 0]),
            "the path 'gaussian'",
        ),
        (lambda: Posterior(BY_LABEL, linear_measurement(lambda x: x, X, 0.1), 0.0), "positive"),
        (lambda: linear_measurement(lambda x: x, X, -1.0), "not be negative"),
        (lambda: linear_measurement(lambda x: x[:, :1], X[:, 0], 1.0)(X, jnp.ones(())), "one row of y per sample"),
    ],
)
def test_refusals(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_guidance_towards_one_of_several_conditions_keeps_the_others():
    fields = (Field("a", "vector", (2,), dropout=0.1), Field("b", "vector", (2,), dropout=0.1))
    given = lambda value: jnp.where(jnp.isnan(value), 0.0, value)
    by_both = model(lambda t, x, cond: Ends(x, given(cond["a"]) + 10 * given(cond["b"])), PATH)
    cond = {"a": jnp.ones((6, 2)), "b": 2 * jnp.ones((6, 2))}
    guided = lambda names: ClassifierFree(by_both, 3.0, fields, names=names).ends(0.5, jnp.zeros((6, 2)), cond).x1
    np.testing.assert_allclose(guided(("b",)), 1 + 3 * 20)
    np.testing.assert_allclose(guided(("a",)), 3 * 1 + 20)
    np.testing.assert_allclose(guided(()), 3 * (1 + 20))
