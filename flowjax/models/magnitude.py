"""Magnitude-preserving layers (EDM2; Karras et al. 2024, arXiv:2312.02696).

If the input of a layer has mean square 1, so has its output, for any weights. Activations therefore do not grow with
depth or during training, and the layers need no norms and no biases. Only the direction of a weight matters; where the
magnitude has to change, a layer has an explicit gain.

Parameters named `weight` are normalised before use. They are stored with mean square 1 in every output channel, which
is their last axis, so that the learning rate is the relative change of a weight per step in layers of any width.
`training.optimizers.normalise_weights` renormalises them after every step.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from flowjax.models.layers import upsample_conv
from flowjax.precision import at_least_float32
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
"""Vectors with a root mean square below this value are not scaled up to 1 by `normalise`."""

SILU_MAGNITUDE = 0.596
"""Root mean square of silu(z) for z ~ N(0, 1)."""

WEIGHT = "weight"
"""The name of all parameters that are normalised before use."""


def is_weight(params: PyTree[Any]) -> PyTree[bool]:
    """Returns a tree like `params`, a nested dictionary: True if the parameter is normalised before use."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path[-1:]) == WEIGHT, params)


def normalise(x: Float[Array, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """Divides x by its root mean square along the axes, which is computed in float32."""
    wide = at_least_float32(x)
    square = jnp.mean(wide * wide, axis, keepdims=True)
    return (wide * lax.rsqrt(square + EPS**2)).astype(x.dtype)


def unit(weight: Float[Array, "*fan_in b"]) -> Float[Array, "*fan_in b"]:
    """Returns the weight normalised to mean square 1 in every output channel."""
    return normalise(weight, tuple(range(weight.ndim - 1)))


# recomputed in the backward pass, so that only its input is kept in memory and not a float32 copy
pixel_norm = jax.checkpoint(normalise)
"""`normalise` over the channels of every pixel."""


def mp_silu(x: Float[Array, "..."], gain: Float[Array, "..."] | float = 1.0) -> Float[Array, "..."]:
    """silu(gain x) divided by its root mean square for gain x ~ N(0, 1) (eq. 81), in the dtype of x.

    Only x and the gain are kept in memory for the backward pass.
    """
    return jax.checkpoint(_silu)(x, jnp.asarray(gain, jnp.promote_types(x.dtype, jnp.float32)))


def _silu(x: Array, gain: Array) -> Array:
    return (jax.nn.silu(at_least_float32(x) * gain) / SILU_MAGNITUDE).astype(x.dtype)


def mp_sum(a: Float[Array, "..."], b: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """(1 - t) a + t b divided by its root mean square for uncorrelated a and b of mean square 1 (eq. 88)."""
    norm = math.hypot(1 - t, t)
    return (1 - t) / norm * a + t / norm * b


def cat_gains(a: int, b: int, t: float) -> tuple[float, float]:
    """Returns the factors of two parts with a and b channels in a magnitude-preserving concatenation (eq. 103).

    The concatenation has mean square 1, and the contributions of the parts to the next layer have the ratio
    1 - t to t for any numbers of channels. The next layer applies the factors, which saves a pass over memory.
    """
    norm = math.sqrt((a + b) / ((1 - t) ** 2 + t**2))
    return norm * (1 - t) / math.sqrt(a), norm * t / math.sqrt(b)


def halve(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Halves the resolution by averaging blocks of 2 x 2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Doubles the resolution by repeating each pixel in a block of 2 x 2."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def fourier(level: Float[Array, " B"], n: int) -> Float[Array, "B n"]:
    """Returns the Fourier features sqrt(2) cos(2 pi (f level + phase)) with frequencies f from N(0, 1) (eq. 75).

    The frequencies and phases are not random, unlike in the paper: the frequencies are quantiles of N(0, 1), and the
    phases are multiples of the golden ratio modulo 1. They are the same for every seed and need not be saved.
    """
    k = jnp.arange(n)
    f = jax.scipy.special.ndtri((k + 0.5) / n)
    phase = k * ((math.sqrt(5) - 1) / 2) % 1
    return math.sqrt(2) * jnp.cos(2 * jnp.pi * (level[:, None] * f + phase))


class _Weighted(nnx.Module):
    """A layer with one weight that is normalised before use."""

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.weight = nnx.Param(unit(jax.random.normal(rngs.params(), shape, jnp.float32)))

    def scaled(self, gain: Float[Array, ""] | float, dtype: Any) -> Float[Array, "..."]:
        """Returns the weight normalised to the norm `gain` in every output channel (eq. 47)."""
        weight = self.weight[...]
        return (unit(weight) * (gain / math.sqrt(weight[..., 0].size))).astype(dtype)


class MPLinear(_Weighted):
    """A linear layer on the last axis without bias. On feature maps it is a 1 x 1 convolution.

    Args:
        a, b: number of input and output channels.
        rngs: random number generators of the initialisation.
    """

    def __init__(self, a: int, b: int, *, rngs: nnx.Rngs):
        super().__init__((a, b), rngs=rngs)

    def __call__(
        self, *parts: Float[Array, "*B _"], gain: Float[Array, ""] | float = 1.0, gains: tuple[float, ...] = (1.0,)
    ) -> Float[Array, "*B b"]:
        """Returns gain times the layer of the concatenation of gains[i] * parts[i], which is not materialised."""
        weight = self.scaled(gain, jnp.promote_types(parts[0].dtype, jnp.float32))
        cut = [sum(p.shape[-1] for p in parts[:i]) for i in range(1, len(parts))]
        split = zip(parts, jnp.split(weight, cut), gains, strict=True)
        return sum(p @ (w * g).astype(p.dtype) for p, w, g in split)  # type: ignore


class MPConv(_Weighted):
    """A 3 x 3 convolution without bias, with zero padding, in NHWC layout.

    Args:
        a, b: number of input and output channels.
        up: whether to double the resolution first, by repeating pixels.
        rngs: random number generators of the initialisation.
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
    """A learned vector of mean square 1 for each class and, as the last one, for "no label".

    It equals `MPLinear` of a one-hot vector times the square root of its length.

    Args:
        num_classes: number of classes K. Labels are 0 ... K - 1, or -1 for no label.
        width: width of a vector.
        rngs: random number generators of the initialisation.
    """

    def __init__(self, num_classes: int, width: int, *, rngs: nnx.Rngs):
        super().__init__((num_classes + 1, width), rngs=rngs)

    def __call__(self, label: Int[Array, " B"] | None, batch: int) -> Float[Array, "B width"]:
        table = unit(self.weight[...])
        if label is None:
            return jnp.broadcast_to(table[-1], (batch, table.shape[1]))
        return table[label]
