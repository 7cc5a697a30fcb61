"""Reads the config of `train` and `sweep`: a Python file, with the overrides of the command line."""

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from flowjax.cli import flags
from flowjax.config import MODEL_DEFAULTS, Config, changed, defaults, flatten, own_plugins, resolve, unknown_key
from flowjax.config_files import config_path, load_config
from flowjax.plugins import is_outside
from flowjax.ranges import KINDS, shown

__all__ = ["read_config"]

_CONFIG = "a config file, or a name that `flowjax configs` lists; --config.KEY=VALUE sets one of its keys"


def read_config(values: absl_flags.FlagValues, argv: list[str], usage: str) -> Config:
    """Parses all flags, and returns the checked config of --config with the overrides of the command line.

    ml_collections converts and applies the overrides. Their keys are checked here first, for a message with the nearest
    valid key. Another `--config.method.name` replaces the keys of the method before all other flags apply.

    Args:
        values: the other flags of the command.
        argv: the arguments of the command.
        usage: the help of the command.

    Raises:
        Help: for --help; with keys beside it, such as `--help config.path`, the text describes these keys.
        UsageError: if the arguments are wrong, or the file cannot be run.
        ConfigError: if the config is wrong.
    """
    rest, where = _take_config(argv)
    helped = not {"--help", "-help", "-h", "--h", "-?"}.isdisjoint(rest)  # --help avoids `defaults`, which imports JAX
    config = load_config(config_path(where)) if where is not None else Config() if helped else defaults()
    method = _value_of("config.method.name", rest)
    if method is not None and "method" in config:
        config = changed(config, {"method.name": method}, None)  # before other flags, which may be keys of this method
    if helped and (keys := [argument for argument in rest if re.match(r"(--)?config(\.|$)", argument)]):
        raise flags.Help(_help_of(keys, None if where is None else config))
    known = flatten(config)
    for argument in rest:
        key, given, value = argument.lstrip("-").partition("=")
        model = config.get("model", {}).get("name", value)
        if key == "config.model.name" and value != model and (value in MODEL_DEFAULTS or is_outside(value)):
            raise flags.UsageError(
                f"{argument}: the config is for {config.model.name!r}, and each network has its own keys: use a file "
                f"that starts from defaults({value!r})"
            )
        if argument.startswith("-") and key.startswith("config.") and key[7:] not in known:
            raise flags.UsageError(unknown_key(key[7:], known))
        if argument.startswith("-") and key.startswith("config.") and given:
            _check_type(key[7:], value, known[key[7:]])
    with _argv(rest):
        untyped: Any = config
        config_flags.DEFINE_config_dict("config", untyped, _CONFIG, flag_values=values)
        flags.parse(values, rest, usage)
    if where is None:
        raise flags.UsageError("--config is required: a file, or a name that `flowjax configs` lists")
    return resolve(values.config, own_plugins(values.config))


def _help_of(keys: list[str], config: Config | None) -> str:
    """Returns the help of the config keys that are given beside --help, such as `config.path`.

    Args:
        keys: the arguments.
        config: the config of --config; None without it. Then a key that the default config lacks is described for each
            method that has it.
    """
    from flowjax.cli import key_help  # the tables of names import JAX

    if config is not None:
        return "\n\n".join(key_help.table(key_help.chosen(config, key)) for key in keys) + "\n"
    texts: dict[str, list[str]] = {}
    for key in keys:
        for base in key_help.configs_with(key):
            text = key_help.table(key_help.chosen(base, key))
            texts.setdefault(text, []).append(base.method.name)
    usual = defaults().method.name
    named = lambda names: "" if usual in names else f"with method.name {', '.join(names)}:\n"
    return "\n\n".join(f"{named(names)}{text}" for text, names in texts.items()) + "\n"


def _value_of(name: str, argv: list[str]) -> str | None:
    """Returns the last value of a flag, --NAME=VALUE or --NAME VALUE; None if it is not given."""
    found = None
    for argument, following in itertools.pairwise([*argv, ""]):
        flag, given, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == name:
            found = value if given else following
    return found


def _check_type(key: str, text: str, like: Any) -> None:
    """Raises a clearer error than ml_collections if a flag cannot be set, or has a value of another type."""
    if like is None:
        raise flags.UsageError(f"--config.{key}: its default is None, so it can only be set in the config file")
    if isinstance(like, bool):
        if text.lower() not in ("true", "false", "t", "f", "1", "0"):
            raise flags.UsageError(f"--config.{key} must be true or false, not {shown(text)}")
    elif isinstance(like, int | float):
        try:
            type(like)(text)
        except ValueError:
            raise flags.UsageError(
                f"--config.{key} must be a {KINDS[type(like)]} like {like!r}, not {shown(text)}"
            ) from None


def _take_config(argv: list[str]) -> tuple[list[str], str | None]:
    """Returns argv without --config FILE (or --config=FILE), and FILE."""
    rest, where, i = [], None, 0
    while i < len(argv):
        if argv[i] in ("--config", "-config"):
            if i + 1 == len(argv):
                raise flags.UsageError("--config needs a value: a file, or a name that `flowjax configs` lists")
            where, i = argv[i + 1], i + 1
        elif argv[i].startswith(("--config=", "-config=")):
            where = argv[i].partition("=")[2]
        else:
            rest.append(argv[i])
        i += 1
    return rest, where


@contextlib.contextmanager
def _argv(argv: list[str]) -> Iterator[None]:
    """Replaces sys.argv, where ml_collections looks for overrides."""
    old, sys.argv = sys.argv, ["flowjax", *argv]
    try:
        yield
    finally:
        sys.argv = old
