"""Writes docs/keys.md, the page of all config keys, from the docstrings that describe them.

    python scripts/write_keys.py

A test checks that the page is up to date.
"""

from collections.abc import Mapping
from pathlib import Path

from flowjax.cli.key_help import KeyHelp, absent, by_section, chosen, key_help, summary
from flowjax.config import MODEL_DEFAULTS, OUTSIDE_KEYS, defaults
from flowjax.formatting import format_value
from flowjax.methods import METHODS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parent.parent / "docs" / "keys.md"

_INTRODUCTION = f"""# Keys of configs

`flowjax configs NAME` shows the keys of one config with their values, and `flowjax train --help config.path` those of a
key or section. [Configs and names](configs.md) says how configs are written and changed.

A name may have the arguments that are shown in its brackets. In place of a name,
{", ".join(f"`{key}`" for key in OUTSIDE_KEYS)}
also take an object of your own, such as `my_package.paths:Laplace(2)` ([own parts](howto/own-parts.md)).

"""


def page() -> str:
    """Returns the page: tables of the keys of all sections, built-in methods and built-in networks."""
    common = key_help(defaults())
    parts = [_INTRODUCTION]
    for section, keys in by_section(common).items():
        parts.append(f"## `{section}`\n\n{summary(section)}\n\n" if section else "## Keys in no section\n\n")
        if section not in ("method", "model"):
            parts.append(_table({key: common[key] for key in keys}))
            continue
        parts.append(_table({f"{section}.name": common[f"{section}.name"]}))
        for name in METHODS if section == "method" else MODEL_DEFAULTS:
            config = defaults(method=name) if section == "method" else defaults(name)
            own = {key: one for key, one in chosen(config, section).items() if key != f"{section}.name"}
            hint = absent(config) if section == "method" else ""
            parts.append(f"### `{section}.name={name}`\n\n" + (f"{hint}\n\n" if hint else "") + _table(own))
    return "".join(parts).rstrip() + "\n"


def _table(keys: Mapping[str, KeyHelp]) -> str:
    lines = ["| key | default | meaning | choices |", "|---|---|---|---|"]
    for key, one in keys.items():
        names = one.choices if isinstance(one.choices, str) else ", ".join(f"`{format_value(n)}`" for n in one.choices)
        cells = (f"`{key}`", f"`{format_value(one.default)}`", one.meaning, names)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    PAGE.write_text(page())
