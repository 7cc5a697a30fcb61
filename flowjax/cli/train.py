"""Train a flow from a config file, or resume it.

usage: flowjax train --config FILE|NAME --workdir DIR [--config.KEY=VALUE ...] [--dry_run]
           [--tensorboard] [--wandb PROJECT] [--trace START:STOP]
           [--coordinator_address HOST:PORT --num_processes N --process_id I]

Writes config.json, metrics.jsonl, checkpoints/ and plots/ into the workdir. The same command on the same workdir
resumes; only train.steps, the logging and saving cadence and what the devices ask for (mesh, data.workers,
train.accumulate, model.remat) may differ then, and data.path where the data were moved. `flowjax configs` lists the
shipped configs. --tensorboard and --wandb also write the records of metrics.jsonl there; --trace writes what XProf
shows of some steps into WORKDIR/trace.

One training at a time uses a workdir: a lock on WORKDIR/.lock refuses a second one, and the operating system releases
it when the process ends. A checkpoint has checksums of its files; one that is damaged is refused, and --checkpoint STEP
goes on from an earlier one.

Several processes train as one: on SLURM, TPU pods and Kubernetes they find each other, elsewhere the three flags say
how (--num_processes=1 alone: this one is on its own). All need the same config and see the same workdir. If one dies,
the others end within --heartbeat_timeout. If they have not all started within --initialization_timeout, those that
have end with exit code 70.

example:
  flowjax train --config gaussians8 --workdir runs/g8 --config.train.steps=2000
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags
from flowjax.cli.cautions import cautions
from flowjax.cli.config_file import read_config

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    """Parses everything before importing JAX, so that a typing error is told at once."""
    values = flags.of_run(trained=False)
    absl_flags.DEFINE_bool("dry_run", False, "build all, print parameters and FLOPs, stop", flag_values=values)
    absl_flags.DEFINE_bool("tensorboard", False, "also write events into WORKDIR/tensorboard", flag_values=values)
    absl_flags.DEFINE_string("wandb", None, "also log to this project of Weights & Biases", flag_values=values)
    flags.define_processes(values)
    absl_flags.DEFINE_string("trace", None, "START:STOP, steps to profile into WORKDIR/trace", flag_values=values)
    config = read_config(values, argv, __doc__ or "")
    workdir = Path(flags.require(values, "workdir"))
    if workdir.exists() and not workdir.is_dir():
        raise flags.UsageError(f"--workdir {workdir} is a file")
    traced = _steps_to_trace(values.trace, config.train.steps)
    _check_extras(values)
    flags.check_processes(values)
    from flowjax.cli import cache, train_run
    from flowjax.training.writers import say

    flags.start_processes(values)
    cache.use(values.compilation_cache)
    for line in cautions(config):
        say(f"train: warning: {line}")
    if values.dry_run:
        return train_run.dry_run(config, workdir)
    return train_run.train(config, workdir, values.checkpoint, values.tensorboard, values.wandb, traced)


def _steps_to_trace(text: str | None, steps: int) -> tuple[int, int]:
    """--trace; (0, 0) for none."""
    if text is None:
        return 0, 0
    match = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = (int(n) for n in match.groups()) if match else (0, 0)
    if not start < stop <= steps:
        raise flags.UsageError(
            f"--trace {text!r}: it is START:STOP, two steps in order, up to train.steps = {steps}, like 100:120"
        )
    return start, stop


def _check_extras(values: absl_flags.FlagValues) -> None:
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if not values[name].value:
            continue
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # no origin: a mere folder of that name
            raise flags.UsageError(f"--{name} needs {package}: pip install 'flowjax-research[{name}]'")
