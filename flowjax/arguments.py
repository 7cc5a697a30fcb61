"""Names with arguments, such as `vp(0.1, 20)`: parsing, and checks against the signature of the named function.

The annotation of a parameter (`int`, `float | int`, `bool`, `str`, or `Annotated` with a `flowjax.ranges.Range`), or
without an annotation the type of its default, determines which arguments are allowed. A function is only called with
allowed arguments. Parameters of objects from outside flowjax may also be tuples or None, may have any annotation and
any default, and have no range unless they are annotated with one.
"""

import ast
import inspect
import types as builtin_types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flowjax.errors import ConfigError, lookup
from flowjax.plugins import Outside, check_made, find, is_outside
from flowjax.ranges import FINITE, KINDS, NUMBER, WHOLE, Range, is_kind, shown, text_fault

T = TypeVar("T")

__all__ = ["Parameter", "bounds_of", "make", "make_named", "parameter_of", "separate", "signature_of", "usage"]

_MAX_CHARACTERS = 300

_PLAIN = (bool, float, str, type(None), tuple)
"""The types of arguments for parameters from outside flowjax whose annotation and default allow no conclusion."""


def make(key: str, text: str, table: Mapping[str, Callable[..., T]], *first: Any, outside: Outside | None = None) -> T:
    """Makes the object for a text `name`, `name(1, 2)` or `name(eps=2)`: table[name](*first, *arguments).

    With `outside`, the name may also be an object in another module, `my_package.nets:Name(1, 2)`. A class or a
    function is called with `outside.first` and the arguments. Any other object is used directly.

    Args:
        key: the config key or the flag, for error messages.
        text: the value of the key.
        table: the functions or classes by name.
        first: positional arguments before those in brackets.
        outside: the required kind of an object from another module, and the modules that may be imported; None if only
            names in the table are allowed.

    Returns:
        The object.

    Raises:
        ConfigError: if the name is unknown, its module must not be imported, the arguments do not match the signature,
            or the function raises a plain ValueError or an ArithmeticError. Other exceptions of the function are not
            caught.
    """
    where = f"{key} {shown(text)}"
    name, arguments, keywords = _read(where, text)
    if outside is None or not is_outside(name):
        return _call(where, name, lookup(key, name, table), first, arguments, keywords)
    found = find(key, name, outside.kind, outside.plugins)
    if inspect.isclass(found) or not outside.kind.fits(found):
        found = _call(where, name, found, outside.first, arguments, keywords, outside=True)
    elif arguments or keywords:
        raise ConfigError(f"{where}: {name} is an object already and takes no arguments")
    return check_made(where, found, outside.kind)


def make_named(key: str, text: str, build: Callable[..., T]) -> T:
    """Makes the object for a text such as `name(eps=2)`, where the name can be any identifier.

    Args:
        key: the config key or the flag, for error messages.
        text: the value of the key.
        build: a function that is called with the name and the arguments.

    Returns:
        The result of `build`.

    Raises:
        ConfigError: if the name is not an identifier, and for the same reasons as `make`.
    """
    where = f"{key} {shown(text)}"
    name, arguments, keywords = _read(where, text)
    if not name.isidentifier():
        raise ConfigError(f"{where}: a name consists of letters, digits and underscores, and may have arguments")
    return _call(where, name, build, (name,), arguments, keywords)


def separate(text: str) -> tuple[str, ...]:
    """Splits a text at the commas outside brackets: `a, b(1, 2)` gives `a` and `b(1, 2)`."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts)


def _call(
    where: str,
    name: str,
    build: Callable[..., T],
    first: tuple[Any, ...],
    arguments: list[Any],
    keywords: dict[str, Any],
    outside: bool = False,
) -> T:
    """Checks the arguments and returns build(*first, *arguments, **keywords); the errors are those of `make`."""
    parameters = _parameters(build, len(first), outside)
    try:
        _check(name, parameters, arguments, keywords)
        if not outside:  # a list in brackets stands for a tuple
            as_tuple = lambda value: tuple(value) if isinstance(value, list) else value
            arguments = list(map(as_tuple, arguments))
            keywords = {word: as_tuple(value) for word, value in keywords.items()}
        return build(*first, *arguments, **keywords)
    except (ValueError, ArithmeticError) as error:
        if isinstance(error, ValueError) and type(error) is not ValueError:
            raise  # the message of a ConfigError or DataError is complete; other subclasses are not about the arguments
        raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Parameter:
    """A parameter of a name, or a key of a network or method from outside flowjax.

    Attributes:
        name: the name of the parameter.
        kinds: the allowed types.
        range: the range of a number; None for the default range of its type.
        default: the default, or `inspect.Parameter.empty`.
        items: the allowed types of the elements of a tuple.
    """

    name: str
    kinds: tuple[type, ...]
    range: Range | None
    default: Any = inspect.Parameter.empty
    items: tuple[type, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        kinds = " or ".join(KINDS[kind] for kind in self.kinds if kind is not type(None))
        return f"{self.name}: {kinds}" + ("" if self.required or self.default is None else f" = {shown(self.default)}")

    def allows(self, value: Any) -> bool:
        """Whether a value is of an allowed type. A list, which JSON has instead of a tuple, counts as a tuple."""
        return any(is_kind(tuple(value) if isinstance(value, list) else value, kind) for kind in self.kinds)

    def fault(self, value: Any) -> str | None:
        """The end of an error message that starts with the name of the parameter; None if the value is allowed."""
        if not self.allows(value):
            kinds = [KINDS[kind] for kind in self.kinds if kind is not type(None)]
            return f"must be {' or '.join(k if k == KINDS[bool] else f'a {k}' for k in kinds)}, not {shown(value)}"
        if isinstance(value, tuple | list):
            item = replace(self, kinds=self.items)
            for element in value:
                if not item.allows(element):
                    kinds = " or ".join(KINDS[kind] if kind is bool else f"{KINDS[kind]}s" for kind in self.items)
                    return f"must be a tuple of {kinds}, and one element is {shown(element)}"
                if problem := item.fault(element):
                    return f"has an element that {problem}"
            return None
        if isinstance(value, str):
            return text_fault(value)
        if value is None or isinstance(value, bool):
            return None
        return (self.range or (NUMBER if float in self.kinds else WHOLE)).fault(value)


def usage(name: str, parameters: list[Parameter]) -> str:
    """The signature of a name for messages, such as `vp(beta_min: number = 0.1, beta_max: number = 20.0)`."""
    return f"{name}({', '.join(map(str, parameters))})"


def _read(where: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The name, the positional arguments and the keyword arguments in a text."""
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{where}: a name with its arguments must have at most {_MAX_CHARACTERS} characters")
    name, bracket, _ = text.partition("(")
    name = name.strip()
    if not bracket:
        return name, [], {}
    module, colon, _ = name.rpartition(":")
    try:
        call = ast.parse(text.strip().removeprefix(module + colon).strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise SyntaxError("a name, and its arguments in one pair of brackets, are expected")
        arguments = [ast.literal_eval(node) for node in call.args]
        keywords = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg is not None}
    except SyntaxError as error:
        reason = str(error.msg).replace("<unknown>, ", "")
        raise ConfigError(f"{where}: {reason}; write it like {name}(1, 2)") from None
    except (ValueError, TypeError, ArithmeticError, MemoryError, RecursionError):
        raise ConfigError(f"{where}: the arguments in brackets must be plain numbers or quoted strings") from None
    if len(keywords) < len(call.keywords):
        raise ConfigError(f"{where}: ** cannot be used in the brackets")
    return module + colon + call.func.id, arguments, keywords


def _parameters(build: Callable[..., Any], skip: int, outside: bool) -> list[Parameter]:
    """The parameters of `build` after the first `skip`."""
    signature = signature_of(build) if outside else inspect.signature(build, eval_str=True)
    known = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    return [parameter_of(p.name, p.annotation, p.default, outside) for p in known[skip:]]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Returns a signature. Annotations stay strings if one of them has a name that exists only for type checkers."""
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return inspect.signature(function)


def bounds_of(hint: Any) -> tuple[Any, Range | None]:
    """The type of an annotation, and the `Range` that `Annotated` adds to it, or None."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, None
    hint, *extra = typing.get_args(hint)
    return hint, next((e for e in extra if isinstance(e, Range)), None)


def parameter_of(name: str, hint: Any, default: Any, outside: bool) -> Parameter:
    """Returns a parameter with its allowed types and range.

    Args:
        name: the name of the parameter.
        hint: its annotation, or `inspect.Parameter.empty`.
        default: its default, or `inspect.Parameter.empty`.
        outside: whether it belongs to an object from outside flowjax, for which only types and finiteness are checked,
            and the default is always allowed.
    """
    bounds, types = bounds_of(hint)[1], _types(hint)
    if not outside:
        known = type(default) in (bool, int, float, str)
        kinds, items = types or (((type(default),) if known else (float,)), ())
        return Parameter(name, kinds, bounds, default, items)
    kinds, items = types or _types_of(default)
    parameter = Parameter(name, kinds, bounds or FINITE, default, items)
    if parameter.required or parameter.fault(default) is None:
        return parameter
    more_kinds, more_items = _types_of(default)
    return replace(parameter, kinds=_merged(kinds, more_kinds), items=_merged(items, more_items))


_Types = tuple[tuple[type, ...], tuple[type, ...]]
"""The types of a value, and the types of its elements if it is a tuple."""


def _types(hint: Any) -> _Types | None:
    """The types that an annotation allows, or None if it is missing or says nothing about plain values."""
    hint, _ = bounds_of(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _merged(*((type(one),) for one in arguments)), ()
    parts = [_types(one) for one in arguments if one is not ...]
    known = [part for part in parts if part is not None]
    if origin in (typing.Union, builtin_types.UnionType) and len(known) == len(parts):
        return _merged(*(kinds for kinds, _ in known)), _merged(*(items for _, items in known))
    if (origin or hint) in (tuple, list, Sequence):
        items = _merged(*(kinds for kinds, _ in known))
        return (tuple,), items if items and len(known) == len(parts) and tuple not in items else _PLAIN
    return ((hint,), ()) if hint in (bool, int, float, str, type(None)) else None


def _types_of(default: Any) -> _Types:
    """The types that a default suggests."""
    if isinstance(default, tuple | list):
        items = _merged(*((type(one),) for one in default))
        return (tuple,), items if items and set(items) <= {bool, int, float, str} else _PLAIN
    return ((type(default),), ()) if type(default) in (bool, int, float, str) else (_PLAIN, _PLAIN)


def _merged(*kinds: tuple[type, ...]) -> tuple[type, ...]:
    """The types of several tuples, each once, without `int` if there is `float`, which includes it."""
    found = tuple(dict.fromkeys(kind for one in kinds for kind in one))
    return tuple(kind for kind in found if kind is not int or float not in found)


def _check(name: str, parameters: list[Parameter], arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Checks that the arguments match the parameters.

    Raises:
        ValueError: if they do not; the message shows the parameters.
    """
    signature = f"the signature is {usage(name, parameters)}"
    if (arguments or keywords) and not parameters:
        raise ValueError(f"{name} takes no arguments")
    if len(arguments) > len(parameters):
        raise ValueError(f"{name} takes at most {len(parameters)} arguments, not {len(arguments)}; {signature}")
    given = {p.name: value for p, value in zip(parameters, arguments, strict=False)}
    for word in keywords:
        if word not in {p.name for p in parameters}:
            raise ValueError(f"{name} has no argument {word!r}; {signature}")
        if word in given:
            raise ValueError(f"{name} is given {word} twice; {signature}")
    given |= keywords
    for parameter in parameters:
        if parameter.name not in given:
            if parameter.required:
                raise ValueError(f"{name} needs its argument {parameter.name}; {signature}")
        elif problem := parameter.fault(given[parameter.name]):
            raise ValueError(f"{parameter.name} {problem}; {signature}")
