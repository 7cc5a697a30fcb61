"""Log-densities of points under a run, in batches of one compiled size, in nats of the data space."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import likelihood
from flowjax.abilities import abilities_of
from flowjax.conditions import NO_LABEL, named
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.inference.batches import (
    batch_of_densities,
    everywhere,
    in_batches,
    over_rows,
    rows_of_a_block,
    rows_of_this_process,
)
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.convergence import CONVERGED_WITHIN, Convergence, compared, finer
from flowjax.inference.dequantisations import RunDequantisation, dequantisation_of, say_if_loose
from flowjax.inference.finished_batches import FinishedBatches, open_request, unless_single
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.points import check_points, warn_far
from flowjax.inference.program import keys_of_seed
from flowjax.inference.run import Run
from flowjax.likelihood import Divergence, DivergenceEstimator, ProbeKind, check_tolerances
from flowjax.solvers import Stats
from flowjax.sources import has_density
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["LogDensities", "log_prob"]

_WAYS_OUT = (
    "train with a source that has one (source.name=normal) and a method with a velocity or an inverse, or compare "
    "samples with the data (flowjax evaluate); the loss of method.name=variational is a bound on the likelihood"
)

_CLASSES_SUMMED = 100
"""The largest number of classes over which a density without labels is summed."""


class LogDensities(NamedTuple):
    """The result of `log_prob`.

    Attributes:
        log_prob: log p in nats of the data space, (N,), in the order of the points.
        nfe: the largest number of evaluations that a point took.
        standard_error: of the estimate by random probes, (N,): 0 if the divergence is exact, and None if it has a
            single estimate, whose error is unknown.
        convergence: what finer steps change; None if that was not computed, or there is no solve.
    """

    log_prob: np.ndarray
    nfe: int
    standard_error: np.ndarray | None = None
    convergence: Convergence | None = None


def log_prob(
    run: Run,
    x: np.ndarray,
    cond: Mapping[str, Any] | None = None,
    divergence: Divergence = "exact",
    seed: int = 0,
    probes: int | None = None,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
    probe_kind: ProbeKind | None = None,
    check: int = 0,
    converged_within: float = CONVERGED_WITHIN,
    dequantisation: str = "",
    importance_samples: int = 1,
    keep: Path | None = None,
) -> LogDensities:
    """log p(x | conditions) in nats of the data space. All processes call it, and each of them scores a share.

    Args:
        run: opened with `flowjax.load`.
        x: (N, *event) in data space. If the run's data are integers and all of x are, they are dequantised by `seed`;
            of tables, the columns of integers.
        cond: conditions by name, in data space, with one row for all points or one row per point. For a condition that
            is absent the network gets its null value. Without `label` the network is evaluated without labels if it was
            also trained without them (its dropout is above 0). Otherwise the density is the sum over the classes of
            their shares of the training data times the density given the class, which takes one solve per class.
        divergence, probes, probe_kind: an estimator, or its name and its probes (`flowjax.likelihood.divergence_of`).
        seed: of dequantisation and of Hutchinson's probes; row i depends only on the seed and on i.
        solver, batch, show: as for `flowjax.inference.sample`.
        check: how many of the points, from the first one on, are solved again with a tenth of the tolerances or twice
            the steps, which gives `LogDensities.convergence`, and a line on stderr if they have not converged; 0 for
            none.
        converged_within: the mean difference up to which they count as converged, in nats per dimension.
        dequantisation: of integers (`flowjax.inference.dequantisations.DEQUANTISATIONS`); "" for that of training.
        importance_samples: the number K of draws of the noise of integers. The result is then the importance-weighted
            bound on the log-probability (`flowjax.bits.dequantisation`, equation 1). Draw k of row i depends only on
            the seed, i and k. All draws of a row have the same random vectors for Hutchinson's estimate.
        keep: a folder for finished batches, as for `flowjax.inference.sample`.

    Raises:
        SolverFault: if an adaptive solve does not reach its final time.
        ConfigError: if the data have a mask, the source has no density, a point has NaN, a condition does not fit its
            field, the probes do not fit the divergence, the tolerances are below the rounding errors, the exact
            divergence does not fit the memory, the sum would be over more than 100 classes, the dequantisation does not
            fit the data or the model, or `keep` holds the batches of another call.
    """
    _check_no_mask(run)
    if why := no_likelihood(run):
        raise ConfigError(f"{why}, so there is no likelihood: {_WAYS_OUT}")
    check_points(run.spec, x)
    try:
        estimator = likelihood.divergence_of(divergence, probes, probe_kind)
        if solver.steps is None:
            check_tolerances(solver.rtol, solver.atol, jnp.result_type(float))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    given = encode_given(run, cond, len(x), "point", "likelihood")
    label = named(run.fields, "label")
    lacks_label = label is not None and "label" not in given.values
    is_summed = label is not None and lacks_label and not label.dropout
    if is_summed:
        _check_summable(run.spec)
    size = rows_of_a_block(batch or batch_of_densities(run.spec.d, estimator.is_exact))
    has_solve = "velocity" in abilities_of(run.model())
    again = min(len(x), max(check, processes.process_count())) if check and has_solve else 0
    keep = unless_single(keep, len(x) <= size and importance_samples == 1 and not is_summed)
    noise = dequantisation_of(run, x, dequantisation, importance_samples)
    say_if_loose(run, noise)
    finished = open_request(
        run,
        solver,
        None,
        keep,
        {"points": {"x": x}, "conditions": given.encoded},
        num=len(x),
        batch=size,
        seed=seed,
        divergence=repr(estimator),
        check=again,
        dequantisation=noise and noise.name,
        importance_samples=importance_samples,
    )
    score = _Scorer(run, x, given.rows, estimator, noise, has_solve, seed, size, show)
    if noise is None:
        if run.spec.bins is not None and run.spec.bins.complete:
            say(
                "likelihood: warning: the points are not integers, but the data of this run are: log_prob is the "
                "density at these points, and no bound on the probability of integers"
            )
        warn_far(run.spec, score.encoded if processes.process_count() == 1 else run.spec.to_model(x))
    passes = itertools.count()

    def of_label(solver: SolverSettings, num: int, k: int, label: int | None) -> LogDensities:
        part = None if finished is None else finished.part(next(passes), len(x))
        return score(solver, num, k, label, part)

    def densities(solver: SolverSettings, num: int) -> LogDensities:
        """The mean over the draws of the noise of the density, or of the sum over the classes."""
        if is_summed:
            draw = lambda k: sum_over_classes(run.spec, partial(of_label, solver, num, k))
        else:
            draw = lambda k: of_label(solver, num, k, NO_LABEL if lacks_label else None)
        draws = [draw(k) for k in range(importance_samples)]
        return log_sum(draws, [-math.log(importance_samples)] * importance_samples)

    scored, other = densities(solver, len(x)), finer(solver)
    if again and other == solver:
        say(
            f"likelihood: not checked: rtol={solver.rtol:g} and atol={solver.atol:g} are the smallest tolerances that "
            "can be compared in this precision; JAX_ENABLE_X64=1 allows smaller ones"
        )
    if not again or other == solver:
        return scored
    second, within = densities(other, again).log_prob, converged_within * run.spec.d
    found = compared(scored.log_prob[:again], second, within, other)
    if not found.converged:
        say(f"likelihood: {found.describe(solver)}")
    return scored._replace(convergence=found)


@dataclass(frozen=True)
class _Scorer:
    """Scores points in batches, with one compiled program for adaptive steps and one for each number of steps.

    Attributes:
        run: the run.
        x: all points in data space, (N, *event).
        rows: conditions of the points as the network takes them.
        estimator: of the divergence.
        noise: the dequantisation; None for real numbers.
        has_solve: whether the model has a velocity, and not only an inverse.
        seed: of the noise and the probes.
        size: rows per batch.
        show: show progress.
    """

    run: Run
    x: np.ndarray
    rows: Mapping[str, np.ndarray]
    estimator: DivergenceEstimator
    noise: RunDequantisation | None
    has_solve: bool
    seed: int
    size: int
    show: bool

    def __call__(
        self, solver: SolverSettings, num: int, k: int, label: int | None, finished: FinishedBatches | None
    ) -> LogDensities:
        """Scores the first `num` points.

        Args:
            solver: how to solve; its tolerances are arguments of the program.
            num: the number of points.
            k: the number of the draw of the noise.
            label: the class of all points; None for the labels among the conditions, or none.
            finished: batches that are kept, or None.
        """
        part, name = rows_of_this_process(num), solver.tolerances["solver"]
        tolerances = {"rtol": solver.rtol, "atol": solver.atol}
        shared = everywhere((self.run.arrays, *keys_of_seed(self.seed, 2), tolerances, jnp.uint32(k)))
        own = self.encoded if num == len(self.x) else self._encode(num)
        rows = {name: a[part] for name, a in self.rows.items()}
        if label is not None:
            rows["label"] = np.full(len(own), label, np.int32)
        points = (np.arange(num)[part], own, rows)
        try:
            found = in_batches(
                partial(self._program(name, solver.steps), shared),
                points,
                self.size,
                solver=name,
                label="likelihood",
                show=self.show,
                finished=finished,
            ).values
        except likelihood.TooLarge as error:
            raise ConfigError(str(error)) from None
        found = {name: processes.gathered(a) for name, a in found.items()}
        values = self.run.spec.log_prob_to_data(found["log_prob"], self.x[:num])
        return LogDensities(values, int(found["nfe"].max()), found.get("standard_error"))

    @cached_property
    def encoded(self) -> np.ndarray:
        """The points that this process scores, in model space; of integers the lower edges of their bins."""
        return self._encode(len(self.x))

    @cached_property
    def _program(self) -> Callable[[str, int | None], Any]:
        return cache(lambda solver, steps: over_rows(partial(self._score, solver, steps)))

    def _encode(self, num: int) -> np.ndarray:
        return self.run.spec.to_model(self.x[rows_of_this_process(num)])

    def _score(
        self, solver: str, steps: int | None, shared: Any, rows: Array, x: Array, cond: dict[str, Array]
    ) -> tuple[dict[str, Array], Stats]:
        arrays, noise_key, probe_key, tolerances, k = shared
        model, log_q = self.run.model(*arrays), 0.0
        t0, t1 = self.run.interval if self.has_solve else (None, None)
        if self.noise is not None:
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(noise_key, i), k))(rows)
            x, log_q = self.noise.draw(model, keys, x, cond)
            t1 = t1 if self.noise.time is None else self.noise.time
        found = likelihood.log_prob(
            model,
            x.astype(jnp.result_type(float)),
            self.run.prior,
            cond=cond,
            t0=t0,
            t1=t1,
            divergence=self.estimator,
            key=jax.vmap(partial(jax.random.fold_in, probe_key))(rows),
            solver=solver,
            steps=steps,
            **tolerances,
        )
        errors = {} if found.standard_error is None else {"standard_error": found.standard_error}
        return {"log_prob": found.log_prob - log_q} | errors, found.stats


def sum_over_classes(spec: DataSpec, of_class: Callable[[int], LogDensities]) -> LogDensities:
    """log p(x) = log sum_k p(k) p(x | k), where p(k) is the share of class k, and `of_class(k)` gives log p(x | k)."""
    return log_sum([of_class(k) for k in spec.classes], [math.log(spec.shares[k]) for k in spec.classes])


def log_sum(parts: Sequence[LogDensities], log_weights: Sequence[float]) -> LogDensities:
    """log sum_j w_j p_j(x) for densities p_j of the same points, such as those given each class, with weights w_j.

    The standard error is at most sum_j (w_j p_j / sum) times that of log p_j, which is returned, because all parts have
    the same probes. The evaluations are added up.
    """
    terms = np.stack([one.log_prob + weight for one, weight in zip(parts, log_weights, strict=True)])
    total = np.logaddexp.reduce(terms, axis=0)
    errors = [one.standard_error for one in parts if one.standard_error is not None]
    weights = np.exp(terms - np.where(np.isfinite(total), total, 0.0))
    error = (weights * np.stack(errors)).sum(0) if len(errors) == len(parts) else None
    return LogDensities(total, sum(one.nfe for one in parts), error)


def no_likelihood(run: Run) -> str:
    """Returns the reason why samples have no known density; empty if they have one."""
    if not {"velocity", "bijection"} & set(abilities_of(run.model())):
        return f"the model of method.name {run.config.method.name!r} has neither a velocity nor an inverse"
    if not has_density(run.prior):
        return f"source.name {run.config.source.name!r} has no density"
    pairs = run.given_source
    return f"the source samples of data.pairs {pairs!r} have no known density" if pairs else ""


def _check_no_mask(run: Run) -> None:
    """Raises a ConfigError if the run was trained on sets with a mask, because absent elements have no density."""
    if run.spec.has_mask:
        raise ConfigError(
            f"data {run.spec.name!r} has a mask, and sets with absent elements have no density: this run can be "
            "sampled and evaluated"
        )


def _check_summable(spec: DataSpec) -> None:
    """Prints on stderr that the density is a sum over the classes; ConfigError if there are too many."""
    if len(spec.classes) > _CLASSES_SUMMED:
        raise ConfigError(
            f"this network was always trained with labels (data.cond_dropout is 0), and the sum over its "
            f"{len(spec.classes)} classes takes as many solves: give the labels of the points as y"
        )
    say(
        "likelihood: this network was always trained with labels (data.cond_dropout is 0), and the points have none: "
        f"their density is the sum over {len(spec.classes)} classes, weighted by their shares of the training data"
    )
