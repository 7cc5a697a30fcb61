"""The U-Net of ADM and DDPM++, in the form that torchcfm trains on CIFAR-10.

Residual blocks on a ladder of resolutions, attention on some of them, every map of the way down concatenated on the
way up (Ho et al. 2020; Dhariwal & Nichol 2021; Song et al. 2021). The preset of 128 channels, (1, 2, 2, 2), 2 blocks,
attention on maps of side 16, heads of width 64 and no `film` is torchcfm's CIFAR-10 network, parameter for parameter:
35,746,307.

Written for the memory system: group norm, embedding and SiLU are one pass (`models.norm`), biases ride beside their
maps until a norm takes them, doubling the resolution is part of its convolution (`models.layers`), attention is fused
where the hardware can (`models.attention`). Computes in `dtype`, with float32 parameters, statistics and softmax.
"""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.attention import attend
from flowjax.models.embeddings import batch_time, refuse_mask
from flowjax.models.encoders import beside, check_fields, embed, encoders_of, extra_channels
from flowjax.models.layers import (
    DTYPES,
    REMAT,
    Conv,
    dropout,
    remat,
    split_keys,
    uniform_init,
)
from flowjax.models.norm import GroupNorm, Parts
from flowjax.typing import Cond, PRNGKey

__all__ = ["ADM", "Attention", "Map", "ResBlock", "Stage"]

_zeros = nnx.initializers.zeros_init()


class Map(NamedTuple):
    """A feature map as parts side by side, and a bias that has not been added yet: the norms take both for nothing.

    Added at once, each bias would cost the backward pass a reduction over the whole map; putting maps together costs a
    copy of them.
    """

    parts: Parts
    bias: Float[Array, " C"]

    @property
    def x(self) -> Float[Array, "B H W C"]:
        """The values of a map in one part."""
        (x,) = self.parts
        return x

    def settled(self) -> "Map":
        """The same with the bias in the values, as a padded convolution needs it."""
        return Map((self.x + self.bias.astype(self.x.dtype),), jnp.zeros_like(self.bias))


def _beside(a: Map, b: Map) -> Map:
    return Map(a.parts + b.parts, jnp.concatenate([a.bias, b.bias]))


class ResBlock(nnx.Module):
    """x + conv(drop(silu(norm(conv(silu(norm(x))) + embedding)))); the last convolution starts at zero."""

    def __init__(self, a: int, b: int, width: int, film: bool, rate: float, *, rngs: nnx.Rngs):
        self.film, self.rate = film, rate
        self.norm1 = GroupNorm(a, rngs=rngs)
        self.conv1 = Conv(a, b, rngs=rngs)
        self.embed = nnx.Linear(width, b * (1 + film), kernel_init=uniform_init(), rngs=rngs)
        self.norm2 = GroupNorm(b, rngs=rngs)
        self.conv2 = Conv(b, b, init=_zeros, rngs=rngs)
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
    """The 1 x 1 convolution of a map."""
    kernel = conv.kernel[0, 0]
    ends = np.cumsum([x.shape[-1] for x in m.parts])[:-1]
    products = [x @ k.astype(x.dtype) for x, k in zip(m.parts, jnp.split(kernel, ends), strict=True)]
    return Map((sum(products[1:], products[0]),), conv.bias[...] + m.bias @ kernel)


class Attention(nnx.Module):
    """Self-attention over the pixels of a map, with a residual that starts at zero."""

    def __init__(self, channels: int, head_width: int, heads: int = 0, *, rngs: nnx.Rngs):
        if heads and channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels")
        if not heads and channels % head_width:
            raise ValueError(f"heads of width {head_width} do not divide {channels} channels")
        self.heads = heads or channels // head_width
        self.norm = GroupNorm(channels, act=False, rngs=rngs)
        self.qkv = nnx.Linear(channels, 3 * channels, kernel_init=uniform_init(), rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=_zeros, rngs=rngs)

    def __call__(self, m: Map, forward_mode: bool = False) -> Map:
        b, h, w, c = m.x.shape
        x = self.norm(m.x, add=m.bias, forward_mode=forward_mode)
        # three products, so that none of q, k and v has to be copied out of the others
        q, k, v = (x @ kernel for kernel in jnp.split(self.qkv.kernel[...].astype(x.dtype), 3, -1))
        # softmax does not see the bias of k, and v's goes through the weights, which sum to one, as it is
        q_bias, _, v_bias = jnp.split(_bias(self.qkv), 3)
        q, k, v = (a.reshape(b, h * w, self.heads, -1) for a in (q + q_bias.astype(q.dtype), k, v))
        out = self.out.kernel[...]
        mixed = attend(q, k, v, forward_mode).reshape(b, h, w, c) @ out.astype(x.dtype)
        return Map((m.x + mixed,), m.bias + _bias(self.out) + v_bias @ out)


def _bias(layer: nnx.Linear) -> Array:
    assert layer.bias is not None
    return layer.bias[...]


class Stage(nnx.Module):
    """A residual block, and attention after it on some maps."""

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


def _resampled(conv: Conv, m: Map, forward_mode: bool) -> Map:
    """The convolution of a settled map."""
    return Map((conv.linear(m.x, forward_mode),), conv.bias[...])


class ADM(nnx.Module):
    """The U-Net of ADM and DDPM++.

    Args:
        shape: (H, W, C) of one image; 2^(levels - 1) divides H and W.
        channels: at full resolution.
        multipliers: channels of each level, in units of `channels`; each level after the first halves the map.
        blocks: residual blocks a level.
        attention: sides of the maps with attention; the middle has it always.
        head_width: channels of each attention head, where `heads` is 0.
        heads: number of attention heads in every attention layer, whatever its number of channels; 0 for
            `channels of the layer / head_width`.
        film: the embedding scales and shifts after the norm (ADM) instead of being added before it. Where it is added,
            blocks of 32 channels do not depend on it: their norm has one channel per group, and removes it.
        dropout: rate, inside each residual block; applied where the call passes a key.
        time_scale: what multiplies t before its sines; torchcfm's is 1, ADM's 1000.
        fields: of the conditions, of the kinds in `encoders.TAKES`.
        two_times: whether the network takes a second time s. An embedding of t - s is added to that of t.
        outputs: images side by side in the last axis.
        dtype: a name in `DTYPES`.
        remat: a name in `REMAT`, for each residual block with its attention.
        rngs: for the initialisation.
    """

    # XLA's CPU compiler gives convolutions their fast kernels only outside loops. Inside one, the gradients of a U-Net
    # took 9.9 s a step against 0.58 s (batch 64 of Fashion-MNIST, 2 cores, jaxlib 0.10.2).
    slow_in_cpu_loops: ClassVar[bool] = True
    cast_parameters: ClassVar[str] = (
        r"^((down|up)/\d+/\d+|middle[12])/(block/conv[12]|attention/qkv)/kernel$|^downs/\d+/kernel$|^out/bias$"
    )

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        head_width: int = 64,
        heads: int = 0,
        film: bool = False,
        dropout: float = 0.1,
        time_scale: float = 1.0,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        dtype: str = "bfloat16",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        height, width, c = shape
        halvings = 2 ** (len(multipliers) - 1)
        if height % halvings or width % halvings:
            raise ValueError(f"{len(multipliers)} levels need images whose sides {halvings} divides, not {shape[:2]}")
        if channels % 32:
            raise ValueError(f"channels must be a multiple of 32, the groups of the norms, not {channels}")
        if not film and channels * max(multipliers) == 32:
            raise ValueError(
                "adm without film needs a level of more than 32 channels: a norm with one channel per group removes "
                "the embedding of the time and the conditions; set film=True or channels=64"
            )
        check_fields("adm", fields, shape)
        check_name("dtype", dtype, DTYPES)
        check_name("remat", remat, REMAT)
        self.dtype, self.remat, self.time_scale, self.features = DTYPES[dtype], remat, time_scale, channels
        e = 4 * channels
        linear = lambda a, b: nnx.Linear(a, b, kernel_init=uniform_init(), rngs=rngs)
        self.time1, self.time2 = linear(channels, e), linear(e, e)
        self.fields, self.two_times = fields, two_times
        self.encoders = nnx.data(encoders_of(fields, e, rngs=rngs))
        self.stem = Conv(c + extra_channels(fields), channels, rngs=rngs)
        stage = lambda a, b, side: Stage(a, b, e, film, dropout, side in attention, head_width, heads, rngs=rngs)
        widths = [channels * m for m in multipliers]
        sides = [height // 2**i for i in range(len(widths))]
        down, downs, skips, now = [], [], [channels], channels
        for i, (w, side) in enumerate(zip(widths, sides, strict=True)):
            if i:
                downs.append(Conv(now, now, down=True, rngs=rngs))
                skips.append(now)
            level = []
            for _ in range(blocks):
                level.append(stage(now, w, side))
                now = w
                skips.append(now)
            down.append(nnx.List(level))
        self.down, self.downs = nnx.List(down), nnx.List(downs)
        self.middle1 = Stage(now, now, e, film, dropout, True, head_width, heads, rngs=rngs)
        self.middle2 = Stage(now, now, e, film, dropout, False, head_width, heads, rngs=rngs)
        up, ups = [], []
        for i, (w, side) in reversed(list(enumerate(zip(widths, sides, strict=True)))):
            level = []
            for _ in range(blocks + 1):
                level.append(stage(now + skips.pop(), w, side))
                now = w
            up.append(nnx.List(level))
            if i:
                ups.append(Conv(now, now, up=True, rngs=rngs))
        self.up, self.ups = nnx.List(up), nnx.List(ups)
        self.norm = GroupNorm(now, rngs=rngs)
        self.out = Conv(now, outputs * c, init=_zeros, rngs=rngs)
        self.difference1 = linear(channels, e) if two_times else None
        self.difference2 = linear(e, e) if two_times else None

    def __call__(
        self,
        t: Array | float,
        x: Float[Array, "B H W C"],
        cond: Cond = None,
        *,
        s: Array | float | None = None,
        mask: Array | None = None,
        key: PRNGKey | RowKeys | None = None,
        forward_mode: bool = False,
    ) -> Float[Array, "B H W D"]:
        """The network's output, in float32.

        Args:
            t: () or (B,) in [0, 1].
            x: (B, H, W, C).
            cond: conditions by name, or None; a field that is absent is not given.
            s: () or (B,), the second time of a network of two times; None otherwise.
            mask: None; other networks take masks.
            key: of the dropout, for all rows or one for each; None for none.
            forward_mode: use only operations that JAX differentiates in forward mode.

        Raises:
            ValueError: on a condition that is not one of `fields`, a mask, or a second time where it has no meaning.
        """
        refuse_mask(mask)
        cond = check(cond, self.fields)
        embedding = embed(self, batch_time(t, x), s, cond)
        n = 2 + sum(len(level) for level in (*self.down, *self.up))
        keys = iter(split_keys(row_keys(key, x.shape[0]), n))
        block = lambda stage: lambda m, e, key: stage(m, e, key, forward_mode)
        run = lambda stage, m: remat(self.remat, block(stage))(m, embedding, next(keys))
        m = Map((self.stem.linear(beside(x.astype(self.dtype), self.fields, cond)),), self.stem.bias[...])
        skips = [m]
        for i, level in enumerate(self.down):
            if i:
                m = _resampled(self.downs[i - 1], m, forward_mode)
                skips.append(m)
            for j, stage in enumerate(level):
                m = run(stage, m)
                if j == len(level) - 1 and i < len(self.downs):
                    m = m.settled()
                skips.append(m)
        m = run(self.middle2, run(self.middle1, m))
        for i, level in enumerate(self.up):
            for stage in level:
                m = run(stage, _beside(m, skips.pop()))
            if i < len(self.ups):
                m = _resampled(self.ups[i], m.settled(), forward_mode)
        return self.out(self.norm(m.x, add=m.bias, forward_mode=forward_mode)).astype(jnp.float32)
