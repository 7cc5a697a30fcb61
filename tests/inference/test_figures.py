"""Figures of runs with few records, with parameters that are not finite, and on a full disk."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import runs
from flowjax.conditions import Field
from flowjax.config import changed
from flowjax.data import open_dataset
from flowjax.errors import ConfigError
from flowjax.inference import figures, scoring
from flowjax.inference.run import load


def test_the_cause_of_plots_that_fail_is_named(tiny_run, tmp_path, capsys, monkeypatch):
    run, dataset = load(tiny_run), open_dataset("gaussians8")
    broken = dataclasses.replace(run, workdir=tmp_path, params=jax.tree.map(lambda a: a * jnp.nan, run.params))
    count = sum(a.size for a in jax.tree.leaves(run.params))
    runs._draw(broken, dataset)
    line = capsys.readouterr().err
    assert line == f"train: the plots could not be drawn: {count:,} of {count:,} parameters are not finite\n"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.plots, "save", full)
    runs._draw(dataclasses.replace(run, workdir=tmp_path), dataset)
    assert "No space left on device; the same command draws them" in capsys.readouterr().err


def test_likelihoods_of_a_class_are_not_compared_with_the_density_of_all_classes(tiny_run, monkeypatch):
    """The true density is that of points without their labels."""
    run, dataset = load(tiny_run), open_dataset("gaussians8")
    zeros = lambda run, points, *args, **options: scoring.LogDensities(np.zeros(len(points), np.float32), 1)
    monkeypatch.setattr(scoring, "log_prob", zeros)

    def curves():
        drawn = figures.draw(figures.FigureInputs(run, dataset), "likelihood")
        return [text.get_text().partition(",")[0] for text in drawn.legends[0].get_texts()]

    assert len(curves()) == 2
    run.__dict__["fields"] = (Field("label", "label", num_classes=8),)
    dataset = dataclasses.replace(dataset, test_cond={"label": np.zeros(len(dataset.test), np.int32)})
    assert curves() == ["test points"]


def test_a_run_on_pairs_has_figures_and_metrics_but_no_likelihood(tiny_run, tmp_path):
    run, dataset = load(tiny_run), open_dataset("gaussians8")
    paired = dataclasses.replace(run, workdir=tmp_path, config=changed(run.config, {"data.pairs": "x0"}))
    shutil.copy(tiny_run / "metrics.jsonl", tmp_path)
    figures.draw_all(paired, dataset)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"loss.png", "samples.png", "trajectories.png"}
    with pytest.raises(ConfigError, match=r"data\.pairs 'x0' have no known density, so there is no likelihood"):
        paired.log_prob(dataset.test[:2])
