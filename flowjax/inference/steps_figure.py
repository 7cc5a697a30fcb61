"""The figure of `flowjax evaluate --at_steps`: the distance of samples to the data against the cost of a sample."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowjax import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["steps_figure"]

_DISTANCES = ("w2_squared", "fid", "sfid", "kid")


def steps_figure(metrics: Mapping[str, Any], at_steps: Sequence[int]) -> "Figure | None":
    """Draws the first distance that has a value for each number of steps.

    Args:
        metrics: the result of `flowjax.inference.evaluate` or `evaluate_images`.
        at_steps: the numbers of steps, at least one.

    Returns:
        The figure; None if there is no distance among the metrics.
    """
    name = next((name for name in _DISTANCES if f"{name}_{at_steps[0]}" in metrics), None)
    if name is None:
        return None
    cost = "network_evaluations" if f"network_evaluations_{at_steps[0]}" in metrics else "nfe"
    points = sorted((metrics[f"{cost}_{n}"], metrics[f"{name}_{n}"]) for n in at_steps)
    references = {"two sets of data": metrics[f"{name}_true"]} if f"{name}_true" in metrics else {}
    x, y = zip(*points, strict=True)
    quantity = {"w2_squared": "squared W2 distance to the data"}.get(name, name.upper())
    return plots.lines({"samples": (x, y)}, "evaluations of the network for a sample", quantity, references=references)
