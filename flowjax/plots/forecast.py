"""The figure of forecasts: the past, the truth, and intervals of an ensemble."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import DATA, SAMPLES, label_of, literal, new_figure, outer_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["forecast"]

_MOST_CHANNELS = 6
_LONGEST_PAST = 3
"""The past is shown for at most this many times the length of the future."""

_INTERVALS = ((0.9, 0.2), (0.5, 0.4))
"""The central intervals, and the opacity of their colour."""


def forecast(
    past: np.ndarray, truth: np.ndarray, members: np.ndarray, channels: Sequence[str] = (), number: int = 3
) -> "Figure":
    """Draws forecasts of some windows of a series: a row of panels for each channel, and a column for each window.

    A panel shows the end of the past, the truth, and the median and the central 50% and 90% of the ensemble.

    Args:
        past: (N, P, C) the known rows.
        truth: (N, F, C) the rows that followed.
        members: (M, N, F, C) the ensemble.
        channels: the names of the channels; empty for x_1, x_2, ....
        number: how many windows to draw.

    Returns:
        The figure, with the first 6 channels.
    """
    number, count = min(number, len(truth)), min(truth.shape[2], _MOST_CHANNELS)
    future = truth.shape[1]
    past = past[:, -_LONGEST_PAST * future :]
    figure, axes = new_figure(count, number, 3.4, 2.6 if count == 1 else 1.8, sharex=True, sharey="row")
    from matplotlib.ticker import MaxNLocator

    before, after = np.arange(1 - past.shape[1], 1), np.arange(1, future + 1)
    for window in range(number):
        for channel, ax in enumerate(axes[:, window]):
            seen, came = past[window, :, channel], truth[window, :, channel]
            drawn = members[:, window, :, channel].astype(float)
            for share, opacity in _INTERVALS:
                low, high = np.quantile(drawn, ((1 - share) / 2, (1 + share) / 2), axis=0)
                ax.fill_between(after, low, high, color=SAMPLES, alpha=opacity, lw=0, label=f"central {share:.0%}")
            ax.plot(after, np.median(drawn, 0), c=SAMPLES, lw=1.4, label="median")
            ax.plot(np.append(before[-1:], after), np.append(seen[-1:], came), c="black", lw=1.2, label="truth")
            ax.plot(before, seen, c=DATA, lw=1.0, label="past")
            ax.axvline(0.5, c="0.8", lw=0.8, zorder=0)
            ax.margins(x=0)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    outer_labels(axes, "steps after the last known row", "")
    for channel, ax in enumerate(axes[:, 0]):
        ax.set_ylabel(literal(channels[channel]) if channels else label_of(channel))
    figure.align_ylabels()
    if count < truth.shape[2]:
        figure.suptitle(f"{count} of {truth.shape[2]} channels", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=5, frameon=False)
    return figure
