"""Samples of a run, in batches of one compiled size, in data space.

Sample i depends on the seed, on i and on its conditions alone, not on how many are drawn or in what batches: its noise
comes from `fold_in(key(seed), i)`, each row is its own solve, and the last batch is padded to the size of the others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowjax.conditions import named
from flowjax.errors import ConfigError
from flowjax.inference.batches import default_batch, in_batches
from flowjax.inference.choose import DEFAULT_SOLVER, Guide, SolverSettings, choose
from flowjax.inference.finished_batches import open_finished
from flowjax.inference.given_conditions import check_given, one_row_each, say_missing
from flowjax.inference.program import LabelRule, compile_draw
from flowjax.inference.request import check_same_request, checksum, request_of
from flowjax.inference.row_sharding import rows_of_a_block, rows_of_this_process
from flowjax.inference.run import Run
from flowjax.training import processes

__all__ = ["Samples", "sample"]


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
        samples: (N, *event) in data space.
        cond: their conditions by name, each (N, ...), in data space; `label` if the network has labels.
        nfe: the largest number of evaluations.
        samples_per_second: of whole batches, without compilation; None where a single batch was drawn.
    """

    samples: np.ndarray
    cond: dict[str, np.ndarray]
    nfe: int
    samples_per_second: float | None = None

    @property
    def labels(self) -> np.ndarray | None:
        """The labels (N,), or None for a network without them."""
        return self.cond.get("label")


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
) -> Samples:
    """Draws `num` samples, over all devices; of several processes, which all call this, each draws a share.

    Args:
        run: opened with `flowjax.load`.
        num: how many, at least 1.
        seed: of the noise and, for a network with labels, of the labels.
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
        cond: other conditions by name, in data space: arrays with one row for all samples, (1, *shape), or with one row
            a sample, (num, *shape). A `label` here takes the place of `label` and `labels`. A condition that is absent
            is not given: the network gets its null value.

    Raises:
        SolverFault: if an adaptive solve does not arrive.
        ConfigError: if the solver or the guidance has no meaning for this run, a condition does not fit its field, or
            `keep` is of another call.
    """
    given = check_given(run, cond, num)  # in data space
    encoded = run.spec.encode_cond(given)
    if label is not None and "label" in given:
        raise ConfigError("the label is given twice: as label and in cond")
    say_missing(run, given, "sample")
    choice = choose(run, solver, guide, show)
    size = rows_of_a_block(batch or default_batch(run.spec.d))
    drawn = named(run.fields, "label") is not None and "label" not in given
    kind = "none" if not drawn else labels if label is None else "one"
    asked = {"num": num, "batch": size, "seed": seed, "labels": label if kind == "one" else kind}
    finished = None
    is_kept = keep is not None and (num > size or keep.exists())  # which would hold those of another call
    if is_kept or processes.process_count() > 1:
        request = request_of(run, choice.solver, guide, **asked, conditions=checksum(encoded))
        check_same_request(request)
        if keep is not None and is_kept:
            finished = open_finished(keep, request)
    draw = compile_draw(choice, seed, kind, label or 0, encoded)
    own = rows_of_this_process(num)
    conditions = {name: a[own] for name, a in one_row_each(encoded, num).items()}
    values, rate = in_batches(
        draw,
        (np.arange(num, dtype=np.int32)[own], conditions),
        size,
        solver=choice.solver.name,
        label="sample",
        unit="image" if run.spec.is_image else "sample",
        show=show and processes.is_primary(),
        finished=finished,
    )
    if gather:
        values, own = {name: processes.gathered(a) for name, a in values.items()}, slice(None)
        rate = None if rate is None else rate * processes.process_count()
    else:
        values = values | {"nfe": processes.gathered(values["nfe"])}
    samples = values["samples"] if run.spec.levels else run.spec.finish(values["samples"])
    rows = {name: a[own] for name, a in one_row_each(given, num).items()}
    return Samples(samples, rows | ({"label": values["label"]} if drawn else {}), int(values["nfe"].max()), rate)
