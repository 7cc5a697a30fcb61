"""A small U-Net for small images, with attention at the lowest resolution. `models.unet1d` is the same for sequences.

The embedding of time and conditions scales and shifts the output of group norms. The resolution changes by average
pooling and nearest-neighbour upsampling instead of strided convolutions, whose gradients are slow on CPUs. Odd sizes
are padded at the end of each axis before pooling, and cropped after upsampling. The blocks work on maps with any number
of spatial axes.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, Kind, check
from flowjax.keys import RowKeys
from flowjax.models.embeddings import batch_time, refuse_mask, time_features
from flowjax.models.encoders import beside, check_fields, embed, encoders_of, extra_channels
from flowjax.models.layers import fold, unfold
from flowjax.typing import Cond, PRNGKey

__all__ = ["Attention", "ResBlock", "UNet"]


def _groups(channels: int) -> int:
    return max(g for g in range(1, min(32, channels // 4) + 1) if channels % g == 0)


def _conv(a: int, b: int, size: int, axes: int, rngs: nnx.Rngs, zero: bool = False) -> nnx.Conv:
    init = (
        nnx.initializers.zeros_init() if zero else nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    )
    return nnx.Conv(a, b, (size,) * axes, padding="SAME", kernel_init=init, rngs=rngs)


class ResBlock(nnx.Module):
    """x + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)). The last convolution is initialised to zero."""

    def __init__(self, a: int, b: int, width: int, axes: int = 2, *, rngs: nnx.Rngs):
        self.norm1 = nnx.GroupNorm(a, num_groups=_groups(a), rngs=rngs)
        self.conv1 = _conv(a, b, 3, axes, rngs)
        self.modulate = nnx.Linear(width, 2 * b, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.norm2 = nnx.GroupNorm(b, num_groups=_groups(b), rngs=rngs)
        self.conv2 = _conv(b, b, 3, axes, rngs, zero=True)
        self.skip = _conv(a, b, 1, axes, rngs) if a != b else None

    def __call__(self, x: Float[Array, "B *space a"], embedding: Float[Array, "B E"]) -> Float[Array, "B *space b"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        scale, shift = jnp.split(jnp.expand_dims(self.modulate(embedding), (*range(1, x.ndim - 1),)), 2, -1)
        h = self.conv2(jax.nn.silu(self.norm2(h) * (1 + scale) + shift))
        return h + (x if self.skip is None else self.skip(x))


class Attention(nnx.Module):
    """Self-attention over the pixels of a map, with a residual connection. The output layer is initialised to zero."""

    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = nnx.GroupNorm(channels, num_groups=_groups(channels), rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        b, *space, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, math.prod(space), 3, self.heads, c // self.heads)
        mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation="xla")
        return x + self.out(mixed.reshape(x.shape))


class UNet(nnx.Module):
    """A U-Net of residual blocks at several resolutions, with attention at the lowest one and skip connections.

    Args:
        shape: (H, W, C) of one image. H and W must be multiples of `patch`.
        channels: number of channels at full resolution.
        multipliers: number of channels of each level divided by `channels`. Each level after the first halves the
            resolution.
        blocks: number of residual blocks per level.
        patch: side of the pixel blocks that are folded into channels; with 2, the network runs at half the resolution.
        heads: number of attention heads.
        fields: the conditions, whose kinds must be in `encoders.TAKES`.
        two_times: whether the network takes the time s of x beside t. The embedding of t - s is added to that of s.
        outputs: number of output images, concatenated along the last axis.
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if sizes do not divide each other, or a condition is not supported.
    """

    # On CPUs, XLA has fast convolution kernels only outside loops: the gradients of a U-Net took 9.9 s per step inside
    # a loop and 0.58 s outside (batch 64 of Fashion-MNIST, 2 cores, jaxlib 0.10.2).
    slow_in_cpu_loops: ClassVar[bool] = True
    _name: ClassVar[str] = "unet"
    _beside: ClassVar[Kind] = "image"  # the kind of the conditions whose channels are concatenated to the input

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        patch: int = 1,
        heads: int = 4,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        rngs: nnx.Rngs,
    ):
        *space, c = shape
        if any(side % patch for side in space):
            raise ValueError(f"patch {patch} does not divide images of {' x '.join(map(str, space))}")
        check_fields(self._name, fields, shape, self._beside)
        if channels < 4 or channels % 2:
            raise ValueError(f"channels must be even and at least 4, not {channels}")
        if channels * multipliers[-1] % heads:
            raise ValueError(f"{heads} heads do not divide the {channels * multipliers[-1]} channels of the last level")
        self.patch, self.features = patch, channels
        widths = [channels * m for m in multipliers]
        e = 4 * channels
        self.time1 = nnx.Linear(self.features, e, rngs=rngs)
        self.time2 = nnx.Linear(e, e, rngs=rngs)
        self.fields, self.two_times = fields, two_times
        self.encoders = nnx.data(encoders_of([f for f in fields if f.kind != self._beside], e, rngs=rngs))
        axes = len(space)
        folded = patch**axes
        self.stem = _conv((c + extra_channels(fields, self._beside)) * folded, channels, 3, axes, rngs)
        down, skips, now = [], [channels], channels
        for w in widths:
            level = []
            for _ in range(blocks):
                level.append(ResBlock(now, w, e, axes, rngs=rngs))
                now = w
                skips.append(now)
            down.append(nnx.List(level))
        self.down = nnx.List(down)
        self.middle1 = ResBlock(now, now, e, axes, rngs=rngs)
        self.attention = Attention(now, heads, rngs=rngs)
        self.middle2 = ResBlock(now, now, e, axes, rngs=rngs)
        up = []
        for i, w in reversed(list(enumerate(widths))):
            level = []
            for _ in range(blocks + (i == 0)):
                level.append(ResBlock(now + skips.pop(), w, e, axes, rngs=rngs))
                now = w
            up.append(nnx.List(level))
        self.up = nnx.List(up)
        self.norm = nnx.GroupNorm(now, num_groups=_groups(now), rngs=rngs)
        self.out = _conv(now, outputs * c * folded, 3, axes, rngs, zero=True)
        self.difference1 = nnx.Linear(self.features, e, rngs=rngs) if two_times else None
        zeros = nnx.initializers.zeros_init()
        self.difference2 = nnx.Linear(e, e, kernel_init=zeros, rngs=rngs) if two_times else None

    def __call__(
        self,
        t: Array | float,
        x: Float[Array, "B *space C"],
        cond: Cond = None,
        *,
        s: Array | float | None = None,
        mask: Array | None = None,
        key: PRNGKey | RowKeys | None = None,
        forward_mode: bool = False,
    ) -> Float[Array, "B *space D"]:
        """Returns the network's output (B, H, W, outputs * C).

        Args:
            t: time, () or (B,), in [0, 1].
            x: (B, H, W, C).
            cond: conditions by name, or None. A field that is absent counts as not given.
            s: the time of x, () or (B,), if `two_times` is True; None otherwise.
            mask: must be None, because networks of images take no mask.
            key: ignored, because there is no dropout.
            forward_mode: ignored, because JAX differentiates all operations of this network in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if a mask is given, or if `s` does not fit `two_times`.
        """
        refuse_mask(mask)
        cond = check(cond, self.fields)
        embedding = embed(self, batch_time(t, x), s, cond, lambda t: time_features(t, self.features), skip=())
        h = beside(x, self.fields, cond, self._beside)
        h = self.stem(fold(h, self.patch) if h.ndim == 4 else h)
        skips, sizes = [h], []
        for i, level in enumerate(self.down):
            if i:
                sizes.append(h.shape[1:-1])
                h = _halve(h)
            for block in level:
                h = block(h, embedding)
                skips.append(h)
        h = self.middle2(self.attention(self.middle1(h, embedding)), embedding)
        for i, level in enumerate(self.up):
            if i:
                h = _double(h, sizes.pop())
            for block in level:
                h = block(jnp.concatenate([h, skips.pop()], -1), embedding)
        y = self.out(jax.nn.silu(self.norm(h)))
        return unfold(y, self.patch) if y.ndim == 4 else y


def _halve(x: Float[Array, "B *size C"]) -> Float[Array, "B *half C"]:
    """Averages pairs along each spatial axis. An axis of odd size is first padded by its last value."""
    b, *size, c = x.shape
    x = jnp.pad(x, ((0, 0), *((0, n % 2) for n in size), (0, 0)), mode="edge")
    pairs = [m for n in size for m in ((n + 1) // 2, 2)]
    return x.reshape(b, *pairs, c).mean((*range(2, x.ndim + len(size) - 1, 2),))


def _double(x: Float[Array, "B *half C"], size: tuple[int, ...]) -> Float[Array, "B *size C"]:
    """Repeats each value along each spatial axis, and crops the result to the size."""
    b, *half, c = x.shape
    pairs = [m for n in half for m in (n, 2)]
    x = jnp.broadcast_to(jnp.expand_dims(x, (*range(2, 2 * len(half) + 1, 2),)), (b, *pairs, c))
    return x.reshape(b, *(2 * n for n in half), c)[:, *(slice(n) for n in size)]
