"""A run in a notebook: a compact table with the figure of its samples, as HTML."""

import base64
import html
import io
from pathlib import Path

import jax

from flowjax.inference.run import Run
from flowjax.training.writers import read_metrics

__all__ = ["run_card"]

_WIDTH = 480
"""The greatest width of the figure in pixels."""
_COLOURS = 64
"""Colours of the figure, which keep its size in the notebook below about 50 kB."""

_LOSSES = {"training": "loss", "validation": "val_loss"}


def run_card(run: Run) -> str:
    """The HTML of a run: its data set, method, network, steps, last losses, and samples if its figures exist."""
    records = read_metrics(run.workdir / "metrics.jsonl")
    last = next((record for record in reversed(records) if record["step"] <= run.step), {})
    losses = [f"{name} {last[key]:.4g}" for name, key in _LOSSES.items() if last.get(key) is not None]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    rows = {
        "data": f"{run.spec.name}, {' x '.join(map(str, run.spec.shape))}",
        "conditions": ", ".join(field.name for field in run.fields),
        "method": run.config.method.name,
        "network": f"{run.config.get('model', {}).get('name', 'of the method')}, {parameters:,} parameters",
        "step": f"{run.step:,} of {run.config.train.steps:,}",
        "loss": ", ".join(losses),
        "workdir": str(run.workdir),
    }
    cell = '<td style="text-align:left">'
    lines = [f"<tr>{cell}<b>{name}</b></td>{cell}{html.escape(text)}</td></tr>" for name, text in rows.items() if text]
    return f"<table>{''.join(lines)}</table>{_figure(run.workdir / 'plots' / 'samples.png')}"


def _figure(path: Path) -> str:
    """An image element with a small copy of a figure; empty if there is none that can be read."""
    try:
        from PIL import Image
    except ModuleNotFoundError:  # it comes with matplotlib, which drew the figure, perhaps elsewhere
        return ""
    out = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((_WIDTH, _WIDTH))
            image.convert("RGB").quantize(_COLOURS).save(out, "png", optimize=True)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return f'<img alt="samples" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'
