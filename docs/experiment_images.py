"""A mkdocs hook that adds the figures of experiments/ to the site, so that pages can show them where they are measured.

A page links `../../experiments/NAME/FIGURE.png`, relative to its file, which also works in a checkout.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_FOLDER = "images/experiments"


def on_files(files: Files, config: Any, **kwargs: Any) -> None:
    """Adds the figures to the files of the site."""
    root = Path(config.config_file_path).parent / "experiments"
    for path in sorted(root.rglob("*.png")):
        files.append(File.generated(config, f"{_FOLDER}/{path.relative_to(root)}", abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Replaces the links by links to the added files."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+experiments/([\w./-]+\.png)\)", rf"]({up}{_FOLDER}/\1)", markdown)
