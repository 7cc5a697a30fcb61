"""Composition of observations: exact for normal distributions, and an end-to-end run."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.abilities import Ends
from flowjax.config import defaults
from flowjax.errors import ConfigError
from flowjax.guidance import Composed
from flowjax.guidance.composed import precisions_of
from flowjax.inference import Run, SolverSettings, sample_composed
from flowjax.paths import AffinePath
from flowjax.predictions import PathModel
from flowjax.runs import train
from flowjax.schedules import CondOT

D = 3
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(D, D))
PRIOR_MEAN, PRIOR = RNG.normal(size=D), FACTOR @ FACTOR.T + np.eye(D)
NOISE = np.diag([0.5, 2.0, 0.1])
OBSERVATIONS = RNG.normal(size=(4, D))


def posterior(observations):
    """Mean and covariance of x1 ~ N(PRIOR_MEAN, PRIOR) given observations x1 + N(0, NOISE), by Bayes' rule."""
    precision = np.linalg.inv(PRIOR) + len(observations) * np.linalg.inv(NOISE)
    weighted = np.linalg.inv(PRIOR) @ PRIOR_MEAN + np.linalg.inv(NOISE) @ observations.sum(0)
    return np.linalg.solve(precision, weighted), np.linalg.inv(precision)


def mean_given(t, x, mean, covariance):
    """E[x1 | x_t] for x_t = t x1 + (1 - t) x0, by the conditional mean of jointly normal variables."""
    noisy = t**2 * covariance + (1 - t) ** 2 * np.eye(D)
    return mean + (t * covariance @ np.linalg.solve(noisy, (x - t * mean).T)).T


@dataclass(frozen=True)
class Exact(PathModel):
    """The exact model given one observation, or none where it is NaN."""

    path: AffinePath

    def ends(self, t, x, cond=None):
        assert cond is not None

        def one(x, obs):
            given = ~jnp.isnan(obs).any()
            precision = jnp.linalg.inv(PRIOR) + given * jnp.linalg.inv(NOISE)
            weighted = jnp.linalg.inv(PRIOR) @ PRIOR_MEAN + jnp.linalg.inv(NOISE) @ jnp.where(given, obs, 0.0)
            covariance = jnp.linalg.inv(precision)
            mean = covariance @ weighted
            noisy = t**2 * covariance + (1 - t) ** 2 * jnp.eye(D)
            return mean + t * covariance @ jnp.linalg.solve(noisy, x - t * mean)

        x1 = jax.vmap(one)(x, cond["obs"])
        return Ends((x - t * x1) / jnp.where(t < 1, 1 - t, 1.0), x1)


@pytest.mark.analytic
@pytest.mark.parametrize("prior", [None, (("obs", float("nan")),)])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.99])
def test_the_composed_mean_is_exact_for_normal_distributions(t, prior):
    with jax.enable_x64(True):
        single = np.stack([np.linalg.inv(posterior(OBSERVATIONS[j : j + 1])[1]) for j in range(4)])
        model = Composed(
            Exact(AffinePath(CondOT())),
            {"obs": jnp.asarray(OBSERVATIONS)},
            jnp.asarray(single),
            jnp.asarray(PRIOR_MEAN),
            jnp.linalg.inv(jnp.asarray(PRIOR)),
            prior,
        )
        x = np.random.default_rng(1).normal(size=(5, D))
        ends = jax.jit(lambda model, t, x: model.ends(t, x))(model, jnp.asarray(t), jnp.asarray(x))
        np.testing.assert_allclose(ends.x1, mean_given(t, x, *posterior(OBSERVATIONS)), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(t * ends.x1 + (1 - t) * ends.x0, x, rtol=1e-9, atol=1e-9)


@pytest.mark.analytic
def test_precisions_are_those_of_the_samples_and_never_below_the_prior():
    key = jax.random.key(0)
    wide = jax.random.normal(key, (1, 4000, 2)) * jnp.array([0.1, 2.0])
    (precision,), prior = precisions_of(wide, jnp.eye(2))
    np.testing.assert_allclose(prior, np.eye(2))
    # the relative standard error of a variance of 4,000 samples is sqrt(2 / 4000) = 2.2%
    np.testing.assert_allclose(precision[0, 0], 100, rtol=0.1)
    np.testing.assert_allclose(precision[1, 1], 1, atol=1e-3)


def make_run(folder, dropout) -> Run:
    config = defaults("resmlp")
    config.data.name, config.data.simulator = "simulator(num=400)", "gaussian_mixture"
    config.data.cond = (f"obs(dropout={dropout})",)
    config.model.width, config.model.depth = 8, 1
    config.train.steps, config.train.batch_size, config.train.log_every, config.train.save_every = 4, 16, 4, 4
    return train(config, folder, plots=False)


@dataclass(frozen=True)
class StandardPrior(PathModel):
    """The exact model of x1 ~ N(0, I) in model space given one observation x1 + N(0, I), or none where it is NaN."""

    path: AffinePath

    def ends(self, t, x, cond=None):
        assert cond is not None
        t = t[:, None] if jnp.ndim(t) else t
        given = ~jnp.isnan(cond["obs"]).any(1, keepdims=True)
        mean, variance = jnp.where(given, cond["obs"] / 2, 0.0), jnp.where(given, 0.5, 1.0)
        x1 = mean + t * variance / (t**2 * variance + (1 - t) ** 2) * (x - t * mean)
        return Ends((x - t * x1) / jnp.where(t < 1, 1 - t, 1.0), x1)


@pytest.mark.parametrize("dropout", [0, 0.2])
def test_samples_given_all_observations_are_those_of_the_posterior(tmp_path, monkeypatch, dropout):
    """With three observations of N(x1, I) and the prior N(0, I), it is N(sum / 4, I / 4)."""
    run = make_run(tmp_path / "run", dropout)
    exact = StandardPrior(run.path)
    monkeypatch.setattr(Run, "model", lambda *_: exact)
    obs = np.array([[1.0, 2.0], [-4.0, 3.0], [0.0, 7.0]])
    encoded = run.spec.encode_cond({"obs": obs})["obs"]
    drawn = sample_composed(run, 2000, {"obs": obs}, solver=SolverSettings("heun", steps=20))
    assert drawn.samples.shape == (2000, 2)
    x = run.spec.to_model(drawn.samples)
    # standard errors of 2,000 samples: 0.5 / sqrt(2000) = 0.011 of means, 2.2% of variances, and as much again from the
    # covariances that are estimated from 1,000 samples given each observation (3.2% of a precision)
    np.testing.assert_allclose(x.mean(0), encoded.sum(0) / 4, atol=0.06)
    np.testing.assert_allclose(x.var(0), 0.25, rtol=0.15)


def test_what_cannot_be_composed_is_refused(tmp_path):
    run = make_run(tmp_path / "run", 0)
    with pytest.raises(ConfigError, match="one row for each observation"):
        sample_composed(run, 5, {})
    with pytest.raises(ConfigError, match="trained schedule"):
        sample_composed(run, 5, {"obs": np.ones((3, 2))}, solver=SolverSettings(schedule="cosine"))
