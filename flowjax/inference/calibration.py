"""Whether the posterior distributions of a run are right, for runs whose data are simulations.

Held-out simulations have known parameters. If the network's posteriors are right, the parameters are distributed like
posterior samples: their ranks are uniform, and credible regions contain them as often as they should.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flowjax import metrics
from flowjax.data import Dataset
from flowjax.data.simulated import OBSERVATION
from flowjax.errors import ConfigError, RunFault, lookup
from flowjax.inference import sampling
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.program import other_seed
from flowjax.inference.reference_posteriors import reference_posteriors, task_of
from flowjax.inference.run import Run
from flowjax.simulators import BENCHMARK
from flowjax.training.writers import say

__all__ = [
    "OF_CALIBRATION",
    "POSTERIOR_METRICS",
    "Calibration",
    "calibrate",
    "calibration_metrics",
    "evaluate_posteriors",
    "is_simulated",
    "local_metrics",
    "reference_metrics",
    "shaped",
    "what_is_wrong",
]

OF_CALIBRATION = (
    *("rank_inside_bands", "rank_p_value", "rank_area_max", "tarp_inside_bands", "tarp_p_value", "tarp_area"),
)
"""The names of the metrics of `calibration_metrics`."""

_OBSERVATIONS, _DRAWS = 500, 100
"""With these numbers, 50,000 samples are drawn, which takes a small network seconds to a minute on two CPU cores."""

_PAIRS, _LOCAL_DRAWS = 2000, 1000
_REFERENCE_DRAWS = 10_000
_SEED = 75


class Calibration(NamedTuple):
    """Ranks of true parameters in their posteriors, and the expected coverage of credible regions.

    Attributes:
        theta: true parameters of N held-out simulations, (N, D).
        samples: L posterior samples given each observation, (N, L, D).
        ranks: of each parameter, with their bands.
        coverage: the expected coverage of regions around reference points, as one column.
    """

    theta: Float[np.ndarray, "N D"]
    samples: Float[np.ndarray, "N L D"]
    ranks: metrics.RankCurves
    coverage: metrics.RankCurves


def is_simulated(run: Run) -> bool:
    """Whether the data of a run are simulations, so that it estimates posterior distributions given `obs`."""
    return run.spec.name == "simulator" and any(field.name == OBSERVATION for field in run.fields)


def shaped(run: Run, observed: np.ndarray) -> np.ndarray:
    """Returns observations (N, F) in the shape of the condition `obs` of a run, (N, *event)."""
    (field,) = (field for field in run.fields if field.name == OBSERVATION)
    return observed.reshape(len(observed), *field.shape)


def calibrate(
    run: Run,
    dataset: Dataset,
    num: int = _OBSERVATIONS,
    draws: int = _DRAWS,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
) -> Calibration:
    """Compares the parameters of held-out simulations with samples of the run's posteriors.

    See `flowjax.metrics.posterior_ranks` and `flowjax.metrics.tarp_ranks` for what is computed. The reference point of
    an observation is the parameters of another simulation, that whose observation is the nearest one, in standard
    deviations of the features. As it depends on the observation, the expected coverage shows whether the posterior
    depends on it, too. The other simulations are the rest of the test rows, at least half of them.

    Args:
        run: opened with `flowjax.load`; its data are simulations.
        dataset: its data set.
        num: number of simulations, the first test rows; fewer if there are not as many.
        draws: number of posterior samples for each of them.
        seed, solver, batch, show: as for `flowjax.inference.sample`.

    Raises:
        ConfigError: if the data of the run are no simulations, or there are fewer than 2 test rows.
        RunFault: if samples are not finite.
    """
    theta, obs = _held_out(run, dataset, len(dataset.test))
    if len(theta) < 2:
        raise ConfigError(f"calibration needs at least 2 test rows, and the data have {len(theta)}: simulate more")
    num = min(num, len(theta))
    drawn = sampling.sample_each(run, draws, {OBSERVATION: obs[:num]}, seed, solver=solver, batch=batch, show=show)
    samples = drawn.samples.reshape(num, draws, -1)
    if bad := int((~np.isfinite(samples)).sum()):
        raise RunFault(f"{bad:,} of {samples.size:,} numbers of the posterior samples are not finite")
    covered = min(num, len(theta) // 2)
    points = theta[covered:][_nearest(obs, covered)]
    closer = metrics.tarp_ranks(jax.random.key(_SEED), theta[:covered], samples[:covered], points)
    ranks = metrics.rank_curves(metrics.posterior_ranks(theta[:num], samples), draws)
    return Calibration(theta[:num], samples, ranks, metrics.rank_curves(closer, draws))


def calibration_metrics(
    run: Run, dataset: Dataset, seed: int = 0, solver: SolverSettings = DEFAULT_SOLVER, batch: int = 0
) -> dict[str, float]:
    """The metrics of `calibrate` with 500 held-out simulations and 100 samples for each.

    Returns:
        rank_inside_bands: the share of the parameters whose rank distribution is inside its 95% bands.
        rank_p_value: the smallest p-value of a parameter times their number, at most 1.
        rank_area_max: the largest area between a rank distribution and that of uniform ranks.
        tarp_inside_bands: 1 if the expected coverage is inside its 95% bands, otherwise 0.
        tarp_p_value, tarp_area: the p-value of the expected coverage, and the area between it and the diagonal.
    """
    say(f"evaluate: calibration of posteriors, {_DRAWS} samples for each of {_OBSERVATIONS} held-out simulations")
    ranks, coverage = calibrate(run, dataset, seed=seed, solver=solver, batch=batch, show=True)[2:]
    if outside := [f"{i + 1} ({what_is_wrong(ranks, int(i))})" for i in np.flatnonzero(~ranks.inside)]:
        say(f"evaluate: the ranks of these parameters are outside of their bands: {', '.join(outside)}")
    return {
        "rank_inside_bands": float(ranks.inside.mean()),
        "rank_p_value": float(min(1.0, len(ranks.p_value) * ranks.p_value.min())),
        "rank_area_max": float(ranks.area.max()),
        "tarp_inside_bands": int(coverage.inside[0]),
        "tarp_p_value": float(coverage.p_value[0]),
        "tarp_area": float(coverage.area[0]),
    }


def what_is_wrong(ranks: metrics.RankCurves, i: int) -> str:
    """How the posteriors of a parameter differ from right ones, from the excess of small and of large ranks.

    Args:
        ranks: the curves of all parameters.
        i: the parameter, from 0.
    """
    excess = ranks.ecdf[:, i] - ranks.levels
    small, large = excess[ranks.levels < 0.5].mean() > 0, excess[ranks.levels > 0.5].mean() < 0
    return {
        (True, True): "too narrow",
        (False, False): "too wide",
        (True, False): "too high",
        (False, True): "too low",
    }[bool(small), bool(large)]


def local_metrics(
    run: Run, dataset: Dataset, seed: int = 0, solver: SolverSettings = DEFAULT_SOLVER, batch: int = 0
) -> dict[str, float]:
    """The local classifier two-sample test at the first test row, with up to 2,000 other test rows.

    Returns:
        local_c2st: the statistic, between 0 and 1/4; see `flowjax.metrics.local_c2st`.
        local_c2st_p_value: its p-value, at least 1/101.
    """
    theta, obs = _held_out(run, dataset, 1 + _PAIRS)
    say(f"evaluate: local classifier two-sample test with {len(theta) - 1} held-out simulations")
    options: dict[str, Any] = {"seed": seed, "solver": solver, "batch": batch, "show": True}
    paired = sampling.sample_each(run, 1, {OBSERVATION: obs[1:]}, **options).samples[:, 0]
    options["seed"] = other_seed(seed)  # noise that is independent of that of the pairs
    posterior = sampling.sample_each(run, _LOCAL_DRAWS, {OBSERVATION: obs[:1]}, **options).samples
    x = _without_missing(obs)
    found = metrics.local_c2st(jax.random.key(_SEED), theta[1:], paired, x[1:], x[:1], posterior)
    return {"local_c2st": float(found.statistic[0]), "local_c2st_p_value": float(found.p_value[0])}


def reference_metrics(
    run: Run,
    dataset: Dataset,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    num: int = _REFERENCE_DRAWS,
) -> dict[str, float]:
    """The classifier two-sample test against the reference posteriors of the benchmark, for its ten observations.

    Args:
        run: opened with `flowjax.load`; its simulator is a task of `flowjax.simulators.BENCHMARK`.
        dataset: its data set.
        seed, solver, batch: as for `flowjax.inference.sample`.
        num: number of samples for each observation, at most 10,000, as many as the reference has. The published values
            were computed with 10,000.

    Returns:
        c2st_mean, c2st_min, c2st_max: over the observations; 0.5 is the best.

    Raises:
        ConfigError: if the run's simulator is no task of the benchmark.
        DataError: if the reference posteriors are not in the cache.
    """
    task = task_of(run)
    if task is None:
        raise ConfigError(
            f"c2st needs reference posteriors, which exist only for the tasks {', '.join(BENCHMARK)}, and the data of "
            f"this run are from {run.config.data.simulator!r}: use the metrics calibration and local_c2st"
        )
    known = reference_posteriors(task)
    num = min(num, known.reference.shape[1])
    say(f"evaluate: {num} samples for each of {len(known.observation)} observations")
    cond = {OBSERVATION: shaped(run, known.observation)}
    drawn = sampling.sample_each(run, num, cond, seed, solver=solver, batch=batch, show=True).samples
    found = []
    for i, (reference, samples) in enumerate(zip(known.reference, drawn, strict=True)):
        found.append(float(metrics.c2st(jax.random.fold_in(jax.random.key(_SEED), i), reference[:num], samples)))
        say(f"evaluate: observation {i + 1} of {len(drawn)}: c2st {found[-1]:.4f}")
    return {"c2st_mean": float(np.mean(found)), "c2st_min": min(found), "c2st_max": max(found)}


POSTERIOR_METRICS: dict[str, Callable[..., dict[str, float]]] = {
    "calibration": calibration_metrics,
    "local_c2st": local_metrics,
    "c2st": reference_metrics,
}
"""The metrics of runs on simulations by name; each is called with the run, its data set, seed, solver and batch."""


def evaluate_posteriors(
    run: Run,
    dataset: Dataset,
    names: Sequence[str],
    *,
    num: int | None = None,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
) -> dict[str, float]:
    """Computes metrics of the posterior distributions of a run whose data are simulations.

    Args:
        run: opened with `flowjax.load`.
        dataset: its data set.
        names: in `POSTERIOR_METRICS`.
        num: number of samples for each observation of `c2st`; None for the default.
        seed, solver, batch: as for `flowjax.inference.sample`.

    Returns:
        The numbers of `calibration_metrics`, `local_metrics` and `reference_metrics`.

    Raises:
        ConfigError: if a name is unknown, or a metric is not defined for this run.
        DataError: if the reference posteriors are not in the cache.
    """
    found: dict[str, float] = {}
    computed = [lookup("metrics", name, POSTERIOR_METRICS) for name in names]
    for name, compute in zip(names, computed, strict=True):
        options = {"num": num} if name == "c2st" and num is not None else {}
        found |= compute(run, dataset, seed, solver, batch, **options)
    return found


def _held_out(run: Run, dataset: Dataset, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (N, D) and observations (N, *event) of up to `num` test rows."""
    if not is_simulated(run):
        raise ConfigError(f"the data of this run, {run.spec.name}, are no simulations: there is no posterior to test")
    theta = dataset.test[:num]
    return theta.reshape(len(theta), -1), np.asarray(dataset.test_cond[OBSERVATION][:num])


def _nearest(obs: np.ndarray, first: int) -> np.ndarray:
    """For each of the first `first` observations, the index of the nearest one of the other observations."""
    rows = _without_missing(obs)
    spread = rows.std(0)
    rows = rows / np.where(spread > 0, spread, 1.0)
    others = rows[first:]
    near = [((others - one) ** 2).sum(1).argmin() for one in rows[:first]]
    return np.array(near)


def _without_missing(obs: np.ndarray) -> np.ndarray:
    """Observations (N, F) with means in place of NaN, and columns that say where these are, for a classifier."""
    flat = np.asarray(obs, np.float64).reshape(len(obs), -1)
    missing = np.isnan(flat)
    if not missing.any():
        return flat
    known = np.where(missing, 0.0, flat).sum(0) / np.maximum((~missing).sum(0), 1)
    return np.concatenate([np.where(missing, known, flat), missing], 1)
