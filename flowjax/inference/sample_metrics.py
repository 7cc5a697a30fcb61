"""The metrics that compare samples of a run with data: distances, path energy and shares of modes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from flowjax import metrics
from flowjax.abilities import abilities_of
from flowjax.data import Dataset
from flowjax.inference import sampling
from flowjax.inference.choose import SolverSettings
from flowjax.inference.forecast_metrics import forecast_metrics, has_forecasts
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.program import LabelRule
from flowjax.inference.run import Run
from flowjax.inference.table_metrics import in_model_space, table_metrics
from flowjax.training.writers import say
from flowjax.typing import Params

__all__ = ["DRAW_SEED", "sample_metrics"]

DRAW_SEED = 71
"""The seed of the data that are drawn from a known density; the next one is that of the data for comparisons."""

_PAIRS, _PAIR_SIZE, _SOURCE_PAIRS = 25, 1000, 10
_ENERGY_ROWS = 4096


def sample_metrics(
    run: Run,
    dataset: Dataset,
    seed: int,
    solver: SolverSettings,
    batch: int,
    labels: LabelRule,
    at_steps: Sequence[int] = (),
) -> dict[str, Any]:
    """The metrics that compare samples with data; see `flowjax.inference.evaluation.evaluate`.

    Args:
        run: opened with `flowjax.load`.
        dataset: the data set that the run was trained on: its density, or at least 4 test rows.
        seed, solver, batch, labels: as for `flowjax.inference.sample`.
        at_steps: numbers of steps for which W2^2 is also computed.
    """
    to = _Comparison(run, dataset, seed, batch, labels)
    say(f"evaluate: {to.num} samples")
    drawn, nfe = to.samples(solver)
    say(f"evaluate: distances{' in standard deviations of the features' if to.per_feature else ''}")
    unit, pairs, true, other = to.unit, to.pairs, to.true, to.other
    w2 = to.w2_squared(drawn)
    result = {"w2": math.sqrt(w2), "w2_squared": w2, "w2_squared_true": to.w2_squared(other)}
    for n in at_steps:
        if n != solver.steps:
            say(f"evaluate: {to.num} samples of {n} steps")
        x, evaluations = (drawn, nfe) if n == solver.steps else to.samples(replace(solver, steps=n))
        result |= {f"w2_squared_{n}": to.w2_squared(x), f"nfe_{n}": evaluations}
    result["mmd"] = float(jax.jit(metrics.mmd)(drawn[:2000], true[:2000]))
    if not run.fields and not run.given_source and "velocity" in abilities_of(run.model()):
        result |= _energy_metrics(run, true, seed, pairs)
    if dataset.modes is not None:
        modes = in_model_space(run.spec, dataset.modes)
        nearest = ((drawn[:, None] - modes) ** 2).sum(-1).argmin(1)
        shares = np.bincount(nearest, minlength=len(dataset.modes)) / len(drawn)
        result |= {"mode_share_min": float(shares.min()), "mode_share_max": float(shares.max())}
    if dataset.draw is None and not run.spec.is_image:
        say("evaluate: marginals, correlations, energy distance, classifier two-sample test")
        result |= table_metrics(drawn, true, other, unit)
    if has_forecasts(run, dataset):
        result |= forecast_metrics(run, dataset, seed, solver, batch)
    return result


class _Points(NamedTuple):
    """The number of samples to draw, the size of the blocks of W2^2, and two disjoint sets of data, in data space."""

    num: int
    size: int
    true: np.ndarray
    other: np.ndarray


def _points(dataset: Dataset) -> _Points:
    if dataset.draw is None:
        num = max(2, len(dataset.test) // 2)
        size = min(_PAIR_SIZE, len(dataset.test) // 2)
        return _Points(num, size, dataset.test[:num], dataset.test[num : 2 * num])
    true = np.asarray(dataset.draw(jax.random.key(DRAW_SEED + 1), 2 * _PAIRS * _PAIR_SIZE))
    return _Points(50_000, _PAIR_SIZE, *np.split(true, 2))


class _Comparison:
    """Draws samples, and compares them with data.

    Args:
        run, dataset, seed, batch, labels: as for `sample_metrics`.

    Attributes:
        num: the number of samples.
        true, other: two disjoint sets of data, in model space.
        unit: the unit of model space; 1 if distances are in standard deviations of the features.
        per_feature: whether they are.
        pairs: W2^2 in model space of two sets.
    """

    def __init__(self, run: Run, dataset: Dataset, seed: int, batch: int, labels: LabelRule):
        self.num, size, *data = _points(dataset)
        self.true, self.other = (in_model_space(run.spec, x) for x in data)
        self.per_feature = isinstance(scale := run.spec.normalise.scale, tuple)
        self.unit = 1.0 if isinstance(scale, tuple) else scale
        self.pairs = partial(metrics.wasserstein2_squared_pairs, size=size, pairs=_PAIRS)
        cond = conditions_of_test(run, dataset, self.num)
        self._draw = partial(sampling.sample, run, self.num, seed, batch=batch, labels=labels, cond=cond)
        self._spec = run.spec

    def samples(self, solver: SolverSettings) -> tuple[np.ndarray, int]:
        """Samples in model space, and the evaluations that each of them took."""
        drawn = self._draw(solver=solver, show=True)
        return in_model_space(self._spec, drawn.samples), drawn.nfe

    def w2_squared(self, x: np.ndarray) -> float:
        """W2^2 between points in model space and the data, in the square of the unit of the data."""
        return self.pairs(x, self.true) * self.unit**2


def _energy_metrics(run: Run, true: np.ndarray, seed: int, pairs: Any) -> dict[str, float]:
    """Path energy against W2^2 between source and data (`true`), and straightness, all in model space."""
    rows = max(_ENERGY_ROWS, min(len(true), _PAIRS * _PAIR_SIZE))
    t0, t1 = run.interval

    @jax.jit
    def energy(params: Params, seed: Any) -> tuple[Array, ...]:
        x0 = run.prior.sample(jax.random.key(seed), rows)
        velocity = run.model(params).velocity
        energies = metrics.path_energy(velocity, x0[:_ENERGY_ROWS], t0=t0, t1=t1)
        bent = metrics.straightness(velocity, x0[:_ENERGY_ROWS], t0=t0, t1=t1)
        deviation, cost = bent.deviation.mean() * (t1 - t0) ** 2, bent.transport_cost.mean()
        return x0, energies.mean(), deviation, cost, bent.turning.mean()

    x0, *means = energy(run.params, np.uint32(seed))
    mean, deviation, cost, turning = map(float, means)
    distance = pairs(np.asarray(x0), true, pairs=_SOURCE_PAIRS)
    return {
        "npe": metrics.normalised_path_energy(mean, distance),
        "path_energy": mean,
        "w2_squared_source": distance,
        "straightness": deviation / cost,
        "transport_cost": cost,
        "turning": turning,
    }
