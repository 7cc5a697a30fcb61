"""Log-densities of points under a run, in batches of one compiled size, in nats of the data space."""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
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
    default_batch,
    everywhere,
    in_batches,
    over_rows,
    rows_of_a_block,
    rows_of_this_process,
)
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.convergence import CONVERGED_WITHIN, Convergence, compared, finer
from flowjax.inference.finished_batches import open_request
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.points import check_points, warn_far
from flowjax.inference.program import keys_of_seed
from flowjax.inference.run import Run
from flowjax.likelihood import Divergence, ProbeKind, check_tolerances
from flowjax.solvers import Stats
from flowjax.sources import has_density
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["LogDensities", "log_prob"]

_WAYS_OUT = (
    "train with a source that has one (source.name=normal) and a method with a velocity or an inverse, or compare "
    "samples with the data (flowjax evaluate); the loss of method.name=variational is a bound on the likelihood"
)

_ON_A_CPU = 512
"""The largest default number of rows per batch on a CPU, whose caches then hold the values of a network."""

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
            the steps, which gives `LogDensities.convergence`; 0 for none.
        converged_within: the mean difference up to which they count as converged, in nats per dimension.

    Raises:
        SolverFault: if an adaptive solve does not reach its final time.
        ConfigError: if the data have a mask, the source has no density, a point has NaN, a condition does not fit its
            field, the probes do not fit the divergence, the tolerances are below the rounding errors, the exact
            divergence does not fit the memory, or the sum would be over more than 100 classes.
    """
    _check_no_mask(run)
    if why := no_likelihood(run):
        raise ConfigError(f"{why}, so there is no likelihood: {_WAYS_OUT}")
    if np.ndim(x) != len(run.spec.shape) + 1 or x.shape[1:] != tuple(run.spec.shape):
        raise ConfigError(f"points must have the shape (N, {', '.join(map(str, run.spec.shape))}), not {np.shape(x)}")
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
    no_label = {"label": np.full(1, NO_LABEL, np.int32)} if lacks_label else {}
    size = batch or max(16, default_batch(run.spec.d) // (min(run.spec.d, 64) if estimator.is_exact else 1))
    size = rows_of_a_block(size if batch or jax.default_backend() != "cpu" else min(size, _ON_A_CPU))
    has_solve = "velocity" in abilities_of(run.model())
    again = min(len(x), max(check, processes.process_count())) if check and has_solve else 0
    arrays = {"points": {"x": x}, "conditions": given.encoded | no_label}
    request = {"num": len(x), "batch": size, "seed": seed, "divergence": repr(estimator), "check": again}
    open_request(run, solver, None, None, arrays, **request)
    is_whole = run.spec.dequantises(x)

    @cache
    def encoded(num: int) -> np.ndarray:
        """Those of the first `num` points that this process scores."""
        own = x[rows_of_this_process(num)]
        return np.asarray(run.spec.encode(own), np.float32) if is_whole else run.spec.to_model(own)

    if not is_whole:
        warn_far(run.spec, encoded(len(x)), rows_of_this_process(len(x)).start)
    prepare = (lambda key, i, row: run.spec.prepare(jax.random.fold_in(key, i), row)) if is_whole else _unchanged
    t0, t1 = run.interval if has_solve else (None, None)
    name, (noise_key, probe_key) = solver.tolerances["solver"], keys_of_seed(seed, 2)

    def score(
        steps: int | None, shared: Any, rows: Array, x: Array, cond: dict[str, Array]
    ) -> tuple[dict[str, Array], Stats]:
        arrays, noise_key, probe_key, tolerances = shared
        found = likelihood.log_prob(
            run.model(*arrays),
            jax.vmap(partial(prepare, noise_key))(rows, x).astype(jnp.result_type(float)),
            run.prior,
            cond=cond,
            t0=t0,
            t1=t1,
            divergence=estimator,
            key=jax.vmap(partial(jax.random.fold_in, probe_key))(rows),
            solver=name,
            steps=steps,
            **tolerances,
        )
        errors = {} if found.standard_error is None else {"standard_error": found.standard_error}
        return {"log_prob": found.log_prob} | errors, found.stats

    compiled = cache(lambda steps: over_rows(partial(score, steps)))  # the tolerances are arguments of the program

    def score_given(solver: SolverSettings, num: int, labels: Mapping[str, np.ndarray]) -> LogDensities:
        tolerances = {"rtol": solver.rtol, "atol": solver.atol}
        block = partial(compiled(solver.steps), everywhere((run.arrays, noise_key, probe_key, tolerances)))
        part, own = rows_of_this_process(num), encoded(num)
        rows = {name: a[part] for name, a in given.rows.items()}
        rows |= {name: np.broadcast_to(a, (len(own), *a.shape[1:])) for name, a in labels.items()}
        points = (np.arange(num)[part], own, rows)
        try:
            found = in_batches(block, points, size, solver=name, label="likelihood", show=show).values
        except likelihood.TooLarge as error:
            raise ConfigError(str(error)) from None
        found = {name: processes.gathered(a) for name, a in found.items()}
        values = run.spec.log_prob_to_data(found["log_prob"], x[:num])
        return LogDensities(values, int(found["nfe"].max()), found.get("standard_error"))

    def densities(solver: SolverSettings, num: int) -> LogDensities:
        if not is_summed:
            return score_given(solver, num, no_label)
        of_class = lambda k: score_given(solver, num, {"label": np.full(1, k, np.int32)})
        return sum_over_classes(run.spec, of_class)

    scored, other = densities(solver, len(x)), finer(solver)
    if again and other == solver:
        say(
            f"likelihood: not checked: rtol={solver.rtol:g} and atol={solver.atol:g} are the smallest tolerances that "
            "can be compared in this precision; JAX_ENABLE_X64=1 allows smaller ones"
        )
    if not again or other == solver:
        return scored
    return scored._replace(
        convergence=compared(
            scored.log_prob[:again], densities(other, again).log_prob, converged_within * run.spec.d, other
        )
    )


def sum_over_classes(spec: DataSpec, of_class: Callable[[int], LogDensities]) -> LogDensities:
    """log p(x) = log sum_k p(k) p(x | k), where p(k) is the share of class k, and `of_class(k)` gives log p(x | k).

    The standard error is at most sum_k p(k | x) times that of log p(x | k), which is returned, because the classes have
    the same probes.
    """
    scored = {k: of_class(k) for k in spec.classes}
    terms = np.stack([one.log_prob + math.log(spec.shares[k]) for k, one in scored.items()])
    total = np.logaddexp.reduce(terms, axis=0)
    errors = [one.standard_error for one in scored.values() if one.standard_error is not None]
    weights = np.exp(terms - np.where(np.isfinite(total), total, 0.0))
    error = (weights * np.stack(errors)).sum(0) if len(errors) == len(scored) else None
    return LogDensities(total, sum(one.nfe for one in scored.values()), error)


def no_likelihood(run: Run) -> str:
    """Returns the reason why samples have no known density; empty if they have one."""
    if not {"velocity", "bijection"} & set(abilities_of(run.model())):
        return f"the model of method.name {run.config.method.name!r} has neither a velocity nor an inverse"
    if not has_density(run.prior):
        return f"source.name {run.config.source.name!r} has no density"
    pairs = run.given_source
    return f"the source samples of data.pairs {pairs!r} have no known density" if pairs else ""


def _unchanged(key: Any, i: Array, row: Array) -> Array:
    return row


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
