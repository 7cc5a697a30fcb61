"""Samples of a run, in batches of one compiled size, in data space.

Sample i depends only on the seed, on i and on its conditions, not on the number of samples, batches or devices: its
noise comes from `fold_in(key(seed), i)`, each row is solved separately, and the last batch is padded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from flowjax.conditions import named
from flowjax.errors import ConfigError, check_name
from flowjax.inference.batches import (
    batch_of_densities,
    default_batch,
    in_batches,
    rows_of_a_block,
    rows_of_this_process,
)
from flowjax.inference.choose import DEFAULT_SOLVER, Choice, Guide, SolverSettings, choose
from flowjax.inference.finished_batches import open_request, unless_single
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.program import LabelRule, compile_draw, compile_scored
from flowjax.inference.run import Run
from flowjax.inference.scoring import no_likelihood
from flowjax.likelihood import TooLarge
from flowjax.solvers.names import PUSH_FORWARD
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["Samples", "sample", "sample_each"]


class Samples(NamedTuple):
    """The result of `sample`.

    Attributes:
        samples: (N, *event) in data space.
        cond: their conditions by name, each (N, ...), in data space; `label` if the network has labels.
        nfe: the largest number of evaluations that a sample took.
        samples_per_second: without compilation; None for a single batch.
        log_prob: log p of the samples in nats of the data space, (N,), if it was asked for.
    """

    samples: np.ndarray
    cond: dict[str, np.ndarray]
    nfe: int
    samples_per_second: float | None = None
    log_prob: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray | None:
        """The labels (N,), or None for a network without labels."""
        return self.cond.get("label")

    def for_each_sample(self) -> "Samples":
        """Returns samples (M, num, ...) of several observations as samples (M * num, ...) with a condition for each."""
        rows, num = self.samples.shape[:2]
        flat = lambda a: a.reshape(rows * num, *a.shape[2:])
        drawn = lambda name, a: name == "label" and a.ndim == 2  # labels that were not given differ within observations
        cond = {name: flat(a) if drawn(name, a) else np.repeat(a, num, 0) for name, a in self.cond.items()}
        log_prob = None if self.log_prob is None else flat(self.log_prob)
        return self._replace(samples=flat(self.samples), cond=cond, log_prob=log_prob)


def sample(
    run: Run,
    num: int,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    label: int | None = None,
    batch: int = 0,
    show: bool = False,
    guide: Guide | None = None,
    labels: LabelRule = "random",
    keep: Path | None = None,
    gather: bool = True,
    cond: Mapping[str, Any] | None = None,
    log_prob: bool = False,
) -> Samples:
    """Draws `num` samples, over all devices. All processes call it, and each of them draws a share.

    A run whose data have a mask (`DataSpec.has_mask`) returns full sets, in which all elements exist.

    Args:
        run: opened with `flowjax.load`.
        num: number of samples, at least 1.
        seed: of the noise and, for a network with labels, of the labels.
        solver: how to integrate.
        label: one class for all samples.
        batch: rows per batch on all devices of a process, rounded up to divide among them; 0 for a default.
        show: show progress on stderr.
        guide: guidance, or None.
        labels: how classes are chosen where `label` is None: with equal chances (`random`), with their shares of the
            training data (`shares`), or class i mod K for sample i (`balanced`). Classes of which the training data
            have no example are never chosen.
        keep: a folder for finished batches, if there are several: after a kill the same call continues from them, and
            returns bitwise the same samples. Remove it with `finished_batches.remove_finished` once they are saved.
        gather: return all samples on each process, not only its share.
        cond: other conditions by name, in data space, with one row for all samples, (1, *shape), or one row per sample,
            (num, *shape). A `label` here replaces `label` and `labels`. For a condition that is absent the network gets
            its null value. For a run on pairs, the array named `data.pairs` has the source samples from which samples
            start.
        log_prob: also return the log-densities of the samples, with the exact divergence. It needs the samples of an
            ODE, or of a bijection, of data that are real numbers.

    Raises:
        SolverFault: if an adaptive solve does not reach its final time.
        ConfigError: if the solver or the guidance cannot be used with this run, a condition does not fit its field, or
            `keep` holds the batches of another call.
    """
    if not isinstance(num, int | np.integer) or num < 1:
        raise ConfigError(f"the number of samples must be a whole number, at least 1, not {num!r}")
    has_labels = named(run.fields, "label") is not None
    num_classes = run.spec.num_classes if has_labels else 0
    if label is not None and not (isinstance(label, int | np.integer) and 0 <= label < num_classes):
        classes = f"from 0 to {num_classes - 1}" if has_labels else "left out: the network has no classes"
        raise ConfigError(f"label must be {classes}, not {label!r}")
    check_name("labels", labels, get_args(LabelRule))
    given = encode_given(run, cond, num)
    if (pairs := run.given_source) and pairs not in given.values:
        say(
            f"sample: the run was trained on pairs, and no source samples {pairs!r} are given: samples start from "
            f"source.name {run.config.source.name!r}, which is right only if the source samples come from it"
        )
    if label is not None and "label" in given.values:
        raise ConfigError("the label is given twice: as label and in cond")
    if run.spec.has_mask:
        say(f"sample: the data have a mask; samples are full sets, in which all {run.spec.shape[0]} elements exist")
    choice = choose(run, solver, guide, show)
    if log_prob:
        _check_scored(run, choice, guide)
    size = rows_of_a_block(batch or (batch_of_densities(run.spec.d, True) if log_prob else default_batch(run.spec.d)))
    chooses_labels = has_labels and "label" not in given.values
    rule = "none" if not chooses_labels else labels if label is None else "one"
    keep = unless_single(keep, num <= size)
    finished = open_request(
        run,
        choice.solver,
        guide,
        keep,
        {"conditions": given.encoded},
        num=num,
        batch=size,
        seed=seed,
        labels=label if rule == "one" else rule,
        **({"log_prob": True} if log_prob else {}),
    )
    compiled = compile_scored if log_prob else compile_draw
    draw = compiled(choice, seed, rule, label or 0, given.encoded)
    mine = rows_of_this_process(num)
    try:
        values, rate = in_batches(
            draw,
            (np.arange(num, dtype=np.int32)[mine], {name: a[mine] for name, a in given.rows.items()}),
            size,
            solver=choice.solver.name,
            label="sample",
            unit="image" if run.spec.is_image else "sample",
            show=show,
            finished=finished,
        )
    except TooLarge as error:
        raise ConfigError(str(error)) from None
    if gather:
        values, mine = {name: processes.gathered(a) for name, a in values.items()}, slice(None)
        rate = None if rate is None else rate * processes.process_count()
    else:
        values = values | {"nfe": processes.gathered(values["nfe"])}
    samples = values["samples"] if run.spec.levels else run.spec.finish(values["samples"])
    conditions = {name: a[mine] for name, a in given.values.items()}
    if chooses_labels:
        conditions["label"] = values["label"]
    densities = run.spec.log_prob_to_data(values["log_prob"], samples) if log_prob else None
    return Samples(samples, conditions, int(values["nfe"].max()), rate, densities)


def _check_scored(run: Run, choice: Choice, guide: Guide | None) -> None:
    """Raises a ConfigError if the samples of a choice have no density that can be computed along with them."""
    name = choice.solver.name
    if why := no_likelihood(run):
        raise ConfigError(f"{why}, so samples have no log_prob")
    if run.spec.levels or run.spec.integers:
        raise ConfigError(
            "log_prob of samples is for real numbers, and the data are integers: score them with flowjax likelihood"
        )
    if not (name == PUSH_FORWARD or name in SOLVERS or name in ADAPTIVE_SOLVERS):
        raise ConfigError(f"log_prob of samples needs those of an ODE, such as solver 'dopri5', not {name!r}")
    if guide is not None:
        raise ConfigError("log_prob of samples is for a trained density, which guidance changes: leave out guidance")
    if choice.solver.grid or choice.solver.schedule:
        raise ConfigError("log_prob of samples needs the schedule of training and no grid: leave out both")


def sample_each(run: Run, num: int, cond: Mapping[str, Any], seed: int = 0, **options: Any) -> Samples:
    """Draws `num` samples for each of several observations, for example from posterior distributions.

    Sample j of observation i depends on the seed, on i and j, and on `num`.

    Args:
        run: opened with `flowjax.load`.
        num: number of samples for each observation.
        cond: conditions by name, in data space, each with one row for each observation, (M, *shape), or one row for all
            of them, (1, *shape).
        seed: of the noise.
        options: other arguments of `sample`, such as `solver` and `batch`.

    Returns:
        As for `sample`, with samples (M, num, *event), and conditions (M, ...) with one row for each observation.
        Labels that the program chooses are (M, num).

    Raises:
        ConfigError: if the arrays have different numbers of rows, and as for `sample`.
    """
    sizes = {name: len(a) for name, a in cond.items()}
    several = {size for size in sizes.values() if size != 1}
    if not sizes or len(several) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "there is none"
        raise ConfigError(f"conditions need one row for each observation, or one for all, but their rows are: {shown}")
    observations = several.pop() if several else 1
    each = {name: np.broadcast_to(np.asarray(a), (observations, *np.shape(a)[1:])) for name, a in cond.items()}
    drawn = sample(
        run, observations * num, seed, cond={name: np.repeat(a, num, 0) for name, a in each.items()}, **options
    )
    apart = lambda a: a.reshape(observations, num, *a.shape[1:])
    chosen = {name: apart(a) for name, a in drawn.cond.items() if name not in each}
    log_prob = None if drawn.log_prob is None else apart(drawn.log_prob)
    return drawn._replace(samples=apart(drawn.samples), cond={**each, **chosen}, log_prob=log_prob)
