"""A mkdocs hook that writes llms.txt (https://llmstxt.org), an index of the documentation for language models.

The index follows the navigation of mkdocs.yml. Each entry is a link with the first sentences of the page. Pages of
prose are also served as Markdown, to which the index links; the reference is made from docstrings and linked as HTML.
"""

import re
from pathlib import Path
from typing import Any

from markdown import Markdown
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

_nav: list[Navigation] = []


def on_nav(nav: Navigation, **kwargs: Any) -> None:
    """Keeps the navigation of this build."""
    _nav[:] = [nav]


def on_post_build(config: Any, **kwargs: Any) -> None:
    """Writes llms.txt and the Markdown of the pages into the site."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}."]
    (nav,) = _nav
    for item, before in zip(nav.items, [None, *nav.items], strict=False):
        if isinstance(item, Section):
            lines += ["", f"## {item.title}", ""]
            lines += [_entry(page, site, config) for page in item.children if isinstance(page, Page)]
        elif isinstance(item, Page):
            if not isinstance(before, Page):  # the first of some pages outside of sections
                lines += ["", "## Start" if before is None else "## More", ""]
            lines.append(_entry(item, site, config))
    (site / "llms.txt").write_text("\n".join(lines) + "\n")


def _entry(page: Page, site: Path, config: Any) -> str:
    """Returns the line of a page, and writes its Markdown if it has no docstrings."""
    text = page.markdown or ""
    url = page.file.dest_uri
    if not re.search(r"^::: ", text, flags=re.M):
        url = page.file.src_uri
        (site / url).write_text(_without_snippets(text, config))
    title = page.title if page.title != "Home" else config.site_name
    return f"- [{title}]({url}): {_summary(text)}"


def _without_snippets(text: str, config: Any) -> str:
    """Returns Markdown with the files in place of the lines `--8<--` that name them."""
    markdown = Markdown(
        extensions=["pymdownx.snippets"],
        extension_configs={"pymdownx.snippets": config.mdx_configs["pymdownx.snippets"]},
    )
    return "\n".join(markdown.preprocessors["snippet"].run(text.splitlines())) + "\n"


def _summary(text: str) -> str:
    """Returns the first sentences of the first paragraph, until they have 40 characters."""
    paragraphs = (p for p in re.split(r"\n\s*\n", text) if p.strip() and not re.match(r"[#!<:|`]", p.lstrip()))
    first = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(next(paragraphs, "").split()))
    return re.match(r".{40,}?(?<! al)[.](?= |$)|.*", first)[0].rstrip(":.") + "."
