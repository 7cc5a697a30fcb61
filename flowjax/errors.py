"""Exceptions for invalid configs, unreadable weights and runs that stop, and messages about unknown names."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from flowjax.ranges import shown

T = TypeVar("T")

__all__ = ["ConfigError", "RunFault", "WeightsError", "check_name", "lookup", "out_of_memory", "unknown"]


class ConfigError(ValueError):
    """A config is invalid. The message is one line that names the key."""


def unknown(name: object, known: Iterable[str], what: str = "") -> str:
    """Returns the message `unknown WHAT 'x'; did you mean 'y'? (known: ...)`."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return (
        f"unknown {f'{what} ' if what else ''}{shown(str(name))}"
        + (f"; did you mean {close[0]!r}?" if close else "")
        + f" (known: {', '.join(names)})"
    )


def lookup(key: str, name: str, table: Mapping[str, T]) -> T:
    """Returns the entry `name` of a table.

    Raises:
        ConfigError: if there is none; the message names the key and the closest valid name.
    """
    if name not in table:
        raise ConfigError(f"{key}: {unknown(name, table)}")
    return table[name]


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Checks that `name`, the name of a `what`, is one of the known names.

    Raises:
        ValueError: if it is not; the message is that of `unknown`.
    """
    names = list(known)
    if name not in names:
        raise ValueError(unknown(name, names, what))


class WeightsError(ValueError):
    """A weights file is missing, unreadable, or belongs to another model. The message is one line."""


class RunFault(RuntimeError):
    """A run has to stop, for example because of NaN or a full disk. The last good checkpoint is kept.

    The message is one line.
    """


def out_of_memory(error: BaseException) -> str | None:
    """Returns the message of the device if an exception, or one of its causes, says that a device is out of memory.

    Returns None for all other errors, also if a kernel's shared memory, a core's vector memory or the disk is
    exhausted, which is reported by the same error code.
    """
    import jax  # imported here, because commands that only read flags do not need JAX

    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).strip()
        named = isinstance(seen, jax.errors.JaxRuntimeError) and re.search(r"RESOURCE_EXHAUSTED|OUT_OF_MEMORY", text)
        if named and not re.search(r"shared memory|vmem|smem|no space left", text, re.IGNORECASE):
            return text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:120]
        seen = seen.__cause__ or seen.__context__
    return None
