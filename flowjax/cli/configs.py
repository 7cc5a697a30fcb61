"""List the shipped configs, each with the first line of its docstring.

usage: flowjax configs

example:
  flowjax configs
  flowjax train --config moons --workdir runs/moons
"""

import ast
import sys
from typing import Any

from flowjax.cli import flags
from flowjax.config_files import shipped_configs

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    """Reads the docstrings without running the files."""
    flags.parse(flags.new(), argv, __doc__ or "")
    lines = {}
    for name, path in shipped_configs().items():
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines[name] = text.partition("\n")[0]
        sys.stderr.write(f"{name:<18} {lines[name]}\n")
    return {"configs": lines}
