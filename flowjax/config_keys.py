"""The keys that the network and the method of a config bring with them, with their defaults and ranges."""

import copy
import inspect
import typing
from collections.abc import Sequence
from typing import Any

from flowjax.arguments import bounds_of
from flowjax.errors import lookup
from flowjax.plugins import Kind, find, is_outside
from flowjax.ranges import NUMBER, WHOLE, Items, Range, shown

__all__ = [
    "MODEL_DEFAULTS",
    "SECTIONS",
    "method_of",
    "method_ranges",
    "model_keys",
    "model_of",
    "model_with",
    "range_like",
]

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
"""The keys of each network with their defaults: keyword arguments of its constructor."""

SECTIONS: dict[str, Any] = {
    "source": {"name": "normal"},
    "path": {"name": "affine", "schedule": "condot", "shift": 1.0, "noise": ""},
    "coupling": {"name": "independent"},
    "prediction": "velocity",
}
"""Sections and keys that a config has only if its method reads them (`Method.sections`)."""


def method_of(name: str, plugins: Sequence[str] = ()) -> type:
    """Returns the class of a method.

    Args:
        name: a name in `flowjax.methods.METHODS`, or a class in a module outside flowjax, `my_package.losses:MyLoss`.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such method, or its module may not be imported.
    """
    from flowjax.methods import METHODS  # this imports JAX

    if is_outside(name):
        members = ("Settings", "sections", "from_config", "init", "loss", "model")
        return find("method.name", name, Kind("a class of a method", members, functions=False), plugins)
    return lookup("method.name", name, METHODS)


def model_of(name: str, plugins: Sequence[str] = ()) -> type:
    """Returns the class of a network in a module outside flowjax.

    Args:
        name: such as `my_package.nets:MyNet`.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such class, it is not an `nnx.Module`, or its module may not be imported.
    """
    from flax import nnx

    return find("model.name", name, Kind("a subclass of flax.nnx.Module", base=nnx.Module, functions=False), plugins)


def model_keys(name: str, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the keys of a network with their defaults.

    The keys of a network from outside flowjax are those keyword arguments of its constructor that have a plain default:
    a number, a string, a truth value, or a tuple of these. `fields`, `outputs` and `two_times` are never keys, because
    the data and the method determine them.

    Args:
        name: a name in `MODEL_DEFAULTS`, or a class in a module outside flowjax.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such network, or its module may not be imported.
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


def model_with(key: str) -> str | None:
    """Returns the name of a built-in network that has the key `model.KEY`, or None."""
    return next((name for name, keys in MODEL_DEFAULTS.items() if key.removeprefix("model.") in keys), None)


def range_like(default: Any) -> Range | Items:
    """Returns the range of a key of a network from outside flowjax, which follows from the type of its default."""
    if isinstance(default, list):
        kind = type(default[0]) if default else float
        return Items(kind, WHOLE if kind is int else NUMBER, 0, 1000, shown(tuple(default)))
    return WHOLE if isinstance(default, int) else NUMBER


def method_ranges(method: Any) -> dict[str, Range]:
    """Returns the ranges of the keys of a method, from the annotations of its `Settings`."""
    hints = typing.get_type_hints(method.Settings, include_extras=True)
    known = {name: bounds_of(hint) for name, hint in hints.items()}
    return {f"method.{name}": bounds or (NUMBER if kind is float else WHOLE) for name, (kind, bounds) in known.items()}
