"""Figures of series and of sets of points."""

from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import DATA, PALETTE, SAMPLES, frame, label_of, new_figure, outer_labels, square_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["point_sets", "series"]

_MOST_CHANNELS = 4


def series(samples: np.ndarray, data: np.ndarray, number: int = 6) -> "Figure":
    """Draws some series of the data and some samples side by side, with the median and the central 90% of all.

    Args:
        samples: (N, L), or (N, L, C) for C channels, of which the first 4 are shown.
        data: (M, L) or (M, L, C).
        number: how many series to draw.

    Returns:
        The figure.
    """
    length = data.shape[1]
    data, samples = data.reshape(len(data), length, -1), samples.reshape(len(samples), length, -1)
    channels = min(data.shape[2], _MOST_CHANNELS)
    figure, axes = new_figure(channels, 2, 4.2, 2.8 if channels == 1 else 2.1, sharex=True, sharey="row")
    from matplotlib.ticker import MaxNLocator

    position = np.arange(length)
    for column, (title, values) in enumerate((("data", data), ("samples", samples))):
        for channel, ax in enumerate(axes[:, column]):
            shown = values[..., channel].astype(float)
            low, middle, high = np.quantile(shown, (0.05, 0.5, 0.95), axis=0)
            ax.fill_between(position, low, high, color="0.88", lw=0, label="central 90%")
            ax.plot(position, middle, c="0.45", ls="--", lw=1.2, label="median")
            for line, colour in zip(shown[:number], PALETTE * -(-number // len(PALETTE)), strict=False):
                ax.plot(position, line, c=colour, lw=1.0)
            ax.margins(x=0)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0, column].set_title(title)
    outer_labels(axes, "position", "$x$")
    for channel, ax in enumerate(axes[:, 0]):
        if channels > 1:
            ax.set_ylabel(label_of(channel))
    figure.align_ylabels()
    if channels < data.shape[2]:
        figure.suptitle(f"{channels} of {data.shape[2]} channels", fontsize="medium")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def point_sets(
    samples: np.ndarray, data: np.ndarray, data_mask: np.ndarray | None = None, columns: int = 4
) -> "Figure":
    """Draws some sets of points of the data above some samples, with equal limits.

    Args:
        samples: (N, n, C), C at least 2; of more than two coordinates, the first two are shown.
        data: (M, n, C).
        data_mask: (M, n), true for the points of the data that exist; None if all do.
        columns: how many sets of each to draw.

    Returns:
        The figure.
    """
    columns = min(columns, len(samples), len(data))
    exists = np.ones(data.shape[:2], bool) if data_mask is None else data_mask
    limits = square_limits(data[..., :2][exists])
    figure, axes = new_figure(2, columns, 2.2, 2.5, layout="compressed", sharex=True, sharey=True)
    for i in range(columns):
        for row, points, colour in ((0, data[i][exists[i]], DATA), (1, samples[i], SAMPLES)):
            axes[row, i].scatter(points[:, 0], points[:, 1], s=10, lw=0, alpha=0.8, color=colour)
            frame(axes[row, i], limits, ("data", "samples")[row] if i == 0 else "")
    outer_labels(axes, label_of(0), label_of(1))
    return figure
