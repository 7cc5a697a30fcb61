"""The flags of the commands: how they are defined, parsed with absl, and checked. Every error is one line."""

import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from absl import flags

from flowjax.arguments import separate
from flowjax.cli.usage import Help, UsageError, describe, unexpected, unrecognised
from flowjax.errors import ConfigError
from flowjax.plugins import import_module, is_outside, search
from flowjax.ranges import Range, shown, text_fault

__all__ = [
    "RANGES",
    "SAMPLER",
    "Help",
    "UsageError",
    "check_processes",
    "check_split",
    "check_workdir",
    "define_compilation_cache",
    "define_dequantisation",
    "define_labels",
    "define_plugins",
    "define_processes",
    "define_sampler",
    "define_solver",
    "new",
    "of_run",
    "out_path",
    "parse",
    "parse_words",
    "plugins",
    "require",
    "run_workdir",
    "settings",
    "start_processes",
]

_NUMBER = Range(-1e9, 1e9)

RANGES = {
    "num": Range(0, 1_000_000_000),
    "batch": Range(0, 2**24),
    "seed": Range(0, 2**32 - 1),
    "steps": Range(1, 1_000_000),
    "rtol": Range(0, 1),
    "atol": Range(0, 1e6),
    "churn": Range(0, 1e9),
    "scale": Range(-1e6, 1e6),
    "probes": Range(1, 1_000_000),
    "importance_samples": Range(1, 1_000_000),
    "num_processes": Range(1, 65_536),
    "process_id": Range(0, 65_535),
    "heartbeat_timeout": Range(2, 86_400),
}
"""The ranges of flags that take numbers. Flags that are not listed lie between -1e9 and 1e9."""


_PATHS = ("workdir", "from", "out", "samples", "data", "weak", "weights", "compilation_cache")
"""Flags whose value is a path. Their leading ~ is expanded, as shells do not expand it after an equals sign."""


def new() -> flags.FlagValues:
    """Returns the flags of a command that does not open a run: only --help."""
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    return values


def of_run(trained: bool = True, compiles: bool = True) -> flags.FlagValues:
    """Returns the flags that the commands on a workdir share.

    Args:
        trained: whether the command opens a trained run, so that --ema and --width choose its parameters.
        compiles: whether the command compiles programs: it has --compilation_cache, and on a trained run --batch and
            --seed.
    """
    values = new()
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    which = "checkpoint to start from: last, best (lowest validation loss) or the number of a step"
    flags.DEFINE_string("checkpoint", "last", which, flag_values=values)
    if compiles:
        define_compilation_cache(values)
    if trained:
        flags.DEFINE_bool("ema", True, "use the moving average of the parameters", flag_values=values)
        width = "relative width of the moving average, for a run with ema.widths"
        flags.DEFINE_float("width", None, width, flag_values=values)
    if trained and compiles:
        flags.DEFINE_integer("batch", 0, "rows per batch; 0 chooses a default", lower_bound=0, flag_values=values)
        seed = "seed of all random numbers"
        flags.DEFINE_integer("seed", 0, seed, lower_bound=0, upper_bound=2**32 - 1, flag_values=values)
    return values


def define_compilation_cache(values: flags.FlagValues) -> None:
    """Defines --compilation_cache."""
    where = "folder for compiled programs, '' for none; by default in ~/.cache/flowjax/xla"
    flags.DEFINE_string("compilation_cache", None, where, flag_values=values)


SAMPLER = (
    "an ODE or SDE solver of diffrax in lower case, or rk4, ddim, ddpm, edm, unipc, ...; by default the solver of the "
    "run's method"
)
"""The help of --solver where samples are drawn."""


def define_solver(values: flags.FlagValues) -> None:
    """Defines --solver, --rtol, --atol and --steps for the ODE of a likelihood."""
    solver = "an explicit ODE solver of diffrax in lower case, or rk4; dopri5 by default"
    flags.DEFINE_string("solver", "", solver, flag_values=values)
    relative, absolute = "relative tolerance of an adaptive solver", "absolute tolerance of an adaptive solver"
    flags.DEFINE_float("rtol", 1e-5, relative, lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("atol", 1e-5, absolute, lower_bound=0.0, flag_values=values)
    steps = "take this number of equal steps instead of adaptive ones"
    flags.DEFINE_integer("steps", None, steps, lower_bound=1, flag_values=values)


def define_convergence(values: flags.FlagValues) -> None:
    """Defines --check and --converged_within, which say whether log-densities have converged."""
    check = "score this many points again with a tenth of the tolerances or twice the steps, and compare; 0 for none"
    flags.DEFINE_integer("check", 64, check, lower_bound=0, flag_values=values)
    within = "the mean difference up to which they have converged, in nats per dimension"
    flags.DEFINE_float("converged_within", 0.0035, within, lower_bound=0.0, flag_values=values)


def define_dequantisation(values: flags.FlagValues) -> None:
    """Defines --dequantisation, --importance_samples and --bound for the log-probabilities of integers."""
    kinds = ["uniform", "truncated_normal", "variational"]
    noise = "noise that turns integers into real numbers; by default that of training"
    flags.DEFINE_enum("dequantisation", None, kinds, noise, flag_values=values)
    bound = "a variational bound on the log-probabilities of integers instead: ddpm(1000) or vdm(20)"
    flags.DEFINE_string("bound", None, bound, flag_values=values)
    several = "draws of the noise of each point of integers, for the importance-weighted bound"
    flags.DEFINE_integer("importance_samples", 1, several, flag_values=values)


def define_sampler(values: flags.FlagValues) -> None:
    """Defines the flags of sampling: the solver, its time grid and options, the schedule and guidance."""
    define_solver(values)
    values["solver"].help = SAMPLER
    values["steps"].help = "take this number of steps instead of adaptive ones; --grid sets their times"
    grid = "time grid of --steps: uniform, condot, edm, log_snr or learned; by default the grid of the solver"
    flags.DEFINE_string("grid", "", grid, flag_values=values)
    flags.DEFINE_float("eta", None, "noise of ddim: 0 is deterministic, 1 is DDPM", flag_values=values)
    flags.DEFINE_float("churn", None, "S_churn of the edm solver", lower_bound=0.0, flag_values=values)
    diffusion = "diffusion coefficient g(t) of an SDE: a number, sigma(c) or canonical(c)"
    flags.DEFINE_string("g", None, diffusion, flag_values=values)
    flags.DEFINE_string("variance", None, "variance of ddpm: small, large or learned", flag_values=values)
    schedule = "sample on another schedule than the run was trained on, written as in configs"
    flags.DEFINE_string("schedule", None, schedule, flag_values=values)
    guidance = "cfg (classifier-free guidance), or auto (autoguidance) with --weak or --weak_checkpoint"
    flags.DEFINE_string("guidance", None, guidance, flag_values=values)
    scale = "guidance scale: 0 is unconditional, 1 is conditional without guidance"
    flags.DEFINE_float("scale", None, scale, flag_values=values)
    interval = "two times between which cfg is applied, such as 0.2,0.8"
    flags.DEFINE_list("interval", None, interval, flag_values=values)
    guided = "the conditions towards which cfg guides, such as label; all by default"
    flags.DEFINE_list("guided", None, guided, flag_values=values)
    flags.DEFINE_float("rescale", None, "how far cfg is rescaled, 0 (not at all) to 1", flag_values=values)
    weak = "workdir of the weaker network of auto; --workdir by default, if --weak_checkpoint is given"
    flags.DEFINE_string("weak", None, weak, flag_values=values)
    checkpoint = "checkpoint of the weaker network, chosen as by --checkpoint"
    flags.DEFINE_string("weak_checkpoint", None, checkpoint, flag_values=values)


def define_labels(values: flags.FlagValues, default: str) -> None:
    """Defines --labels, which says how the classes of a conditional network's samples are chosen."""
    text = "class of each sample: drawn with the shares of the training data, drawn uniformly, or i mod K for sample i"
    flags.DEFINE_enum("labels", default, ["shares", "random", "balanced"], text, flag_values=values)


def define_plugins(values: flags.FlagValues) -> None:
    """Defines --plugins, the modules that the config of a run may name."""
    text = "your own modules that the run may import, such as my_package; it is refused if it names others"
    flags.DEFINE_list("plugins", [], text, flag_values=values)


def plugins(values: flags.FlagValues) -> tuple[str, ...]:
    """Imports the modules of --plugins, and returns their names.

    They are found on the Python path or in the current folder, like the modules that --solver, --schedule and --metrics
    name. Nothing else in the current folder can be imported (`flowjax.plugins`).

    Raises:
        UsageError: if there is no such module, or it cannot be imported.
    """
    named = [values[name].value or "" for name in ("solver", "schedule", "metrics") if name in values]
    if values.plugins or any(is_outside(part) for text in named for part in separate(text)):
        search(Path.cwd())
    for module in values.plugins:
        if not all(part.isidentifier() for part in module.split(".")):
            raise UsageError(f"--plugins {shown(module)}: it must be names of modules, such as my_package,other")
        try:
            import_module("--plugins", module)
        except ConfigError as error:
            raise UsageError(str(error)) from None
    return tuple(values.plugins)


def define_processes(values: flags.FlagValues) -> None:
    """Defines the flags of several processes that work on one run."""
    address = "HOST:PORT of the first of several processes"
    flags.DEFINE_string("coordinator_address", None, address, flag_values=values)
    flags.DEFINE_integer("num_processes", None, "number of processes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", lower_bound=0, flag_values=values)
    lost = "seconds without a heartbeat after which a process counts as lost"
    flags.DEFINE_integer("heartbeat_timeout", 60, lost, lower_bound=2, flag_values=values)
    late = "seconds to wait until all processes have started"
    flags.DEFINE_integer("initialization_timeout", 300, late, 1, 86_400, flag_values=values)


def check_processes(values: flags.FlagValues) -> None:
    """Checks that the three flags that connect several processes are given together.

    Raises:
        UsageError: if one is missing or has a bad value.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    given = [name for name in names if values[name].value is not None]
    if given == ["num_processes"] and values.num_processes == 1:
        return  # a single process, even if the variables of a cluster name more
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise UsageError(f"--{given[0]} needs --{missing} too; on SLURM, TPU pods and Kubernetes none is needed")
    if given and values.process_id >= values.num_processes:
        raise UsageError(f"--process_id {values.process_id} is not below --num_processes {values.num_processes}")
    if given and not re.fullmatch(r"\S+:\d+", values.coordinator_address):
        raise UsageError(f"--coordinator_address {values.coordinator_address!r} is not HOST:PORT")


def start_processes(values: flags.FlagValues) -> None:
    """Connects to the other processes that these flags or the environment variables of a cluster name."""
    from flowjax.training import processes

    address, waits = values.coordinator_address, (values.heartbeat_timeout, values.initialization_timeout)
    processes.start(address, values.num_processes, values.process_id, *waits)


def parse(values: flags.FlagValues, argv: list[str], usage: str) -> flags.FlagValues:
    """Parses and checks the arguments of a command that takes flags only.

    Args:
        values: the flags of the command.
        argv: its arguments.
        usage: its docstring, which --help prints before the flags.

    Returns:
        `values`.

    Raises:
        Help: for --help.
        UsageError: if the arguments are wrong.
    """
    parse_words(values, argv, usage, most=0)
    return values


def parse_words(values: flags.FlagValues, argv: list[str], usage: str, *, most: int | None = None) -> list[str]:
    """Parses and checks the arguments of a command that also takes words without a flag, in any place.

    Args:
        values, argv, usage: as for `parse`.
        most: the largest number of words; None for any number.

    Returns:
        The words.

    Raises:
        Help: for --help.
        UsageError: if the arguments are wrong.
    """
    if any(a in ("--help", "-h", "-help") for a in argv):
        described = describe(values)
        raise Help(f"{usage.strip()}\n" + (f"\nflags:\n{described}\n" if described else ""))
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and len(name) > 200:  # absl compares names by recursion over characters
            raise UsageError(f"unknown flag --{name[:50]}...")
    argv = [_normalise(a, values) for a in argv]
    values.set_gnu_getopt(most != 0)  # flags may follow words
    try:
        words = values(["flowjax", *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(unrecognised(error.flagname, values)) from None
    except flags.Error as error:
        raise UsageError(" ".join(str(error).split())[:300]) from None
    except (RecursionError, MemoryError):  # Python's parser raises these on thousands of brackets or signs
        raise UsageError("the value of a flag is nested too deeply to be read") from None
    if most is not None and len(words) > most:
        raise UsageError(unexpected(words[most], values))
    _check_values(values)
    for name in _PATHS:
        if name in values and values[name].value:
            values[name].value = os.path.expanduser(str(values[name].value))
    return words


def _check_values(values: flags.FlagValues) -> None:
    """Checks that numbers are in their ranges (`RANGES`), and that strings have no control characters."""
    for name in values:
        if name.startswith("config"):
            continue  # `flowjax.config.resolve` checks these
        value: Any = values[name].value
        reason = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            reason = RANGES.get(name, _NUMBER).fault(value)
        elif isinstance(value, str | list):
            reason = next(filter(None, map(text_fault, [value] if isinstance(value, str) else value)), None)
        if reason:
            raise UsageError(f"--{name} {reason}")


def check_split(values: flags.FlagValues) -> None:
    """Raises UsageError if the points are named twice, by --split and by --data."""
    if values.data is not None and values["split"].present:
        raise UsageError("--split and --data cannot be used together: the points are those of the file")


def settings(values: flags.FlagValues, without: Container[str]) -> dict[str, Any]:
    """Returns the flags that were given another value than their default, by name, except for those in `without`."""
    given = [name for name in values if values[name].present and values[name].value != values[name].default]
    return {name: values[name].value for name in sorted(given) if name not in without}


def require(values: flags.FlagValues, name: str) -> str:
    """Returns the value of a flag, or raises UsageError if it was not given."""
    value = values[name].value
    if not value:
        raise UsageError(f"--{name} is required")
    return value


def run_workdir(values: flags.FlagValues) -> str:
    """Returns --workdir after a check that it is the folder of a run (`check_workdir`)."""
    return check_workdir(require(values, "workdir"))


def check_workdir(text: str) -> str:
    """Returns a folder, with ~ expanded, after a check that it is the folder of a run, which needs no heavy import.

    Raises:
        UsageError: if it is not.
    """
    folder = Path(text).expanduser()
    if not folder.exists():
        raise UsageError(f"{folder} is not the workdir of a run: there is no such folder")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UsageError(f"{folder} is not the workdir of a run: it has no config.json")
    return str(folder)


def _normalise(argument: str, values: flags.FlagValues) -> str:
    """Turns --dry-run into --dry_run and --no-ema into --noema; values are not changed."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    plain = name.replace("-", "_")
    if plain.startswith("no_") and plain[3:] in values:
        plain = "no" + plain[3:]
    return f"--{plain}{equals}{value}" if "." not in name else argument


def out_path(values: flags.FlagValues, *more: str) -> Path:
    """Returns --out, or raises UsageError unless it ends in .npz or in one of the other suffixes that are given."""
    out = Path(require(values, "out"))
    if out.suffix not in (".npz", *more):
        tables = f", or for a run on a table in {', '.join(more)}" if more else ""
        raise UsageError(f"--out must end in .npz{tables}, not {out.name!r}")
    return out
