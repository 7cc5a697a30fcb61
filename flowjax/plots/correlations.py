"""The correlation matrices of data and samples, and their difference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["correlations"]

_NAMED = 12
"""Up to this number of features, each one has a tick."""


def correlations(samples: np.ndarray, data: np.ndarray, names: Sequence[str] = (), most: int = 200) -> "Figure":
    """Draws the correlation matrices of data and samples, and the samples' minus the data's.

    The first two share one scale of colours from -1 to 1, and the difference has one that ends at its largest entry, so
    that small errors are visible. Blue and red, which meet in white at 0, can be told apart with any kind of colour
    blindness. Features that are constant in a sample have no correlations, and are grey.

    Args:
        samples: (N, d), d at least 2.
        data: (M, d).
        names: of the features; numbers from 1 on if empty.
        most: the largest number of features; the first ones are shown.

    Returns:
        The figure.
    """
    d = min(data.shape[1], most)
    of_data, of_samples = (_correlation(rows[:, :d]) for rows in (data, samples))
    gap = of_samples - of_data
    off = np.abs(gap[~np.eye(d, dtype=bool)])
    largest = float(np.nanmax(off)) if np.isfinite(off).any() else 0.0
    labels = [str(name) for name in names[:d]] if names else []
    long = max(map(len, labels), default=0) > 2
    figure, axes = new_figure(1, 3, 3.4 if long else 3.1, 4.2 if long else 2.9, layout="compressed")
    panels = (("data", of_data, 1.0), ("samples", of_samples, 1.0), ("difference", gap, largest))
    drawn = []
    for ax, (title, matrix, limit) in zip(axes[0], panels, strict=True):
        limit = max(limit, 1e-6)
        drawn.append(ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0.5, d + 0.5, d + 0.5, 0.5)))
        ax.set(title=title, xlabel="feature", facecolor="0.8")
        _ticks(ax, d, labels)
    axes[0, 0].set_ylabel("feature")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    figure.colorbar(drawn[0], ax=list(axes[0, :2]), label="correlation", shrink=0.8)
    figure.colorbar(drawn[2], ax=axes[0, 2], label="samples minus data", shrink=0.8)
    if d < data.shape[1]:
        figure.suptitle(f"{d} of {data.shape[1]} features", fontsize="medium")
    return figure


def _correlation(rows: np.ndarray) -> np.ndarray:
    """The correlation matrix, with NaN for features that are constant."""
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    norms = np.sqrt((centred**2).sum(0))
    unit = centred / np.where((np.ptp(rows, axis=0) > 0) & (norms > 0), norms, np.nan)
    return unit.T @ unit


def _ticks(ax: "Axes", d: int, labels: list[str]) -> None:
    """A tick for each feature if there are few, and otherwise at round numbers."""
    from matplotlib.ticker import MaxNLocator

    if d <= _NAMED:
        at = np.arange(1, d + 1)
        texts = labels or [str(i) for i in at]
        ax.set_xticks(at, texts, rotation=90 if max(map(len, texts)) > 2 else 0)
        ax.set_yticks(at, texts)
    else:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
