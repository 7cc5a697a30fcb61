"""Flax NNX modules as pure functions, with the parameters separated from all other variables."""

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
        params: every `nnx.Param`. Training differentiates and optimises these.
        state: every other variable, such as batch statistics, integer permutations, masks, the random state of
            `nnx.Dropout`, and the results of a data-dependent initialisation; an empty dictionary if there are none.
    """

    params: PyTree[Any]
    state: PyTree[Any]


class Traits(NamedTuple):
    """Properties that a module declares in attributes of the same names, for training.

    Attributes:
        slow_in_cpu_loops: whether the module is slow inside a compiled loop on a CPU. This is the case for
            convolutions, for which XLA has fast CPU kernels only outside loops.
        cast_parameters: a regular expression for the paths, such as `blocks/0/mlp1/kernel`, of the parameters that the
            module casts to `dtype` before any other operation. Training casts them before it gathers them from several
            devices, which halves the communication. A call must use each of them only once, because the terms of a
            gradient would otherwise be added in the narrower type. An empty expression matches no parameter.
        dtype: the compute type of the module.
        row_keys: whether a call accepts an array of keys, one per row, as its input `key` for dropout. Data parallel
            training on GPUs passes such keys; a module with dropout that needs a single key is sharded by the compiler.
    """

    slow_in_cpu_loops: bool = False
    cast_parameters: str = ""
    dtype: Any = jnp.float32
    row_keys: bool = False

    def types(self, params: Params) -> PyTree[Any]:
        """Returns the dtype in which each parameter is used: `dtype` if the module casts it and `dtype` is narrower
        than the dtype of the parameter, otherwise the dtype of the parameter."""
        narrow = jnp.dtype(self.dtype)

        def type_of(path: Any, p: Any) -> Any:
            is_cast = self.cast_parameters and re.search(self.cast_parameters, path_name(path))
            return narrow if is_cast and narrow.itemsize < p.dtype.itemsize else p.dtype

        return jax.tree_util.tree_map_with_path(type_of, params)


@dataclass(frozen=True)
class Functional:
    """A module as two pure functions.

    Attributes:
        init: `init(key) -> Variables`, compiled.
        apply: `apply(variables, *args, training=False, method="__call__", **inputs) -> (output, state)`. It calls the
            method named `method` of the module, in training mode (`nnx.Module.train`) or in evaluation mode
            (`nnx.Module.eval`), which set the attributes `deterministic` and `use_running_average` of all submodules.
            Keyword inputs that are None are not passed to the module. The returned state has the same structure as
            `variables.state`. Changes that a call makes to parameters are discarded.
        abstract: shapes and dtypes of the variables.
        traits: properties that the module declares.
    """

    init: Callable[[PRNGKey], Variables]
    apply: Callable[..., tuple[Any, PyTree[Any]]]
    abstract: Variables
    traits: Traits


def functional(construct: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Returns the pure functions of the module that `construct` makes.

    Args:
        construct: `construct(rngs) -> module`. It is traced, and must make a module of the same structure at every
            call.

    Returns:
        A `Functional`, whose functions work under `jax.jit`, `jax.grad` and `jax.eval_shape`.
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
    """Returns the entries of `new` that exist in `old`, without the intermediate values that a call has recorded."""
    return {name: _like(value, new[name]) for name, value in old.items()} if isinstance(old, Mapping) else new
