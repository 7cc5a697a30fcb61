"""Figures of runs with few records, with parameters that are not finite, and on a full disk."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import runs
from flowjax.config import changed
from flowjax.data import open_dataset
from flowjax.errors import ConfigError
from flowjax.inference import plots
from flowjax.inference.run import load


@pytest.mark.parametrize("losses", [[2.0], [2.0, float("nan"), 1.0], [2.0, 1.0]])
def test_every_finite_loss_is_visible(losses, tmp_path, monkeypatch):
    """Pixels of the curve's colour, a blue, reach from the first to the last record, in a figure without its legend.

    Where the curve is blended half with the white or grey background, its blue is still 60 above its red.
    """
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    records = [
        {"step": i + 1, "time": 1.0, "samples_seen": 10 * i, "loss": loss, "val_loss": float("nan")}
        for i, loss in enumerate(losses)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plots.loss_curves(tmp_path / "loss.png", tmp_path / "metrics.jsonl")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    [figure] = drawn
    figure.axes[0].get_legend().remove()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba()).astype(int)
    columns = np.flatnonzero((pixels[..., 2] - pixels[..., 0] > 60).any(0))
    assert len(columns) >= 2
    if len(losses) > 1:  # from the first record to the last
        assert np.ptp(columns) > 0.5 * pixels.shape[1]


def test_the_cause_of_plots_that_fail_is_named(tiny_run, tmp_path, capsys, monkeypatch):
    run, dataset = load(tiny_run), open_dataset("gaussians8")
    broken = dataclasses.replace(run, workdir=tmp_path, params=jax.tree.map(lambda a: a * jnp.nan, run.params))
    count = sum(a.size for a in jax.tree.leaves(run.params))
    runs._draw(broken, dataset)
    line = capsys.readouterr().err
    assert line == f"train: the plots could not be drawn: {count:,} of {count:,} parameters are not finite\n"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "loss_curves", full)
    runs._draw(dataclasses.replace(run, workdir=tmp_path), dataset)
    assert "No space left on device; the same command draws them" in capsys.readouterr().err


def test_a_run_on_pairs_has_figures_and_metrics_but_no_likelihood(tiny_run, tmp_path):
    run, dataset = load(tiny_run), open_dataset("gaussians8")
    paired = dataclasses.replace(run, workdir=tmp_path, config=changed(run.config, {"data.pairs": "x0"}))
    shutil.copy(tiny_run / "metrics.jsonl", tmp_path)
    plots.draw_all(paired, dataset)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"loss.png", "samples.png", "trajectories.png"}
    with pytest.raises(ConfigError, match=r"data\.pairs 'x0' have no known density, so there is no likelihood"):
        paired.log_prob(dataset.test[:2])
