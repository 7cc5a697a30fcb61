"""Floating-point operations of a program, counted on its jaxpr: matrix products and convolutions, a multiply-add as 2.

The same number on every device, fused kernels or not, and before the compiler has changed anything: what "model FLOPs"
means in a model FLOP utilisation. Elementwise work is not in it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count(f: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of f(*arguments), which may be shapes; a `scan` counts its length, a `while_loop` one turn, a branch the
    largest."""
    return _of(jax.make_jaxpr(f)(*arguments).jaxpr)


def _of(jaxpr: core.Jaxpr) -> float:
    return float(sum(_equation(eqn) for eqn in jaxpr.eqns))


def _equation(eqn: Any) -> float:
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * math.prod(out.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(eqn, out)
    inner = [_of(j) for j in _jaxprs(eqn.params)]
    if name == "cond":
        return max(inner, default=0.0)
    return float(sum(inner)) * (eqn.params["length"] if name == "scan" else 1)


def _convolution(eqn: Any, out: Any) -> float:
    """Each output sums over the kernel and its input channels; of a dilated input, over the pixels that are there."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(out.shape) * taps / math.prod(eqn.params["lhs_dilation"])


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an equation; the forward one alone of a rule for derivatives."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
