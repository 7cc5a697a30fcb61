"""The metrics of `flowjax evaluate` for sets with a mask: distributions of the elements, and of pairs in one set.

Samples of such runs are full sets, and test sets have fewer elements, so sets as a whole cannot be compared. Elements
can be compared, and distances of two elements of the same set. Both have the same distribution in samples as in data if
the elements do not depend on how many of them exist.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from flowjax import metrics
from flowjax.data import Dataset
from flowjax.errors import ConfigError
from flowjax.inference import sampling
from flowjax.inference.choose import SolverSettings
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.program import LabelRule
from flowjax.inference.run import Run
from flowjax.inference.table_metrics import compare_rows, in_model_space
from flowjax.training.writers import say

__all__ = ["OF_SETS", "compare_sets", "set_metrics"]

_NAMES = (
    *("element_marginal_w1", "element_marginal_w1_max", "element_marginal_ks_max"),
    *("element_correlation_error", "element_correlation_error_max", "element_energy_distance", "pair_distance_w1"),
)

OF_SETS = tuple(name + end for name in _NAMES for end in ("", "_true"))
"""The names of these metrics."""

_PAIRS = 10
"""Pairs of elements that are drawn of each set."""

_SEED = 76


def set_metrics(
    run: Run, dataset: Dataset, seed: int, solver: SolverSettings, batch: int, labels: LabelRule
) -> dict[str, Any]:
    """Draws full sets, and compares their elements with those of test sets that exist; see `compare_sets`.

    Args:
        run: opened with `flowjax.load`; its data have a mask.
        dataset: the data set that the run was trained on, with at least 4 test sets.
        seed, solver, batch, labels: as for `flowjax.inference.sample`.

    Raises:
        ConfigError: if there are fewer test sets.
    """
    test, mask = dataset.test, dataset.test_mask
    if len(test) < 4 or mask is None:
        raise ConfigError(f"data {run.spec.name!r} have {len(test)} test sets, and metrics of sets need at least 4")
    num = len(test) // 2
    say(
        f"evaluate: {num} samples; they are full sets, so their elements are compared with those of test sets that "
        "exist, as if these did not depend on their number"
    )
    cond = conditions_of_test(run, dataset, num)
    drawn = sampling.sample(run, num, seed, solver, batch=batch, labels=labels, cond=cond, show=True).samples
    scale = run.spec.normalise.scale
    x = in_model_space(run.spec, np.where(mask[..., None], test, 0))  # absent elements may hold anything
    halves = (x[:num], mask[:num]), (x[num : 2 * num], mask[num : 2 * num])
    return compare_sets(in_model_space(run.spec, drawn), *halves, 1.0 if isinstance(scale, tuple) else scale)


def compare_sets(
    samples: Float[np.ndarray, "N n C"],
    data: tuple[Float[np.ndarray, "N n C"], Bool[np.ndarray, "N n"]],
    other: tuple[Float[np.ndarray, "N n C"], Bool[np.ndarray, "N n"]],
    unit: float = 1.0,
) -> dict[str, float]:
    """Compares full sets with sets of which some elements exist, and as a noise floor two of the latter.

    Args:
        samples: full sets, in the units of the model space.
        data: sets, and which of their elements exist.
        other: other sets. Metrics whose name ends in `_true` compare them with `data`.
        unit: that of the energy distance, in which it is returned.

    Returns:
        element_marginal_w1, element_marginal_w1_max, element_marginal_ks_max, element_correlation_error,
            element_correlation_error_max, element_energy_distance: as for `flowjax.inference.table_metrics`, with all
            elements as rows (C,).
        pair_distance_w1: the Wasserstein-1 distance between the distributions of the distance of two elements of one
            set, in standard deviations of that of the data. It is left out if no set has two elements.
    """
    full = samples, np.ones(samples.shape[:2], bool)
    found = {}
    of_data = pair_distances(*data)
    for end, (x, mask) in (("", full), ("_true", other)):
        compared = compare_rows(x[mask], data[0][data[1]], unit)
        found |= {f"element_{name}{end}": value for name, value in compared.items()}
        distances = pair_distances(x, mask)
        if len(distances) and len(of_data):
            wasserstein = metrics.marginal_distances(distances[:, None], of_data[:, None]).wasserstein
            found[f"pair_distance_w1{end}"] = float(wasserstein[0])
    return {name: found[name] for name in OF_SETS if name in found}


def pair_distances(x: Float[np.ndarray, "N n C"], mask: Bool[np.ndarray, "N n"]) -> Float[np.ndarray, " P"]:
    """Euclidean distances of ten random pairs of different elements of each set; sets with fewer than two have none."""
    rng, several = np.random.default_rng(_SEED), mask.sum(1) >= 2
    x, mask = x[several].astype(np.float64), mask[several]
    found = []
    for _ in range(_PAIRS):
        order = np.where(mask, rng.random(mask.shape), 2.0).argsort(1)[:, :2, None]
        pair = np.take_along_axis(x, order, 1)
        found.append(np.linalg.norm(pair[:, 0] - pair[:, 1], axis=-1) if len(x) else np.zeros(0))
    return np.concatenate(found)
