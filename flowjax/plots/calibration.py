"""Figures of calibration: distribution functions of ranks, expected coverage, and posterior predictive intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import DATA, PALETTE, SAMPLES, label_of, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration", "expected_coverage", "predictive", "rank_ecdf"]

_DASHES = ("-", "--", ":", "-.")
_MOST_CHANNELS = 4
_SEPARATE = 20
"""Up to this number of features, each has its own interval; of more, the intervals become bands."""

_SCALES = 10.0
"""Features whose spreads differ by more than this factor are drawn in their own units."""


def calibration(
    levels: np.ndarray,
    ecdf: np.ndarray,
    coverage: np.ndarray,
    bands: tuple[np.ndarray, np.ndarray],
    coverage_bands: tuple[np.ndarray, np.ndarray],
    names: Sequence[str] = (),
) -> "Figure":
    """Draws the distribution functions of ranks beside the expected coverage: `rank_ecdf` and `expected_coverage`.

    Args:
        levels: points of the functions, (K,), in (0, 1).
        ecdf: of the ranks, (K, D).
        coverage: the share of true parameters inside the regions of each level, (K,).
        bands, coverage_bands: the lower and the upper end of the simultaneous bands of each panel, (K,).
        names: of the parameters; theta_1, theta_2, ... if empty.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 2, 4.8, 4.4 + 0.25 * (ecdf.shape[1] // 6))
    left, right = axes[0]
    _draw_ranks(left, levels, ecdf, *bands, names)
    _draw_coverage(right, levels, coverage, *coverage_bands)
    right.lines[-1].set_color("k")  # the left panel has the other colours
    (handles, labels), (more, of_right) = (ax.get_legend_handles_labels() for ax in (left, right))
    handles, labels = handles + more[1:], labels + of_right[1:]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return figure


def rank_ecdf(
    levels: np.ndarray, ecdf: np.ndarray, low: np.ndarray, high: np.ndarray, names: Sequence[str] = ()
) -> "Figure":
    """Draws how far the distribution functions of ranks are from that of uniform ranks, with simultaneous bands.

    Above zero at low levels and below it at high ones, the posterior is too narrow, and the other way round it is too
    wide; above zero everywhere, its samples are too large, and below zero everywhere too small.

    Args:
        levels: points of the functions, (K,), in (0, 1).
        ecdf: (K, D), one function for each parameter.
        low, high: simultaneous bands of one function, (K,).
        names: of the parameters; theta_1, theta_2, ... if empty.

    Returns:
        The figure.
    """
    columns = 4
    figure, axes = new_figure(1, 1, 6.0, 3.9 + 0.25 * (ecdf.shape[1] // columns))
    _draw_ranks(axes[0, 0], levels, ecdf, low, high, names)
    _legend(figure, axes[0, 0], columns)
    return figure


def expected_coverage(levels: np.ndarray, coverage: np.ndarray, low: np.ndarray, high: np.ndarray) -> "Figure":
    """Draws the expected coverage of credible regions over their credibility, with simultaneous bands.

    Args:
        levels: credibility levels, (K,), in (0, 1).
        coverage: the share of true parameters inside the regions of each level, (K,).
        low, high: simultaneous bands for the right posterior, (K,).

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 1, 4.6, 4.8)
    _draw_coverage(axes[0, 0], levels, coverage, low, high)
    _legend(figure, axes[0, 0], 2)
    return figure


def predictive(observed: np.ndarray, simulations: np.ndarray, names: Sequence[str] = ()) -> "Figure":
    """Draws an observation and the central intervals of simulations from posterior samples, for each feature.

    Features whose spreads differ by more than a factor of 10 are drawn relative to the median and the standard
    deviation of their simulations, as one axis would show only the largest.

    Args:
        observed: (F,), or (F, C) for a series of F times and C channels, of which the first 4 are shown.
        simulations: (S, F) or (S, F, C). Numbers that are not finite are left out.
        names: of the features; their numbers from 1 on if empty.

    Returns:
        The figure.
    """
    length = observed.shape[0]
    observed = np.asarray(observed, float).reshape(length, -1)
    simulations = np.asarray(simulations, float).reshape(len(simulations), *observed.shape)
    simulations = np.where(np.isfinite(simulations), simulations, np.nan)
    spread, median = np.nanstd(simulations, 0), np.nanmedian(simulations, 0)
    positive = spread[spread > 0]
    relative = positive.size > 0 and positive.max() > _SCALES * positive.min()
    if relative:
        unit = np.where(spread > 0, spread, 1.0)
        observed, simulations = (observed - median) / unit, (simulations - median) / unit
    channels = min(observed.shape[1], _MOST_CHANNELS)
    height = 3.8 if channels == 1 else 2.2
    figure, axes = new_figure(channels, 1, 6.4, height, sharex=True)
    for channel, ax in enumerate(axes[:, 0]):
        _intervals(ax, observed[:, channel], simulations[..., channel])
        value = label_of(channel) if channels > 1 else "$x$"
        ax.set_ylabel(f"({value} - median) / std" if relative else value)
    ax = axes[-1, 0]
    if names and length <= _SEPARATE:
        ax.set_xticks(np.arange(1, length + 1), [literal(str(name)) for name in names[:length]], rotation=90)
    ax.set_xlabel("feature of the observation")
    _legend(figure, axes[0, 0], 4)
    return figure


def _draw_ranks(
    ax: "Axes", levels: np.ndarray, ecdf: np.ndarray, low: np.ndarray, high: np.ndarray, names: Sequence[str]
) -> None:
    x = np.concatenate([[0], levels, [1]])
    _band(ax, x, _closed(low - levels), _closed(high - levels))
    for i, values in enumerate((ecdf - levels[:, None]).T):
        style = {"c": PALETTE[i % len(PALETTE)], "ls": _DASHES[i // len(PALETTE) % len(_DASHES)], "lw": 1.4}
        ax.plot(x, _closed(values), label=_name(names, i), **style)
    ax.set(xlabel="rank / number of draws", ylabel="ECDF of the ranks minus uniform", xlim=(0, 1))


def _draw_coverage(ax: "Axes", levels: np.ndarray, coverage: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    x = np.concatenate([[0], levels, [1]])
    _band(ax, x, _closed(low, 1.0), _closed(high, 1.0))
    ax.plot([0, 1], [0, 1], c="0.4", ls="--", lw=1.2, label="right posterior")
    ax.plot(x, _closed(coverage, 1.0), c=SAMPLES, lw=1.6, label="expected coverage")
    ax.set(xlabel="credibility level", ylabel="expected coverage", xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _intervals(ax: "Axes", observed: np.ndarray, simulations: np.ndarray) -> None:
    """Draws the observation (F,) over the central 50% and 90% of simulations (S, F)."""
    from matplotlib.ticker import MaxNLocator

    position = np.arange(1, len(observed) + 1)
    low, lower, middle, upper, high = np.nanquantile(simulations, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    if len(observed) <= _SEPARATE:
        ax.vlines(position, low, high, color=f"{SAMPLES}60", lw=5, label="central 90%")
        ax.vlines(position, lower, upper, color=SAMPLES, lw=5, label="central 50%")
        ax.plot(position, middle, "_", c="w", ms=6, mew=1.2)
        ax.plot(position, observed, "D", c=PALETTE[1], ms=6, mec="w", mew=0.6, label="observed")
        ax.set_xlim(0.5, len(observed) + 0.5)
    else:
        ax.fill_between(position, low, high, color=f"{SAMPLES}40", lw=0, label="central 90%")
        ax.fill_between(position, lower, upper, color=f"{SAMPLES}70", lw=0, label="central 50%")
        ax.plot(position, observed, c=PALETTE[1], lw=1.2, label="observed")
        ax.margins(x=0)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3, axis="y")


def _closed(values: np.ndarray, last: float = 0.0) -> np.ndarray:
    """Values at the levels, and those at the levels 0 and 1, which are the same for all ranks."""
    return np.concatenate([[0.0], values, [last]])


def _band(ax: "Axes", x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    ax.fill_between(x, low, high, color=f"{DATA}40", lw=0, label="simultaneous band")


def _name(names: Sequence[str], i: int) -> str:
    return literal(str(names[i])) if names else rf"$\theta_{{{i + 1}}}$"


def _legend(figure: "Figure", ax: "Axes", columns: int) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
