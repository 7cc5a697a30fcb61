"""`flowjax.train` in Python does what the command line does."""

import shutil

import numpy as np
import pytest

import flowjax
from flowjax.config import defaults
from flowjax.errors import ConfigError

TINY = {"model.width": 16, "model.depth": 2, "train.steps": 40, "train.batch_size": 32, "train.log_every": 20}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    records = []
    workdir = tmp_path_factory.mktemp("runs") / "run"
    return workdir, flowjax.train("gaussians8", workdir, TINY, callback=records.append), records


def test_a_run_is_trained_and_opened(trained):
    workdir, run, records = trained
    assert (run.workdir, run.step) == (workdir, 40)
    assert [record["step"] for record in records] == [20, 40]
    assert run.sample(3, solver="euler", steps=4).shape == (3, 2)
    assert (workdir / "plots" / "loss.png").exists()


def test_a_finished_run_is_opened_again_and_a_longer_one_resumed(trained):
    workdir, run, _ = trained
    again = flowjax.train("gaussians8", workdir, TINY)
    x = run.sample(3, solver="euler", steps=4)
    np.testing.assert_array_equal(again.sample(3, solver="euler", steps=4), x)
    shutil.rmtree(workdir / "plots")
    assert flowjax.train("gaussians8", workdir, TINY | {"train.steps": 60}, plots=False).step == 60
    assert not (workdir / "plots").exists()


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'train\.steps'|train\.steps"):
        flowjax.train("gaussians8", tmp_path / "a", {"train.step": 1})
    with pytest.raises(ConfigError, match="the nearest is 'gaussians8'"):
        flowjax.train("gaussian8", tmp_path / "a")
    config = defaults("mlp")
    config.data.name = "moon"
    with pytest.raises(ValueError, match="did you mean 'moons'"):
        flowjax.train(config, tmp_path / "a")
    assert not (tmp_path / "a" / "config.json").exists()
