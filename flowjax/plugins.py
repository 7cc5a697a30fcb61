"""Objects from modules outside flowjax, by names such as `my_package.nets:MyNet`.

A config may name such an object wherever it may name an entry of a table. Importing a module runs its code, and a
config may have been written by somebody else, so a module is imported only if the user has allowed it. Every function
that reads such names has an argument `plugins`, the modules that may be imported. A module allows its submodules too.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flowjax.errors import ConfigError
from flowjax.ranges import shown

__all__ = ["Kind", "Outside", "check_made", "find", "import_module", "is_outside", "modules_of"]

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Kind:
    """The kind of object that a name from outside flowjax must stand for.

    Attributes:
        what: the kind with its article, for messages, such as "a schedule".
        members: the attributes and methods that a class of this kind must have.
        base: the class that a class of this kind must derive from, or None.
        makes: the type or protocol of the result of calling the object; None if the result is not checked.
        functions: whether the name may also stand for a function that returns such an object.
    """

    what: str
    members: tuple[str, ...] = ()
    base: type | None = None
    makes: Any = None
    functions: bool = True

    def fits(self, found: Any) -> bool:
        """Whether a class has the members and the base of this kind, or an object is an instance of `makes`."""
        if not inspect.isclass(found):
            return self.makes is not None and isinstance(found, self.makes)
        if self.base is not None and not issubclass(found, self.base):
            return False
        declared = getattr(found, "__dataclass_fields__", {})
        return bool(self.members or self.base) and all(hasattr(found, m) or m in declared for m in self.members)


@dataclass(frozen=True)
class Outside:
    """Describes the objects from outside flowjax that a name may stand for.

    Attributes:
        kind: the kind that the object must have.
        plugins: the modules that may be imported.
        first: the arguments that are passed before those in brackets.
    """

    kind: Kind
    plugins: Sequence[str] = ()
    first: tuple[Any, ...] = ()


def is_outside(text: object) -> bool:
    """Whether a value of a config, with or without arguments in brackets, names an object from outside flowjax."""
    return isinstance(text, str) and ":" in text.partition("(")[0]


def modules_of(names: Iterable[object]) -> tuple[str, ...]:
    """Returns the modules that these values name, each once.

    Use it only for names that the user has written in a config file or a flag: writing a name allows its module.
    """
    heads = [str(name).partition("(")[0].strip() for name in names if is_outside(name)]
    return tuple(dict.fromkeys(head.partition(":")[0] for head in heads))


def find(key: str, name: str, kind: Kind, plugins: Sequence[str] = ()) -> Any:
    """Returns the object that `MODULE:OBJECT` names.

    Args:
        key: the config key or the flag, for messages.
        name: the name, without arguments.
        kind: the kind that the object must have.
        plugins: the modules that may be imported.

    Returns:
        A class or an object of the kind, or a function that is defined in an allowed module.

    Raises:
        ConfigError: if the name cannot be parsed, its module is not allowed (then nothing is imported) or cannot be
            imported, or the object does not exist or is of another kind.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{key} {shown(name)}: an object of your own module is written MODULE:OBJECT")
    module, attribute = match.groups()
    if not _allowed(module, plugins):
        raise ConfigError(
            f"{key}: the run was trained with {name}; name its module with --plugins {module.partition('.')[0]} if you "
            "trust it"
        )
    loaded = import_module(key, module)
    try:
        found = getattr(loaded, attribute)
    except AttributeError:
        near = difflib.get_close_matches(attribute, [n for n in dir(loaded) if not n.startswith("_")], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key}: the module {module} has no {attribute}{hint}") from None
    if kind.fits(found):
        return found
    if kind.functions and inspect.isfunction(found) and _allowed(found.__module__, plugins):
        return found
    needs = f" with {', '.join(kind.members)}" if kind.members else ""
    raise ConfigError(f"{key}: {name} must be {kind.what}{needs}, and it is not")


def import_module(key: str, module: str) -> Any:
    """Imports a module that the user has allowed.

    Raises:
        ConfigError: if there is no such module, or importing it raises an exception.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and (module == missing or module.startswith(f"{missing}.")):
            raise ConfigError(
                f"{key}: there is no module {module}: put its folder on PYTHONPATH, or install it"
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{key}: the module {module} cannot be imported: {type(error).__name__}: {reason}") from None


def check_made(where: str, made: Any, kind: Kind) -> Any:
    """Returns the result of calling an object from outside flowjax after a check of its type.

    Raises:
        ConfigError: if it is of another type than `kind.makes`.
    """
    if kind.makes is not None and not isinstance(made, kind.makes):
        raise ConfigError(f"{where}: it must return {kind.what}, not a {type(made).__name__}")
    return made


def _allowed(module: str, plugins: Sequence[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in plugins)
