"""How many derivatives of a velocity fit the memory, from an abstract trace of the linear function that computes them.

The memory is a quarter of what the device reports to JAX. On devices that report none, such as CPUs, it is
`UNREPORTED`, and several directions are taken at once only as far as they fit `CACHE`, because larger products are
slower there.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Array

__all__ = ["UNREPORTED", "TooLarge", "directions_at_once", "mapped", "memory_bound"]

UNREPORTED = 2**30
"""The bytes that derivatives may take on a device that does not report its memory."""

CACHE = 2**22
"""The bytes of several directions at once on such a device; 8 directions may take more."""

_AT_MOST = 256
"""The largest number of directions at once. More do not make the products of a network any faster."""


class TooLarge(ValueError):
    """The derivatives of a velocity do not fit the memory, even if they are taken one after the other."""


def memory_bound() -> int:
    """The bytes that derivatives may take: a quarter of the memory of the device."""
    return (_reported() or 4 * UNREPORTED) // 4


def _reported() -> int | None:
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def directions_at_once(push: Callable[[Array], Array], like: Array, rows: int | None, bound: int | None = None) -> int:
    """How many directions the linear function of a velocity can be applied to at once.

    Args:
        push: the linear function, from `jax.linearize`, or of one argument from `jax.vjp`.
        like: an argument of it, (B, *event).
        rows: how many rows are computed at the same time, if that is not B.
        bound: the bytes that it may take; by default `memory_bound`.

    Returns:
        At least 1, and at most the number of coordinates and 256.

    Raises:
        TooLarge: if a single direction does not fit.
    """
    closed = jax.make_jaxpr(push)(like)
    scale = (rows or like.shape[0]) / like.shape[0]
    of_rows = (c for c in closed.consts if jnp.ndim(c) and jnp.shape(c)[0] == like.shape[0])
    kept = scale * sum(jnp.size(c) * jnp.result_type(c).itemsize for c in of_rows)
    one = scale * max(1, _peak(closed.jaxpr, [True] * len(closed.jaxpr.invars)))
    reported, bound = _reported(), memory_bound() if bound is None else bound
    if kept + one > bound:
        raise TooLarge(
            f"the divergence of {rows or like.shape[0]} rows of {like[0].size} numbers needs about "
            f"{(kept + one) / 2**30:.3g} GiB even with one derivative at a time, and {bound / 2**30:.3g} GiB may be "
            "used: take fewer rows at once, or divergence='hutchinson' with 1 probe, which keeps no intermediate values"
        )
    fast = _AT_MOST if reported else max(8, int(CACHE / one))
    return max(1, min(like[0].size, _AT_MOST, fast, int((bound - kept) / one)))


def mapped(f: Callable[[Any], Array], over: Array, at_once: int | None) -> Array:
    """`jax.vmap(f)` over the leading axis, in chunks of `at_once`; None for all at once."""
    if at_once is None or len(over) <= at_once:
        return jax.vmap(f)(over)
    return jax.lax.map(f, over, batch_size=at_once)


def _peak(jaxpr: Jaxpr, depends: list[bool]) -> int:
    """The largest number of bytes that are alive at once, of values that depend on the given arguments.

    XLA fuses operations, so that the true number is smaller.
    """
    known = {v for v, yes in zip(jaxpr.invars, depends, strict=True) if yes}
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)}
    live = most = sum(map(_bytes, known))
    for i, eqn in enumerate(jaxpr.eqns):
        used = [not isinstance(v, Literal) and v in known for v in eqn.invars]
        if not any(used):
            continue
        inside = [_peak(sub, used if len(sub.invars) == len(used) else [True] * len(sub.invars)) for sub in _inner(eqn)]
        known |= set(eqn.outvars)
        before, live = live, live + sum(map(_bytes, eqn.outvars))
        most = max(most, live, before + max(inside, default=0))
        ended = {v for v in eqn.invars if not isinstance(v, Literal) and v in known and last[v] == i}
        ended |= {v for v in eqn.outvars if v not in last}
        live -= sum(map(_bytes, ended))
    return most


def _bytes(variable: Any) -> int:
    return variable.aval.size * variable.aval.dtype.itemsize


def _inner(eqn: Any) -> Iterable[Jaxpr]:
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                yield one.jaxpr if isinstance(one, ClosedJaxpr) else one
