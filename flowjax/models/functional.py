"""A Flax NNX module as pure functions, with its parameters apart from all other variables."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowjax.trees import path_name
from flowjax.typing import Params, PRNGKey, PyTree

__all__ = ["Functional", "Traits", "Variables", "functional"]


class Variables(NamedTuple):
    """The variables of a module as nested dictionaries of arrays.

    Attributes:
        params: every `nnx.Param`: what is differentiated and optimised.
        state: every other variable: batch statistics, integer permutations, masks, the random state of `nnx.Dropout`,
            flags and values of an initialisation that depends on data. An empty dictionary where there are none.
    """

    params: PyTree[Any]
    state: PyTree[Any]


class Traits(NamedTuple):
    """What a module declares about itself in attributes of the same names; training reads it.

    Attributes:
        slow_in_cpu_loops: whether the module is slow inside a compiled loop on a CPU, as convolutions are: XLA has fast
            kernels for them only outside loops.
        cast_parameters: a regular expression of the paths (such as `blocks/0/mlp1/kernel`) of those parameters that the
            module casts to `dtype` before it does anything else with them. They are cast before they are gathered from
            many devices, which halves what is sent. A call must use each of them once: otherwise the terms of its
            gradient would be added in the narrower type. An empty expression matches nothing.
        dtype: the type in which the module computes.
    """

    slow_in_cpu_loops: bool = False
    cast_parameters: str = ""
    dtype: Any = jnp.float32

    def types(self, params: Params) -> PyTree[Any]:
        """The type in which each parameter is used: its own, or `dtype` if it is cast and `dtype` is narrower."""

        narrow = jnp.dtype(self.dtype)

        def type_of(path: Any, p: Any) -> Any:
            is_cast = self.cast_parameters and re.search(self.cast_parameters, path_name(path))
            return narrow if is_cast and narrow.itemsize < p.dtype.itemsize else p.dtype

        return jax.tree_util.tree_map_with_path(type_of, params)


@dataclass(frozen=True)
class Functional:
    """A module as two pure functions.

    Attributes:
        init: `init(key) -> Variables`; compiled.
        apply: `apply(variables, *args, training=False, method="__call__", **inputs) -> (output, state)`. With
            `training=False` the module is in its evaluation mode (`nnx.Module.eval`), else in its training mode
            (`nnx.Module.train`): these set the attributes `deterministic` and `use_running_average` of all parts.
            `method` is the name of the method that is called. A keyword input of None counts as not given and is not
            passed on. The returned state has exactly the structure of `variables.state`. What a call writes into a
            parameter is lost: parameters change by an optimizer alone.
        abstract: shapes and types of the variables.
        traits: what the module declares about itself.
    """

    init: Callable[[PRNGKey], Variables]
    apply: Callable[..., tuple[Any, PyTree[Any]]]
    abstract: Variables
    traits: Traits


def functional(construct: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """The pure functions of the module that `construct` makes.

    Args:
        construct: makes the module from its random number generators. It is traced, and must make a module of the
            same structure at every call.

    Returns:
        The module's `Functional`. Its functions work under `jax.jit`, `jax.grad` and `jax.eval_shape`.
    """
    module = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    module.train()
    graphs = {True: nnx.split(module, nnx.Param, ...)[0]}
    module.eval()
    graphs[False], *abstract = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def init(key: PRNGKey) -> Variables:
        return _pure(*nnx.split(construct(nnx.Rngs(key)), nnx.Param, ...)[1:])

    def apply(
        variables: Variables, *args: Any, training: bool = False, method: str = "__call__", **inputs: Any
    ) -> tuple[Any, PyTree[Any]]:
        module = nnx.merge(graphs[training], variables.params, variables.state)
        given = {name: value for name, value in inputs.items() if value is not None}
        output = getattr(module, method)(*args, **given)
        changed = _pure(*nnx.split(module, nnx.Param, ...)[1:])
        return output, _like(variables.state, changed.state)

    traits = Traits(**{name: getattr(module, name) for name in Traits._fields if hasattr(module, name)})
    return Functional(init, apply, _pure(*abstract), traits)


def _pure(params: nnx.State, state: nnx.State) -> Variables:
    return Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(state))


def _like(old: Any, new: Any) -> Any:
    """The entries of `new` that `old` has: intermediate values that a call recorded are dropped."""
    return {name: _like(value, new[name]) for name, value in old.items()} if isinstance(old, Mapping) else new
