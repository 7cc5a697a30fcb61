"""Figures of data in the plane, or on the line: samples beside data, trajectories, densities."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from flowjax.plots.style import (
    DATA,
    PALETTE,
    SAMPLES,
    class_name,
    frame,
    label_of,
    new_figure,
    outer_labels,
    square_limits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["density", "samples_against_data", "trajectories"]

_SIZE, _TITLE, _COLOUR_BAR, _LEGEND = 4.0, 0.3, 0.8, 1.4
SOURCE = "#000000"
_MANY = 1500
"""From this number of points on, a cloud is drawn as pixels in vector formats, too."""


def samples_against_data(
    samples: np.ndarray,
    data: np.ndarray,
    sample_labels: np.ndarray | None = None,
    data_labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> "Figure":
    """Draws points of the data and samples side by side, with the limits of the data.

    Args:
        samples: (N, 2).
        data: (M, 2).
        sample_labels, data_labels: (N,) and (M,) classes, which are shown by colours; None for no classes.
        class_names: the name of each class; empty for numbers.

    Returns:
        The figure.
    """
    figure, axes = new_figure(
        1, 2, _SIZE + (_LEGEND / 2 if data_labels is not None else 0), _SIZE + _TITLE, layout="compressed", sharey=True
    )
    size = float(np.clip(9000 / max(len(data), len(samples), 1), 2, 16))
    clouds = {"data": (data, data_labels, DATA), "samples": (samples, sample_labels, SAMPLES)}
    for ax, (title, (points, labels, plain)) in zip(axes[0], clouds.items(), strict=True):
        for inside, colour, name in _classes(labels, plain, class_names):
            raster = len(points) >= _MANY
            ax.scatter(*points[inside].T, s=size, alpha=0.5, lw=0, color=colour, label=name, rasterized=raster)
        frame(ax, square_limits(data), f"{title} ({len(points):,})")
    outer_labels(axes, label_of(0), label_of(1))
    if data_labels is not None:
        _legend(figure, axes[0, 0], "outside right center", 1)
    return figure


def _classes(
    labels: np.ndarray | None, colour: str, names: Sequence[str], plain: str = ""
) -> list[tuple[np.ndarray | slice, str, str]]:
    """For each class, its rows, its colour and its name; all rows, `colour` and `plain` if there are no classes."""
    if labels is None:
        return [(slice(None), colour, plain)]
    return [
        (labels == k, PALETTE[i % len(PALETTE)], class_name(names, int(k))) for i, k in enumerate(np.unique(labels))
    ]


def _legend(figure: "Figure", ax: "Axes", where: Any, columns: int) -> None:
    """Adds a legend beside the panels, with markers of one size."""
    legend = figure.legend(*ax.get_legend_handles_labels(), loc=where, ncols=columns, frameon=False)
    for handle in legend.legend_handles:
        cast("Any", handle).set(sizes=[30], alpha=1)


def trajectories(
    times: np.ndarray, lines: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] = ()
) -> "Figure":
    """Draws trajectories from the source (t = 0) to samples (t = 1), with their ends: in the plane, or over time.

    Args:
        times: (T,) increasing.
        lines: (T, N, 2), or (T, N, 1) for coordinates that are drawn over time.
        labels: (N,) classes, which give the ends of the trajectories their colours; None for one colour.
        class_names: the name of each class; empty for numbers.

    Returns:
        The figure.
    """
    in_plane = lines.shape[-1] == 2
    size = (5.0 + (0 if labels is None else _LEGEND), 5.3 if in_plane else 3.6)
    figure, axes = new_figure(1, 1, *size, layout="compressed" if in_plane else "constrained")
    ax = axes[0, 0]
    if in_plane:
        x, y = lines[..., 0], lines[..., 1]
        frame(ax, square_limits(lines.reshape(-1, 2)))
        ax.set(xlabel=label_of(0), ylabel=label_of(1))
    else:
        x, y = np.broadcast_to(times[:, None], lines.shape[:2]), lines[..., 0]
        ax.set(xlabel="time $t$", ylabel="$x$")
        ax.margins(x=0.02)
    ax.plot(x, y, c="0.7", lw=0.5, zorder=1)
    ax.scatter(x[0], y[0], s=8, lw=0, color=SOURCE, zorder=2, label=f"source, $t = {times[0]:.3g}$")
    for inside, colour, name in _classes(labels, SAMPLES, class_names, f"samples, $t = {times[-1]:.3g}$"):
        ax.scatter(x[-1][inside], y[-1][inside], s=8, lw=0, color=colour, zorder=3, label=name)
    _legend(figure, ax, *(("outside lower center", 2) if labels is None else ("outside right center", 1)))
    return figure


def density(xs: np.ndarray, ys: np.ndarray, densities: Mapping[str, np.ndarray]) -> "Figure":
    """Draws densities in the plane side by side, on one scale of colours that ends at the peak of the first.

    Args:
        xs, ys: (W,) and (H,) equally spaced coordinates.
        densities: (H, W) by title.

    Returns:
        The figure.
    """
    width = _SIZE + _COLOUR_BAR / len(densities)
    figure, axes = new_figure(1, len(densities), width, _SIZE + _TITLE, layout="compressed", sharey=True)
    values = list(densities.values())
    peak, image = float(values[0].max()), None
    limits = (float(xs[0]), float(xs[-1])), (float(ys[0]), float(ys[-1]))
    for ax, (title, value) in zip(axes[0], densities.items(), strict=True):
        image = ax.imshow(value, origin="lower", extent=(*limits[0], *limits[1]), vmin=0, vmax=peak, cmap="viridis")
        frame(ax, limits, title)
    outer_labels(axes, label_of(0), label_of(1))
    assert image is not None
    above = any(value.max() > 1.001 * peak for value in values)
    beside = axes[0, -1].inset_axes((1.05, 0, 0.05, 1))
    figure.colorbar(image, cax=beside, label="density", extend="max" if above else "neither")
    return figure
