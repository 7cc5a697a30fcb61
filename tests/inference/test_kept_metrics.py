"""Metrics that `flowjax evaluate` keeps in the workdir of a run."""

import dataclasses
import json
import math
import shutil

from flowjax.config import changed
from flowjax.inference.kept_metrics import FOLDER, find_metrics, keep_metrics, read_kept
from flowjax.inference.run import load


def test_metrics_are_found_by_step_and_settings(tiny_run, tmp_path, capsys):
    shutil.copy(tiny_run / "config.json", tmp_path)
    run = dataclasses.replace(load(tiny_run), workdir=tmp_path)
    keep_metrics(run, {}, {"kl": 0.1, "npe": math.nan})
    keep_metrics(run, {"solver": "rk4", "interval": ("0", "1")}, {"kl": 0.2})
    keep_metrics(run, {}, {"kl": 0.3})
    assert find_metrics(tmp_path, run.step, {}) == {"kl": 0.3}
    assert [kept.metrics["kl"] for kept in read_kept(tmp_path)] == [0.2, 0.3]
    assert find_metrics(tmp_path, run.step + 1, {}) is None
    (tmp_path / FOLDER / "step9-0.json").write_text("{")
    assert len(read_kept(tmp_path)) == 2
    assert "step9-0.json cannot be read" in capsys.readouterr().err


def test_metrics_of_another_config_are_left_out(tiny_run, tmp_path):
    """The cadence of logging may change when a run is resumed; the data set makes it another run."""
    run = dataclasses.replace(load(tiny_run), workdir=tmp_path)
    record = json.loads((tiny_run / "config.json").read_text())
    keep_metrics(run, {}, {"kl": 0.1})
    for changes, found in (({"train.log_every": 7}, 1), ({"data.name": "moons"}, 0)):
        config = json.loads(json.dumps(changed(run.config, changes).to_dict()))
        (tmp_path / "config.json").write_text(json.dumps(record | {"config": config}))
        assert len(read_kept(tmp_path)) == found


def test_a_folder_that_cannot_be_written_is_a_note(tiny_run, tmp_path, capsys):
    (tmp_path / FOLDER).write_text("")
    keep_metrics(dataclasses.replace(load(tiny_run), workdir=tmp_path), {}, {"kl": 0.1})
    assert "the metrics are not kept" in capsys.readouterr().err
