"""Parameters as one flat dictionary, {"up.0.1.block.conv1.kernel": array}, and back into the tree of a network."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.archives import printable
from flowjax.errors import WeightsError
from flowjax.trees import is_key, path_name
from flowjax.typing import Params, PyTree

__all__ = ["FLOATS", "Taken", "check", "check_variables", "fill", "fill_variables", "flatten"]

FLOATS = ("float32", "bfloat16", "float16", "float64")
"""Types of the numbers that are read as parameters."""


def flatten(params: Params) -> dict[str, Any]:
    """The leaves of nested dictionaries by their paths, joined by dots, in the tree's order."""
    return {path_name(path, "."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def fill(like: Params, flat: Mapping[str, Any]) -> Params:
    """Parameters shaped and typed as `like`, with the values of `flat`.

    Args:
        like: nested dictionaries of arrays, or of shapes (`jax.eval_shape`).
        flat: an array for each path of `like`, of its shape; its type is converted.

    Raises:
        WeightsError: as `check`.
    """
    check(like, flat)
    leaves = [jnp.asarray(flat[name], a.dtype) for name, a in flatten(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check(like: Params, flat: Mapping[str, Any]) -> None:
    """Compares the names, shapes and types of arrays with those that a network wants, before anything is allocated.

    Args:
        like: nested dictionaries of arrays, or of shapes (`jax.eval_shape`).
        flat: arrays by their paths, or what has their `shape` and `dtype`.

    Raises:
        WeightsError: on missing, extra or misshapen parameters, or numbers that are not floating-point; the first few
            are named.
    """
    wanted = flatten(like)
    told = [
        _told("lacks", [name for name in wanted if name not in flat]),
        _told("has besides", [name for name in flat if name not in wanted]),
        _told(
            "has in another shape",
            [
                f"{name} {tuple(flat[name].shape)} for {tuple(a.shape)}"
                for name, a in wanted.items()
                if name in flat and tuple(flat[name].shape) != tuple(a.shape)
            ],
        ),
        _told(
            "has in a type that is not read",
            [
                f"{name} {flat[name].dtype}"
                for name, a in wanted.items()
                if name in flat and str(flat[name].dtype) not in (*FLOATS, str(a.dtype))
            ],
        ),
    ]
    if any(told):
        raise WeightsError(f"these weights belong to another model: the file {'; it '.join(t for t in told if t)}")


def _told(what: str, names: Iterable[str], shown: int = 3) -> str:
    names = [printable(name, 120) for name in names]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{what} {', '.join(names[:shown])}{more}" if names else ""


class Taken:
    """A state dict that is taken apart: every entry once, and what is left over is an error.

    Args:
        state: arrays by name.
    """

    def __init__(self, state: Mapping[str, Any]):
        self._state, self._left = state, dict.fromkeys(state)

    def __call__(self, name: str, change: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> np.ndarray:
        """The entry of that name, changed.

        Raises:
            WeightsError: if there is none, it has not the axes that `change` needs, or its numbers are not
                floating-point.
        """
        if name not in self._state:
            raise WeightsError(f"these weights belong to another model: the file lacks {name}")
        self._left.pop(name, None)
        found = np.asarray(self._state[name])
        if str(found.dtype) not in FLOATS:
            raise WeightsError(f"these weights belong to another model: {name} has the type {found.dtype}")
        try:
            return change(found)
        except (ValueError, IndexError, TypeError):
            shape = np.shape(self._state[name])
            raise WeightsError(f"these weights belong to another model: {name} has shape {shape}") from None

    def finish(self) -> None:
        """Raises a WeightsError if anything was not taken."""
        if self._left:
            raise WeightsError(f"these weights belong to another model: the file {_told('has besides', self._left)}")


def check_variables(like: PyTree, flat: Mapping[str, Any]) -> None:
    """Compares the names and shapes of arrays with those of a network's variables that are not parameters.

    Raises:
        WeightsError: if they differ; the first difference is named.
    """
    wanted = {name: jax.eval_shape(jax.random.key_data, a) if is_key(a) else a for name, a in flatten(like).items()}
    for name in [*wanted, *flat]:
        there, here = (tuple(one[name].shape) if name in one else None for one in (flat, wanted))
        if there != here:
            raise WeightsError(f"variable {printable(name)} has shape {there} in the file and {here} in the network")


def fill_variables(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """Variables shaped and typed as `like`, with the values of `flat`, which `check_variables` has accepted."""

    def one(name: str, a: Any) -> Any:
        return jax.random.wrap_key_data(flat[name]) if is_key(a) else jnp.asarray(flat[name], a.dtype)

    leaves = [one(name, a) for name, a in flatten(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
