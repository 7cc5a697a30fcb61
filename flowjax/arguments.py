"""Names with arguments, such as `vp(0.1, 20)`: read, and checked against the signature of what the name stands for.

A parameter says what it takes by its annotation (`int`, `float | int`, `bool`, `str`, or `Annotated` with a
`flowjax.ranges.Range`), or, where it has none, by the type of its default. Nothing is called with arguments that do
not fit.
"""

import ast
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flowjax.errors import ConfigError, lookup
from flowjax.plugins import Outside, check_made, find, is_outside
from flowjax.ranges import KINDS, NUMBER, WHOLE, Range, is_kind, shown, text_fault

T = TypeVar("T")

__all__ = ["Parameter", "bounds_of", "make", "make_named", "separate", "usage"]

_MAX_CHARACTERS = 300


def make(key: str, text: str, table: Mapping[str, Callable[..., T]], *first: Any, outside: Outside | None = None) -> T:
    """What `name`, `name(1, 2)` or `name(eps=2)` stands for in a table: table[name](*first, *arguments).

    With `outside` the name may also be that of an object in the caller's own module, `my_package.nets:Name(1, 2)`. A
    class or a function is called with `outside.first` and the arguments; an object of the kind is taken as it is.

    Args:
        key: the config key or the flag, for messages.
        text: its value.
        table: what each name stands for.
        first: arguments that come before those in brackets.
        outside: what an object from outside must be, and which modules may be imported; None if the name can only be
            one of the table.

    Raises:
        ConfigError: if the name is unknown or its module is not allowed, if it does not take these arguments, or if the
            builder refuses their values with a plain ValueError. Any other exception of the builder is not about the
            arguments and is passed on.
    """
    where = f"{key} {shown(text)}"
    name, arguments, keywords = _read(where, text)
    if outside is None or not is_outside(name):
        return _call(where, name, lookup(key, name, table), first, arguments, keywords)
    found = find(key, name, outside.kind, outside.plugins)
    if inspect.isclass(found) or inspect.isfunction(found):
        found = _call(where, name, found, outside.first, arguments, keywords)
    elif arguments or keywords:
        raise ConfigError(f"{where}: {name} is an object already and takes no arguments")
    return check_made(where, found, outside.kind)


def make_named(key: str, text: str, build: Callable[..., T]) -> T:
    """build(name, *arguments) for a text such as `name(eps=2)`, where any identifier can be the name.

    Args:
        key: the config key or the flag, for messages.
        text: its value.
        build: takes the name and the arguments.

    Raises:
        ConfigError: as `make`, or if the name is not an identifier.
    """
    where = f"{key} {shown(text)}"
    name, arguments, keywords = _read(where, text)
    if not name.isidentifier():
        raise ConfigError(f"{where}: a name consists of letters, digits and underscores, and may have arguments")
    return _call(where, name, build, (name,), arguments, keywords)


def separate(text: str) -> tuple[str, ...]:
    """The parts of a text between commas outside of brackets: `a, b(1, 2)` has the parts `a` and `b(1, 2)`."""
    if not text.strip():
        return ()
    if len(text) > _MAX_CHARACTERS:
        return (text,)
    whole = f"({text},)"
    try:
        found = ast.parse(whole, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return (text,)
    parts = [ast.get_source_segment(whole, part) for part in found.elts] if isinstance(found, ast.Tuple) else [None]
    return tuple(part for part in parts if part is not None) if None not in parts else (text,)


def _call(
    where: str,
    name: str,
    build: Callable[..., T],
    first: tuple[Any, ...],
    arguments: list[Any],
    keywords: dict[str, Any],
) -> T:
    """build(*first, *arguments, **keywords) with checked arguments, and the messages of `make`."""
    takes = _parameters(build, len(first))
    try:
        _check(name, takes, arguments, keywords)
        return build(*first, *arguments, **keywords)
    except (ValueError, ArithmeticError) as error:
        if isinstance(error, ValueError) and type(error) is not ValueError:
            raise  # a ConfigError or DataError says all by itself, and a subclass of ValueError has another cause
        raise ConfigError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Parameter:
    """What one argument of a name may be."""

    name: str
    kinds: tuple[type, ...]
    range: Range | None
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        kinds = " or ".join(KINDS[kind] for kind in self.kinds if kind is not type(None))
        return f"{self.name}: {kinds}" + ("" if self.required or self.default is None else f" = {self.default!r}")

    def fault(self, value: Any) -> str | None:
        """Why the parameter cannot have this value, to be read after its name; None if it can."""
        if not any(is_kind(value, kind) for kind in self.kinds):
            kinds = [KINDS[kind] for kind in self.kinds if kind is not type(None)]
            return f"must be {' or '.join(k if k == KINDS[bool] else f'a {k}' for k in kinds)}, not {shown(value)}"
        if isinstance(value, str):
            return text_fault(value)
        if value is None or isinstance(value, bool):
            return None
        return (self.range or (NUMBER if float in self.kinds else WHOLE)).fault(value)


def usage(name: str, takes: list[Parameter]) -> str:
    """`vp(beta_min: number = 0.1, beta_max: number = 20.0)`."""
    return f"{name}({', '.join(map(str, takes))})"


def _read(where: str, text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The name, the arguments and the keyword arguments that a text holds."""
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{where}: a name with its arguments has at most {_MAX_CHARACTERS} characters")
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
        raise ConfigError(f"{where}: ** is not possible in the brackets")
    return module + colon + call.func.id, arguments, keywords


def _parameters(build: Callable[..., Any], skip: int) -> list[Parameter]:
    """What `build` takes after its first `skip` arguments."""
    signature = inspect.signature(build, eval_str=True)
    known = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    return [Parameter(p.name, *_kinds(p), p.default) for p in known[skip:]]


def bounds_of(hint: Any) -> tuple[Any, Range | None]:
    """The type of an annotation, and the `Range` that `Annotated` adds to it, or None."""
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, None
    hint, *extra = typing.get_args(hint)
    return hint, next((e for e in extra if isinstance(e, Range)), None)


def _kinds(parameter: inspect.Parameter) -> tuple[tuple[type, ...], Range | None]:
    hint, bounds = bounds_of(parameter.annotation)
    if hint is inspect.Parameter.empty:
        known = type(parameter.default) in (bool, int, float, str)
        return ((type(parameter.default),) if known else (float,)), None
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    return tuple(kind for kind in kinds if kind is not int or float not in kinds), bounds


def _check(name: str, takes: list[Parameter], arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Raises ValueError, in one line that shows what the name takes, unless the arguments fit."""
    written = f"it is written {usage(name, takes)}"
    if (arguments or keywords) and not takes:
        raise ValueError(f"{name} takes no arguments")
    if len(arguments) > len(takes):
        raise ValueError(f"{name} takes at most {len(takes)} arguments, not {len(arguments)}; {written}")
    given = {p.name: value for p, value in zip(takes, arguments, strict=False)}
    for word in keywords:
        if word not in {p.name for p in takes}:
            raise ValueError(f"{name} has no argument {word!r}; {written}")
        if word in given:
            raise ValueError(f"{name} is given {word} twice; {written}")
    given |= keywords
    for parameter in takes:
        if parameter.name not in given:
            if parameter.required:
                raise ValueError(f"{name} needs its argument {parameter.name}; {written}")
        elif told := parameter.fault(given[parameter.name]):
            raise ValueError(f"{parameter.name} {told}; {written}")
