"""HTML that is escaped by construction: elements, tables, figures, and the page around them.

A page contains its style sheet and its images, and has no scripts. A content security policy makes browsers refuse any
other resource.
"""

import base64
import html
from collections.abc import Iterable, Sequence

__all__ = ["Markup", "details", "figure", "figure_grid", "page", "section", "table", "tag", "tiles"]

_KINDS = {"png": "image/png", "svg": "image/svg+xml"}

_LONG = 48
"""From this number of characters on, a cell of a table has several lines."""

_STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --soft: #5c6370; --back: #fff; --card: #f5f6f8; --line: #dcdfe4;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --soft: #a2a9b4; --back: #16181c; --card: #22252b;
  --line: #3a3f47; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--back); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.note, figcaption, th { color: var(--soft); }
.note { font-size: .9rem; }
code { font: .92em ui-monospace, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .55rem .8rem; }
.tiles b { display: block; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles span { font-size: .85rem; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-height: 24rem; object-fit: contain; background: #fff;
  border: 1px solid var(--line); border-radius: .4rem; }
figcaption { font-size: .9rem; padding: .25rem .1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .28rem 1.1rem .28rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
th, td + td { white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--back); }
@media (max-width: 40rem) { td:first-child, th:first-child { max-width: 11rem; } }
td { font-variant-numeric: tabular-nums; }
td.changed { color: var(--mark); font-weight: 600; }
summary { cursor: pointer; color: var(--mark); margin: .6rem 0; }
"""


class Markup(str):
    """Text that is HTML already. All other text is escaped when it becomes part of an element."""


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """Returns an element.

    Args:
        name: of the element.
        children: its contents; text is escaped, except for `Markup`.
        attributes: of the element; `cls` is its class.
    """
    inside = "".join(child if isinstance(child, Markup) else html.escape(child) for child in children)
    given = {"class" if key == "cls" else key: value for key, value in attributes.items()}
    opened = "".join(f' {key}="{html.escape(value)}"' for key, value in given.items())
    return Markup(f"<{name}{opened}>{inside}</{name}>")


def section(title: str, *children: str) -> Markup:
    """Returns a heading and its contents; nothing if there are no contents."""
    return Markup("\n".join([tag("h2", title), *children]) + "\n") if any(children) else Markup("")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Returns a table, which scrolls sideways on narrow screens."""
    lines = [tag("tr", *map(_cell, row)) for row in rows]
    top = [tag("thead", tag("tr", *(tag("th", name) for name in header)))] if any(header) else []
    return tag("div", tag("table", *top, tag("tbody", *lines)), cls="scroll")


def _cell(content: str) -> Markup:
    """A cell of a table; contents that are one already stay as they are."""
    if isinstance(content, Markup):
        return content if content.startswith("<td") else tag("td", content)
    return tag("td", content, cls="long") if len(content) > _LONG else tag("td", content)


def details(summary: str, *children: str) -> Markup:
    """Returns contents that are hidden until the reader opens them."""
    return tag("details", tag("summary", summary), *children)


def figure(content: bytes, kind: str, caption: str) -> Markup:
    """Returns an image that is part of the page.

    Args:
        content: of the file.
        kind: "png" or "svg".
        caption: text below it, which is also read aloud in place of the image.
    """
    data = f"data:{_KINDS[kind]};base64,{base64.b64encode(content).decode()}"
    image = Markup(f'<img alt="{html.escape(caption)}" src="{data}">')
    return tag("figure", image, tag("figcaption", caption))


def figure_grid(made: Iterable[Markup], small: bool = False) -> Markup:
    """Returns figures in columns, as many as fit; nothing if there are no figures."""
    made = list(made)
    return tag("div", *made, cls="figures small" if small else "figures") if made else Markup("")


def tiles(items: Iterable[tuple[str, str]]) -> Markup:
    """Returns tiles of a number, or short text, and what it is: pairs (name, value)."""
    return tag("div", *(tag("div", tag("b", value), tag("span", name)) for name, value in items), cls="tiles")


def page(title: str, *children: str) -> str:
    """Returns a whole page, with its title as the first heading."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = "\n".join(
        [
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            tag("title", title),
            f"<style>{_STYLE}</style>",
        ]
    )
    body = "\n".join([tag("h1", title), *(child for child in children if child)])
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
