"""The curve of the loss in a notebook, and the representations of a run."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import flowjax
from flowjax.training import writers

RECORDS = [
    {"samples_seen": 20, "loss": 2.0, "val_loss": None},
    {"samples_seen": 40, "loss": 1.8, "val_loss": 1.5},
    {"samples_seen": 60, "loss": float("nan"), "val_loss": 1.25},
]


def test_each_record_replaces_the_figure(monkeypatch):
    """IPython's `display` shows the first figure; the handle that it returns replaces it."""
    display = pytest.importorskip("IPython.display")
    shown, replaced = [], []
    handle = type("Handle", (), {"update": lambda _, image: replaced.append(image)})()
    monkeypatch.setattr(display, "display", lambda image, display_id: shown.append(image) or handle)
    live = flowjax.notebook.LiveLoss()
    for record in RECORDS:
        live(record)
    assert (len(shown), len(replaced)) == (1, 2)
    curves = {line.get_label(): line.get_ydata() for line in replaced[-1].axes[0].lines}
    np.testing.assert_array_equal(curves["training"], [2.0, 1.8, np.nan])
    np.testing.assert_array_equal(curves["validation (average of parameters)"], [np.nan, 1.5, 1.25])
    assert Image.open(io.BytesIO(replaced[-1]._repr_png_())).format == "PNG"


def test_a_notebook_has_a_progress_bar_of_one_line(monkeypatch, capsys):
    monkeypatch.setattr(writers, "_in_notebook", lambda: True)
    bar = writers.Progress(4, 0, "train")
    for step in (2, 4):
        bar.log(step, loss=1.0, val_loss=2.0)
    bar.close()
    text = capsys.readouterr().err
    assert text.count("\n") == 1, "only the end of the bar ends a line"
    assert all(len(part) <= 110 for part in re.split(r"[\r\n]", text))


def test_a_run_prints_as_one_short_line(tiny_run):
    run = flowjax.load(tiny_run)
    assert repr(run) == f"Run('{tiny_run}', data='gaussians8', method='flow_matching', step=120)"


def test_a_run_is_a_table_with_its_samples(tiny_run):
    """The parameters are counted by hand: 2 coordinates and 16 features of time, two layers of 16, 2 outputs."""
    table = flowjax.load(tiny_run)._repr_html_()
    parameters = (2 + 16 + 1) * 16 + (16 + 1) * 16 + (16 + 1) * 2
    for text in ("gaussians8, 2", "flow_matching", f"mlp, {parameters} parameters", "120 of 120", "validation "):
        assert text in table
    assert "conditions" not in table, "the network has none"
    image = re.search(r'src="data:image/png;base64,([^"]+)"', table)
    assert image is not None
    assert Image.open(io.BytesIO(base64.b64decode(image[1]))).width <= 480
    assert len(table) < 60_000


def test_the_table_of_a_run_without_figures_or_metrics_is_escaped(tiny_run, tmp_path):
    folder = tmp_path / "<b>"
    folder.mkdir()
    for name in ("config.json", "checkpoints"):
        (folder / name).symlink_to(tiny_run / name)
    table = flowjax.load(folder)._repr_html_()
    assert "<img" not in table
    assert "loss" not in table
    assert "&lt;b&gt;" in table
