"""Adds the experiments to the wheel: their code, pages and values, but neither figures nor notebooks."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface  # pyright: ignore[reportMissingImports]

_FILES = ("experiment.py", "README.md", "results.json", "quick.json", "expected.json")


class Experiments(BuildHookInterface):
    """Maps `experiments/NAME/FILE` to `flowjax/experiments/NAME/FILE`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # the files are found next to the package
            return
        for code in sorted(Path(self.root, "experiments").rglob("experiment.py")):
            for file in (code.parent / name for name in _FILES):
                if file.exists():
                    build_data["force_include"][str(file)] = f"flowjax/{file.relative_to(self.root).as_posix()}"
