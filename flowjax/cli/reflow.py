"""Train a flow, and then straighter flows on the pairs of the flow before (reflow).

usage: flowjax reflow --config FILE|NAME --workdir DIR [--rounds K] [--num N] [--real SHARE] [--from WORKDIR]
           [--solver NAME] [--rtol R --atol A | --steps S] [--config.KEY=VALUE ...]

Round 0 trains the config into DIR/round_0, or takes the run of --from, which may have another method or path. All pairs
come from that run, so data.name of the config must be that of the run, or empty. Then, K times, N pairs of a source
sample x0 and the sample x1 to which the last run maps it are made and kept in DIR/pairs_k, and a new run DIR/round_k is
trained on them, from the parameters of the run before if its network has the same meaning.
The trajectories become straighter from round to round, so that fewer steps suffice. Conditions are kept with the pairs.

With --real, that share of the pairs comes from training data, which the reverse ODE maps to the source. The same
command continues after an interruption. For better results in one step, try --config.method.loss=pseudo_huber(0.01) and
--config.method.times=u_shaped(4), which then also hold in round 0 unless it is given by --from. To map x0 to x1 in a
single step without an ODE, train method.name=distillation on the pairs of the last round (data.name=pairs).

example:
  flowjax reflow --config reflow_gaussians8 --workdir runs/reflow --rounds 2 --num 100000
  flowjax sample --workdir runs/reflow/round_2 --solver euler --steps 1 --num 10000 --out one_step.npz
  flowjax evaluate --workdir runs/reflow/round_2
"""

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags
from flowjax.cli.config_file import read_config

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.new()
    absl_flags.DEFINE_string("workdir", None, "folder of the rounds", flag_values=values)
    absl_flags.DEFINE_integer("rounds", 1, "number of rounds after round 0", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_integer("num", 100_000, "number of pairs of each round", lower_bound=2, flag_values=values)
    share = "share of the pairs whose x1 is a training row"
    absl_flags.DEFINE_float("real", 0.0, share, lower_bound=0.0, upper_bound=1.0, flag_values=values)
    absl_flags.DEFINE_string("from", None, "workdir of a trained run in place of round 0", flag_values=values)
    rows = "rows per batch when pairs are made; 0 chooses a default"
    absl_flags.DEFINE_integer("batch", 0, rows, lower_bound=0, flag_values=values)
    flags.define_solver(values)
    values["solver"].help = "the solver that makes the pairs; by default that of the run's method"
    flags.define_compilation_cache(values)
    config = read_config(values, argv, __doc__ or "")
    workdir = Path(flags.require(values, "workdir"))
    teacher = None if values["from"].value is None else flags.check_workdir(values["from"].value)

    from flowjax import reflow
    from flowjax.cli import cache
    from flowjax.cli.common import solver

    cache.use(values.compilation_cache)
    done = reflow.reflow(
        config, workdir, values.rounds, values.num, solver(values), values.real, teacher, batch=values.batch
    )
    costs = [round(cost, 6) for cost in done.transport_costs]
    return {"workdir": str(done.run.workdir), "rounds": values.rounds, "step": done.run.step, "transport_costs": costs}
