"""Figures of tables: the marginal distributions of features, and pairs of features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import DATA, SAMPLES, label_of, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["marginals", "pairs"]

_MOST_FEATURES, _MOST_OF_PAIRS = 12, 5
_BINS = 40
_POINTS = 2000


def marginals(samples: np.ndarray, data: np.ndarray, names: Sequence[str] = (), most: int = _MOST_FEATURES) -> "Figure":
    """Draws a histogram of each feature of the samples, over that of the data.

    Args:
        samples: (N, d).
        data: (M, d).
        names: of the features; x_1, x_2, ... if empty.
        most: the largest number of features; the first ones are shown.

    Returns:
        The figure.
    """
    d = min(data.shape[1], most)
    columns = min(4, d) if d != 5 else 3
    rows = -(-d // columns)
    width = 5.0 if d == 1 else 2.6
    figure, axes = new_figure(rows, columns, width, 3.6 if d == 1 else 2.2)
    for i, ax in enumerate(axes.flat):
        if i >= d:
            ax.remove()
            continue
        _histograms(ax, samples[:, i], data[:, i])
        ax.set_xlabel(names[i] if names else label_of(i))
        if i % columns == 0:
            ax.set_ylabel("density")
    figure.align_ylabels()
    return _labelled(figure, axes[0, 0], d, data.shape[1])


def pairs(samples: np.ndarray, data: np.ndarray, names: Sequence[str] = (), most: int = _MOST_OF_PAIRS) -> "Figure":
    """Draws pairs of features: the data below the diagonal, the samples above it, and the marginals on it.

    Args:
        samples: (N, d), d at least 2; equally many samples and data are drawn, at most 2,000.
        data: (M, d).
        names: of the features; x_1, x_2, ... if empty.
        most: the largest number of features; the first ones are shown.

    Returns:
        The figure.
    """
    d = min(data.shape[1], most)
    figure, axes = new_figure(d, d, 1.7, 1.7)
    limits = [_limits(data[:, i]) for i in range(d)]
    shown = min(_POINTS, len(samples), len(data))
    size = float(np.clip(3000 / max(shown, 1), 3, 10))
    for row in range(d):
        for column in range(d):
            ax = axes[row, column]
            if row == column:
                _histograms(ax, samples[:, row], data[:, row])
                ax.set_yticks([])
            else:
                points, colour = (data, DATA) if row > column else (samples, SAMPLES)
                ax.scatter(
                    points[:shown, column], points[:shown, row], s=size, alpha=0.4, lw=0, color=colour, rasterized=True
                )
                ax.set_ylim(*limits[row])
            ax.set_xlim(*limits[column])
            ax.tick_params(labelsize="small", labelbottom=row == d - 1, labelleft=column == 0 and row > 0)
            ax.locator_params(nbins=3)
    for i in range(d):
        name = names[i] if names else label_of(i)
        axes[-1, i].set_xlabel(name)
        axes[i, 0].set_ylabel(name)
    return _labelled(figure, axes[0, 0], d, data.shape[1])


def _limits(data: np.ndarray) -> tuple[float, float]:
    """Limits of a feature: those of its data without the outermost 0.1% on either side, with a margin."""
    low, high = (float(q) for q in np.quantile(data.astype(float), (0.001, 0.999)))
    margin = 0.1 * (high - low) or 0.5
    return low - margin, high + margin


def _histograms(ax: "Axes", samples: np.ndarray, data: np.ndarray) -> None:
    """Draws the histogram of one feature of the samples over that of the data, with the same bins."""
    edges = np.linspace(*_limits(data), int(np.clip(2.5 * len(data) ** (1 / 3), 10, _BINS)) + 1)
    heights = lambda values: np.histogram(values, edges)[0] / (len(values) * (edges[1] - edges[0]))
    ax.stairs(heights(data), edges, fill=True, color=f"{DATA}60", lw=0, label="data")
    ax.stairs(heights(samples), edges, color=SAMPLES, lw=1.4, label="samples")
    ax.set_xlim(edges[0], edges[-1])


def _labelled(figure: "Figure", ax: "Axes", shown: int, features: int) -> "Figure":
    """Adds the legend of an axis, and a title if not all features are shown."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    if shown < features:
        figure.suptitle(f"{shown} of {features} features", fontsize="medium")
    return figure
