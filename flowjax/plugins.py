"""Objects from modules outside flowjax, by names such as `my_package.nets:MyNet`.

A config may name such an object wherever it may name an entry of a table. Importing a module runs its code, and a
config may have been written by somebody else, so a module is imported only if the user has allowed it. Every function
that reads such names has an argument `plugins`, the modules that may be imported. A module allows its submodules too.

Commands also find modules in the current folder, or in the folder of the config file (`search`). Such a folder is never
put on `sys.path`, because libraries import whatever they find there: JAX, for example, imports all packages in a folder
`jax_plugins`. Only those modules are found in it that the user has named, and those that these import themselves.
"""

import ast
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from flowjax.errors import ConfigError
from flowjax.ranges import shown

__all__ = [
    "Finder",
    "Kind",
    "Outside",
    "check_made",
    "find",
    "import_module",
    "imports",
    "is_outside",
    "modules_of",
    "search",
    "searched",
]

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Kind:
    """The kind of object that a name from outside flowjax must stand for.

    Attributes:
        what: the kind with its article, for messages, such as "a schedule".
        members: the attributes and methods that a class of this kind must have.
        base: the class that a class of this kind must derive from, or None.
        makes: the type or protocol of the result of calling the object; None if the result is not checked.
        functions: whether the name may also stand for a function that returns such an object, as its return annotation
            says. A function needs no annotation if `makes` is None.
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
        return bool(self.members or self.base) and not self.lacking(found)

    def lacking(self, found: type) -> list[str]:
        """The members of this kind that a class lacks. It may declare a member as a field of a dataclass."""
        declared = getattr(found, "__dataclass_fields__", {})
        return [member for member in self.members if not (hasattr(found, member) or member in declared)]

    def is_returned_by(self, function: Any) -> bool:
        """Whether the return annotation of a function is of this kind; True if results are not checked."""
        if self.makes is None:
            return True
        try:
            hint = inspect.signature(function, eval_str=True).return_annotation
        except (TypeError, ValueError, NameError, AttributeError, SyntaxError):  # no signature, or it cannot be read
            return False
        return hint is self.makes or (inspect.isclass(hint) and self.fits(hint))


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
        A class or an object of the kind, or a function that is defined in an allowed module and has a class of the kind
        as its return annotation. Nothing is called here. An untrusted config can give arguments for the result, so any
        other function of an allowed module is refused.

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
            f"{key}: the run was trained with {name}; name its module with --plugins {module} if you trust it"
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
    needs = f" with {', '.join(kind.members)}" if kind.members else ""
    inner = _unwrapped(found)
    if inspect.isclass(found) and 0 < len(lacking := kind.lacking(found)) < len(kind.members):
        raise ConfigError(f"{key}: {name} must be {kind.what}, and it has no {', '.join(lacking)}")
    if not kind.functions or inspect.isclass(inner) or not callable(found):
        raise ConfigError(f"{key}: {name} must be {kind.what}{needs}, and it is not")
    defined = getattr(inner, "__module__", None) or type(inner).__module__
    if not _allowed(defined, plugins):
        raise ConfigError(f"{key}: {name} is defined in {defined}, which is not allowed")
    if not kind.is_returned_by(found):
        raise ConfigError(
            f"{key}: {name} must be {kind.what}{needs}, or a function whose return annotation is {kind.makes.__name__}"
        )
    return found


def _unwrapped(found: Any) -> Any:
    """Returns the function that decorators, such as `jax.jit` and `functools.cache`, and `partial` have wrapped."""
    found = inspect.unwrap(found) if callable(found) else found
    return _unwrapped(found.func) if isinstance(found, partial) else found


def import_module(key: str, module: str) -> Any:
    """Imports a module that the user has allowed.

    Raises:
        ConfigError: if there is no such module, or importing it raises an exception.
    """
    searched().names.add(module.partition(".")[0])
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


@dataclass
class Finder:
    """An importer that finds some modules in some folders. Python uses it after all other importers (`sys.meta_path`).

    Attributes:
        folders: the folders that are searched.
        names: the top-level names of the modules that may be found in them. Their submodules are found as usual.
        found: the top-level names of the modules that were found. A module that one of these, or of their submodules,
            names in an `import` statement may be found too.
    """

    folders: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    found: set[str] = field(default_factory=set)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Returns the spec of a module, or None if it may not be found or is not there, as `importlib` expects."""
        if path is not None or not self.folders:
            return None
        spec = PathFinder.find_spec(name, self.folders)
        if spec is None or not (name in self.names or self._is_imported(name)):
            return None
        self.found.add(name)
        return spec

    def _is_imported(self, name: str) -> bool:
        """Whether the source of a module that was found here, and is loaded, imports a module of this name."""
        loaded = [module for key, module in list(sys.modules.items()) if key.partition(".")[0] in self.found]
        files = [str(file) for module in loaded if (file := getattr(module, "__file__", None))]
        return any(name in imports(Path(file)) for file in files if file.endswith(".py"))

    def install(self) -> None:
        """Lets this process find these modules too, for example a worker process of a data set."""
        known = searched()
        known.folders.extend(folder for folder in self.folders if folder not in known.folders)
        known.names |= self.names
        known.found |= self.found


def searched() -> Finder:
    """Returns the importer of this process."""
    finder = next((f for f in sys.meta_path if isinstance(f, Finder)), None)
    if finder is None:
        finder = Finder()
        sys.meta_path.append(finder)
    return finder


def search(folder: Path, names: Iterable[str] = ()) -> None:
    """Lets modules be imported from a folder: those that `find` and `import_module` are called for, and `names`.

    Args:
        folder: a folder.
        names: top-level names of more modules that may be found in it.
    """
    Finder([str(folder.resolve())], set(names)).install()


def imports(file: Path) -> set[str]:
    """Returns the top-level names of the modules that the `import` statements of a Python file name."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (OSError, SyntaxError, ValueError, MemoryError, RecursionError):
        return set()  # importing the file reports the error
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in plain + parts}


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
