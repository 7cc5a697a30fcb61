"""Configs: all keys with their defaults, and the checks that report a bad value in one line.

A config file is short: `config = defaults("mlp")`, a few assignments, `return config`. Importing this module imports
ml_collections, but not JAX.
"""

import ast
import copy
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from flowjax.arguments import separate
from flowjax.config_keys import (
    MODEL_DEFAULTS,
    SECTIONS,
    method_keys,
    method_of,
    method_ranges,
    model_keys,
    model_with,
    outside_keys,
)
from flowjax.errors import ConfigError
from flowjax.plugins import is_outside, modules_of
from flowjax.ranges import RANGES, fault, shown

__all__ = [
    "CADENCE",
    "MODEL_DEFAULTS",
    "OUTSIDE_KEYS",
    "Config",
    "TrainKeys",
    "changed",
    "defaults",
    "differences",
    "flatten",
    "literal",
    "nearest_key",
    "no_such_key",
    "own_plugins",
    "resolve",
    "unknown_key",
    "with_method",
]

if TYPE_CHECKING:
    from flowjax.config_types import Config, TrainKeys
else:
    Config = TrainKeys = ConfigDict

CADENCE = (
    "train.steps",
    "train.accumulate",  # with model.remat, it fits a run onto fewer devices; the noise of each step changes
    "model.remat",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_at",
    "train.peak_tflops",
    "train.loop",
    "data.workers",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.rules",
)
"""Keys whose values may change when a run is resumed. Any other change makes it a different run."""

OUTSIDE_KEYS = (
    "model.name",
    "method.name",
    "data.name",
    "data.simulator",
    "source.name",
    "path.name",
    "path.schedule",
    "coupling.name",
    "prediction",
)
"""Keys whose value may name an object in a module outside flowjax (`flowjax.plugins`)."""


def own_plugins(config: Config | ConfigDict | dict) -> tuple[str, ...]:
    """Returns the modules outside flowjax that a config names.

    Use it only for a config that the user has written, as for `flowjax train`: naming a module there allows its import.
    """
    flat = flatten(config)
    return modules_of(flat.get(key) for key in OUTSIDE_KEYS)


def defaults(model: str = "mlp", method: str = "flow_matching") -> Config:
    """Returns a config with all keys at their defaults.

    Args:
        model: a name in `MODEL_DEFAULTS`, or a network in a module of your own, `my_package.nets:MyNet`, which is
            imported. It is ignored if the method makes its own network.
        method: a name in `flowjax.methods.METHODS`, or a method in a module of your own.

    Raises:
        ConfigError: on an unknown name.
    """
    return _defaults(model, method, modules_of((model, method)))


def _defaults(model: str, method: str, plugins: Sequence[str]) -> Config:
    """As `defaults`, but imports only the modules in `plugins`."""
    chosen: Any = method_of(method, plugins)
    shared = {name: value for name, value in SECTIONS.items() if name in chosen.sections}
    if "model" in chosen.sections:
        shared["model"] = {"name": model, **model_keys(model, plugins)}
    made: Any = ConfigDict(
        {
            "seed": 0,
            "method": {"name": method, **method_keys(method, plugins)},
            **copy.deepcopy(shared),
            "data": {
                "name": "",
                "path": "",
                "cond": (),
                "cond_dropout": 0.1,
                "pairs": "",
                "degrade": "",
                "dequantisation": "uniform",
                "normalise": "",
                "simulator": "",
                "augment": "none",
                "workers": 0,
            },
            "train": {
                "start_from": "",
                "steps": 10_000,
                "batch_size": 256,
                "accumulate": 1,
                "loss_scale": 1.0,
                "optimizer": "adam",
                "lr": 1e-3,
                "beta2": 0.999,
                "momentum": 0.95,
                "weight_decay": 0.0,
                "warmup": 0.0,
                "schedule": "cosine",
                "clip": 1.0,
                "spike": 0.0,
                "peak_tflops": 0.0,
                "loop": "auto",
                "log_every": 200,
                "save_every": 1000,
                "keep_last": 3,
                "keep_every": 0,
                "keep_at": (),
            },
            "ema": {"half_life": 100_000.0, "widths": (), "snapshots": 64},
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1, "rules": ()},
        }
    )
    return made


def flatten(config: Config | ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """Returns `{"train.steps": 1000, ...}` from a config and its sections. Tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict) and not prefix:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def literal(text: str) -> Any:
    """Returns the Python value that a text stands for: 3, 1e-3, True, (1, 2). Any other text is returned unchanged."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # "{[]: 1}" and deep nesting raise these
        return text


def changed(config: Config, values: Mapping[str, Any], plugins: Sequence[str] | None = ()) -> Config:
    """Returns a checked copy of a config with some values replaced.

    Args:
        config: a full config.
        values: the new values by key, such as {"train.lr": 1e-3}. Another `method.name` first replaces the keys of the
            method (`with_method`).
        plugins: the modules that may be imported (`flowjax.plugins`); None for those that the new config names.

    Raises:
        ConfigError: on an unknown key or a bad value, as in `resolve`.
    """
    name = values.get("method.name", config.method.name)
    if name != config.method.name and isinstance(name, str):
        allowed = (*own_plugins(config), *modules_of((name,))) if plugins is None else plugins
        config = with_method(config, name, allowed)
    known, raw = flatten(config), config.to_dict()
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        section, _, leaf = key.rpartition(".")
        (raw[section] if section else raw)[leaf] = value
    return resolve(raw, own_plugins(raw) if plugins is None else plugins)


def with_method(config: Config, name: str, plugins: Sequence[str] = ()) -> Config:
    """Returns a config with another method, whose keys have their defaults.

    Sections that the other method does not read are left out, and those that only it reads have their defaults. All
    other keys keep their values.

    Args:
        config: a full config.
        name: the name of the method, as for `method.name`.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such method, or the keys that are kept have no meaning for it.
    """
    made: Any = method_of(name, plugins)
    kept = {k: v for k, v in config.to_dict().items() if k in made.sections or k not in (*SECTIONS, "model")}
    return resolve(kept | {"method": {"name": name}}, plugins)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Returns a message of one line about an unknown key, with the nearest valid key or a list of the valid ones."""
    names = list(known)
    section = key.partition(".")[0]
    keys = [name.partition(".")[2] for name in names if name.startswith(f"{section}.")]
    if (not keys or key != section) and (near := nearest_key(key, names)) is not None:
        return f"unknown config key {shown(key)}; the nearest valid one is {near!r}"
    if keys:
        what = f"{section!r} is a section" if key == section else f"unknown config key {shown(key)}"
        return f"{what}; the keys of {section} are {', '.join(keys)}"
    sections = dict.fromkeys(name.partition(".")[0] for name in names)
    return f"unknown config key {shown(key)}; the keys and sections are {', '.join(sections)}"


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """Returns the valid key that is most similar to `key`, or None if none is similar.

    A key with the same last part in another section comes first; then keys with a similar last part, those of the same
    section before others.
    """
    section, _, last = key.rpartition(".")
    leaves = [(name.rpartition(".")[0], name.rpartition(".")[2], name) for name in known]
    if same := [name for _, leaf, name in leaves if leaf == last]:
        return same[0]
    for choice in ([x for x in leaves if x[0] == section], leaves):
        if close := difflib.get_close_matches(last, [leaf for _, leaf, _ in choice], n=1, cutoff=0.7):
            return next(name for _, leaf, name in choice if leaf == close[0])
    return None


def resolve(config: object, plugins: Sequence[str] = ()) -> Config:
    """Returns a full, checked config. Keys that are left out take their defaults.

    Configs from files, flags, workdirs and files of weights are all checked here, before anything is built. A relative
    path of a file or of a workdir becomes absolute, so that a run can be opened from another folder, and a leading ~
    is expanded.

    Args:
        config: a dictionary of keys and sections, or a `ConfigDict`.
        plugins: the modules that may be imported, with their submodules. A config that names an object of another
            module is refused, and nothing is imported (`flowjax.plugins`).

    Raises:
        ConfigError: on an unknown key, or a value of the wrong type or outside its range (`flowjax.ranges.RANGES`).
    """
    if not isinstance(config, ConfigDict | dict):
        raise ConfigError(f"a config must be a dictionary of keys and sections, not {shown(config)}")
    flat = flatten(config)
    if (cond := flat.get("data.cond")) is not None:
        flat["data.cond"] = _separated(cond)
    model, method = (_name(flat, key, default) for key, default in _NAMES.items())
    full: Any = _defaults(model, method, plugins)
    known, bounds = flatten(full), RANGES if is_outside(method) else RANGES | method_ranges(method)
    outside = outside_keys(model if "model" in full else "", method, plugins)
    for key, value in flat.items():
        if key not in known:
            raise ConfigError(no_such_key(key, full))
        default = known[key]
        if reason := outside[key].fault(value) if key in outside else fault(value, default, bounds.get(key)):
            raise ConfigError(f"{key} {reason}")
        section, _, leaf = key.rpartition(".")
        widens = isinstance(default, float) and type(value) is int
        typed = float(value) if widens else _with_tuples(value)
        with full.ignore_type():  # keys from outside may have several types
            (full[section] if section else full)[leaf] = typed
    for section, key in (("data", "path"), ("source", "path"), ("train", "start_from"), ("method", "teacher")):
        if (part := full.get(section, {})).get(key):
            part[key] = os.path.abspath(os.path.expanduser(part[key]))
    if not is_outside(model):
        _check_together(flatten(full))
    return full


_NAMES = {"model.name": "mlp", "method.name": "flow_matching"}
"""The keys on which the other keys depend, with their defaults."""


def _name(flat: dict[str, Any], key: str, default: str) -> str:
    name = flat.get(key, default)
    if reason := fault(name, default, None):
        raise ConfigError(f"{key} {reason}")
    return name


def _with_tuples(value: Any) -> Any:
    """Returns a value with tuples in place of lists."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


def _separated(cond: Any) -> Any:
    """Splits elements of `data.cond` at commas: `--config.data.cond=label,obs` arrives as a single element."""
    if not isinstance(cond, list) or not all(isinstance(text, str) for text in cond):
        return cond
    return [name for text in cond if text.strip() for name in separate(text)]


def no_such_key(key: str, full: Config) -> str:
    """Returns a message of one line about a key or section that a config does not have, but perhaps another config.

    Args:
        key: the key, such as `path.schedule`, or the section.
        full: the config, with all its keys.
    """
    if "model" in full and (other := model_with(key)):
        name = full.model.name
        return f"model.name is {name!r} and {key} a key of {other!r}: start the file from defaults({name!r})"
    if key not in full and (methods := _methods_of(key)):
        name = full.method.name
        return (
            f"{key} has no meaning for method.name {name!r}; it belongs to {', '.join(methods)}: start the config file "
            f"from defaults(method={name!r}), or from that of one of these"
        )
    return unknown_key(key, flatten(full))


def _methods_of(key: str) -> list[str]:
    """Returns the names of the methods whose configs have this key or section."""
    from flowjax.methods import METHODS

    return [name for name in METHODS if key in (full := defaults("mlp", name)) or key in flatten(full)]


def _check_together(flat: dict[str, Any]) -> None:
    """Checks combinations of keys of a built-in network."""
    if "model.head_width" not in flat and flat.get("model.heads", 1) < 1:
        raise ConfigError(f"model.heads must be at least 1, not {flat['model.heads']}")
    if flat.get("model.features", 0) % 2:
        raise ConfigError(f"model.features must be even, not {flat['model.features']}")
    multipliers = flat.get("model.multipliers", [1])
    if flat.get("model.blocks", 1) * len(multipliers) > 48:
        raise ConfigError(
            f"model.blocks times the number of model.multipliers must be at most 48, not {flat['model.blocks']} times "
            f"{len(multipliers)}"
        )
    widest = flat.get("model.channels", 1) * max(multipliers)
    if widest > 65_536:
        raise ConfigError(f"model.channels times the largest multiplier must be at most 65,536, not {widest:,}")


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the keys outside `CADENCE` whose values differ, with (old, new)."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in a | b if k not in CADENCE and a.get(k) != b.get(k)}
