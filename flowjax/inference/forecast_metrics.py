"""Scores of forecasts: CRPS and energy score of ensembles of samples given the conditions of test points.

The same scores of two ensembles that need no network are the baselines. Of a series (`data.series`), both keep the
dependence between times and channels, because they take whole windows.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flowjax import metrics
from flowjax.conditions import Field, named
from flowjax.data import Dataset
from flowjax.data.batches import prepared
from flowjax.data.series import PAST
from flowjax.inference import sampling
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.run import Run
from flowjax.inference.table_metrics import in_model_space
from flowjax.training.writers import say

__all__ = [
    "MEMBERS",
    "OF_FORECASTS",
    "Ensembles",
    "climatology",
    "draw_ensembles",
    "forecast_metrics",
    "has_forecasts",
    "past_field",
    "persistence",
]

_SCORES = ("crps", "energy_score")

OF_FORECASTS = tuple(name + end for name in _SCORES for end in ("", "_persistence", "_climatology"))
"""The names of these metrics."""

MEMBERS, _POINTS = 100, 200
"""The number of samples for each test point, and the largest number of test points."""

_NUMBERS = 2**26
"""The largest number of coordinates of all samples; of large examples fewer test points are scored."""

_SEED = 75


class Ensembles(NamedTuple):
    """Samples of a run for test points.

    Attributes:
        members: (M, N, *event) samples in data space, M for each of N test points.
        observed: (N, *event) the test points.
        cond: their conditions by name, (N, ...), in data space.
    """

    members: np.ndarray
    observed: np.ndarray
    cond: dict[str, np.ndarray]


def has_forecasts(run: Run, dataset: Dataset) -> bool:
    """Whether samples of a run can be scored as forecasts: its network takes numbers, and its samples are no images."""
    fields = [field for field in run.fields if field.kind != "label"]
    known = all(field.name in dataset.test_cond for field in run.fields)
    return bool(fields) and known and not run.spec.is_image and not run.spec.has_mask


def past_field(run: Run) -> Field | None:
    """The condition `past` of a run on windows of a series: a sequence with the channels of x (L, C); else None."""
    field, shape = named(run.fields, PAST), run.spec.shape
    is_past = field is not None and field.kind == "sequence" and len(shape) == 2 and field.shape[1] == shape[1]
    return field if is_past else None


def draw_ensembles(
    run: Run,
    dataset: Dataset,
    points: int,
    members: int = MEMBERS,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
) -> Ensembles:
    """Draws samples given the conditions of the first test points.

    Args:
        run: for which `has_forecasts` is true.
        dataset: the data set of the run.
        points: the number of test points; there may be fewer.
        members: the number of samples for each of them.
        seed, solver, batch, show: as for `flowjax.inference.sample`.
    """
    observed = dataset.test[:points]
    cond = {field.name: dataset.test_cond[field.name][: len(observed)] for field in run.fields}
    drawn = sampling.sample_each(run, members, cond, seed, solver=solver, batch=batch, show=show).samples
    return Ensembles(drawn.swapaxes(0, 1), observed, cond)


def forecast_metrics(run: Run, dataset: Dataset, seed: int, solver: SolverSettings, batch: int) -> dict[str, float]:
    """Scores samples as forecasts of test points.

    Args:
        run: for which `has_forecasts` is true.
        dataset: the data set of the run.
        seed, solver, batch: as for `flowjax.inference.sample`.

    Returns:
        crps: the mean over up to 200 test points, and over all numbers of a point, of the CRPS of 100 samples.
        energy_score: the mean of their energy score, of all numbers of a point together.
        crps_climatology, energy_score_climatology: the same of 100 random training points for each test point.
        crps_persistence, energy_score_persistence: the same of the last known row plus random changes of the training
            data since such a row, for series with a condition `past`.
        All are in standard deviations of the training data, of each feature if the data have scales for features, and
        of the numbers without bounds if they have bounds. The last four are missing if the training data are streamed.
    """
    points = min(_POINTS, len(dataset.test), max(1, _NUMBERS // (MEMBERS * run.spec.d)))
    say(f"evaluate: ensembles of {MEMBERS} samples for {points} test points")
    drawn = draw_ensembles(run, dataset, points, MEMBERS, seed, solver, batch, show=True)
    to_model = partial(in_model_space, run.spec)
    observed, ensembles = to_model(drawn.observed), {"": to_model(drawn.members)}
    if dataset.sample is not None:
        known = _training_rows(dataset, MEMBERS * len(observed))
        ensembles["_climatology"] = climatology(known.x, len(observed))
        if past_field(run) is not None:
            last = to_model(drawn.cond[PAST])[:, -1:]
            ensembles["_persistence"] = persistence(known.x, known.cond[PAST], last)
    found: dict[str, float] = {}
    for end, ensemble in ensembles.items():
        found |= {f"crps{end}": float(np.mean(metrics.crps(ensemble, observed)))}
        found |= {f"energy_score{end}": float(np.mean(metrics.energy_score(ensemble, observed)))}
    return {name: found[name] for name in OF_FORECASTS if name in found}


def climatology(known: Float[np.ndarray, "rows *event"], points: int) -> Float[np.ndarray, "M N *event"]:
    """An ensemble for each of N points of random training points: `known` are M N of them."""
    return known.reshape(-1, points, *known.shape[1:])


def persistence(
    known: Float[np.ndarray, "rows F C"], past: Float[np.ndarray, "rows P C"], last: Float[np.ndarray, "N 1 C"]
) -> Float[np.ndarray, "M N F C"]:
    """An ensemble for each of N points: its last known row, plus the changes of random training windows since theirs.

    Args:
        known: the futures of M N training windows.
        past: their pasts.
        last: the last known rows of the N points.
    """
    return last + climatology(known - past[:, -1:], len(last))


class _Known(NamedTuple):
    """Random training rows with their conditions, in model space."""

    x: np.ndarray
    cond: dict[str, np.ndarray]


def _training_rows(dataset: Dataset, num: int) -> _Known:
    assert dataset.sample is not None
    key_rows, key_prepare = jax.random.split(jax.random.key(_SEED))
    rows: Any = prepared(dataset.spec, key_prepare, dataset.sample(dataset.arrays(), key_rows, num))
    return _Known(np.asarray(rows.x1), {name: np.asarray(a) for name, a in (rows.cond or {}).items()})
