"""The corner plot: marginals of samples on the diagonal, and densities of pairs below it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import PALETTE, SAMPLES, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["corner", "highest_density_levels"]

_MOST = 10
_BINS, _SIDE = 40, 60
_SMOOTHING = 1.5
_MASSES = (0.95, 0.5)
_REFERENCE, _TRUTH = PALETTE[1], "k"


def corner(
    samples: np.ndarray,
    names: Sequence[str] = (),
    *,
    truth: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    labels: tuple[str, str] = ("samples", "reference"),
    most: int = _MOST,
) -> "Figure":
    """Draws the marginals of samples and, below the diagonal, the regions of pairs that hold 50% and 95% of them.

    The regions are highest density regions of a histogram with 60 bins a side, smoothed by a normal kernel of 1.5 bins.

    Args:
        samples: (N, D).
        names: of the parameters; theta_1, theta_2, ... if empty.
        truth: the true parameters, (D,), drawn as lines.
        reference: other samples, (M, D), drawn as outlines in another colour.
        labels: of samples and reference in the legend.
        most: the largest number of parameters; the first ones are shown.

    Returns:
        The figure.
    """
    d = min(samples.shape[1], most)
    sets = {labels[0]: (np.asarray(samples, float), SAMPLES)}
    if reference is not None:
        sets[labels[1]] = (np.asarray(reference, float), _REFERENCE)
    limits = [_limits([rows[:, i] for rows, _ in sets.values()], None if truth is None else truth[i]) for i in range(d)]
    side = max(1.7, 4.8 / d)  # wide enough for the legend
    figure, axes = new_figure(d, d, side, side)
    for row in range(d):
        for column in range(d):
            ax = axes[row, column]
            if column > row:
                ax.set_axis_off()
                continue
            if row == column:
                _marginals(ax, sets, row, limits[row])
            else:
                _pair(ax, sets, column, row, (limits[column], limits[row]))
                ax.set_ylim(*limits[row])
            ax.set_xlim(*limits[column])
            if truth is not None:
                _mark(ax, truth[column], None if row == column else truth[row])
            ax.tick_params(labelsize="small", labelbottom=row == d - 1, labelleft=column == 0 and row > 0)
            ax.locator_params(nbins=3)
    for i in range(d):
        name = literal(str(names[i])) if names else rf"$\theta_{{{i + 1}}}$"
        axes[-1, i].set_xlabel(name)
        axes[i, 0].set_ylabel(name if i else "density")
    figure.align_labels()
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=3 if d > 2 else 2, frameon=False)
    if d < samples.shape[1]:
        figure.suptitle(f"{d} of {samples.shape[1]} parameters", fontsize="medium")
    return figure


def highest_density_levels(density: np.ndarray, masses: Sequence[float]) -> np.ndarray:
    """Returns the densities above which the cells of a histogram hold given shares of its total.

    Args:
        density: non-negative values of cells of equal size.
        masses: shares in (0, 1), from the largest on.

    Returns:
        Levels that increase, (len(masses),).
    """
    ordered = np.sort(density.ravel())[::-1]
    held = np.cumsum(ordered)
    return ordered[np.searchsorted(held, np.asarray(masses) * held[-1])]


def _limits(columns: Sequence[np.ndarray], truth: float | None) -> tuple[float, float]:
    """Limits that include 99.8% of each set and the true parameter, with a margin."""
    ends = [float(q) for values in columns for q in np.quantile(values, (0.001, 0.999))]
    ends += [] if truth is None else [float(truth)]
    margin = 0.1 * (max(ends) - min(ends)) or 0.5
    return min(ends) - margin, max(ends) + margin


def _marginals(ax: "Axes", sets: dict[str, tuple[np.ndarray, str]], i: int, limits: tuple[float, float]) -> None:
    edges = np.linspace(*limits, _BINS + 1)
    for number, (label, (rows, colour)) in enumerate(sets.items()):
        heights = np.histogram(rows[:, i], edges)[0] / (len(rows) * (edges[1] - edges[0]))
        ax.stairs(heights, edges, fill=number == 0, color=f"{colour}60" if number == 0 else colour, lw=1.4, label=label)
    ax.set_yticks([])


def _pair(
    ax: "Axes",
    sets: dict[str, tuple[np.ndarray, str]],
    i: int,
    j: int,
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    """Draws the regions of parameters i (horizontal) and j: filled for the first set, outlines for the others."""
    from scipy.ndimage import gaussian_filter

    edges = [np.linspace(*limit, _SIDE + 1) for limit in limits]
    centres = [(e[:-1] + e[1:]) / 2 for e in edges]
    for number, (rows, colour) in enumerate(sets.values()):
        density = np.histogram2d(rows[:, i], rows[:, j], edges)[0].T
        if not density.any():
            continue
        density = gaussian_filter(density, _SMOOTHING, mode="constant")
        levels = np.unique(highest_density_levels(density, _MASSES))
        if number == 0:
            shades = [f"{colour}50", f"{colour}B0"][-len(levels) :]
            ax.contourf(*centres, density, levels=[*levels, density.max() * 1.001], colors=shades)
        else:
            ax.contour(*centres, density, levels=levels, colors=colour, linewidths=1.2)


def _mark(ax: "Axes", x: float, y: float | None) -> None:
    """Draws lines at the true value of the parameter, or of both parameters of a pair."""
    ax.axvline(x, c=_TRUTH, lw=1.0, ls="--", label="true parameters")
    if y is not None:
        ax.axhline(y, c=_TRUTH, lw=1.0, ls="--")
        ax.plot(x, y, "s", c=_TRUTH, ms=3.5)
