"""Converts between the parameter tree of a network and a flat dictionary, {"up.0.1.block.conv1.kernel": array}."""

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
"""Dtypes that are read as parameters."""


def flatten(params: Params) -> dict[str, Any]:
    """Returns the leaves of nested dictionaries by their paths, joined with dots, in the order of the tree."""
    return {path_name(path, "."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def fill(like: Params, flat: Mapping[str, Any]) -> Params:
    """Returns parameters with the structure and dtypes of `like` and the values of `flat`.

    Args:
        like: nested dictionaries of arrays, or of shapes (`jax.eval_shape`).
        flat: one array for each path of `like`, of the same shape; its dtype is converted.

    Raises:
        WeightsError: if `check` finds a difference.
    """
    check(like, flat)
    leaves = [jnp.asarray(flat[name], a.dtype) for name, a in flatten(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check(like: Params, flat: Mapping[str, Any]) -> None:
    """Compares the names, shapes and dtypes of arrays with the parameters of a network, before anything is allocated.

    Args:
        like: nested dictionaries of arrays, or of shapes (`jax.eval_shape`).
        flat: arrays by their paths, or objects with their `shape` and `dtype`.

    Raises:
        WeightsError: if parameters are missing, unexpected, of another shape or not floating-point; the first few are
            named.
    """
    wanted = flatten(like)
    problems = [
        _listed("lacks", [name for name in wanted if name not in flat]),
        _listed("also has", [name for name in flat if name not in wanted]),
        _listed(
            "has in another shape",
            [
                f"{name} {tuple(flat[name].shape)} for {tuple(a.shape)}"
                for name, a in wanted.items()
                if name in flat and tuple(flat[name].shape) != tuple(a.shape)
            ],
        ),
        _listed(
            "has in an unsupported dtype",
            [
                f"{name} {flat[name].dtype}"
                for name, a in wanted.items()
                if name in flat and str(flat[name].dtype) not in (*FLOATS, str(a.dtype))
            ],
        ),
    ]
    if any(problems):
        raise WeightsError(f"these weights belong to another model: the file {'; it '.join(p for p in problems if p)}")


def _listed(what: str, names: Iterable[str], shown: int = 3) -> str:
    names = [printable(name, 120) for name in names]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{what} {', '.join(names[:shown])}{more}" if names else ""


class Taken:
    """Takes the entries out of a state dict; entries that are left over at the end are an error.

    Args:
        state: arrays by name.
    """

    def __init__(self, state: Mapping[str, Any]):
        self._state, self._left = state, dict.fromkeys(state)

    def __call__(self, name: str, change: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> np.ndarray:
        """Takes the entry with a name and applies `change` to it.

        Raises:
            WeightsError: if there is no such entry, it is not floating-point, or `change` does not fit its axes.
        """
        if name not in self._state:
            raise WeightsError(f"these weights belong to another model: the file lacks {name}")
        self._left.pop(name, None)
        found = np.asarray(self._state[name])
        if str(found.dtype) not in FLOATS:
            raise WeightsError(f"these weights belong to another model: {name} has dtype {found.dtype}, not a float")
        try:
            return change(found)
        except (ValueError, IndexError, TypeError):
            shape = np.shape(self._state[name])
            raise WeightsError(f"these weights belong to another model: {name} has shape {shape}") from None

    def finish(self) -> None:
        """Raises a WeightsError if entries are left over."""
        if self._left:
            raise WeightsError(f"these weights belong to another model: the file {_listed('also has', self._left)}")


def check_variables(like: PyTree, flat: Mapping[str, Any]) -> None:
    """Compares the names and shapes of arrays with the variables of a network that are not parameters.

    Args:
        like: the variables, or their shapes.
        flat: arrays by their paths, or objects with their `shape`.

    Raises:
        WeightsError: if they differ; the message names the first difference.
    """
    wanted = {name: jax.eval_shape(jax.random.key_data, a) if is_key(a) else a for name, a in flatten(like).items()}
    for name in [*wanted, *flat]:
        there, here = (tuple(one[name].shape) if name in one else None for one in (flat, wanted))
        if there != here:
            raise WeightsError(f"variable {printable(name)} has shape {there} in the file and {here} in the network")


def fill_variables(like: PyTree, flat: Mapping[str, Any]) -> PyTree:
    """Returns variables with the structure and dtypes of `like` and the values of `flat`; see `check_variables`."""

    def one(name: str, a: Any) -> Any:
        return jax.random.wrap_key_data(flat[name]) if is_key(a) else jnp.asarray(flat[name], a.dtype)

    leaves = [one(name, a) for name, a in flatten(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
