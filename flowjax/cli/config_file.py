"""Reads the config of `train` and `sweep`: a Python file, with the overrides of the command line."""

import contextlib
import difflib
import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from flowjax.cli import flags
from flowjax.cli.shipped import shipped_configs
from flowjax.config import MODEL_DEFAULTS, Config, defaults, flatten, own_plugins, resolve, unknown_key
from flowjax.errors import ConfigError
from flowjax.plugins import imports, is_outside, search
from flowjax.ranges import KINDS, shown

__all__ = ["config_path", "load_config", "read_config"]

_CONFIG = "a config file, or a name that `flowjax configs` lists; --config.KEY=VALUE sets one of its keys"
_MAIN = str(Path(__file__).with_name("main.py"))


def read_config(values: absl_flags.FlagValues, argv: list[str], usage: str) -> Config:
    """Parses all flags, and returns the checked config of --config with the overrides of the command line.

    ml_collections converts and applies the overrides. Their keys are checked here first, for a message with the nearest
    valid key.

    Args:
        values: the other flags of the command.
        argv: the arguments of the command.
        usage: the help of the command.

    Raises:
        UsageError: if the arguments are wrong, or the file cannot be run.
        ConfigError: if the config is wrong.
    """
    rest, where = _take_config(argv)
    helped = not {"--help", "-help", "-h", "--h", "-?"}.isdisjoint(rest)  # --help avoids `defaults`, which imports JAX
    config = load_config(config_path(where)) if where is not None else Config() if helped else defaults()
    known = flatten(config)
    for argument in rest:
        key, given, value = argument.lstrip("-").partition("=")
        model = config.get("model", {}).get("name", value)
        if key == "config.model.name" and value != model and (value in MODEL_DEFAULTS or is_outside(value)):
            raise flags.UsageError(
                f"{argument}: the config is for {config.model.name!r}, and each network has its own keys: use a file "
                f"that starts from defaults({value!r})"
            )
        if argument.startswith("-") and key.startswith("config.") and key[7:] not in known:
            raise flags.UsageError(unknown_key(key[7:], known))
        if argument.startswith("-") and key.startswith("config.") and given:
            _check_type(key[7:], value, known[key[7:]])
    with _argv(rest):
        untyped: Any = config
        config_flags.DEFINE_config_dict("config", untyped, _CONFIG, flag_values=values)
        flags.parse(values, rest, usage)
    if where is None:
        raise flags.UsageError("--config is required: a file, or a name that `flowjax configs` lists")
    return resolve(values.config, own_plugins(values.config))


def _check_type(key: str, text: str, like: Any) -> None:
    """Raises a clearer error than ml_collections if a flag for a number or a truth value has another value."""
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "t", "f", "1", "0"):
            raise flags.UsageError(f"--config.{key} must be true or false, not {shown(text)}")
    elif isinstance(like, int | float):
        try:
            type(like)(text)
        except ValueError:
            raise flags.UsageError(
                f"--config.{key} must be a {KINDS[type(like)]} like {like!r}, not {shown(text)}"
            ) from None


def config_path(text: str) -> Path:
    """Returns the file that `--config` names: a path, or the name of a shipped config."""
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
    raise flags.UsageError(f"--config: no file {shown(text)} and no shipped config of that name; {hint}")


def load_config(path: Path) -> Config:
    """Runs `get_config()` of a config file, and returns the resolved config.

    What the file prints goes to stderr. An exception of the file, also SystemExit, becomes a UsageError that names the
    line of the file.

    Raises:
        UsageError: if the file cannot be run.
        ConfigError: if the config is wrong.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            raw = _result_of(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if _from_signal(error):
            raise
        raise flags.UsageError(_message(path, error)) from None
    try:
        return resolve(raw, own_plugins(raw) if isinstance(raw, dict) else ())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _result_of(path: Path) -> Any:
    """Returns the result of `get_config()` as plain dictionaries, which the file cannot change afterwards."""
    spec = importlib.util.spec_from_file_location("flowjax_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError("it is not a Python file: its name must end in .py")
    if path not in shipped_configs().values():
        search(path.parent, imports(path))  # for modules next to the file, which it imports or its config names
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError("it defines no function get_config()")
    result = module.get_config()
    return result.to_dict() if hasattr(result, "to_dict") else result


def _from_signal(error: BaseException) -> bool:
    """Whether this is the SystemExit that the handler of SIGTERM in `main` raises."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, SystemExit) and bool(frames) and frames[-1].filename == _MAIN


def _message(path: Path, error: BaseException) -> str:
    """Returns a message of one line about an exception of a config file, with the line of the file that raised it."""
    where, code = f"--config {path}", ""
    here = lambda name: name is not None and Path(name).resolve() == path.resolve()
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if here(frame.filename)]
    line = error.lineno if isinstance(error, SyntaxError) and here(error.filename) else (lines or [None])[-1]
    if line is not None:
        where += f", line {line}"
        linecache.checkcache(str(path))
        code = linecache.getline(str(path), line).strip()
    if isinstance(error, ConfigError):
        return f"{where}: {error}"
    if isinstance(error, SystemExit):
        return (
            f"{where}: the file ended the program with exit code {shown(error.code or 0)} instead of returning a config"
        )
    if isinstance(error, AttributeError | KeyError) and _inside_config_dict(error):
        key = str(error).split("\n")[0].split("\\n")[0].strip("\"'\\ ")
        return f"{where}: {unknown_key(key, flatten(defaults()))}, in the line `{code[:80]}`"
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{where}: {type(error).__name__}: {text[:300]}".removesuffix(": ")


def _inside_config_dict(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "ml_collections" in frames[-1].filename


def _take_config(argv: list[str]) -> tuple[list[str], str | None]:
    """Returns argv without --config FILE (or --config=FILE), and FILE."""
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


@contextlib.contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    """Replaces sys.argv, where ml_collections looks for overrides."""
    old, sys.argv = sys.argv, ["flowjax", *argv]
    try:
        yield
    finally:
        sys.argv = old
