"""Paths of the command line and of configs, and a run on the user's own file from training to likelihoods."""

import json

import numpy as np
import pytest

from flowjax.cli import flags
from flowjax.config import defaults, differences, resolve
from flowjax.config_files import config_path
from flowjax.errors import ConfigError
from tests.conftest import TINY


def test_home_is_expanded_in_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = flags.of_run()
    flags.parse(values, ["--workdir=~/run", "--compilation_cache="], "")
    assert (values.workdir, values.compilation_cache) == (f"{tmp_path}/run", "")
    with pytest.raises(flags.UsageError, match=f"{tmp_path}/run is not the workdir of a run"):
        flags.run_workdir(values)
    (tmp_path / "mine.py").write_text("")
    assert config_path("~/mine.py") == tmp_path / "mine.py"


def test_the_path_of_data_becomes_absolute(tmp_path, monkeypatch):
    """A relative path, ~ and the absolute path are one config, also where an older run stored the relative path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    configs = []
    for path in ("a/mine.npz", "./b/../a/mine.npz", "~/a/mine.npz", f"{tmp_path}/a/mine.npz"):
        config = defaults()
        config.data.path = path
        configs.append(resolve(config))
    assert {config.data.path for config in configs} == {f"{tmp_path}/a/mine.npz"}
    assert not differences(configs[0], configs[1])
    assert resolve(defaults()).data.path == ""
    with pytest.raises(ConfigError):
        resolve({"data": {"path": 5}})


@pytest.mark.slow
def test_a_run_on_ones_own_file_from_training_to_likelihoods(flowjax, tmp_path, monkeypatch):
    """1.7e9 + N(0, 1) in two dimensions. Cast to float32 before the mean is taken off, such numbers are multiples of
    128: samples had standard deviation 38. A network of 120 steps is rough, so their deviation is only asked to lie in
    0.7 to 1.4, and the likelihood of held-out rows to be within 0.5 nats of the entropy log(2 pi e)."""
    x = 1.7e9 + np.random.default_rng(0).normal(size=(4000, 2))
    np.savez(tmp_path / "mine.npz", x=x, more=np.zeros(3))
    monkeypatch.chdir(tmp_path)
    mine = ["--config.data.name=npz", "--config.data.path=mine.npz", "--workdir=run"]
    code, _, err = flowjax("train", *TINY, *mine)
    assert code == 0, err
    assert "data: not used: more" in err
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["config"]["data"]["path"] == f"{tmp_path}/mine.npz"
    )
    assert flowjax("train", *TINY, *mine)[1]["status"] == "already_finished"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = flowjax("likelihood", "--workdir=../run", "--out=ll.npz")
    assert code == 0, err
    with np.load("ll.npz") as file:
        assert sorted(file["rows"]) == sorted(set(file["rows"]))
        assert len(file["rows"]) == len(file["log_prob"]) == 400
        assert -file["log_prob"].mean() == pytest.approx(np.log(2 * np.pi * np.e), abs=0.5)
    assert flowjax("sample", "--workdir=../run", "--num=2000", "--out=s.npz")[0] == 0
    with np.load("s.npz") as file:
        samples = file["samples"]
    assert samples.dtype == np.float64
    assert np.all(abs(samples.mean(0) - 1.7e9) < 0.5)
    assert np.all((samples.std(0) > 0.7) & (samples.std(0) < 1.4))
    code, result, err = flowjax("evaluate", "--workdir=../run")
    assert code == 0, err
    assert result["w2_squared"] < 1
