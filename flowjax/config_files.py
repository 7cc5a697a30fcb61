"""Config files: those that come with flowjax, and how a file is run."""

import contextlib
import difflib
import importlib.util
import linecache
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from flowjax.config import Config, defaults, flatten, own_plugins, resolve, unknown_key
from flowjax.errors import ConfigError
from flowjax.plugins import imports, search
from flowjax.ranges import shown

__all__ = ["CONFIG_FOLDERS", "config_path", "load_config", "shipped_configs"]

CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")
"""Folders of the shipped configs: inside the package where it is installed, next to it in a checkout."""


_MAIN = str(Path(__file__).parent / "cli" / "main.py")


def shipped_configs() -> dict[str, Path]:
    """Returns the shipped config files by name."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return {p.stem: p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    return {}


def config_path(text: str) -> Path:
    """Returns the config file of that path or name.

    Args:
        text: the path of a file, or the name of a shipped config.

    Raises:
        ConfigError: if there is none; the message names the nearest shipped config.
    """
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
    raise ConfigError(f"--config: no file {shown(text)} and no shipped config of that name; {hint}")


def load_config(path: Path) -> Config:
    """Runs `get_config()` of a config file, and returns the resolved config.

    What the file prints goes to stderr. An exception of the file, also SystemExit, becomes a ConfigError that names the
    line of the file.

    Raises:
        ConfigError: if the file cannot be run, or the config is wrong.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            raw = _result_of(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if _from_signal(error):
            raise
        raise ConfigError(_message(path, error)) from None
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
