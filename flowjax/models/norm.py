"""Group norm, modulation and SiLU in one pass over memory.

    y = silu(z),   z = gamma x_hat + beta,   x_hat = (x + add - mean) / std                                        (1)

gamma, beta and add have one value for each row and channel. A modulation by time is therefore part of gamma and beta,
and `add` is a bias or an embedding that is added before the norm. Given the statistics, z = a x + b is affine in x for
each channel. The statistics are computed in float32 from the sums of x and x^2 over the pixels of each channel.

The backward pass, with dz = dy silu'(z) and n pixels, is

    dx = a dz + (c1 x + c0),   c1 = -m2 / std^2,   c0 = -m1 / std - m2 (add - mean) / std^2                        (2)

where m1 and m2 are the means over the group of gamma dz and gamma dz x_hat. This takes one pass for the sums of dz and
dz x over the pixels, and one pass for dx. By default, XLA writes dz and parts of it to memory in float32 between the
two passes, which doubles the memory traffic. On GPUs, a custom rule computes dz from x and dy in both passes instead
(`fused_group_norm`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from flowjax.models import kernels, norm_kernel
from flowjax.models.norm_kernel import sigmoid, silu_slope
from flowjax.precision import at_least_float32

__all__ = ["EPS", "GroupNorm", "Parts", "Rows", "fused_group_norm", "group_norm"]

EPS = 1e-5
"""Added to the variance."""

Parts = tuple[Float[Array, "B H W _"], ...]
"""Feature maps whose channels together are the channels of one map, as if concatenated."""

Rows = Float[Array, "B C"]
"""One value for each row and channel."""


class GroupNorm(nnx.Module):
    """Group norm with one gain and one bias per channel (Wu & He 2018, arXiv:1803.08494), optionally followed by SiLU.

    Args:
        channels: number of channels C.
        groups: number of groups, which must divide C.
        act: whether to apply SiLU to the result.
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if `groups` does not divide `channels`.
    """

    def __init__(self, channels: int, groups: int = 32, act: bool = True, *, rngs: nnx.Rngs):
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels")
        self.groups, self.act = groups, act
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self,
        *parts: Float[Array, "B H W _"],
        add: Float[Array, "*B C"] | None = None,
        film: tuple[Rows, Rows] | None = None,
        forward_mode: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Normalises the concatenation of the parts.

        Args:
            parts: feature maps with C channels in total, in any float dtype.
            add: (B, C) or (C,), added to every pixel before the norm.
            film: (scale, shift), each (B, C); the result is (1 + scale) norm + shift.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.

        Returns:
            One map (B, H, W, C) in the dtype of the parts.
        """
        shape = parts[0].shape[0], self.scale[...].shape[0]
        dtype = jnp.promote_types(parts[0].dtype, jnp.float32)
        rows = lambda a: jnp.broadcast_to(a.astype(dtype), shape)
        gamma, beta = rows(self.scale[...]), rows(self.bias[...])
        if film is not None:
            scale, shift = map(rows, film)
            gamma, beta = gamma * (1 + scale), beta * (1 + scale) + shift
        add = jnp.zeros(shape, dtype) if add is None else rows(add)
        norm = fused_group_norm if kernels.serve(forward_mode) else group_norm
        return norm(parts, add, gamma, beta, self.groups, self.act, EPS)


def group_norm(
    parts: Parts, add: Rows, gamma: Rows, beta: Rows, groups: int, act: bool, eps: float
) -> Float[Array, "B H W C"]:
    """Equation (1), differentiable in reverse mode and in forward mode."""
    a, b, *_ = _affine(parts, add, gamma, beta, groups, eps)
    z = _each(lambda x, a, b: x * a + b, parts, a, b)
    return (jax.nn.silu(z) if act else z).astype(parts[0].dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def fused_group_norm(
    parts: Parts, add: Rows, gamma: Rows, beta: Rows, groups: int, act: bool, eps: float
) -> Float[Array, "B H W C"]:
    """Equation (1), differentiable only in reverse mode, by equation (2)."""
    return _normalise_fwd(parts, add, gamma, beta, groups, act, eps)[0]


def _normalise_fwd(
    parts: Parts, add: Rows, gamma: Rows, beta: Rows, groups: int, act: bool, eps: float
) -> tuple[Array, tuple[Any, ...]]:
    a, b, mean, std, total = _affine(parts, add, gamma, beta, groups, eps)

    def apply(x: Array, a: Array, b: Array) -> Array:
        z = x * a + b
        return z * sigmoid(z) if act else z

    y = _each(apply, parts, a, b).astype(parts[0].dtype)
    return y, (parts, add - mean, gamma, a, b, std, total)


def _normalise_bwd(
    groups: int, act: bool, eps: float, saved: tuple[Any, ...], dy: Array
) -> tuple[Parts, Array, Array, Array]:
    parts, shift, gamma, a, b, std, total = saved
    n = dy.shape[1] * dy.shape[2]
    s1, s2 = _sums(parts, dy, a, b, act)
    along = (s2 + shift * s1) / std  # the sum of dz x_hat
    mean = lambda s: _to_channels(s.reshape(s.shape[0], groups, -1).mean(-1) / n, s.shape[1])
    m1, m2 = mean(gamma * s1), mean(gamma * along)
    c1 = -m2 / (std * std)
    c0 = -m1 / std + c1 * shift
    # the barrier makes XLA compute dz again from x and dy instead of keeping it in memory
    rest = lax.optimization_barrier((parts, dy, a, b, c0, c1))
    dx = tuple(
        (a * (dy * silu_slope(x * a + b) if act else dy) + (c1 * x + c0)).astype(part.dtype)
        for part, (x, dy, a, b, c0, c1) in zip(parts, _by_part(*rest), strict=True)
    )
    return dx, a * s1 + n * c0 + c1 * total, along, s1


def _sums(parts: Parts, dy: Float[Array, "B H W C"], a: Rows, b: Rows, act: bool) -> tuple[Rows, Rows]:
    """Returns the sums over the pixels of dz and dz x."""
    flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
    channels = [x.shape[-1] for x in parts]
    if act and norm_kernel.takes(dy.shape[1] * dy.shape[2], *channels):
        sums, first = [], 0
        for x in parts:
            part = slice(first, first + x.shape[-1])
            sums.append(norm_kernel.pixel_sums(flat(x), flat(dy), a[:, part], b[:, part], first))
            first = part.stop
    else:
        sums = []
        for x, dy_, a_, b_ in _by_part(*lax.optimization_barrier((parts, dy, a, b))):
            dz = dy_ * silu_slope(x * a_ + b_) if act else dy_
            sums.append((dz.sum((1, 2)), (dz * x).sum((1, 2))))
    s1, s2 = (jnp.concatenate(s, -1) for s in zip(*sums, strict=True))
    return s1, s2


fused_group_norm.defvjp(_normalise_fwd, _normalise_bwd)


def _affine(
    parts: Parts, add: Rows, gamma: Rows, beta: Rows, groups: int, eps: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Returns a and b of z = a x + b, the mean, the standard deviation, and the sums of x over the pixels, (B, C)."""
    n, wide = parts[0].shape[1] * parts[0].shape[2], [at_least_float32(x) for x in parts]
    total = jnp.concatenate([x.sum((1, 2)) for x in wide], -1)
    square = jnp.concatenate([(x * x).sum((1, 2)) for x in wide], -1)
    shifted, square = total + n * add, square + add * (2 * total + n * add)
    grouped = lambda s: s.reshape(s.shape[0], groups, -1).mean(-1) / n
    mean = grouped(shifted)
    std = jnp.sqrt(jnp.maximum(grouped(square) - mean**2, 0.0) + eps)
    mean, std = (_to_channels(s, add.shape[1]) for s in (mean, std))
    a = gamma / std
    return a, beta + (add - mean) * a, mean, std, total


def _to_channels(s: Float[Array, "B G"], channels: int) -> Float[Array, "B C"]:
    """Repeats the value of each group for each of its channels."""
    return jnp.repeat(s, channels // s.shape[1], 1, total_repeat_length=channels)


def _by_part(parts: Parts, *arrays: Array) -> list[tuple[Array, ...]]:
    """Returns, for each part, the part and its channels of each array in float32; (B, C) becomes (B, 1, 1, C)."""
    out, start = [], 0
    for x in parts:
        channels = slice(start, start := start + x.shape[-1])
        slices = [a[..., channels] if a.ndim == 4 else a[:, None, None, channels] for a in arrays]
        out.append(tuple(at_least_float32(a) for a in (x, *slices)))
    return out


def _each(f: Any, parts: Parts, *arrays: Array) -> Float[Array, "B H W C"]:
    """Applies f to each part and its channels of the arrays, and concatenates the results."""
    maps = [f(*args) for args in _by_part(parts, *arrays)]
    return maps[0] if len(maps) == 1 else jnp.concatenate(maps, -1)
