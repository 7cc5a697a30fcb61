"""What all figures share: colours, the size of panels, and the formats of files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowjax.errors import check_name
from flowjax.files import written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DATA",
    "DPI",
    "FORMATS",
    "PALETTE",
    "SAMPLES",
    "class_name",
    "frame",
    "label_of",
    "literal",
    "new_figure",
    "outer_labels",
    "save",
    "square_limits",
    "to_bytes",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""The colours of Okabe and Ito, which people with any kind of colour blindness can distinguish, darkest ones first."""

DATA, SAMPLES = "#5A5A5A", PALETTE[0]
"""The colours of data and of samples in all figures."""

DPI = 110
"""Dots per inch of PNG files and notebooks."""

_LONGEST = 18

_RASTER_DPI = 300
"""Dots per inch of clouds of points in vector formats, where thousands of markers would make large files."""

FORMATS = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""The formats of files, with metadata that make equal figures equal files."""


def new_figure(
    rows: int,
    columns: int,
    width: float,
    height: float,
    *,
    layout: Literal["constrained", "compressed"] = "constrained",
    **options: Any,
) -> "tuple[Figure, np.ndarray]":
    """Returns a figure with a grid of panels.

    Args:
        rows, columns: of the grid.
        width, height: of a panel in inches, with its labels.
        layout: of the figure: "constrained", or "compressed" for panels of equal aspect.
        options: other arguments of `Figure.subplots`.

    Returns:
        The figure, and its axes, (rows, columns).
    """
    from flowjax.plots.notebook import NotebookFigure

    figure = NotebookFigure(figsize=(width * columns, height * rows), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def outer_labels(axes: "np.ndarray", xlabel: str, ylabel: str) -> None:
    """Labels the bottom row and the left column of a grid of panels."""
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)


def label_of(feature: int) -> str:
    """The label of a coordinate, counted from 0: x_1, x_2, ..."""
    return f"$x_{{{feature + 1}}}$"


def literal(text: str) -> str:
    """Returns the label that matplotlib draws as this text: without formulas, and not hidden from a legend."""
    shown = text.replace("$", r"\$")
    return f"\u200b{shown}" if shown.startswith("_") else shown  # a legend leaves out labels that start with _


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a class, shortened to 18 characters, or its number where the classes have no names."""
    name = str(names[label] if names else label)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def square_limits(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns limits of both axes, of equal length, that contain the points (N, 2) with a margin."""
    low, high = points.min(0), points.max(0)
    half = max(0.58 * float((high - low).max()), 1e-6)
    (x, y) = (low + high) / 2
    return (float(x) - half, float(x) + half), (float(y) - half, float(y) + half)


def frame(ax: "Axes", limits: tuple[tuple[float, float], tuple[float, float]], title: str = "") -> None:
    """Sets the limits, equal aspect, and the title of a panel of the plane, with the same ticks on both axes."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlim=limits[0], ylim=limits[1], aspect="equal", title=title)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.ticklabel_format(scilimits=(-3, 4), useMathText=True)


def to_bytes(figure: "Figure", format: str = "png") -> bytes:
    """Returns a figure as the contents of a file. Equal figures give equal bytes.

    Args:
        figure: the figure.
        format: "png", "pdf" or "svg". PDF files embed their fonts as TrueType; SVG files have text as paths.

    Raises:
        ValueError: if the format is unknown; the message is one line.
    """
    import matplotlib

    check_name("format", format, FORMATS)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "flowjax"}):
        dpi = DPI if format == "png" else _RASTER_DPI
        figure.savefig(buffer, format=format, dpi=dpi, metadata=FORMATS[format])
    return buffer.getvalue()


def save(figure: "Figure", path: str | Path) -> None:
    """Writes a figure atomically into a file, in the format of its suffix.

    Args:
        figure: the figure.
        path: a file that ends in .png, .pdf or .svg; its folder is created.

    Raises:
        ValueError: if the suffix is another; the message is one line.
    """
    path = Path(path)
    content = to_bytes(figure, path.suffix.removeprefix("."))
    with written(path) as part:
        part.write_bytes(content)
