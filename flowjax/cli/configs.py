"""List the shipped configs, or show the keys of a config with their values, meanings and choices.

usage: flowjax configs
       flowjax configs FILE|NAME [KEY]

KEY is a key, a section or the start of a key, such as path.schedule, path or train.keep. Where a value is not the
default, the default is shown too.

example:
  flowjax configs
  flowjax configs gaussians8
  flowjax configs gaussians8 train.lr
"""

import ast
import sys
from typing import Any

from flowjax.cli import flags
from flowjax.config_files import config_path, load_config, shipped_configs

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    """Lists the shipped configs, or shows the keys of the config that the arguments name."""
    words = flags.parse_words(flags.new(), argv, __doc__ or "", most=2)
    return _keys(*words) if words else _list()


def _list() -> dict[str, Any]:
    """Lists the shipped configs, with the first lines of their docstrings; the files are not run."""
    first = lambda path: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    lines = {name: first(path) for name, path in shipped_configs().items()}
    width = max(map(len, lines), default=0)
    sys.stderr.writelines(f"{name:<{width}}  {line}\n" for name, line in lines.items())
    return {"configs": lines}


def _keys(name: str, key: str = "") -> dict[str, Any]:
    """Shows the keys of a config: all of them, or those that `key` names."""
    config = load_config(config_path(name))
    from flowjax.cli import key_help  # the tables of names import JAX

    found = key_help.chosen(config, key)
    hint = "" if key else key_help.absent(config)
    sys.stderr.write(f"{key_help.table(found)}\n" + (f"\n{hint}\n" if hint else ""))
    shown = ("value", "default", "meaning", "choices")
    return {"config": name, "keys": {key: {name: getattr(one, name) for name in shown} for key, one in found.items()}}
