"""Truncated rounds: samples in a box against the prior's quantiles, and a run of two rounds that continues."""

import jax
import numpy as np
import pytest
from scipy import stats

from flowjax.config import defaults
from flowjax.data.simulated import kept_simulations
from flowjax.errors import ConfigError
from flowjax.inference import SolverSettings
from flowjax.rounds import Box, sample_in_box, truncated_rounds
from flowjax.simulators import LogNormal, Simulator
from flowjax.sources import Uniform


def test_samples_in_a_box_have_the_distribution_of_the_prior_there():
    simulator = Simulator(LogNormal((1,), 0.0, 0.5), lambda key, theta: theta, low=0.0)
    x = sample_in_box(simulator, Box(np.array([1.0]), np.array([2.0])), 5000, jax.random.key(0))
    assert x.shape == (5000, 1)
    cdf = lambda v: stats.lognorm.cdf(v, 0.5)
    truncated = lambda v: np.clip((cdf(v) - cdf(1)) / (cdf(2) - cdf(1)), 0, 1)
    assert stats.kstest(x[:, 0], truncated).pvalue > 0.01


def test_a_box_outside_of_the_prior_is_refused():
    simulator = Simulator(Uniform((2,), -1.0, 1.0), lambda key, theta: theta, low=-1.0, high=1.0)
    with pytest.raises(ConfigError, match="almost no mass"):
        sample_in_box(simulator, Box(np.full(2, 3.0), np.full(2, 4.0)), 10, jax.random.key(0))


def test_two_rounds_narrow_the_simulations_and_continue(tmp_path):
    config = defaults("resmlp")
    config.data.simulator, config.data.cond = "gaussian_mixture", ("obs(dropout=0)",)
    config.model.width, config.model.depth = 32, 1
    config.train.steps, config.train.batch_size, config.train.lr = 300, 128, 1e-2
    config.train.log_every = config.train.save_every = 300
    config.ema.half_life = 1000.0
    solver, obs = SolverSettings("euler", steps=8), np.zeros(2, np.float32)
    run = truncated_rounds(config, tmp_path, obs, 2, 300, solver)
    first, _ = kept_simulations(tmp_path / "simulations_1")
    second, seen = kept_simulations(tmp_path / "simulations_2")
    assert len(first) == 300
    assert 300 <= len(second) == len(seen) < 600
    # earlier simulations inside the box come first, and the new ones are inside as well
    assert np.ptp(second, axis=0).max() < np.ptp(first, axis=0).min()
    assert {tuple(row) for row in second[:-300]} <= {tuple(row) for row in first}
    assert run.workdir.name == "round_2"
    boxes = [np.load(tmp_path / f"simulations_{k}" / "box.npz") for k in (1, 2)]
    assert (boxes[1]["low"] >= boxes[0]["low"]).all()
    assert (boxes[1]["high"] <= boxes[0]["high"]).all()
    assert ((second >= boxes[1]["low"]) & (second <= boxes[1]["high"])).all()
    before = (tmp_path / "round_2" / "metrics.jsonl").read_bytes()
    truncated_rounds(config, tmp_path, obs, 2, 300, solver)
    assert (tmp_path / "round_2" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="another obs"):
        truncated_rounds(config, tmp_path, obs + 1, 2, 300, solver)


def test_rounds_need_a_simulator(tmp_path):
    config = defaults("resmlp")
    with pytest.raises(ConfigError, match=r"data\.simulator"):
        truncated_rounds(config, tmp_path, np.zeros(2))
    config.data.simulator, config.data.cond = "gaussian_mixture", ("obs",)
    with pytest.raises(ConfigError, match=r"must have the shape \(2,\)"):
        truncated_rounds(config, tmp_path, np.zeros(3))
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_a_file_without_an_observation(flowjax, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros(2))
    code, _, err = flowjax("rounds", "--config=sbi_two_moons", f"--workdir={tmp_path}/r", f"--cond={tmp_path}/x.npz")
    assert code == 2
    assert "holds no array obs" in err
