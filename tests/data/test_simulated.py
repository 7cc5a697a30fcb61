"""Data sets of simulations: drawn in the step or kept in a folder, and failures."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.data import DataError, open_dataset
from flowjax.data.requests import DataRequest, field_requests
from flowjax.data.simulated import keep_simulations, open_simulator, simulate
from flowjax.errors import ConfigError
from flowjax.simulators import Simulator
from flowjax.sources import Normal, Uniform

REQUEST = partial(DataRequest, cond=field_requests(("obs",)))


def sum_and_noise(key, theta):
    """An observation of three numbers, which fails where the first parameter is above 0.8."""
    obs = theta.sum(1, keepdims=True) * jnp.array([1.0, 2.0, -1.0]) + jax.random.normal(key, (len(theta), 3))
    return jnp.where(theta[:, :1] > 0.8, jnp.nan, obs)


FAILING = Simulator(Uniform((2,), -1.0, 1.0), sum_and_noise, ("a", "b"), low=-1.0, high=1.0)


def test_simulations_are_drawn_in_the_step_without_those_that_failed():
    dataset = open_simulator(REQUEST(simulator=FAILING))
    assert dataset.sample is not None
    batch = jax.jit(dataset.sample, static_argnums=2)((), jax.random.key(0), 512)
    assert batch.cond is not None
    assert batch.x1.shape == (512, 2)
    assert batch.cond["obs"].shape == (512, 3)
    assert jnp.isfinite(batch.x1).all()
    assert jnp.isfinite(batch.cond["obs"]).all()
    x = dataset.spec.finish(batch.x1)
    assert (x[:, 0] <= 0.8).all()
    assert (np.abs(x) < 1).all()
    # standardised, up to the error of a mean over 512 draws, and that the mean was estimated from 10,000
    assert abs(float(batch.x1.mean())) < 5 / math.sqrt(512)
    obs = np.asarray(dataset.test_cond["obs"], np.float64)
    np.testing.assert_allclose(dataset.spec.encode_cond({"obs": obs})["obs"].std(0), 1, atol=0.1)
    (note,) = [line for line in dataset.notes if "failed" in line]
    assert "median of a is" in note
    assert dataset.simulator is FAILING


def test_the_rows_of_the_step_are_encoded_as_those_of_the_host():
    dataset = open_simulator(REQUEST(simulator=FAILING))
    theta, obs = jax.tree.map(np.asarray, FAILING.sample(jax.random.key(3), 64))
    ok = np.isfinite(obs).all(1)
    assert dataset.sample is not None
    batch = dataset.sample((), jax.random.key(3), 64)
    assert batch.cond is not None
    np.testing.assert_allclose(batch.x1[: ok.sum()], dataset.spec.to_model(theta[ok]), rtol=1e-4, atol=1e-5)
    encoded = dataset.spec.encode_cond({"obs": obs[ok]})["obs"]
    np.testing.assert_allclose(batch.cond["obs"][: ok.sum()], encoded, rtol=1e-4, atol=1e-5)


def test_a_number_of_simulations_is_split_into_training_and_test_rows():
    dataset = open_simulator(REQUEST(simulator=FAILING), num=2500, seed=1)
    rows, held = dataset.arrays(), dataset.test
    theta, obs = simulate(FAILING, 2500, 1)
    ok = np.isfinite(obs).all(1)
    assert len(rows.x1) + len(held) == ok.sum()
    assert len(held) == pytest.approx(0.1 * ok.sum(), abs=1)
    together = np.concatenate([dataset.spec.finish(rows.x1), held])
    np.testing.assert_allclose(np.sort(together[:, 0]), np.sort(theta[ok, 0]), rtol=1e-5, atol=1e-6)


def test_an_interrupted_simulation_continues_from_its_folder(tmp_path):
    whole = simulate(FAILING, 2500, 0)
    counted = []

    def count(key, theta):
        jax.debug.callback(lambda: counted.append(1))
        return sum_and_noise(key, theta)

    counting = Simulator(FAILING.prior, count, low=-1.0, high=1.0)
    simulate(counting, 1500, 0, tmp_path)
    jax.effects_barrier()
    assert len(counted) == 2
    again = simulate(counting, 2500, 0, tmp_path)
    jax.effects_barrier()
    assert len(counted) == 3
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match="another prior or seed"):
        simulate(FAILING, 1500, 1, tmp_path)


def test_simulations_from_elsewhere_are_read(tmp_path):
    theta = np.random.default_rng(0).uniform(-1, 0.5, (100, 2)).astype(np.float32)
    keep_simulations(tmp_path, theta, theta[:, :1])
    dataset = open_simulator(REQUEST(simulator=FAILING, path=str(tmp_path)), num=100)
    assert len(dataset.arrays().x1) == 90
    assert dataset.spec.conditions[0].shape == (1,)


def test_missing_values_are_kept_if_they_are_asked_for():
    def partly(key, theta):
        obs = jnp.concatenate([theta, theta], 1)
        return jnp.where(jax.random.bernoulli(key, 0.3, obs.shape), jnp.nan, obs)

    simulator = Simulator(Normal((2,)), partly)
    dataset = open_simulator(REQUEST(simulator=simulator), num=1000, missing=True)
    obs = dataset.arrays().cond["obs"]
    assert 0.2 < np.isnan(obs).mean() < 0.4
    assert not np.isnan(obs).all(1).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "simulator"}, "data.simulator must be one"),
        ({"name": "simulator", "simulator": "two_suns"}, "data.simulator: unknown 'two_suns'"),
        ({"name": "digits", "simulator": "two_moons"}, "data.name must be simulator, not 'digits'"),
        ({"name": "simulator", "simulator": "two_moons", "cond": ("label",)}, "only the condition 'obs'"),
        ({"name": "simulator", "simulator": "two_moons", "pairs": "x0"}, "simulations have no pairs"),
        ({"name": "simulator", "simulator": "two_moons", "path": "sims"}, "only if their number is given"),
        ({"name": "simulator(-1)", "simulator": "two_moons"}, "num must not be negative"),
        ({"name": "simulator", "simulator": "not_there:make"}, "not_there"),
    ],
)
def test_refusals(options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        open_dataset(**options)


def test_a_simulator_that_always_fails_is_refused():
    never = Simulator(Normal((2,)), lambda key, theta: theta * jnp.nan)
    with pytest.raises(DataError, match="of 12000 simulations failed"):
        open_simulator(REQUEST(simulator=never))


def test_parameters_at_a_bound_are_moved_inside():
    """A uniform distribution on [low, high) can give `low` itself."""

    def at_the_bound(key, theta):
        return theta[:, :1]

    class Rounded(Uniform):
        def sample(self, key, n):
            return jnp.round(super().sample(key, n))

    prior = Rounded((2,), -1.0, 1.0)
    dataset = open_simulator(REQUEST(simulator=Simulator(prior, at_the_bound, low=-1.0, high=1.0)), num=100)
    assert dataset.spec.in_support(dataset.test).all()
    assert np.abs(dataset.arrays().x1).max() < 20


def test_more_simulations_than_are_kept_are_refused(tmp_path):
    theta = np.zeros((10, 2), np.float32)
    keep_simulations(tmp_path, theta, theta)
    with pytest.raises(DataError, match=r"holds 10 simulations, and data\.name asks for 100"):
        open_simulator(REQUEST(simulator=FAILING, path=str(tmp_path)), num=100)
