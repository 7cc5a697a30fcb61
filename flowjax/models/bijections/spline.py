"""Monotone rational-quadratic splines with linear tails (Durkan et al. 2019, arXiv:1906.04032).

The spline maps [-b, b] to itself. It passes through K + 1 knots (x_k, y_k) with the derivatives d_k, where d_0 = d_K =
1, and is the identity outside, so that its derivative is continuous everywhere. In bin k, with the width w = x_{k+1} -
x_k, the height h = y_{k+1} - y_k, the slope s = h / w, u = (x - x_k) / w and c = d_{k+1} + d_k - 2 s,

    (1)  y     = y_k + h (s u^2 + d_k u (1 - u)) / q,   q = s + c u (1 - u)
    (2)  dy/dx = s^2 (d_{k+1} u^2 + 2 s u (1 - u) + d_k (1 - u)^2) / q^2

For the inverse, (1) is a quadratic equation in u. With v = y - y_k,

    (3)  A u^2 + B u + C = 0,   A = h (s - d_k) + v c,   B = h d_k - v c,   C = -s v

and its root in [0, 1] is u = -2 C / (B + sqrt(B^2 - 4 A C)), a form without cancellation.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.models.bijections.transforms import Numbers, Raw

__all__ = ["RationalQuadraticSpline"]

_SMALLEST = 1e-3
"""The smallest width and height of a bin as a share of the interval, and the smallest derivative at a knot."""

_MOST_BINS = 256

_DERIVATIVE_ONE = math.log(math.expm1(1 - _SMALLEST))
"""The parameter whose softplus, added to the smallest derivative, is 1."""


class _Bin(NamedTuple):
    """The bin of each coordinate: its corner, width, height, and the derivatives at both ends."""

    x: Numbers
    y: Numbers
    width: Numbers
    height: Numbers
    left: Numbers
    right: Numbers


class RationalQuadraticSpline(NamedTuple):
    """A spline with `3 bins - 1` parameters: the logits of the widths and heights, and the inner derivatives.

    Attributes:
        bins: the number K of bins, from 1 to 256.
        bound: the end b of the interval [-b, b], outside of which the spline is the identity.
    """

    bins: int = 8
    bound: float = 4.0

    @property
    def parameters(self) -> int:
        if not 1 <= self.bins <= _MOST_BINS:
            raise ValueError(f"a spline has 1 to {_MOST_BINS} bins, not {self.bins}")
        return 3 * self.bins - 1

    def forward(self, x: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        at = jnp.clip(x, -self.bound, self.bound)
        b = self._bin(at, raw, of_x=True)
        u = (at - b.x) / b.width
        y = b.y + b.height * (b.height / b.width * u**2 + b.left * u * (1 - u)) / _denominator(b, u)
        outside = jnp.abs(x) >= self.bound
        return jnp.where(outside, x, y), jnp.where(outside, 0.0, _log_derivative(b, u))

    def inverse(self, z: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        at = jnp.clip(z, -self.bound, self.bound)
        b = self._bin(at, raw, of_x=False)
        slope, v = b.height / b.width, at - b.y
        curvature = v * (b.right + b.left - 2 * slope)
        quadratic, linear = b.height * (slope - b.left) + curvature, b.height * b.left - curvature
        discriminant = jnp.maximum(linear**2 + 4 * quadratic * slope * v, 0.0)
        u = jnp.clip(2 * slope * v / (linear + jnp.sqrt(discriminant)), 0.0, 1.0)
        outside = jnp.abs(z) >= self.bound
        return jnp.where(outside, z, b.x + u * b.width), jnp.where(outside, 0.0, -_log_derivative(b, u))

    def _bin(self, at: Numbers, raw: Raw, of_x: bool) -> _Bin:
        """Finds the bin whose interval of x, or else of y, contains each coordinate."""
        k = self.bins
        widths, heights = (self._lengths(raw[..., i * k : (i + 1) * k, :]) for i in (0, 1))
        x, y = (self._starts(lengths) for lengths in (widths, heights))
        inner = _SMALLEST + jax.nn.softplus(raw[..., 2 * k :, :] + _DERIVATIVE_ONE)
        one = jnp.ones_like(at)[..., None, :]
        left, right = jnp.concatenate([one, inner], -2), jnp.concatenate([inner, one], -2)
        starts = x if of_x else y
        index = jnp.sum(at[..., None, :] >= starts[..., 1:, :], -2, keepdims=True)
        chosen = index == jnp.arange(k)[:, None]  # a sum over the bins is faster than a gather, also in its gradient
        pick = lambda table: jnp.sum(jnp.where(chosen, table, 0), -2)
        return _Bin(*map(pick, (x, y, widths, heights, left, right)))

    def _lengths(self, logits: Raw) -> Raw:
        """The lengths of the bins, whose sum is 2 b."""
        shares = _SMALLEST + (1 - self.bins * _SMALLEST) * jax.nn.softmax(logits, -2)
        return 2 * self.bound * shares

    def _starts(self, lengths: Raw) -> Raw:
        """The left ends of the bins."""
        return jnp.cumsum(lengths, -2) - lengths - self.bound


def _denominator(b: _Bin, u: Numbers) -> Float[Array, "*batch D"]:
    """q of equation (1)."""
    slope = b.height / b.width
    return slope + (b.right + b.left - 2 * slope) * u * (1 - u)


def _log_derivative(b: _Bin, u: Numbers) -> Numbers:
    """The logarithm of equation (2)."""
    slope = b.height / b.width
    numerator = b.right * u**2 + 2 * slope * u * (1 - u) + b.left * (1 - u) ** 2
    return 2 * jnp.log(slope) + jnp.log(numerator) - 2 * jnp.log(_denominator(b, u))
