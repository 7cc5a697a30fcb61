"""The errors of a config that cannot be run and of a run that has to stop, and the messages about unknown names."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from flowjax.ranges import shown

T = TypeVar("T")

__all__ = ["ConfigError", "RunFault", "WeightsError", "check_name", "lookup", "out_of_memory", "unknown"]


class ConfigError(ValueError):
    """A config that cannot be run; the message is one line that names the key."""


def unknown(name: object, known: Iterable[str]) -> str:
    """`unknown 'x'; did you mean 'y'? (known: ...)`."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return (
        f"unknown {shown(str(name))}"
        + (f"; did you mean {close[0]!r}?" if close else "")
        + f" (known: {', '.join(names)})"
    )


def lookup(key: str, name: str, table: Mapping[str, T]) -> T:
    """The entry `name` of a table.

    Raises:
        ConfigError: if there is none; the message names the key and the nearest valid name.
    """
    if name not in table:
        raise ConfigError(f"{key}: {unknown(name, table)}")
    return table[name]


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Checks that `name` is one of the known names of a `what`.

    Raises:
        ValueError: if it is not; the message is one line, and has the nearest known name if one is near.
    """
    names = list(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown {what} {name!r}: {hint}known are {', '.join(names)}")


class WeightsError(ValueError):
    """A file of weights that is missing, cannot be read, or is of another model; the message is one line."""


class RunFault(RuntimeError):
    """A run that had to stop: NaN, a full disk. One line; the last good checkpoint is kept."""


def out_of_memory(error: BaseException) -> str | None:
    """The device's own words if an exception, or one behind it, says that a device has too little memory.

    A kernel's shared memory, a core's vector memory and the disk run out under the same name, and are not meant.
    """
    import jax  # here, as commands that only read flags do not import it

    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).strip()
        named = isinstance(seen, jax.errors.JaxRuntimeError) and re.search(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY", text)
        if named and not re.search(r"shared memory|vmem|smem|no space left", text, re.IGNORECASE):
            return text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:120]
        seen = seen.__cause__ or seen.__context__
    return None
