"""Estimate the posterior of one observation in rounds of simulation and training.

usage: flowjax rounds --config FILE|NAME --workdir DIR --cond FILE.npz [--rounds R] [--num N] [--config.KEY=VALUE ...]

The data set of the config is `simulator`. Each round draws N simulations from the prior, from the second round on only
in a box around the posterior that the round before has learned for the observation, and trains a new network on them
and on the earlier simulations inside the box. FILE.npz has the array `obs`, one observation in the shape in which the
simulator returns it. The run of round k is DIR/round_k, and the same command continues after an interruption. The
networks are for this observation only; `flowjax train` estimates the posteriors of all observations.

example:
  flowjax rounds --config sbi_two_moons --workdir runs/rounds --cond obs.npz --rounds 3 --num 1000
  flowjax sample --workdir runs/rounds/round_3 --checkpoint best --num 10000 --cond obs.npz --out posterior.npz
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
    absl_flags.DEFINE_string("cond", None, "an .npz file with the observation, obs", flag_values=values)
    absl_flags.DEFINE_integer("rounds", 5, "number of rounds", lower_bound=1, flag_values=values)
    absl_flags.DEFINE_integer("num", 1000, "number of simulations of each round", lower_bound=10, flag_values=values)
    flags.define_compilation_cache(values)
    config = read_config(values, argv, __doc__ or "")
    workdir, path = Path(flags.require(values, "workdir")), flags.require(values, "cond")

    import numpy as np

    from flowjax import archives, rounds
    from flowjax.cli import cache

    cache.use(values.compilation_cache)
    try:
        arrays = archives.read_npz(path)
    except archives.ArchiveError as error:
        raise flags.UsageError(f"--cond: {error}") from None
    if "obs" not in arrays:
        raise flags.UsageError(f"--cond {path} holds no array obs: it has {archives.printable(', '.join(arrays), 200)}")
    obs = np.asarray(arrays["obs"], np.float32)
    if not np.isfinite(obs).all():
        raise flags.UsageError(f"--cond {path}: obs must hold finite numbers")
    last = rounds.truncated_rounds(config, workdir, obs, values.rounds, values.num)
    return {"workdir": str(last.workdir), "rounds": values.rounds, "step": last.step}
