"""What the command line says about its flags: help, and errors that suggest the flag that was probably meant."""

import difflib
from typing import Any

from absl import flags

from flowjax.config_files import shipped_configs
from flowjax.ranges import shown

__all__ = ["Help", "UsageError", "describe", "unexpected", "unrecognised"]


class UsageError(ValueError):
    """A command that cannot be run as written. The message is one line."""


class Help(Exception):
    """Raised for `--help`; its text is the help to print."""


def unrecognised(name: str, values: flags.FlagValues) -> str:
    """Returns a message about an unknown flag, which suggests the nearest valid flag."""
    known = [n for n in values if "." not in n and n not in ("h", "?", "help", "config")]
    takes_config = "config" in values
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        return f"unknown flag --{name}; did you mean --{close[0]}?"
    if key := _config_key(name.removeprefix("config."), values):
        if takes_config:
            return f"unknown flag --{name}; did you mean --config.{key}?"
        return f"unknown flag --{name}: config keys are flags of `flowjax train`, and a trained run keeps its config"
    if name.startswith("config"):
        return f"unknown flag --{name}: --config is a flag of `flowjax train`, and a trained run keeps its config"
    more = " and --config.KEY=VALUE" if takes_config else ""
    return f"unknown flag --{shown(name)[1:-1]}; the flags are --{', --'.join(sorted(known))}{more}"


def unexpected(argument: str, values: flags.FlagValues) -> str:
    """Returns a message about an argument that is not a flag, which suggests the flag that was probably meant."""
    name, equals, _ = argument.partition("=")
    text = f"unexpected argument {shown(argument)}"
    if "config" in values and equals and (key := _config_key(name.removeprefix("config."), values)):
        return f"{text}; did you mean --config.{key}{argument[len(name) :][:60]}?"
    if equals and name in values:
        return f"{text}; did you mean --{argument}?"
    if "config" in values and (argument in shipped_configs() or argument.endswith(".py")):
        return f"{text}; did you mean --config {argument}?"
    return f"{text}; flags start with --"


def _config_key(name: str, values: flags.FlagValues) -> str | None:
    """Returns the config key that is most similar to a name, or None if none is similar.

    The keys are those of the command's config, or of all networks if the command has no config.
    """
    from flowjax.config import MODEL_DEFAULTS, defaults, flatten, nearest_key

    configs: Any = [values["config"].value] if "config" in values else map(defaults, MODEL_DEFAULTS)
    return nearest_key(name, dict.fromkeys(key for config in configs for key in flatten(config)))


def describe(values: flags.FlagValues) -> str:
    """Returns one line of help for each flag."""
    described = {}
    for name in sorted(n for n in values if n not in ("h", "?", "help") and not n.startswith("config.")):
        flag: Any = values[name]
        known = isinstance(flag.default, int | float | str) and flag.default is not False and flag.default != ""
        default = f" (default {flag.default})" if known and flag.default is not True else ""
        shown = f"--[no-]{name}" if flag.boolean and flag.default else f"--{name}"
        described[shown] = flag.help.splitlines()[0] + default
    width = max(map(len, described), default=0)
    return "\n".join(f"  {shown:<{width}}  {text}" for shown, text in described.items())
