"""Log-densities of points under a run, in batches of one compiled size, in nats of the data space."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import likelihood
from flowjax.abilities import abilities_of
from flowjax.bits import importance_weighted
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
from flowjax.inference.dequantisations import dequantisation_of
from flowjax.inference.finished_batches import open_request
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.program import keys_of_seed
from flowjax.inference.run import Run
from flowjax.likelihood import Divergence
from flowjax.solvers import Stats
from flowjax.sources import has_density
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["LogDensities", "log_prob"]

_CLASSES_SUMMED = 100
"""The largest number of classes over which a density without labels is summed."""


class LogDensities(NamedTuple):
    """The result of `log_prob`.

    Attributes:
        log_prob: log p in nats of the data space, (N,), in the order of the points.
        nfe: the largest number of evaluations that a point took.
    """

    log_prob: np.ndarray
    nfe: int


def log_prob(
    run: Run,
    x: np.ndarray,
    cond: Mapping[str, Any] | None = None,
    divergence: Divergence = "exact",
    seed: int = 0,
    probes: int = 1,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
    dequantisation: str = "",
    importance_samples: int = 1,
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
        divergence, probes: as in `flowjax.likelihood.log_prob`.
        seed: of dequantisation and of Hutchinson's probes; row i depends only on the seed and on i.
        solver, batch, show: as for `flowjax.inference.sample`.
        dequantisation: of integers (`flowjax.inference.dequantisations.DEQUANTISATIONS`); "" for that of training.
        importance_samples: the number K of draws of the noise of integers. The result is then the importance-weighted
            bound on the log-probability (`flowjax.bits.dequantisation`, equation 1). Draw k of row i depends only on
            the seed, i and k. All draws of a row have the same random vectors for Hutchinson's estimate.

    Raises:
        SolverFault: if an adaptive solve does not reach its final time.
        ConfigError: if the data have a mask, the source has no density, a condition does not fit its field, the sum
            would be over more than 100 classes, or the dequantisation does not fit the data or the model.
    """
    _check_no_mask(run)
    if why := no_likelihood(run):
        raise ConfigError(f"{why}, so there is no likelihood: sample instead")
    if np.ndim(x) != len(run.spec.shape) + 1 or x.shape[1:] != tuple(run.spec.shape):
        raise ConfigError(f"points must have the shape (N, {', '.join(map(str, run.spec.shape))}), not {np.shape(x)}")
    given = encode_given(run, cond, len(x), "point", "likelihood")
    label = named(run.fields, "label")
    lacks_label = label is not None and "label" not in given.values
    is_summed = label is not None and lacks_label and not label.dropout
    if is_summed:
        _check_summable(run.spec)
    no_label = {"label": np.full(1, NO_LABEL, np.int32)} if lacks_label else {}
    size = batch or max(16, default_batch(run.spec.d) // (min(run.spec.d, 64) if divergence == "exact" else 1))
    size = rows_of_a_block(size)
    noise_key, probe_key = keys_of_seed(seed, 2)
    mine = rows_of_this_process(len(x))
    arrays = {"points": {"x": x}, "conditions": given.encoded | no_label}
    noise = dequantisation_of(run, x, dequantisation, importance_samples)
    request = {"num": len(x), "batch": size, "seed": seed, "divergence": f"{divergence} {probes}"}
    request |= {"dequantisation": noise and noise.name, "importance_samples": importance_samples}
    open_request(run, solver, None, None, arrays, **request)
    encoded = run.spec.to_model(x[mine])
    t0, t1 = run.interval if "velocity" in abilities_of(run.model()) else (None, None)
    t1 = t1 if noise is None or noise.time is None else noise.time

    def score(shared: Any, rows: Array, x: Array, cond: dict[str, Array]) -> tuple[dict[str, Array], Stats]:
        arrays, noise_key, probe_key, k = shared
        model, log_q = run.model(*arrays), 0.0
        if noise is not None:
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(noise_key, i), k))(rows)
            x, log_q = noise.draw(model, keys, x, cond)
        values, stats = likelihood.log_prob(
            model,
            x,
            run.prior,
            cond=cond,
            t0=t0,
            t1=t1,
            divergence=divergence,
            key=jax.vmap(partial(jax.random.fold_in, probe_key))(rows),
            probes=probes,
            **solver.tolerances,
        )
        return {"log_prob": values - log_q}, stats

    compiled, shared = over_rows(score), everywhere((run.arrays, noise_key, probe_key))
    name = solver.tolerances["solver"]

    def score_given(k: int, labels: Mapping[str, np.ndarray]) -> LogDensities:
        score_block = partial(compiled, (*shared, everywhere(jnp.uint32(k))))
        rows = {name: a[mine] for name, a in given.rows.items()}
        rows |= {name: np.broadcast_to(a, (len(encoded), *a.shape[1:])) for name, a in labels.items()}
        points = (np.arange(len(x))[mine], encoded, rows)
        found = in_batches(score_block, points, size, solver=name, label="likelihood", show=show).values
        found = {name: processes.gathered(a) for name, a in found.items()}
        return LogDensities(run.spec.log_prob_to_data(found["log_prob"], x), int(found["nfe"].max()))

    def drawn(k: int) -> LogDensities:
        if not is_summed:
            return score_given(k, no_label)
        return sum_over_classes(run.spec, lambda c: score_given(k, {"label": np.full(1, c, np.int32)}))

    draws = [drawn(k) for k in range(importance_samples)]
    weighted = importance_weighted(np.stack([one.log_prob for one in draws]))
    return LogDensities(weighted, max(one.nfe for one in draws))


def sum_over_classes(spec: DataSpec, of_class: Callable[[int], LogDensities]) -> LogDensities:
    """log p(x) = log sum_k p(k) p(x | k), where p(k) is the share of class k, and `of_class(k)` gives log p(x | k)."""
    scored = {k: of_class(k) for k in spec.classes}
    terms = [one.log_prob + math.log(spec.shares[k]) for k, one in scored.items()]
    return LogDensities(np.logaddexp.reduce(terms, axis=0), sum(one.nfe for one in scored.values()))


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
