"""Make pairs of source samples and samples with a trained run, as data for reflow and distillation.

usage: flowjax pairs --workdir RUN --out FOLDER --num N [--real SHARE] [--labels shares|random|balanced]
           [the flags of the solver and of guidance of flowjax sample]

FOLDER receives N pairs of a source sample x0 and the sample x1 to which the run maps it, with the conditions of the
network, in the model space of the run. Any run with a deterministic sampler can make them: a flow, a diffusion model by
its ODE, a mean flow. `flowjax train --config.data.name=pairs --config.data.path=FOLDER --config.data.pairs=x0` trains
on them; such a run has the normalisation of RUN, is compared with the data of RUN by `flowjax evaluate`, and can start
from its parameters (train.start_from). Source samples are independent of those of `flowjax sample` with the same seed.

With --real, that share of the pairs comes from training data, which the reverse ODE of the run maps to the source. The
same command continues after an interruption, and makes the same pairs. Several processes (see `flowjax train --help`)
each make a part of them.

example:
  flowjax pairs --workdir runs/g8 --out runs/pairs --num 100000
  flowjax train --config mine.py --workdir runs/student --config.data.name=pairs --config.data.path=runs/pairs
      --config.data.pairs=x0 --config.train.start_from=runs/g8
"""

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.of_run()
    flags.define_plugins(values)
    absl_flags.DEFINE_integer("num", 100_000, "number of pairs", lower_bound=2, flag_values=values)
    absl_flags.DEFINE_string("out", None, "the folder of the pairs", flag_values=values)
    share = "share of the pairs whose x1 is a training row"
    absl_flags.DEFINE_float("real", 0.0, share, lower_bound=0.0, upper_bound=1.0, flag_values=values)
    flags.define_labels(values, "shares")
    flags.define_sampler(values)
    flags.define_processes(values)
    flags.parse(values, argv, __doc__ or "")
    out, workdir = Path(flags.require(values, "out")), flags.run_workdir(values)

    from flowjax.cli import cache
    from flowjax.cli.common import check_labels, guide, join, open_run, solver
    from flowjax.inference.pairs import make_pairs

    join(values)
    cache.use(values.compilation_cache)
    chosen = solver(values)  # a bad solver is refused before anything is read
    opened = open_run(values, workdir)
    check_labels(values, opened)
    made = make_pairs(
        opened,
        out,
        values.num,
        values.seed,
        chosen,
        guide(values),
        values.batch,
        values.real,
        values.labels,
    )
    return {"out": str(made.folder), "num": made.num, "transport_cost": made.transport_cost}
