"""Curves: losses over training, quality over cost, and histograms of log-likelihoods."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowjax.plots.style import PALETTE, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["likelihood_histogram", "lines", "loss_curves", "losses_of_records", "training_curves"]

_MARKERS = "osD^vP*X"
_DASHES = ("-", "--", ":", "-.")
_START = 0.1
"""The share of the records that do not decide the limits of losses."""


def loss_curves(samples_seen: np.ndarray, losses: Mapping[str, np.ndarray]) -> "Figure":
    """Draws losses over the number of samples seen, as `training_curves` does.

    Args:
        samples_seen: (N,).
        losses: (N,) by name, with NaN where there is none.

    Returns:
        The figure.
    """
    return training_curves({name: (samples_seen, values) for name, values in losses.items()}, "loss")


def losses_of_records(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draws the training and the validation loss of the records of `metrics.jsonl`, as `training_curves` does.

    Args:
        records: of one run, each with `samples_seen`, `loss` and `val_loss`; a loss may be missing or None.

    Returns:
        The figure.
    """
    column = lambda key: np.asarray([record.get(key) for record in records], float)
    losses = {"training": column("loss"), "validation (average of parameters)": column("val_loss")}
    return loss_curves(column("samples_seen"), losses)


def training_curves(curves: Mapping[str, tuple[Any, Any]], quantity: str, *, whole: bool = False) -> "Figure":
    """Draws a quantity such as a loss over the number of samples seen; values without finite neighbours become points.

    The limits do not include large values at the start of training, and the axis is logarithmic if the values that
    remain are positive and differ by more than a factor of 10.

    Args:
        curves: by name, the number of samples seen, (N,), and the values, (N,), with NaN where there is none. Names are
            drawn as they are: they are not read as formulas.
        quantity: the label of the values.
        whole: whether the limits include all values, on a linear axis.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 1, 6.0, 4.0)
    from matplotlib.ticker import EngFormatter

    ax, drawn = axes[0, 0], []
    for i, (name, (seen, values)) in enumerate(curves.items()):
        seen, values = np.asarray(seen, float), np.asarray(values, float)
        drawn.append(values)
        finite = np.isfinite(values)
        padded = np.pad(finite, 1)
        isolated = finite & ~padded[:-2] & ~padded[2:]  # a line needs two points
        style: dict[str, Any] = {"marker": "o" if isolated.any() else None, "ms": 4, "markevery": isolated, "lw": 1.4}
        if finite.any():
            dash = _DASHES[i // len(PALETTE) % len(_DASHES)]
            ax.plot(seen, values, label=literal(name), c=PALETTE[i % len(PALETTE)], ls=dash, **style)
    if not whole:
        _limit_values(ax, drawn)
    ax.set(xlabel="samples seen", ylabel=literal(quantity))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if len(ax.lines) > 1 or (ax.lines and ax.lines[0].get_label() != literal(quantity)):
        ax.legend()
    ax.grid(alpha=0.3, which="both")
    return figure


def _limit_values(ax: "Axes", curves: Sequence[np.ndarray]) -> None:
    """Sets the limits and the scale of the axis of values (N,)."""
    settled = np.concatenate([v[int(np.ceil(_START * len(v))) :] if len(v) >= 5 else v for v in curves])
    every = np.concatenate(curves)
    every, settled = every[np.isfinite(every)], settled[np.isfinite(settled)]
    if not settled.size:
        return
    shown = settled if np.ptp(every) > 2.5 * np.ptp(settled) > 0 else every
    low, high = float(shown.min()), float(shown.max())
    if low > 0 and high > 10 * low:
        ax.set_yscale("log")
        margin = (high / low) ** 0.06
        ax.set_ylim(low / margin, high * margin)
    elif high > low:
        margin = 0.06 * (high - low)
        ax.set_ylim(low - margin, high + margin)


def lines(
    curves: Mapping[str, tuple[Any, Any]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = True,
    references: Mapping[str, float] | None = None,
    title: str = "",
) -> "Figure":
    """Draws curves such as the quality of samples against the number of function evaluations (NFE).

    Args:
        curves: by name, x (N,) and y: (N,), or (S, N) for S seeds, of which the mean and error bars of one standard
            deviation are drawn.
        xlabel, ylabel: the labels of the axes.
        log: whether both axes are logarithmic.
        references: values of y by name, drawn as horizontal lines, such as the distance between two sets of data.
        title: of the figure.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 1, 6.0, 4.2)
    ax = axes[0, 0]
    for i, (name, (x, y)) in enumerate(curves.items()):
        y = np.atleast_2d(np.asarray(y, float))
        spread = y.std(0, ddof=1) if len(y) > 1 else None
        style = {"c": PALETTE[i % len(PALETTE)], "marker": _MARKERS[i % len(_MARKERS)], "ms": 5, "lw": 1.4}
        ax.errorbar(np.asarray(x, float), y.mean(0), spread, label=name, capsize=2.5, **style)
    for (name, value), dash in zip((references or {}).items(), ("--", ":", "-.") * 3, strict=False):
        ax.axhline(value, c="0.4", ls=dash, lw=1.2, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log:
        ax.set(xscale="log", yscale="log")
        _tick_at(ax, np.unique(np.concatenate([np.asarray(x, float) for x, _ in curves.values()])))
    ax.grid(alpha=0.3, which="both")
    ax.legend()
    return figure


def _tick_at(ax: "Axes", xs: np.ndarray) -> None:
    """Puts the ticks of a logarithmic axis at these positions, unless they are many or close to each other."""
    if len(xs) <= 9 and (np.diff(np.log(xs)) > 0.06 * np.log(xs[-1] / xs[0])).all():
        ax.set_xticks(xs, labels=[f"{x:g}" for x in xs])
        ax.set_xticks([], minor=True)


def likelihood_histogram(log_probs: Mapping[str, np.ndarray], unit: str = "nats") -> "Figure":
    """Draws histograms of log-likelihoods with common bins, and their means. Infinite values and NaN are counted apart.

    Args:
        log_probs: (N,) by name.
        unit: of the numbers, for the label.

    Returns:
        The figure.
    """
    figure, axes = new_figure(1, 1, 6.0, 4.0)
    ax = axes[0, 0]
    finite = {name: np.asarray(a, float)[np.isfinite(a)] for name, a in log_probs.items()}
    bins = np.histogram_bin_edges(np.concatenate([*finite.values()]), bins=50)
    for (name, values), colour in zip(finite.items(), PALETTE, strict=False):
        infinite, undefined = int(np.isinf(log_probs[name]).sum()), int(np.isnan(log_probs[name]).sum())
        more = (f"; {infinite:,} infinite" if infinite else "") + (f"; {undefined:,} NaN" if undefined else "")
        label = f"{name}, mean {values.mean():.2f}{more}" if len(values) else f"{name}{more}"
        ax.hist(values, bins, histtype="stepfilled", fc=f"{colour}40", ec=colour, lw=1.4, label=label)
        if len(values):
            ax.axvline(values.mean(), c=colour, ls="--", lw=1.2)
    ax.set(xlabel=f"log-likelihood ({unit})", ylabel="number of points")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure
