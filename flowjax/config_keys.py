"""The keys that the network and the method of a config bring with them, with their defaults and ranges."""

import copy
import dataclasses
import inspect
import typing
from collections.abc import Sequence
from typing import Any

from flowjax.arguments import Parameter, bounds_of, parameter_of, signature_of
from flowjax.errors import lookup
from flowjax.model_defaults import MODEL_DEFAULTS
from flowjax.plugins import Kind, find, is_outside
from flowjax.ranges import NUMBER, WHOLE, Range

__all__ = [
    "METHOD",
    "MODEL_DEFAULTS",
    "SECTIONS",
    "method_keys",
    "method_of",
    "method_parameters",
    "method_ranges",
    "model_keys",
    "model_of",
    "model_parameters",
    "model_with",
    "outside_keys",
]

SECTIONS: dict[str, Any] = {
    "source": {"name": "normal", "path": ""},
    "path": {"name": "affine", "schedule": "condot", "shift": 1.0, "noise": ""},
    "coupling": {"name": "independent"},
    "prediction": "velocity",
}
"""Sections and keys that a config has only if its method reads them (`Method.sections`)."""


METHOD = Kind(
    "a class of a method",
    (
        *("Settings", "sections", "metrics", "limits", "sampler", "steps"),
        *("interval", "targets", "from_config", "init", "loss", "model"),
    ),
    functions=False,
)
"""A method from outside flowjax. Its fields, `network` and `prior`, are checked when it has been built."""


def method_of(name: str, plugins: Sequence[str] = ()) -> type:
    """Returns the class of a method.

    Args:
        name: a name in `flowjax.methods.METHODS`, or a class in a module outside flowjax, `my_package.losses:MyLoss`.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such method, its module may not be imported, or the class lacks something that every
            method needs.
    """
    from flowjax.methods import METHODS  # this imports JAX

    if is_outside(name):
        return find("method.name", name, METHOD, plugins)
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
    the data and the method determine them. Their types follow from the annotations of the constructor.

    Args:
        name: a name in `MODEL_DEFAULTS`, or a class in a module outside flowjax.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no such network, or its module may not be imported.
    """
    if not is_outside(name):
        return copy.deepcopy(lookup("model.name", name, MODEL_DEFAULTS))
    return {key: _start(parameter) for key, parameter in model_parameters(name, plugins).items()}


def model_parameters(name: str, plugins: Sequence[str] = ()) -> dict[str, Parameter]:
    """Returns the keys of a network from outside flowjax, as parameters with their allowed values (`model_keys`)."""
    parameters = signature_of(model_of(name, plugins).__init__).parameters.values()
    plain = lambda value: isinstance(value, bool | int | float | str)
    return {
        p.name: parameter_of(p.name, p.annotation, p.default, outside=True)
        for p in parameters
        if p.name not in ("name", "fields", "outputs", "two_times", "rngs")
        and (plain(p.default) or (isinstance(p.default, tuple) and all(map(plain, p.default))))
    }


def _start(parameter: Parameter) -> Any:
    """The default of a key: a float if the parameter takes one and its default is a whole number."""
    default = parameter.default
    return float(default) if float in parameter.kinds and type(default) is int else default


def model_with(key: str) -> str | None:
    """Returns the name of a built-in network that has the key `model.KEY`, or None."""
    return next((name for name, keys in MODEL_DEFAULTS.items() if key.removeprefix("model.") in keys), None)


def method_keys(name: str, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the keys of a method with their defaults: the fields of its `Settings`."""
    if not is_outside(name):
        return dataclasses.asdict(method_of(name).Settings())
    return {key: _start(parameter) for key, parameter in method_parameters(name, plugins).items()}


def method_parameters(name: str, plugins: Sequence[str] = ()) -> dict[str, Parameter]:
    """Returns the keys of a method from outside flowjax, as parameters with their allowed values."""
    settings: Any = method_of(name, plugins).Settings
    defaults = dataclasses.asdict(settings())
    try:
        hints = typing.get_type_hints(settings, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError):  # names that exist only for type checkers
        hints = {}
    hint = lambda key: hints.get(key, inspect.Parameter.empty)
    return {key: parameter_of(key, hint(key), default, outside=True) for key, default in defaults.items()}


def outside_keys(model: str, method: str, plugins: Sequence[str] = ()) -> dict[str, Parameter]:
    """Returns the keys that a network and a method bring with them if they are from outside flowjax.

    Args:
        model: a name of a network; "" for none.
        method: a name of a method.
        plugins: the modules that may be imported.
    """
    of_model = model_parameters(model, plugins) if is_outside(model) else {}
    of_method = method_parameters(method, plugins) if is_outside(method) else {}
    return {f"model.{key}": p for key, p in of_model.items()} | {f"method.{key}": p for key, p in of_method.items()}


def method_ranges(name: str) -> dict[str, Range]:
    """Returns the ranges of the numbers among the keys of a built-in method, from the annotations of its `Settings`."""
    hints = typing.get_type_hints(method_of(name).Settings, include_extras=True)
    known = {name: bounds_of(hint) for name, hint in hints.items()}
    usual = {float: NUMBER, int: WHOLE}
    return {
        f"method.{name}": bounds or usual[kind] for name, (kind, bounds) in known.items() if bounds or kind in usual
    }
