"""Where the config files are that come with flowjax."""

from pathlib import Path

__all__ = ["CONFIG_FOLDERS", "shipped_configs"]

CONFIG_FOLDERS = (Path(__file__).parent.parent / "configs", Path(__file__).parent.parent.parent / "configs")
"""Folders of the shipped configs: inside the package where it is installed, next to it in a checkout."""


def shipped_configs() -> dict[str, Path]:
    """Returns the shipped config files by name."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return {p.stem: p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}
    return {}
