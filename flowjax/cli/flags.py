"""Flags through absl, with one line an error; each command has its own `FlagValues`."""

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags

from flowjax.errors import ConfigError
from flowjax.plugins import import_module, is_outside
from flowjax.ranges import Range, shown, text_fault

__all__ = [
    "COMPILING",
    "CONFIG_FOLDERS",
    "RANGES",
    "Help",
    "UsageError",
    "check_processes",
    "config_path",
    "define_labels",
    "define_plugins",
    "define_processes",
    "define_sampler",
    "define_solver",
    "new",
    "out_path",
    "parse",
    "plugins",
    "require",
    "run_workdir",
    "shipped_configs",
    "start_processes",
    "use_folder",
]

CONFIG_FOLDERS = (Path(__file__).parent.parent / "configs", Path(__file__).parent.parent.parent / "configs")
"""Where shipped configs are: inside the package when installed, beside it in a checkout."""


COMPILING = ("train", "sample", "evaluate", "likelihood")
"""Commands whose time is partly compilation: they have --compilation_cache, and, but `train`, --batch and --seed."""


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
    "num_processes": Range(1, 65_536),
    "process_id": Range(0, 65_535),
    "heartbeat_timeout": Range(2, 86_400),
}
"""The ranges of flags that take numbers; any other lies between -1e9 and 1e9."""


_PATHS = ("workdir", "out", "samples", "data", "weak", "weights", "compilation_cache")
"""Flags whose value is a path: a leading ~ is expanded, which a shell does not do after an equals sign."""


class UsageError(ValueError):
    """A command that cannot be run as written; the message is one line."""


class Help(Exception):
    """`--help` was asked for; holds the text."""


def new(command: str) -> flags.FlagValues:
    """The flags of one command, with those that every command on a workdir shares."""
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    if command == "configs":
        return values
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("checkpoint", "last", "last, best (by validation loss) or a step", flag_values=values)
    if command in COMPILING:
        where = "folder of compiled programs, '' for none; on GPU and TPU there is one by default"
        flags.DEFINE_string("compilation_cache", None, where, flag_values=values)
    if command != "train":
        flags.DEFINE_bool("ema", True, "use the moving average of the parameters", flag_values=values)
        flags.DEFINE_float("width", None, "the average of this width, of a run with ema.widths", flag_values=values)
    if command in COMPILING and command != "train":
        flags.DEFINE_integer("batch", 0, "rows at a time; 0 for a default", lower_bound=0, flag_values=values)
        flags.DEFINE_integer("seed", 0, "of all randomness", lower_bound=0, upper_bound=2**32 - 1, flag_values=values)
    return values


def define_solver(values: flags.FlagValues) -> None:
    """--solver, --rtol, --atol, --steps."""
    flags.DEFINE_string(
        "solver", "", "a diffrax explicit solver in lower case, or rk4; dopri5 by default", flag_values=values
    )
    flags.DEFINE_float("rtol", 1e-5, "relative tolerance of an adaptive solve", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("atol", 1e-5, "absolute tolerance", lower_bound=0.0, flag_values=values)
    flags.DEFINE_integer(
        "steps", None, "this many steps instead, equal unless --grid says otherwise", lower_bound=1, flag_values=values
    )


def define_sampler(values: flags.FlagValues) -> None:
    """The solver's flags, and those that only sampling has."""
    define_solver(values)
    values[
        "solver"
    ].help = (
        "an ODE or SDE solver of diffrax in lower case, rk4, ddim, ddpm, edm, unipc, ...; by default that of the method"
    )
    flags.DEFINE_string(
        "grid",
        "",
        "time grid of --steps: uniform, condot, edm, log_snr or learned; by default the solver's own",
        flag_values=values,
    )
    flags.DEFINE_float("eta", None, "of ddim: 0 deterministic, 1 DDPM", flag_values=values)
    flags.DEFINE_float("churn", None, "S_churn of edm", lower_bound=0.0, flag_values=values)
    flags.DEFINE_string("g", None, "noise of an SDE: a number, sigma(c), canonical(c)", flag_values=values)
    flags.DEFINE_string("variance", None, "of ddpm: small, large or learned", flag_values=values)
    flags.DEFINE_string("schedule", None, "sample under another schedule, as in configs", flag_values=values)
    flags.DEFINE_string("guidance", None, "cfg, or auto with --weak or --weak_checkpoint", flag_values=values)
    flags.DEFINE_float("scale", None, "of the guidance: 0 unconditional, 1 conditional", flag_values=values)
    flags.DEFINE_list("interval", None, "of cfg: two times, 0.2,0.8", flag_values=values)
    flags.DEFINE_float("rescale", None, "of cfg, 0 to 1", flag_values=values)
    flags.DEFINE_string(
        "weak",
        None,
        "workdir of the weaker network of auto; that of --workdir where --weak_checkpoint is given",
        flag_values=values,
    )
    flags.DEFINE_string("weak_checkpoint", None, "its checkpoint, as for --checkpoint", flag_values=values)


def define_labels(values: flags.FlagValues, default: str) -> None:
    """--labels, the way in which the classes of a conditional network's samples are chosen."""
    kinds = {
        "shares": "drawn with their shares of the training data",
        "random": "drawn with equal chances",
        "balanced": "sample i has class i mod K",
    }
    text = "classes of a conditional network: " + "; ".join(f"{kind}: {what}" for kind, what in kinds.items())
    flags.DEFINE_enum("labels", default, list(kinds), text, flag_values=values)


def define_plugins(values: flags.FlagValues) -> None:
    """--plugins, the modules that the config of a run may name."""
    text = "your modules that the run may import, such as my_package; others that it names are refused"
    flags.DEFINE_list("plugins", [], text, flag_values=values)


def plugins(values: flags.FlagValues) -> tuple[str, ...]:
    """The modules of --plugins, imported.

    They are found on the Python path or in the current folder, as are modules that --solver, --schedule or --metrics
    name.

    Raises:
        UsageError: if there is no such module.
    """
    named = [values[name].value for name in ("solver", "schedule", "metrics") if name in values]
    texts = [text for value in named for text in (value if isinstance(value, list) else [value])]
    if values.plugins or any(map(is_outside, texts)):
        use_folder(Path.cwd())
    for module in values.plugins:
        if not all(part.isidentifier() for part in module.split(".")):
            raise UsageError(f"--plugins {shown(module)}: it takes names of modules, such as my_package,other")
        try:
            import_module("--plugins", module)
        except ConfigError as error:
            raise UsageError(str(error)) from None
    return tuple(values.plugins)


def use_folder(folder: Path) -> None:
    """Lets modules in this folder be imported, after all that are on the Python path."""
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def define_processes(values: flags.FlagValues) -> None:
    """The flags of several processes as one run: where they meet, which one this is, how long they wait."""
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first of several", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "how many there are", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0", lower_bound=0, flag_values=values)
    lost = "seconds without a heartbeat after which a process counts as gone"
    flags.DEFINE_integer("heartbeat_timeout", 60, lost, lower_bound=2, flag_values=values)
    late = "seconds to wait at the start until all processes are there"
    flags.DEFINE_integer("initialization_timeout", 300, late, 1, 86_400, flag_values=values)


def check_processes(values: flags.FlagValues) -> None:
    """The three flags of a run of several processes come together."""
    names = ("coordinator_address", "num_processes", "process_id")
    given = [name for name in names if values[name].value is not None]
    if given == ["num_processes"] and values.num_processes == 1:
        return  # one alone, whatever the cluster says
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise UsageError(f"--{given[0]} needs --{missing} too; without all three, SLURM, TPU pods and Kubernetes tell")
    if given and values.process_id >= values.num_processes:
        raise UsageError(f"--process_id {values.process_id} is not below --num_processes {values.num_processes}")
    if given and not re.fullmatch(r"\S+:\d+", values.coordinator_address):
        raise UsageError(f"--coordinator_address {values.coordinator_address!r} is not HOST:PORT")


def start_processes(values: flags.FlagValues) -> None:
    """Joins the other processes that these flags, or the variables of the cluster, name."""
    from flowjax.training import processes

    address, waits = values.coordinator_address, (values.heartbeat_timeout, values.initialization_timeout)
    processes.start(address, values.num_processes, values.process_id, *waits)


def parse(values: flags.FlagValues, argv: list[str], usage: str) -> flags.FlagValues:
    """Parses, or raises `Help` or `UsageError`. `usage` is a command's docstring: it ends in a worked example."""
    if any(a in ("--help", "-h", "-help") for a in argv):
        raise Help(f"{usage.strip()}\n\nflags:\n{_describe(values)}\n")
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and len(name) > 200:  # absl compares names by a recursion over their characters
            raise UsageError(f"unknown flag --{name[:50]}...")
    argv = [_normalise(a, values) for a in argv]
    try:
        rest = values(["flowjax", *argv])
    except flags.UnrecognizedFlagError as error:
        raise UsageError(_unrecognised(error.flagname, values)) from None
    except flags.Error as error:
        raise UsageError(" ".join(str(error).split())[:300]) from None
    except (RecursionError, MemoryError):  # of Python's parser, on brackets or signs by the thousand
        raise UsageError("the value of a flag is nested too deeply to be read") from None
    if len(rest) > 1:
        raise UsageError(_unexpected(rest[1], values))
    _check_values(values)
    for name in _PATHS:
        if name in values and values[name].value:
            values[name].value = os.path.expanduser(str(values[name].value))
    return values


def _check_values(values: flags.FlagValues) -> None:
    """Numbers are finite and in the ranges of `RANGES`, and strings have no control characters."""
    for name in values:
        if name.startswith("config"):
            continue  # `flowjax.config.resolve` checks these
        value: Any = values[name].value
        told = None
        if isinstance(value, int | float) and not isinstance(value, bool):
            told = RANGES.get(name, _NUMBER).fault(value)
        elif isinstance(value, str | list):
            told = next(filter(None, map(text_fault, [value] if isinstance(value, str) else value)), None)
        if told:
            raise UsageError(f"--{name} {told}")


def require(values: flags.FlagValues, name: str) -> str:
    """The value of a flag that has no default."""
    value = values[name].value
    if not value:
        raise UsageError(f"--{name} is required")
    return value


def run_workdir(values: flags.FlagValues) -> str:
    """--workdir, the folder of a run; whether there is one is found before anything heavy is imported."""
    folder = Path(require(values, "workdir")).expanduser()
    if not folder.exists():
        raise UsageError(f"{folder} is not the workdir of a run: there is no such folder")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise UsageError(f"{folder} is not the workdir of a run: it has no config.json")
    return str(folder)


def _normalise(argument: str, values: flags.FlagValues) -> str:
    """--dry-run as --dry_run, --no-ema as --noema; values are left alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    plain = name.replace("-", "_")
    if plain.startswith("no_") and plain[3:] in values:
        plain = "no" + plain[3:]
    return f"--{plain}{equals}{value}" if "." not in name else argument


def _unrecognised(name: str, values: flags.FlagValues) -> str:
    """A message about an unknown flag, which suggests the nearest valid flag."""
    known = [n for n in values if "." not in n and n not in ("h", "?", "help", "config")]
    takes_config = "config" in values
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        return f"unknown flag --{name}; did you mean --{close[0]}?"
    if key := _config_key(name.removeprefix("config."), values):
        if takes_config:
            return f"unknown flag --{name}; did you mean --config.{key}?"
        return f"unknown flag --{name}: config keys are set by `flowjax train`, and a run keeps its own"
    if name.startswith("config"):
        return f"unknown flag --{name}: configs are for `flowjax train`, and a run keeps its own"
    more = " and --config.KEY=VALUE" if takes_config else ""
    return f"unknown flag --{shown(name)[1:-1]}; the flags are --{', --'.join(sorted(known))}{more}"


def _unexpected(argument: str, values: flags.FlagValues) -> str:
    """What to say about an argument that is no flag."""
    name, equals, _ = argument.partition("=")
    text = f"unexpected argument {shown(argument)}"
    if "config" in values and equals and (key := _config_key(name.removeprefix("config."), values)):
        return f"{text}; did you mean --config.{key}{argument[len(name) :][:60]}?"
    if equals and name in values:
        return f"{text}; did you mean --{argument}?"
    if "config" in values and (argument in shipped_configs() or argument.endswith(".py")):
        return f"{text}; did you mean --config {argument}?"
    return f"{text}; flags start with --"


def _config_key(name: str, values: flags.FlagValues) -> str | None:
    """The config key that a name is, or is close to; of the command's config, or of any model's."""
    from flowjax.config import MODEL_DEFAULTS, defaults, flatten, nearest_key

    configs: Any = [values["config"].value] if "config" in values else map(defaults, MODEL_DEFAULTS)
    return nearest_key(name, dict.fromkeys(key for config in configs for key in flatten(config)))


def _describe(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(n for n in values if len(n) > 1 and n not in ("help", "config")):
        flag: Any = values[name]
        default = "" if flag.default in (None, "", False) else f" (default {flag.default})"
        shown = f"--[no-]{name}" if flag.boolean and flag.default else f"--{name}"
        lines.append(f"  {shown:<20} {flag.help.splitlines()[0]}{default}")
    return "\n".join(lines)


def shipped_configs() -> dict[str, Path]:
    """Shipped config files by name."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return {p.stem: p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    return {}


def config_path(text: str) -> Path:
    """The file that `--config` means: a path, or the name of a shipped config."""
    path, shipped = Path(text).expanduser(), shipped_configs()
    if path.is_file():
        return path
    stem = re.sub(r"\.py$", "", text)
    if stem in shipped:
        return shipped[stem]
    if stem.startswith("configs/") and stem.removeprefix("configs/") in shipped:
        return shipped[stem.removeprefix("configs/")]
    close = difflib.get_close_matches(Path(stem).name, shipped, n=1)
    hint = f"the nearest is {close[0]!r}" if close else "`flowjax configs` lists them"
    raise UsageError(f"--config: no file {shown(text)} and no shipped config of that name; {hint}")


def out_path(values: flags.FlagValues) -> Path:
    """--out, told early if it cannot be meant: it must end in .npz."""
    out = Path(require(values, "out"))
    if out.suffix != ".npz":
        raise UsageError(f"--out must end in .npz, not {out.name!r}")
    return out
