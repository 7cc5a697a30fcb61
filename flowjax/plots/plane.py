"""Figures of data in the plane, or on the line: samples beside data, trajectories, densities."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import DATA, PALETTE, SAMPLES, frame, label_of, new_figure, outer_labels, square_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["density", "samples_against_data", "trajectories"]

_SIZE = 4.0
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
    figure, axes = new_figure(1, 2, _SIZE, _SIZE, layout="compressed", sharey=True)
    clouds = {"data": (data, data_labels, DATA), "samples": (samples, sample_labels, SAMPLES)}
    for ax, (title, (points, labels, colour)) in zip(axes[0], clouds.items(), strict=True):
        _cloud(ax, points, labels, colour, class_names)
        frame(ax, square_limits(data), f"{title} ({len(points):,})")
    outer_labels(axes, label_of(0), label_of(1))
    if data_labels is not None:
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", title="class", markerscale=4)
    return figure


def _cloud(ax: "Axes", points: np.ndarray, labels: np.ndarray | None, colour: str, names: Sequence[str]) -> None:
    """Draws points (N, 2), with a colour for each of their classes."""
    size = float(np.clip(9000 / max(len(points), 1), 2, 16))
    groups = [(points, colour, "")]
    if labels is not None:
        classes = np.unique(labels)
        groups = [
            (points[labels == k], PALETTE[i % len(PALETTE)], names[k] if names else str(k))
            for i, k in enumerate(classes)
        ]
    for inside, colour, name in groups:
        ax.scatter(*inside.T, s=size, alpha=0.5, lw=0, color=colour, label=name, rasterized=len(points) >= _MANY)


def trajectories(times: np.ndarray, lines: np.ndarray, labels: np.ndarray | None = None) -> "Figure":
    """Draws trajectories from the source (t = 0) to samples (t = 1), with their ends: in the plane, or over time.

    Args:
        times: (T,) increasing.
        lines: (T, N, 2), or (T, N, 1) for coordinates that are drawn over time.
        labels: (N,) classes, which give the ends of the trajectories their colours; None for one colour.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 1, 5.0, 5.0 if lines.shape[-1] == 2 else 3.6)
    ax = axes[0, 0]
    if lines.shape[-1] == 1:
        x, y = np.broadcast_to(times[:, None], lines.shape[:2]), lines[..., 0]
        ax.set(xlabel="$t$", ylabel="$x$", xlim=(times[0], times[-1]), title="trajectories")
        ax.margins(x=0.02)
    else:
        x, y = lines[..., 0], lines[..., 1]
        frame(ax, square_limits(lines.reshape(-1, 2)), "trajectories")
        ax.set(xlabel=label_of(0), ylabel=label_of(1))
    ax.plot(x, y, c="0.7", lw=0.5, zorder=1)
    ax.scatter(x[0], y[0], s=8, lw=0, c="k", zorder=2, label=f"source, $t = {times[0]:.3g}$")
    colours = [SAMPLES] if labels is None else [PALETTE[k % len(PALETTE)] for k in np.unique(labels, False, True)[1]]
    ax.scatter(x[-1], y[-1], s=8, lw=0, c=colours, zorder=3, label=f"samples, $t = {times[-1]:.3g}$")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2.5, frameon=False)
    return figure


def density(xs: np.ndarray, ys: np.ndarray, densities: Mapping[str, np.ndarray]) -> "Figure":
    """Draws densities in the plane side by side, on one scale of colours that ends at the peak of the first.

    Args:
        xs, ys: (W,) and (H,) equally spaced coordinates.
        densities: (H, W) by title.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, len(densities), _SIZE, _SIZE, layout="compressed", sharey=True)
    values = list(densities.values())
    peak, image = float(values[0].max()), None
    for ax, (title, value) in zip(axes[0], densities.items(), strict=True):
        extent = (float(xs[0]), float(xs[-1]), float(ys[0]), float(ys[-1]))
        image = ax.imshow(value, origin="lower", extent=extent, vmin=0, vmax=peak, cmap="viridis")
        ax.set_title(title)
    outer_labels(axes, label_of(0), label_of(1))
    assert image is not None
    above = any(value.max() > 1.001 * peak for value in values)
    figure.colorbar(image, ax=axes, label="density", extend="max" if above else "neither", shrink=0.9)
    return figure
