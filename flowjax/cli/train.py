"""Train a flow from a config file, or resume it.

usage: flowjax train --config FILE|NAME --workdir DIR [--config.KEY=VALUE ...] [--dry_run]
           [--tensorboard] [--wandb PROJECT] [--trace START:STOP] [--no_plots]
           [--coordinator_address HOST:PORT --num_processes N --process_id I]

The workdir receives config.json, metrics.jsonl, checkpoints/ and plots/. The same command on the same workdir resumes
the run. Only these keys may change then: train.steps, the keys of logging and saving, those that adapt a run to its
devices (mesh, data.workers, train.accumulate, model.remat), and data.path if the data were moved. --tensorboard and
--wandb write the records of metrics.jsonl there as well. --trace profiles some steps, and writes a trace that XProf
shows into WORKDIR/trace.

`flowjax configs` lists the shipped configs, `flowjax configs NAME` shows the keys of one with their values, meanings
and choices, and `flowjax train --help config.path` those of a key or section. --config.method.name=NAME replaces the
keys of the config's method by those of another one, with their defaults, before other flags apply.

Only one process at a time can train in a workdir: a second one is refused by a lock on WORKDIR/.lock, which the
operating system releases when the first process ends. Checkpoints have checksums of their files, and a damaged one is
refused; --checkpoint STEP resumes from an earlier one.

Several processes can train one run. On SLURM, TPU pods and Kubernetes they find each other; elsewhere, give
--coordinator_address, --num_processes and --process_id to each. (--num_processes=1 without the other two trains in this
process only, whatever the cluster says.) All processes need the same config and the same workdir. If one dies, the
others end within --heartbeat_timeout seconds. If some have not started within --initialization_timeout seconds, those
that have started end with exit code 70.

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
from flowjax.extras import install_command

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    """Parses everything before importing JAX, so that mistakes are reported at once."""
    values = flags.of_run(trained=False)
    absl_flags.DEFINE_bool(
        "dry_run", False, "build everything, print parameters and FLOPs, and stop", flag_values=values
    )
    absl_flags.DEFINE_bool(
        "tensorboard", False, "also write TensorBoard events into WORKDIR/tensorboard", flag_values=values
    )
    absl_flags.DEFINE_string("wandb", None, "also log to this Weights & Biases project", flag_values=values)
    absl_flags.DEFINE_bool("plots", True, "draw figures into WORKDIR/plots after training", flag_values=values)
    flags.define_processes(values)
    absl_flags.DEFINE_string("trace", None, "START:STOP, the steps to profile into WORKDIR/trace", flag_values=values)
    config = read_config(values, argv, __doc__ or "")
    workdir = Path(flags.require(values, "workdir"))
    if workdir.exists() and not workdir.is_dir():
        raise flags.UsageError(f"--workdir {workdir} is a file")
    traced = _steps_to_trace(values.trace, config.train.steps)
    _check_extras(values)
    flags.check_processes(values)
    from flowjax import runs
    from flowjax.cli import cache
    from flowjax.training.writers import say

    flags.start_processes(values)
    cache.use(values.compilation_cache)
    for line in cautions(config):
        say(f"train: warning: {line}")
    if values.dry_run:
        return runs.dry_run(config, workdir)
    return runs.train_workdir(
        config, workdir, values.checkpoint, values.tensorboard, values.wandb, traced, plots=values.plots
    )


def _steps_to_trace(text: str | None, steps: int) -> tuple[int, int]:
    """Returns the first and the last step of --trace; (0, 0) without it."""
    if text is None:
        return 0, 0
    match = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = (int(n) for n in match.groups()) if match else (0, 0)
    if not start < stop <= steps:
        raise flags.UsageError(
            f"--trace must be START:STOP, two steps in order, up to train.steps = {steps}, like 100:120, not {text!r}"
        )
    return start, stop


def _check_extras(values: absl_flags.FlagValues) -> None:
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if not values[name].value:
            continue
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:  # no origin: only a folder of that name
            raise flags.UsageError(f"--{name} needs {package}: {install_command(name)}")
