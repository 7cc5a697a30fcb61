"""The blocks of the U-Net of ADM and DDPM++, on feature maps whose parts and biases have not been combined."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.keys import RowKeys
from flowjax.models.attention import attend
from flowjax.models.layers import Conv, dropout, uniform_init
from flowjax.models.norm import GroupNorm, Parts

__all__ = ["Attention", "Map", "ResBlock", "Stage", "concatenated", "resampled", "zeros"]

zeros = nnx.initializers.zeros_init()
"""The initialiser of layers whose output is initially zero."""


class Map(NamedTuple):
    """A feature map as a tuple of parts that have not been concatenated, and a bias that has not been added yet.

    `GroupNorm` takes both without extra cost. Adding the bias earlier would cost a reduction over the whole map in the
    backward pass, and concatenating the parts would cost a copy of them.

    Attributes:
        parts: arrays (B, H, W, c) whose channels together are the C channels of the map.
        bias: (C,), to be added to every pixel.
    """

    parts: Parts
    bias: Float[Array, " C"]

    @property
    def x(self) -> Float[Array, "B H W C"]:
        """The values of a map that has a single part, without the bias."""
        (x,) = self.parts
        return x

    def settled(self) -> "Map":
        """The same map with the bias added to the values, which a padded convolution needs."""
        return Map((self.x + self.bias.astype(self.x.dtype),), jnp.zeros_like(self.bias))


def concatenated(a: Map, b: Map) -> Map:
    """Concatenates two maps along the channels, without a copy."""
    return Map(a.parts + b.parts, jnp.concatenate([a.bias, b.bias]))


class ResBlock(nnx.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + embedding)))). The last convolution is initialised to zero."""

    def __init__(self, a: int, b: int, width: int, film: bool, rate: float, *, rngs: nnx.Rngs):
        self.film, self.rate = film, rate
        self.norm1 = GroupNorm(a, rngs=rngs)
        self.conv1 = Conv(a, b, rngs=rngs)
        self.embed = nnx.Linear(width, b * (1 + film), kernel_init=uniform_init(), rngs=rngs)
        self.norm2 = GroupNorm(b, rngs=rngs)
        self.conv2 = Conv(b, b, init=zeros, rngs=rngs)
        self.skip = Conv(a, b, 1, rngs=rngs) if a != b else None

    def __call__(self, m: Map, embedding: Float[Array, "B E"], key: RowKeys | None, forward_mode: bool = False) -> Map:
        h = self.conv1.linear(self.norm1(*m.parts, add=m.bias, forward_mode=forward_mode))
        e, bias = self.embed(embedding), self.conv1.bias[...]
        if self.film:
            scale, shift = jnp.split(e, 2, -1)
            h = self.norm2(h, add=bias, film=(scale, shift), forward_mode=forward_mode)
        else:
            h = self.norm2(h, add=e + bias, forward_mode=forward_mode)
        h = self.conv2.linear(dropout(h, self.rate, key))
        if self.skip is not None:
            m = _mixed(self.skip, m)
        return Map((h + m.x,), self.conv2.bias[...] + m.bias)


def _mixed(conv: Conv, m: Map) -> Map:
    """Applies a 1 x 1 convolution to a map without concatenating its parts."""
    kernel = conv.kernel[0, 0]
    ends = np.cumsum([x.shape[-1] for x in m.parts])[:-1]
    products = [x @ k.astype(x.dtype) for x, k in zip(m.parts, jnp.split(kernel, ends), strict=True)]
    return Map((sum(products[1:], products[0]),), conv.bias[...] + m.bias @ kernel)


class Attention(nnx.Module):
    """Self-attention over the pixels of a map, with a residual connection. The output layer is initialised to zero."""

    def __init__(self, channels: int, head_width: int, heads: int = 0, *, rngs: nnx.Rngs):
        if heads and channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        if not heads and channels % head_width:
            raise ValueError(f"heads of width {head_width} do not divide {channels} channels")
        self.heads = heads or channels // head_width
        self.norm = GroupNorm(channels, act=False, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, kernel_init=uniform_init(), rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, m: Map, forward_mode: bool = False) -> Map:
        b, h, w, c = m.x.shape
        x = self.norm(m.x, add=m.bias, forward_mode=forward_mode)
        # three products, because splitting the result of one product would copy q, k and v
        q, k, v = (x @ kernel for kernel in jnp.split(self.qkv.kernel[...].astype(x.dtype), 3, -1))
        # the bias of k does not change the softmax; the bias of v passes unchanged through weights that sum to one
        q_bias, _, v_bias = jnp.split(_bias(self.qkv), 3)
        q, k, v = (a.reshape(b, h * w, self.heads, -1) for a in (q + q_bias.astype(q.dtype), k, v))
        out = self.out.kernel[...]
        mixed = attend(q, k, v, forward_mode).reshape(b, h, w, c) @ out.astype(x.dtype)
        return Map((m.x + mixed,), m.bias + _bias(self.out) + v_bias @ out)


def _bias(layer: nnx.Linear) -> Array:
    assert layer.bias is not None
    return layer.bias[...]


class Stage(nnx.Module):
    """A residual block, followed by attention on some feature maps."""

    def __init__(
        self,
        a: int,
        b: int,
        width: int,
        film: bool,
        rate: float,
        attention: bool,
        head_width: int,
        heads: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        self.block = ResBlock(a, b, width, film, rate, rngs=rngs)
        self.attention = Attention(b, head_width, heads, rngs=rngs) if attention else None

    def __call__(self, m: Map, embedding: Float[Array, "B E"], key: RowKeys | None, forward_mode: bool = False) -> Map:
        m = self.block(m, embedding, key, forward_mode)
        return m if self.attention is None else self.attention(m, forward_mode)


def resampled(conv: Conv, m: Map, forward_mode: bool) -> Map:
    """Applies a convolution that changes the resolution to a map whose bias has been added (`Map.settled`)."""
    return Map((conv.linear(m.x, forward_mode),), conv.bias[...])
