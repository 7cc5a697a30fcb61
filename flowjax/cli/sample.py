"""Draw samples from a trained run.

usage: flowjax sample --workdir DIR --num N --out FILE [--label CLASS | --labels random|shares|balanced]
           [--cond FILE.npz [--compose]]
           [--solver NAME] [--rtol R --atol A | --steps N [--grid NAME]] [--eta E | --churn S | --g G] [--schedule NAME]
           [--guidance cfg --scale S [--guided NAME,...] [--interval A,B] [--rescale R]]
           [--guidance auto --scale S [--weak DIR] [--weak_checkpoint STEP]]

An .npz FILE receives the array `samples` (N, *shape) and, for a conditional network, `labels` (N,). Images are uint8,
and the first 64 are also drawn as a grid into FILE.png, by class. For a run on a table, FILE may end in .csv, .tsv or
.parquet: it receives the columns by name, categories as texts, and the conditions that were given. In an .npz file
categories are their codes. Sample i depends only on --seed and on i, and with several observations also on --num. By
default its
class is drawn with equal probability; with --labels shares, classes are drawn with their shares of the training data,
and with --labels balanced, sample i has class i mod K. Classes without training examples are left out. --label gives
all samples one class: its number, or its name if the data set names its classes, as image folders do.

--cond FILE has the conditions of the network, as arrays named like the run's fields (data.cond), in the units of the
data. With arrays (M, *shape), each of the M rows is an observation, for which --num samples are drawn: `samples` has
the shape (M, num, ...), and FILE.npz also receives the conditions. Arrays of the shape of the field itself, without an
axis for observations, are one observation, and `samples` has the shape (num, ...). An array with a single row holds for
all observations. A condition that is NaN or has no array is not given. An array `y` has the classes, and replaces
--label and --labels. For a run on pairs, the array with the name of data.pairs has the source samples.

With --compose the M rows are independent observations of the same example, and --num samples are drawn given all of
them together, by a network that was trained on single observations: `samples` has the shape (num, ...).

With --log_prob an .npz FILE also receives `log_prob`, the log-density of each sample in nats, in the units of the data:
that of the ODE with the exact divergence, or of a normalizing flow. Data of integers have none. The first 64 are
compared with adaptive solves: `difference` is the mean absolute change, and `converged` whether it is small.

Several processes (see `flowjax train --help`) each draw a part of the samples, and the first one writes the file.

If more than one batch is needed, finished batches are kept in FILE.npz.parts until the file is written, and the same
command continues after an interruption with bitwise equal results. In the JSON line, samples_per_second excludes
compilation, and is null for a single batch. Each batch, also the last, computes --batch rows, so set --batch to draw
only a few samples on an accelerator.

example:
  flowjax sample --workdir runs/g8 --num 50000 --seed 0 --solver dopri5 --out samples.npz
  flowjax sample --workdir runs/digits --num 64 --solver unipc --steps 16 --guidance cfg --scale 2 --label 7 --out
  seven.npz
"""

import time
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags
from flowjax.files import TABLES

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.of_run()
    flags.define_plugins(values)
    absl_flags.DEFINE_integer("num", 1000, "number of samples", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_string("label", None, "class of all samples: its name or its number", flag_values=values)
    flags.define_labels(values, "random")
    absl_flags.DEFINE_string("cond", None, "an .npz file with conditions by name", flag_values=values)
    absl_flags.DEFINE_boolean("compose", False, "draw samples given all rows of --cond together", flag_values=values)
    absl_flags.DEFINE_string(
        "out", None, "the .npz file to write, or a .csv, .tsv or .parquet file for a table", flag_values=values
    )
    absl_flags.DEFINE_boolean(
        "log_prob", False, "also write log p of each sample, in nats (real data, ODE solvers)", flag_values=values
    )
    flags.define_sampler(values)
    flags.define_processes(values)
    flags.parse(values, argv, __doc__ or "")
    if values.label is not None and values["labels"].present:
        raise flags.UsageError("--labels and --label cannot be used together: --label gives all samples one class")
    out = flags.out_path(values, *TABLES)
    if values.compose and (values.cond is None or values.guidance is not None or out.suffix in TABLES):
        raise flags.UsageError("--compose needs --cond with several observations and an .npz file, and no --guidance")
    if values.log_prob and values.compose:
        raise flags.UsageError("--log_prob and --compose cannot be used together: the density is not known")
    if values.log_prob and out.suffix in TABLES:
        raise flags.UsageError("--log_prob needs an .npz file: a table has no column for it")
    workdir = flags.run_workdir(values)

    from flowjax.cli import cache
    from flowjax.cli.common import (
        check_labels,
        check_solved,
        class_of,
        guide,
        join,
        observations,
        open_run,
        save_grid,
        save_npz,
        save_table,
        solver,
    )
    from flowjax.data import DataError
    from flowjax.data.write_table import check_writable
    from flowjax.inference import composition, sampling, scoring
    from flowjax.inference.convergence import CHECKED, CONVERGED_WITHIN, compared
    from flowjax.inference.finished_batches import remove_finished
    from flowjax.training import processes
    from flowjax.training.writers import say

    join(values)
    cache.use(values.compilation_cache)
    chosen = solver(values)  # a bad solver is refused before anything is read
    opened = open_run(values, workdir)
    check_labels(values, opened)
    check_solved(values, opened, samples=True)
    if out.suffix in TABLES:
        try:
            check_writable(opened.spec)
        except DataError as error:
            raise flags.UsageError(f"--out {out.name}: {error}; use an .npz file") from None
    label = None if values.label is None else class_of(values.label, opened.spec)
    cond, is_single = ({}, True) if values.cond is None else observations(opened, values.cond)
    if "label" in cond and (label is not None or values["labels"].present):
        raise flags.UsageError(f"--cond {values.cond} holds labels, so --label and --labels cannot be used with it")
    finished = out.with_name(f"{out.name}.parts{processes.suffix()}")
    guided = guide(values)
    start = time.perf_counter()
    options: dict[str, Any] = {
        "solver": chosen,
        "label": label,
        "batch": values.batch,
        "show": True,
        "guide": guided,
        "labels": values.labels,
        "keep": finished,
        "log_prob": values.log_prob,
    }
    if values.compose:
        is_single = True
        drawn = composition.sample_composed(opened, values.num, cond, values.seed, chosen, values.batch, show=True)
    elif is_single:
        drawn = sampling.sample(opened, values.num, values.seed, cond=cond, **options)
    else:
        drawn = sampling.sample_each(opened, values.num, cond, values.seed, **options)
    seconds = time.perf_counter() - start
    flat = drawn if is_single else drawn.for_each_sample()
    if out.suffix in TABLES:
        save_table(out, opened.spec, flat.samples, flat.cond)
    else:
        labels = None if drawn.labels is None else opened.spec.label_values(drawn.labels)
        given = {name: a for name, a in drawn.cond.items() if name != "label" and not is_single}
        given |= cond if values.compose else {}
        save_npz(out, samples=drawn.samples, labels=labels, log_prob=drawn.log_prob, **given)
    processes.wait("written")
    remove_finished(finished)
    save_grid(out, opened, flat.samples, flat.labels)
    rate = drawn.samples_per_second
    scored: dict[str, Any] = {}
    if flat.log_prob is not None:
        first = {name: a[:CHECKED] for name, a in flat.cond.items()}
        again = scoring.log_prob(opened, flat.samples[:CHECKED], first, solver=chosen.of_densities).log_prob
        within = CONVERGED_WITHIN * opened.spec.d
        checked = compared(flat.log_prob[:CHECKED], again, within, chosen.of_densities)
        if not checked.converged:
            say(f"sample: log_prob: {checked.describe(chosen)}")
        scored = {"mean_log_prob": float(flat.log_prob.mean()), "difference": checked.difference}
        scored |= {"converged": checked.converged}
    return {
        "out": str(out),
        "num": len(flat.samples),
        "nfe": drawn.nfe,
        **({} if guided is None else {"network_evaluations": 2 * drawn.nfe}),
        "seconds": round(seconds, 3),
        "samples_per_second": None if rate is None else float(f"{rate:.4g}"),
        **scored,
    }
