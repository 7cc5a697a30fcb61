"""Samples and log-densities of a run, in batches of one compiled size, in data space.

Sample i depends on the seed and on i alone, not on how many are drawn or in what batches: its noise comes from
`fold_in(key(seed), i)`, each row is its own solve, and the last batch is padded to the size of the others.
"""

import math
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import likelihood
from flowjax.conditions import NO_LABEL, named
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.inference.batches import SolverFault, in_batches
from flowjax.inference.choose import DOPRI5, Guide, Solver, bind, model_of, options_of
from flowjax.inference.finished_batches import open_finished, request_of
from flowjax.inference.program import (
    DrawnLabels,
    Inputs,
    Labels,
    labels_of,
    level_thresholds,
    program,
    source_noise,
    to_levels,
)
from flowjax.inference.row_sharding import everywhere, over_rows, rows_of_a_block
from flowjax.inference.run import Run
from flowjax.likelihood import Divergence
from flowjax.solvers import Stats, grids, make_sampler
from flowjax.sources import has_density
from flowjax.training import hosts
from flowjax.training.writers import say
from flowjax.typing import PRNGKey

__all__ = ["LogDensities", "Samples", "SolverFault", "default_batch", "log_prob", "sample", "source_noise"]


_CLASSES_SUMMED = 100
"""The largest number of classes over which a density without labels is summed."""


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
        samples: (N, *event) in data space.
        labels: (N,), or None.
        nfe: the largest number of evaluations.
        samples_per_second: of whole batches, without compilation; None where a single batch was drawn.
    """

    samples: np.ndarray
    labels: np.ndarray | None
    nfe: int
    samples_per_second: float | None = None


class LogDensities(NamedTuple):
    """log p in nats of the data space (N,), in the order of the points, and the largest number of evaluations."""

    log_prob: np.ndarray
    nfe: int


def default_batch(run: Run) -> int:
    """Rows a batch, from the numbers that a network holds: about 64 for each coordinate of a row.

    A power of two for each device. On an accelerator about 2^27 of them at a time, 512 MiB in float32: some hundred
    images of CIFAR's size, which keep it busy, and no fewer than 64 of larger ones. On a CPU, whose few cores are busy
    with less, about 2^21, which stay nearer to its caches.
    """
    numbers = 64 * run.spec.d
    if jax.default_backend() == "cpu":
        return max(16, min(4096, 2 ** int(np.log2(2**21 / max(64, numbers)))))
    return jax.local_device_count() * max(64, min(4096, 2 ** round(np.log2(2**27 / numbers))))


def _key(seed: int) -> PRNGKey:
    """The key of a seed. JAX would take a seed modulo 2^32, so that two seeds could mean the same samples."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be in [0, {2**32 - 1}], not {seed}")
    return jax.random.key(seed)


def sample(
    run: Run,
    num: int,
    seed: int = 0,
    solver: Solver = DOPRI5,
    label: int | None = None,
    batch: int = 0,
    show: bool = False,
    guide: Guide | None = None,
    labels: DrawnLabels = "random",
    keep: Path | None = None,
    gather: bool = True,
) -> Samples:
    """Draws `num` samples, over all devices; of several processes, which all call this, each draws a share.

    Args:
        run: opened with `flowjax.load`.
        num: how many, at least 1.
        seed: of the noise and, for a conditional network, of the labels.
        solver: how to integrate.
        label: one class for all.
        batch: rows a batch on all devices of a process, 0 for a default; rounded up to divide among them.
        show: progress on stderr.
        guide: guidance, or none.
        labels: how classes are chosen where `label` is None: `random` draws them with equal chances, `shares` with
            their shares of the training data, and with `balanced` sample i has class i mod K. Classes of which the
            training data have no example are never chosen.
        keep: a folder for finished batches, where there is more than one: the same call goes on from there after a
            kill, to the same bits. It is left, for `finished_batches.remove_finished` once the samples are safe.
        gather: give each process all samples, not its share alone.

    Raises:
        SolverFault: if an adaptive solve does not arrive.
        ConfigError: if the solver or the guidance has no meaning for this run, or `keep` is of another call.
    """
    size = rows_of_a_block(batch or default_batch(run))
    kind = "none" if named(run.fields, "label") is None else labels if label is None else "one"
    noise, classes, steps = jax.random.split(_key(seed), 3)
    weak = None if guide is None or guide.weak is None else guide.weak.params
    inputs = Inputs(run.params, weak, noise, classes, steps, jnp.asarray(label or 0))
    bound = bind(run, solver, options_of(run, solver), guide, show)
    finished, asked = None, (run, num, size, seed, solver, guide, label if kind == "one" else kind)
    _check_same(asked)
    if keep is not None and (num > size or keep.exists()):  # which would hold those of another call
        finished = open_finished(keep, request_of(*asked))
    times = _learned_times(run, solver, guide, bound, kind, inputs) if solver.grid == "learned" else None
    draw, inputs = program(run, solver, guide, bound, kind, times), everywhere(inputs)
    thresholds = jnp.asarray(level_thresholds(run.spec)) if run.spec.levels else None

    def block(rows: np.ndarray) -> tuple[dict[str, Array], Stats]:
        x, labels, stats = draw(inputs, rows)
        x = x if thresholds is None else to_levels(thresholds, x)
        return {"samples": x} | ({} if labels is None else {"labels": labels}), stats

    unit = "image" if run.spec.is_image else "sample"
    rows = np.arange(num, dtype=np.int32)[_share(num)]
    show = show and hosts.leader()
    values, rate = in_batches(
        block, (rows,), size, solver=solver.name, label="sample", unit=unit, show=show, finished=finished
    )
    if gather:
        values = {name: hosts.gathered(a) for name, a in values.items()}
        rate = None if rate is None else rate * hosts.sharing()
    else:
        values = values | {"nfe": hosts.gathered(values["nfe"])}
    samples = values["samples"] if run.spec.levels else run.spec.finish(values["samples"])
    return Samples(samples, values.get("labels"), int(values["nfe"].max()), rate)


def _check_same(asked: tuple[Any, ...], *arrays: Any) -> None:
    """ConfigError if processes have been asked for different things, or have found another checkpoint."""
    if hosts.sharing() > 1:
        sums = [zlib.crc32(np.ascontiguousarray(a).tobytes()) for a in arrays]
        hosts.check_same("request", request_of(*asked) | {"the checksum of its rows": sums})


def _share(num: int) -> slice:
    """The rows of this process."""
    if hosts.sharing() > 1 and num < hosts.sharing():
        raise ConfigError(f"{num} rows are fewer than the {hosts.sharing()} processes that share them")
    return hosts.share(num)


def _learned_times(
    run: Run, solver: Solver, guide: Guide | None, bound: Any, kind: Labels, inputs: Inputs
) -> tuple[float, ...]:
    """Times learned on 256 samples, none of them among those that are drawn."""
    path, interval, scale = bound
    sampler = make_sampler(solver.name, path, options_of(run, solver))
    if sampler is None or solver.steps is None:
        raise ConfigError(f"grid 'learned' is for samplers with a fixed number of steps, not {solver.name}")
    say("sample: learning the time grid on 256 samples")
    rows = jnp.arange(2**31 - 256, 2**31)
    x0 = scale * source_noise(run, inputs.noise, rows)
    labels = labels_of(kind, run.spec, inputs, rows)
    try:
        model = model_of(run, run.params, path, guide)
        grid = grids.learn(sampler, model, x0, solver.steps, cond=labels, t0=interval[0], t1=interval[1])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return tuple(np.asarray(grid).tolist())


def log_prob(
    run: Run,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    divergence: Divergence = "exact",
    seed: int = 0,
    probes: int = 1,
    solver: Solver = DOPRI5,
    batch: int = 0,
    show: bool = False,
) -> LogDensities:
    """log p(x | label) in nats of the data space, in the order of x; shared out as in `sample`.

    Args:
        run: opened with `flowjax.load`.
        x: (N, *event) in data space. If the run's data are integers and all of x are, they are dequantised by `seed`.
        labels: (N,) for a conditional network. With None, the network is evaluated without labels if it was
            also trained without them (`data.cond_dropout` > 0). Otherwise the density is the sum over the classes of
            their shares of the training data times the density given the class, which takes one solve per class.
        divergence, probes: as in `flowjax.likelihood.log_prob`.
        seed: of dequantisation and of Hutchinson's probes; row i depends on it and on i alone.
        solver, batch, show: as for `sample`.

    Raises:
        SolverFault: if an adaptive solve does not arrive.
        ConfigError: if the source has no density, or if the sum would be over more than 100 classes.
    """
    if not has_density(run.prior):
        raise ConfigError(
            f"source.name {run.config.source.name!r} has no density, so there is no likelihood: sample instead"
        )
    label = named(run.fields, "label")
    summed = labels is None and label is not None and not label.dropout
    if summed:
        _check_summable(run.spec)
    size = batch or max(16, default_batch(run) // (min(run.spec.d, 64) if divergence == "exact" else 1))
    size = rows_of_a_block(size)
    t0, t1 = run.interval
    noise_key, probe_key = jax.random.split(_key(seed))
    labels = np.full(len(x), NO_LABEL, np.int32) if labels is None else labels
    own = _share(len(x))
    if run.spec.levels and np.all(x == np.floor(x)):
        encoded = np.asarray(x[own], np.float32)
        prepare = lambda key, i, row: run.spec.prepare(jax.random.fold_in(key, i), row)
    else:
        encoded = run.spec.to_model(x[own])
        prepare = lambda key, i, row: row

    def score(shared: Any, rows: Array, x: Array, labels: Array) -> tuple[dict[str, Array], Stats]:
        params, noise_key, probe_key = shared
        values, stats = likelihood.log_prob(
            run.problem.model(params),
            jax.vmap(partial(prepare, noise_key))(rows, x),
            run.prior,
            cond=None if label is None else labels,
            t0=t0,
            t1=t1,
            divergence=divergence,
            key=jax.vmap(partial(jax.random.fold_in, probe_key))(rows),
            probes=probes,
            **solver.tolerances,
        )
        return {"log_prob": values}, stats

    _check_same((run, len(x), size, seed, solver, None, f"{divergence} {probes}"), x, labels)
    score_block = partial(over_rows(score), everywhere((run.params, noise_key, probe_key)))

    def score_as(labels: np.ndarray) -> LogDensities:
        points = (np.arange(len(x))[own], encoded, labels[own])
        shown = show and hosts.leader()
        found = in_batches(score_block, points, size, solver=solver.name, label="likelihood", show=shown).values
        found = {name: hosts.gathered(a) for name, a in found.items()}
        return LogDensities(run.spec.normalise.log_prob_to_data(found["log_prob"], run.spec.d), int(found["nfe"].max()))

    if not summed:
        return score_as(labels)
    # log p(x) = log sum_k p(k) p(x | k)
    scored = {label: score_as(np.full(len(x), label, np.int32)) for label in run.spec.classes}
    terms = [one.log_prob + math.log(run.spec.shares[label]) for label, one in scored.items()]
    return LogDensities(np.logaddexp.reduce(terms, axis=0), sum(one.nfe for one in scored.values()))


def _check_summable(spec: DataSpec) -> None:
    """Says that a density is summed over the classes; ConfigError if these are too many."""
    if len(spec.classes) > _CLASSES_SUMMED:
        raise ConfigError(
            f"this network was always trained with labels (data.cond_dropout is 0), and the sum over its "
            f"{len(spec.classes)} classes takes as many solves: give the labels of the points as y"
        )
    say(
        "likelihood: this network was always trained with labels (data.cond_dropout is 0), and the points have none: "
        f"their density is the sum over {len(spec.classes)} classes, weighted by their shares of the training data"
    )
