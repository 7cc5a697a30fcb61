"""Train a flow from a config file, or resume it.

usage: flowjax train --config FILE|NAME --workdir DIR [--config.KEY=VALUE ...] [--dry_run]
           [--tensorboard] [--wandb PROJECT] [--trace START:STOP]
           [--coordinator_address HOST:PORT --num_processes N --process_id I]

Writes config.json, metrics.jsonl, checkpoints/ and plots/ into the workdir. The same command on the same workdir
resumes; only train.steps, the logging and saving cadence and what the devices ask for (mesh, data.workers,
train.accumulate, model.remat) may differ then. `flowjax configs` lists the shipped configs. --tensorboard and --wandb
also write the records of metrics.jsonl there; --trace writes what XProf shows of some steps into WORKDIR/trace.

Several processes train as one: on SLURM, TPU pods and Kubernetes they find each other, elsewhere the three flags say
how (--num_processes=1 alone: this one is on its own). All need the same config and see the same workdir. If one dies,
the others end within --heartbeat_timeout.

example:
  flowjax train --config gaussians8 --workdir runs/g8 --config.train.steps=2000
"""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from flowjax.cli import flags
from flowjax.config import MODEL_DEFAULTS, Config, ConfigError, defaults, flatten, nearest_key, resolve


def run(argv: list[str]) -> dict[str, Any]:
    """Parses everything before importing JAX, so that a typing error is told at once."""
    values = flags.new("train")
    absl_flags.DEFINE_bool("dry_run", False, "build all, print parameters and FLOPs, stop", flag_values=values)
    absl_flags.DEFINE_bool("tensorboard", False, "also write events into WORKDIR/tensorboard", flag_values=values)
    absl_flags.DEFINE_string("wandb", None, "also log to this project of Weights & Biases", flag_values=values)
    flags.define_processes(values)
    absl_flags.DEFINE_string("trace", None, "START:STOP, steps to profile into WORKDIR/trace", flag_values=values)
    config = read_config(values, argv)
    workdir = Path(flags.require(values, "workdir"))
    if workdir.exists() and not workdir.is_dir():
        raise flags.UsageError(f"--workdir {workdir} is a file")
    traced = _steps_to_trace(values.trace, config.train.steps)
    _check_extras(values)
    flags.check_processes(values)
    from flowjax.cli import cache, train_run
    from flowjax.training import hosts

    hosts.start(values.coordinator_address, values.num_processes, values.process_id, values.heartbeat_timeout)
    cache.use(values.compilation_cache)
    if values.dry_run:
        return train_run.dry_run(config, workdir)
    return train_run.train(config, workdir, values.checkpoint, values.tensorboard, values.wandb, traced)


def read_config(values: absl_flags.FlagValues, argv: list[str], usage: str = __doc__ or "") -> Config:
    """Parses all flags; returns the file's config with the overrides of the command line, checked.

    ml_collections types and applies the overrides. Their keys are checked here first, to name the nearest valid one.
    """
    rest, where = _take_config(argv)
    config = defaults() if where is None else load_config(flags.config_path(where))
    known = flatten(config)
    for argument in rest:
        key, _, value = argument.lstrip("-").partition("=")
        if key == "config.model.name" and value in MODEL_DEFAULTS and value != config.model.name:
            raise flags.UsageError(
                f"{argument}: the config is of {config.model.name!r}, and each model has its own keys: take a file "
                f"that starts from defaults({value!r})"
            )
        if argument.startswith("-") and key.startswith("config.") and key[7:] not in known:
            raise flags.UsageError(
                f"unknown config key {key[7:]!r}; the nearest valid one is {nearest_key(key[7:], known)!r}"
            )
    with _argv(rest):
        config_flags.DEFINE_config_dict("config", config, "", flag_values=values)
        flags.parse(values, rest, usage)
    if where is None:
        raise flags.UsageError("--config is required: a file, or a name that `flowjax configs` lists")
    return resolve(values.config)


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


def load_config(path: Path) -> Config:
    """The resolved result of a config file's `get_config()`; a file that fails is one line."""
    spec = importlib.util.spec_from_file_location("flowjax_config", path)
    if spec is None or spec.loader is None:
        raise flags.UsageError(f"--config {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError("it defines no get_config()")
        return resolve(module.get_config())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise flags.UsageError(f"--config {path}: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _take_config(argv: list[str]) -> tuple[list[str], str | None]:
    """argv without --config FILE (or --config=FILE), and FILE."""
    rest, where, i = [], None, 0
    while i < len(argv):
        if argv[i] in ("--config", "-config"):
            if i + 1 == len(argv):
                raise flags.UsageError("--config needs a value: a file, or a name that `flowjax configs` lists")
            where, i = argv[i + 1], i + 1
        elif argv[i].startswith(("--config=", "-config=")):
            where = argv[i].partition("=")[2]
        else:
            rest.append(argv[i])
        i += 1
    return rest, where


@contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    """ml_collections looks for overrides in sys.argv."""
    old, sys.argv = sys.argv, ["flowjax", *argv]
    try:
        yield
    finally:
        sys.argv = old
