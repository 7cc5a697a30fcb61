"""Configs: every key with its default in one place, and the checks that turn a bad one into one clear line.

A config file is short: `config = defaults("mlp")`, a few assignments, `return config`. Importing this module costs
ml_collections and nothing heavier.
"""

import ast
import copy
import dataclasses
import difflib
import inspect
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from flowjax.arguments import bounds_of, separate
from flowjax.errors import ConfigError, lookup
from flowjax.plugins import Kind, find, is_outside, modules_of
from flowjax.ranges import NUMBER, RANGES, WHOLE, Items, Range, fault, shown

__all__ = [
    "CADENCE",
    "MODEL_DEFAULTS",
    "OUTSIDE_KEYS",
    "SECTIONS",
    "Config",
    "TrainKeys",
    "changed",
    "defaults",
    "differences",
    "flatten",
    "literal",
    "method_of",
    "model_keys",
    "model_of",
    "nearest_key",
    "own_plugins",
    "resolve",
    "unknown_key",
]

if TYPE_CHECKING:
    from flowjax.config_types import Config, TrainKeys
else:
    Config = TrainKeys = ConfigDict

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 128, "depth": 3, "features": 16, "activation": "silu"},
    "unet": {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "patch": 1, "heads": 4},
    "adm": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "head_width": 64,
        "heads": 0,
        "film": False,
        "dropout": 0.1,
        "time_scale": 1.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
    "edm2": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "head_width": 64,
        "dropout": 0.0,
        "time": "log_snr",
        "time_scale": 1.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
    "dit": {
        "patch": 2,
        "depth": 12,
        "width": 384,
        "heads": 6,
        "qk_norm": False,
        "dropout": 0.0,
        "time_scale": 1000.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
}
"""Each model's own keys, as its constructor takes them."""

CADENCE = (
    "train.steps",
    "train.accumulate",  # with remat, what fewer devices need; it draws other noise
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
"""Keys that a resumed run may change; with any other it would be another run."""


SECTIONS: dict[str, Any] = {
    "source": {"name": "normal"},
    "path": {"name": "affine", "schedule": "condot", "shift": 1.0, "noise": ""},
    "coupling": {"name": "independent"},
    "prediction": "velocity",
}
"""Sections and keys that exist for the methods which read them (`Method.sections`), and for no other."""


OUTSIDE_KEYS = (
    "model.name",
    "method.name",
    "data.name",
    "source.name",
    "path.schedule",
    "coupling.name",
    "prediction",
)
"""Keys whose value may be the name of an object in the caller's own module (`flowjax.plugins`)."""


def own_plugins(config: Config | ConfigDict | dict) -> tuple[str, ...]:
    """The modules that a config names, for a config that the caller has written: `train` and `sweep` allow these."""
    flat = flatten(config)
    return modules_of(flat.get(key) for key in OUTSIDE_KEYS)


def method_of(name: str, plugins: Sequence[str] = ()) -> type:
    """The method of that name.

    Args:
        name: in `flowjax.methods.METHODS`, or of a class in a module of the caller's own.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is none.
    """
    from flowjax.methods import METHODS  # with it comes JAX

    if is_outside(name):
        members = ("Settings", "sections", "from_config", "init", "loss", "model")
        return find("method.name", name, Kind("a class of a method", members, functions=False), plugins)
    return lookup("method.name", name, METHODS)


def model_of(name: str, plugins: Sequence[str] = ()) -> type:
    """The class of a network in a module of the caller's own.

    Args:
        name: such as `my_package.nets:MyNet`.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is none, or it is no `nnx.Module`.
    """
    from flax import nnx

    return find("model.name", name, Kind("a subclass of flax.nnx.Module", base=nnx.Module, functions=False), plugins)


def model_keys(name: str, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """A model's own keys with their defaults.

    Those of a network from outside are the keyword arguments of its constructor that have a plain default: a number,
    a string, a truth value or a tuple of these. `fields`, `outputs` and `two_times` are not among them: they follow
    from the data and the method.

    Args:
        name: in `MODEL_DEFAULTS`, or of a class in a module of the caller's own.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such model.
    """
    if not is_outside(name):
        return copy.deepcopy(lookup("model.name", name, MODEL_DEFAULTS))
    parameters = inspect.signature(model_of(name, plugins).__init__).parameters.values()
    plain = lambda value: isinstance(value, bool | int | float | str)
    return {
        p.name: p.default
        for p in parameters
        if p.name not in ("name", "fields", "outputs", "two_times", "rngs")
        and (plain(p.default) or (isinstance(p.default, tuple) and all(map(plain, p.default))))
    }


def defaults(model: str = "mlp", method: str = "flow_matching") -> Config:
    """All keys of a run with their defaults.

    Args:
        model: a name in `MODEL_DEFAULTS`, or of a network in a module of your own, `my_package.nets:MyNet`, which is
            imported. It has no meaning for a method that makes its own network.
        method: a name in `flowjax.methods.METHODS`, or of a method in a module of your own.

    Raises:
        ConfigError: on an unknown name.
    """
    return _defaults(model, method, modules_of((model, method)))


def _defaults(model: str, method: str, plugins: Sequence[str]) -> Config:
    """`defaults`, which imports the modules in `plugins` alone."""
    chosen: Any = method_of(method, plugins)
    shared = {name: value for name, value in SECTIONS.items() if name in chosen.sections}
    if "model" in chosen.sections:
        shared["model"] = {"name": model, **model_keys(model, plugins)}
    made: Any = ConfigDict(
        {
            "seed": 0,
            "method": {"name": method, **dataclasses.asdict(chosen.Settings())},
            **copy.deepcopy(shared),
            "data": {
                "name": "gaussians8",
                "path": "",
                "cond": (),
                "cond_dropout": 0.1,
                "pairs": "",
                "normalise": "",
                "augment": "none",
                "workers": 0,
            },
            "train": {
                "steps": 10_000,
                "batch_size": 256,
                "accumulate": 1,
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
                "loop": "auto",  # or device, host: where the loop over steps runs
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
    """{"train.steps": 1000, ...}, from a config and its sections; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict) and not prefix:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def literal(text: str) -> Any:
    """The Python value that a text stands for: 3, 1e-3, True, (1, 2); a name is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # "{[]: 1}" and deep nesting raise these
        return text


def changed(config: Config, values: Mapping[str, Any], plugins: Sequence[str] = ()) -> Config:
    """A full, checked copy of a config in which the keys of `values`, such as "train.lr", have these.

    Args:
        config: full.
        values: by key.
        plugins: the modules that may be imported (`flowjax.plugins`).

    Raises:
        ConfigError: as `resolve`.
    """
    known, raw = flatten(config), config.to_dict()
    for key, value in values.items():
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        section, _, leaf = key.rpartition(".")
        (raw[section] if section else raw)[leaf] = value
    return resolve(raw, plugins)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A message of one line about an unknown key: it suggests the nearest key, or lists the valid ones."""
    names = list(known)
    section = key.partition(".")[0]
    own = [name.partition(".")[2] for name in names if name.startswith(f"{section}.")]
    if (not own or key != section) and (near := nearest_key(key, names)) is not None:
        return f"unknown config key {shown(key)}; the nearest valid one is {near!r}"
    if own:
        what = f"{section!r} is a section" if key == section else f"unknown config key {shown(key)}"
        return f"{what}; the keys of {section} are {', '.join(own)}"
    sections = dict.fromkeys(name.partition(".")[0] for name in names)
    return f"unknown config key {shown(key)}; the keys and sections are {', '.join(sections)}"


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known key that `key` is probably meant for; None if none is close.

    It has the same last part in another section, or a similar last part, and then preferably in the same section.
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
    """A full, checked config from one that may leave keys out (they take their defaults).

    Configs of files, of flags, of a workdir and of files of weights all pass through here, before anything is built.
    A relative data.path becomes absolute, so that a run can be opened from another folder, and a ~ is expanded.

    Args:
        config: keys and sections.
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
    names = {"model.name": "mlp", "method.name": "flow_matching"}
    for key, name in names.items():
        names[key] = flat.get(key, name)
        if told := fault(names[key], name, None):
            raise ConfigError(f"{key} {told}")
    full = _defaults(names["model.name"], names["method.name"], plugins)
    known, bounds = flatten(full), {**RANGES, **_ranges_of(method_of(names["method.name"], plugins))}
    if own_model := is_outside(names["model.name"]):
        bounds |= {key: _bounds_like(value) for key, value in known.items() if key.startswith("model.")}
    for key, value in flat.items():
        if key not in known and (owner := _model_of(key)):
            name = full.model.name if "model" in full else ""
            raise ConfigError(
                f"model.name is {name!r} and {key} a key of {owner!r}: start the file from defaults({name!r})"
            )
        if key not in known and (owners := _methods_of(key)):
            raise ConfigError(
                f"{key} has no meaning for method.name {names['method.name']!r}; it is a key of {', '.join(owners)}"
            )
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        if told := fault(value, known[key], bounds.get(key)):
            raise ConfigError(f"{key} {told}")
        section, _, leaf = key.rpartition(".")
        like = known[key]
        typed = tuple(value) if isinstance(like, list) else (float(value) if isinstance(like, float) else value)
        (full[section] if section else full)[leaf] = typed
    if full.data.path:
        full.data.path = os.path.abspath(os.path.expanduser(full.data.path))
    if not own_model:
        _check_together(flatten(full))
    return full


def _separated(cond: Any) -> Any:
    """The value of `data.cond` with one name in each element: `--config.data.cond=label,obs` arrives in one element."""
    if not isinstance(cond, list) or not all(isinstance(text, str) for text in cond):
        return cond
    return [name for text in cond for name in separate(text)]


def _bounds_like(value: Any) -> Range | Items:
    """The range of a key of a network from outside, by its default."""
    if isinstance(value, list):
        kind = type(value[0]) if value else float
        return Items(kind, WHOLE if kind is int else NUMBER, 0, 1000, shown(tuple(value)))
    return WHOLE if isinstance(value, int) else NUMBER


def _ranges_of(method: Any) -> dict[str, Range]:
    """The ranges of a method's own keys, from the annotations of its `Settings`."""
    hints = typing.get_type_hints(method.Settings, include_extras=True)
    known = {name: bounds_of(hint) for name, hint in hints.items()}
    return {f"method.{name}": bounds or (NUMBER if kind is float else WHOLE) for name, (kind, bounds) in known.items()}


def _methods_of(key: str) -> list[str]:
    """The methods whose configs have this key."""
    from flowjax.methods import METHODS

    return [name for name in METHODS if key in flatten(defaults("mlp", name))]


def _model_of(key: str) -> str | None:
    """The model that has this key, if one has."""
    return next((name for name, own in MODEL_DEFAULTS.items() if key.removeprefix("model.") in own), None)


def _check_together(flat: dict[str, Any]) -> None:
    """What no single key decides."""
    if "model.head_width" not in flat and flat.get("model.heads", 1) < 1:
        raise ConfigError(f"model.heads must be at least 1, not {flat['model.heads']}")
    if flat.get("model.features", 0) % 2:
        raise ConfigError(f"model.features must be even, it is {flat['model.features']}")
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
    """Keys other than `CADENCE` whose values differ, with (old, new)."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in a | b if k not in CADENCE and a.get(k) != b.get(k)}
