"""Layers that keep the magnitude of what passes through them (Karras et al. 2024, EDM2).

If every number of the input has mean square 1, so has every number of the output, at any weights: nothing grows with
depth or with training, and no layer needs a norm behind it or a bias to undo one. A weight acts through its direction
alone, and what has to change magnitude is a gain that says so.

Parameters called `weight` are those whose magnitude means nothing. They are stored with mean square 1 in every output
channel, so that a learning rate is the relative change of a weight in one step, in layers of any width;
`training.optimizers.normalise_weights` keeps them there. Their last axis is the output channel.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from flowjax.models.layers import upsample_conv
from flowjax.trees import path_name

__all__ = [
    "EPS",
    "SILU_MAGNITUDE",
    "WEIGHT",
    "MPConv",
    "MPEmbedding",
    "MPLinear",
    "cat_gains",
    "double",
    "fourier",
    "halve",
    "is_weight",
    "mp_silu",
    "mp_sum",
    "normalise",
    "pixel_norm",
    "unit",
]

EPS = 1e-4
"""The magnitude below which a vector counts as zero and is left small."""

SILU_MAGNITUDE = 0.596
"""Root mean square of silu(z) for z ~ N(0, 1)."""

WEIGHT = "weight"
"""The name of every parameter that is normalised before use."""


def is_weight(params: PyTree[Any]) -> PyTree[bool]:
    """A tree like `params`, a nested dictionary: true where the parameter is normalised before use."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path[-1:]) == WEIGHT, params)


def normalise(x: Float[Array, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """x over its root mean square along the axes, which is found in float32."""
    wide = x.astype(jnp.float32)
    square = jnp.mean(wide * wide, axis, keepdims=True)
    return (wide * lax.rsqrt(square + EPS**2)).astype(x.dtype)


def unit(weight: Float[Array, "*fan_in b"]) -> Float[Array, "*fan_in b"]:
    """The weight with mean square 1 in every output channel."""
    return normalise(weight, tuple(range(weight.ndim - 1)))


# recomputed in the backward pass: its input is in memory anyway, and its float32 copy need not be
pixel_norm = jax.checkpoint(normalise)
"""`normalise` over the channels of every pixel."""


def mp_silu(x: Float[Array, "..."], gain: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    """silu(gain x) over its root mean square at gain x ~ N(0, 1) (eq. 81), in the type of x.

    One pass forwards and one back: the backward pass keeps x and the gain alone.
    """
    return jax.checkpoint(_silu)(x, jnp.asarray(gain, jnp.float32))


def _silu(x: Array, gain: Array) -> Array:
    return (jax.nn.silu(x.astype(jnp.float32) * gain) / SILU_MAGNITUDE).astype(x.dtype)


def mp_sum(a: Float[Array, "..."], b: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """(1 - t) a + t b over its magnitude for uncorrelated a and b (eq. 88)."""
    norm = math.hypot(1 - t, t)
    return (1 - t) / norm * a + t / norm * b


def cat_gains(a: int, b: int, t: float) -> tuple[float, float]:
    """What a and b channels are multiplied by where they stand side by side (eq. 103).

    The whole has mean square 1, and the parts contribute to the next layer as 1 - t to t whatever their widths. The
    gains go into whatever reads the parts, so that the concatenation is no pass of its own.
    """
    norm = math.sqrt((a + b) / ((1 - t) ** 2 + t**2))
    return norm * (1 - t) / math.sqrt(a), norm * t / math.sqrt(b)


def halve(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The means of 2 x 2 blocks of pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Every pixel as a block of 2 x 2: the transpose of `halve`, times four."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def fourier(level: Float[Array, " B"], n: int) -> Float[Array, "B n"]:
    """sqrt(2) cos(2 pi (f level + phase)), with f of the law N(0, 1) and phases of the uniform law (eq. 75).

    Not drawn but spread evenly, f as the quantiles of its law and the phases in golden steps: the same for every seed,
    and nothing for a checkpoint to hold.
    """
    k = jnp.arange(n)
    f = jax.scipy.special.ndtri((k + 0.5) / n)
    phase = k * ((math.sqrt(5) - 1) / 2) % 1
    return math.sqrt(2) * jnp.cos(2 * jnp.pi * (level[:, None] * f + phase))


class _Weighted(nnx.Module):
    """A layer with one normalised weight."""

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.weight = nnx.Param(unit(jax.random.normal(rngs.params(), shape, jnp.float32)))

    def scaled(self, gain: Float[Array, ""] | float, dtype: Any) -> Float[Array, "..."]:
        """The weight as it is used: of norm `gain` in every output channel (eq. 47)."""
        weight = self.weight[...]
        return (unit(weight) * (gain / math.sqrt(weight[..., 0].size))).astype(dtype)


class MPLinear(_Weighted):
    """A linear layer on the last axis, without bias; on a map it is a 1 x 1 convolution.

    Args:
        a, b: channels in and out.
    """

    def __init__(self, a: int, b: int, *, rngs: nnx.Rngs):
        super().__init__((a, b), rngs=rngs)

    def __call__(
        self, *parts: Float[Array, "*B _"], gain: Float[Array, ""] | float = 1.0, gains: tuple[float, ...] = (1.0,)
    ) -> Float[Array, "*B b"]:
        """gain times the layer of the parts, each times its own of `gains`, side by side; they are never joined."""
        weight = self.scaled(gain, jnp.float32)
        cut = [sum(p.shape[-1] for p in parts[:i]) for i in range(1, len(parts))]
        split = zip(parts, jnp.split(weight, cut), gains, strict=True)
        return sum(p @ (w * g).astype(p.dtype) for p, w, g in split)  # type: ignore


class MPConv(_Weighted):
    """A 3 x 3 convolution without bias, NHWC, zeros around the map.

    Args:
        a, b: channels in and out.
        up: of the map with its pixels doubled.
    """

    def __init__(self, a: int, b: int, up: bool = False, *, rngs: nnx.Rngs):
        super().__init__((3, 3, a, b), rngs=rngs)
        self.up = up

    def __call__(
        self, x: Float[Array, "B H W a"], gain: Float[Array, ""] | float = 1.0, forward_mode: bool = False
    ) -> Float[Array, "B h w b"]:
        weight = self.scaled(gain, x.dtype)
        if self.up:
            return upsample_conv(x, weight, forward_mode)
        return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


class MPEmbedding(_Weighted):
    """One vector a class, of mean square 1: `MPLinear` of a one-hot vector times the root of its length.

    Args:
        num_classes: K; labels are 0 ... K - 1, or -1 for the vector of those without one, which is the last.
        width: of a vector.
    """

    def __init__(self, num_classes: int, width: int, *, rngs: nnx.Rngs):
        super().__init__((num_classes + 1, width), rngs=rngs)

    def __call__(self, label: Int[Array, " B"] | None, batch: int) -> Float[Array, "B width"]:
        table = unit(self.weight[...])
        if label is None:
            return jnp.broadcast_to(table[-1], (batch, table.shape[1]))
        return table[label]
