"""In which type parameters may travel to where they are used.

A network that computes in bfloat16 casts most of its float32 parameters before it does anything else with them. Where
these are gathered from many devices, the cast may as well come first: the same numbers arrive, in half the bytes. Which
they are is read from the traced loss, so no network has to declare it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from flowjax.typing import Params, PyTree

__all__ = ["travelling"]

_MOVES = {"reshape", "squeeze", "slice", "split", "transpose", "rev"}
"""What brings numbers to other places, each at most once: a cast after them is a cast before them, and in the gradient
nothing is added up in the narrower type."""


def travelling(f: Callable[..., Any], params: Params, *arguments: Any) -> PyTree:
    """The type of each parameter that f(params, *arguments) sees: its own, or the narrower one it is cast to first.

    Args:
        f: traced, not run.
        params, arguments: or their shapes.
    """
    closed = jax.make_jaxpr(f)(params, *arguments)
    leaves, tree = jax.tree.flatten(params)
    found = [list(_seen(closed.jaxpr, var)) for var in closed.jaxpr.invars[: len(leaves)]]
    return tree.unflatten(_choose(leaf.dtype, types) for leaf, types in zip(leaves, found, strict=True))


def _choose(own: Any, seen: list[Any]) -> Any:
    """The type of the only cast. Of two, gradients are added in the wider type: they stay two."""
    if len(seen) != 1 or seen[0] is None:
        return own
    floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (own, seen[0]))
    return seen[0] if floats and jnp.dtype(seen[0]).itemsize < jnp.dtype(own).itemsize else own


def _seen(jaxpr: Any, var: Any) -> Iterator[Any]:
    """The types that a variable is cast to wherever it is used; None for any use but a cast."""
    if any(out is var for out in jaxpr.outvars):
        yield None
    for eqn in jaxpr.eqns:
        for i, used in enumerate(eqn.invars):
            if used is not var:
                continue
            name, inner = eqn.primitive.name, _body(eqn)
            if name == "convert_element_type":
                yield eqn.params["new_dtype"]
            elif name in _MOVES and i == 0:
                for out in eqn.outvars:
                    yield from _seen(jaxpr, out)
            elif inner is not None:
                yield from _seen(inner, inner.invars[i])
            else:
                yield None


def _body(eqn: Any) -> Any:
    """The only jaxpr of an equation that runs it once: of a call, of a rematerialised block."""
    opened = [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in eqn.params.values()]
    found = [value for value in opened if isinstance(value, core.Jaxpr) and len(value.invars) == len(eqn.invars)]
    return found[0] if len(found) == 1 and eqn.primitive.name not in ("while", "scan") else None
