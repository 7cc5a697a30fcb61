"""The metrics that compare samples of a run with data: distances, path energy and shares of modes."""

import math
from functools import partial
from typing import Any

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
    run: Run, dataset: Dataset, seed: int, solver: SolverSettings, batch: int, labels: LabelRule
) -> dict[str, Any]:
    """The metrics that compare samples with data; see `flowjax.inference.evaluation.evaluate`.

    Args:
        run: opened with `flowjax.load`.
        dataset: the data set that the run was trained on: its density, or at least 4 test rows.
        seed, solver, batch, labels: as for `flowjax.inference.sample`.
    """
    if dataset.draw is not None:
        num, size = 50_000, _PAIR_SIZE
        true = np.asarray(dataset.draw(jax.random.key(DRAW_SEED + 1), 2 * _PAIRS * size))
        true, other = true[: _PAIRS * size], true[_PAIRS * size :]
    else:
        size = min(_PAIR_SIZE, len(dataset.test) // 2)
        num = max(2, len(dataset.test) // 2)
        true, other = dataset.test[:num], dataset.test[num : 2 * num]
    say(f"evaluate: {num} samples")
    cond = conditions_of_test(run, dataset, num)
    drawn = sampling.sample(run, num, seed, solver, batch=batch, labels=labels, cond=cond, show=True).samples
    normalise = run.spec.normalise
    per_feature = isinstance(normalise.scale, tuple)
    say(f"evaluate: distances{' in standard deviations of the features' if per_feature else ''}")
    to_model = partial(in_model_space, run.spec)
    drawn, true, other = map(to_model, (drawn, true, other))
    unit = 1.0 if isinstance(normalise.scale, tuple) else normalise.scale
    pairs = partial(metrics.wasserstein2_squared_pairs, size=size, pairs=_PAIRS)
    w2 = pairs(drawn, true)
    result = {"w2": math.sqrt(w2) * unit, "w2_squared": w2 * unit * unit}
    result["w2_squared_true"] = pairs(other, true) * unit * unit
    result["mmd"] = float(jax.jit(metrics.mmd)(drawn[:2000], true[:2000]))
    if not run.fields and not run.given_source and "velocity" in abilities_of(run.model()):
        result |= _energy_metrics(run, true, seed, pairs)
    if dataset.modes is not None:
        nearest = ((drawn[:, None] - to_model(dataset.modes)) ** 2).sum(-1).argmin(1)
        shares = np.bincount(nearest, minlength=len(dataset.modes)) / len(drawn)
        result |= {"mode_share_min": float(shares.min()), "mode_share_max": float(shares.max())}
    if dataset.draw is None and not run.spec.is_image:
        say("evaluate: marginals, correlations, energy distance, classifier two-sample test")
        result |= table_metrics(drawn, true, other, unit)
    if has_forecasts(run, dataset):
        result |= forecast_metrics(run, dataset, seed, solver, batch)
    return result


def _energy_metrics(run: Run, true: np.ndarray, seed: int, pairs: Any) -> dict[str, float]:
    """Path energy against W2^2 between source and data (`true`), and straightness, all in model space."""
    rows = max(_ENERGY_ROWS, min(len(true), _PAIRS * _PAIR_SIZE))
    t0, t1 = run.interval

    @jax.jit
    def energy(params: Params, seed: Any) -> tuple[Array, Array, Array, Array]:
        x0 = run.prior.sample(jax.random.key(seed), rows)
        velocity = run.model(params).velocity
        energies = metrics.path_energy(velocity, x0[:_ENERGY_ROWS], t0=t0, t1=t1)
        bent = metrics.straightness(velocity, x0[:_ENERGY_ROWS], t0=t0, t1=t1)
        return x0, energies.mean(), bent.deviation.mean() * (t1 - t0) ** 2, bent.transport_cost.mean()

    x0, *means = energy(run.params, np.uint32(seed))
    mean, deviation, cost = map(float, means)
    distance = pairs(np.asarray(x0), true, pairs=_SOURCE_PAIRS)
    return {
        "npe": metrics.normalised_path_energy(mean, distance),
        "path_energy": mean,
        "w2_squared_source": distance,
        "straightness": deviation / cost,
        "transport_cost": cost,
    }
