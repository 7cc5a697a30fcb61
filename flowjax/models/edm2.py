"""The magnitude-preserving U-Net of EDM2, its configuration G (Karras et al. 2024, figure 21 and appendix B).

Residual blocks on a ladder of resolutions whose layers all keep the magnitude of activations (`models.magnitude`): no
group norms, no biases, no learned scales but one gain a block for the embedding and one for the output. The preset of
128 channels, (1, 2, 3, 4), 3 blocks, attention on maps of sides 16 and 8, on 64 x 64 x 4 latents of 1000 classes is
EDM2-XS; 192 channels make it EDM2-S.

Inputs should have mean square 1, and so should targets: scaling both is the business of the prediction, not of the
network. Train it with `training.optimizers.normalise_weights` behind the optimizer, at a learning rate near 1e-2 that
falls as 1 / sqrt(step), without weight decay. Two things are not as published: a missing label has a vector of its own
instead of zero, so that its embedding has the magnitude of all others; and nothing clips activations at 256, for which
only float16 had use.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.attention import attend
from flowjax.models.embeddings import batch_time, refuse_mask, refuse_two_times, time_difference
from flowjax.models.encoders import beside, check_fields, encode, encoders_of, extra_channels
from flowjax.models.layers import DTYPES, REMAT, dropout, remat, split_keys
from flowjax.models.magnitude import (
    MPConv,
    MPLinear,
    cat_gains,
    double,
    fourier,
    halve,
    mp_silu,
    mp_sum,
    pixel_norm,
)
from flowjax.models.magnitude_encoders import MP_ENCODERS
from flowjax.typing import Cond, PRNGKey

__all__ = [
    "EDM2",
    "LABEL_BALANCE",
    "RESIDUAL_BALANCE",
    "SKIP_BALANCE",
    "TIMES",
    "Attention",
    "Decoder",
    "Encoder",
    "Residual",
    "noise_level",
]

RESIDUAL_BALANCE = 0.3
"""Share of a residual or attention branch in its sum with the stream."""

LABEL_BALANCE = 0.5
"""Share of the class in the embedding."""

SKIP_BALANCE = 0.5
"""Share of the map of the way down where it stands beside the stream."""

TIMES = ("log_snr", "linear")


def noise_level(t: Float[Array, " B"], time: str) -> Float[Array, " B"]:
    """What the network sees of the time: from 2, all noise, to -2, no noise.

    `log_snr` is log((1 - t) / t) / 4, within +-2: EDM's log(sigma) / 4 on the straight path, where sigma is
    (1 - t) / t. The bounds are sigma = e^8, and e^-8 = 3e-4, a twentieth of a grey level; beyond them nothing depends
    on the time. The slope in t, -1 / (4 t (1 - t)), reaches -745 there. `linear` is 2 - 4 t: for schedules whose noise
    is not (1 - t) / t, and for losses that differentiate in t.
    """
    if time == "linear":
        return 2 - 4 * t
    safe = jnp.clip(t, 1e-5, 1 - 1e-5)  # the logarithm's slope must be finite where it is not used
    return jnp.clip((jnp.log1p(-safe) - jnp.log(safe)) / 4, -2.0, 2.0)


class Residual(nnx.Module):
    """conv(drop(mp_silu(c conv(mp_silu(x))))), c = 1 + gain linear(embedding), where the gain starts at zero.

    Args:
        a, b: channels in and out.
        width: of the embedding.
        rate: of the dropout.
        up: double the resolution, as part of the first convolution.
    """

    def __init__(self, a: int, b: int, width: int, rate: float, up: bool = False, *, rngs: nnx.Rngs):
        self.rate = rate
        self.conv1 = MPConv(a, b, up, rngs=rngs)
        self.embed = MPLinear(width, b, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))
        self.conv2 = MPConv(b, b, rngs=rngs)

    def __call__(
        self,
        parts: tuple[Float[Array, "B H W _"], ...],
        gains: tuple[float, ...],
        embedding: Float[Array, "B E"],
        key: RowKeys | None,
        forward_mode: bool = False,
    ) -> Float[Array, "B h w b"]:
        pieces = [mp_silu(p, g) for p, g in zip(parts, gains, strict=True)]
        h = self.conv1(pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, -1), forward_mode=forward_mode)
        c = 1 + self.embed(embedding, gain=self.gain[...])
        return self.conv2(dropout(mp_silu(h, c[:, None, None]), self.rate, key))


class Attention(nnx.Module):
    """Cosine self-attention over the pixels of a map: queries, keys and values have mean square 1 in every head."""

    def __init__(self, channels: int, head_width: int, *, rngs: nnx.Rngs):
        if channels % head_width:
            raise ValueError(f"heads of width {head_width} do not divide {channels} channels")
        self.heads = channels // head_width
        self.qkv = MPLinear(channels, 3 * channels, rngs=rngs)
        self.out = MPLinear(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], forward_mode: bool = False) -> Float[Array, "B H W C"]:
        b, h, w, _ = x.shape
        qkv = pixel_norm(self.qkv(x).reshape(b, h * w, 3, self.heads, -1))
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], forward_mode)
        return mp_sum(x, self.out(y.reshape(x.shape)), RESIDUAL_BALANCE)


class Encoder(nnx.Module):
    """A block of the way down: the stream is normalised in every pixel before it branches.

    Args:
        a, b: channels in and out.
        width: of the embedding.
        rate: of the dropout.
        head_width: of the attention; 0 for none.
        down: halve the resolution first.
    """

    def __init__(self, a: int, b: int, width: int, rate: float, head_width: int, down: bool = False, *, rngs: nnx.Rngs):
        self.down = down
        self.skip = MPLinear(a, b, rngs=rngs) if a != b else None
        self.residual = Residual(b, b, width, rate, rngs=rngs)
        self.attention = Attention(b, head_width, rngs=rngs) if head_width else None

    def __call__(
        self,
        x: Float[Array, "B H W a"],
        embedding: Float[Array, "B E"],
        key: RowKeys | None,
        forward_mode: bool = False,
    ) -> Float[Array, "B h w b"]:
        x = halve(x) if self.down else x
        x = pixel_norm(x if self.skip is None else self.skip(x))
        x = mp_sum(x, self.residual((x,), (1.0,), embedding, key, forward_mode), RESIDUAL_BALANCE)
        return x if self.attention is None else self.attention(x, forward_mode)


class Decoder(nnx.Module):
    """A block of the way up, of the stream or of the stream beside a map of the way down.

    Args:
        a: channels of the stream.
        skip: channels of the map beside it; 0 for none.
        b: channels out; a if there is no map.
        width: of the embedding.
        rate: of the dropout.
        head_width: of the attention; 0 for none.
        up: double the resolution first.
    """

    def __init__(
        self,
        a: int,
        skip: int,
        b: int,
        width: int,
        rate: float,
        head_width: int,
        up: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.up, self.joins = up, skip > 0
        self.gains = cat_gains(a, skip, SKIP_BALANCE) if skip else (1.0,)
        self.skip = MPLinear(a + skip, b, rngs=rngs) if skip else None
        self.residual = Residual(a + skip, b, width, rate, up, rngs=rngs)
        self.attention = Attention(b, head_width, rngs=rngs) if head_width else None

    def __call__(
        self,
        parts: tuple[Float[Array, "B H W _"], ...],
        embedding: Float[Array, "B E"],
        key: RowKeys | None,
        forward_mode: bool = False,
    ) -> Float[Array, "B h w b"]:
        y = self.residual(parts, self.gains, embedding, key, forward_mode)
        x = parts[0] if self.skip is None else self.skip(*parts, gains=self.gains)
        x = mp_sum(double(x) if self.up else x, y, RESIDUAL_BALANCE)
        return x if self.attention is None else self.attention(x, forward_mode)


class EDM2(nnx.Module):
    """The magnitude-preserving U-Net of EDM2.

    Args:
        shape: (H, W, C) of one image; 2^(levels - 1) divides H and W.
        channels: at full resolution.
        multipliers: channels of each level, in units of `channels`; each level after the first halves the map.
        blocks: residual blocks a level.
        attention: sides of the maps with attention; the middle has it always.
        head_width: of a head.
        dropout: rate, inside each residual block; applied where the call passes a key.
        time: `log_snr` or `linear`: what the network sees of t (`noise_level`).
        time_scale: what multiplies that before its cosines.
        fields: of the conditions, of the kinds in `encoders.TAKES`.
        two_times: False; other networks take a second time.
        outputs: images side by side in the last axis.
        dtype: a name in `DTYPES`.
        remat: a name in `REMAT`, for each residual block with its attention.
        rngs: for the initialisation.

    Raises:
        ValueError: on sizes that do not fit together, or an unknown name.
    """

    # XLA's CPU compiler gives convolutions their fast kernels only outside loops. Inside one, the gradients of a U-Net
    # took 9.9 s a step against 0.58 s (batch 64 of Fashion-MNIST, 2 cores, jaxlib 0.10.2).
    slow_in_cpu_loops: ClassVar[bool] = True

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 3,
        attention: tuple[int, ...] = (16, 8),
        head_width: int = 64,
        dropout: float = 0.0,
        time: str = "log_snr",
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
        check_fields("edm2", fields, shape)
        refuse_two_times("edm2", two_times)
        for what, name, known in (("time", time, TIMES), ("dtype", dtype, DTYPES), ("remat", remat, REMAT)):
            check_name(what, name, known)
        self.dtype, self.remat, self.features = DTYPES[dtype], remat, channels
        self.time, self.time_scale = time, time_scale
        widths = [channels * m for m in multipliers]
        heads = [head_width if height // 2**i in attention else 0 for i in range(len(widths))]
        e = max(widths)
        self.noise = MPLinear(channels, e, rngs=rngs)
        self.fields = fields
        self.encoders = nnx.data(encoders_of(fields, e, table=MP_ENCODERS, rngs=rngs))
        self.stem = MPConv(c + extra_channels(fields) + 1, channels, rngs=rngs)
        enc, skips, now = [], [channels], channels
        for i, w in enumerate(widths):
            if i:
                enc.append(Encoder(now, now, e, dropout, 0, down=True, rngs=rngs))
                skips.append(now)
            for _ in range(blocks):
                enc.append(Encoder(now, w, e, dropout, heads[i], rngs=rngs))
                now = w
                skips.append(now)
        dec = [Decoder(now, 0, now, e, dropout, width, rngs=rngs) for width in (head_width, 0)]
        for i, w in reversed(list(enumerate(widths))):
            if i < len(widths) - 1:
                dec.append(Decoder(now, 0, now, e, dropout, 0, up=True, rngs=rngs))
            for _ in range(blocks + 1):
                dec.append(Decoder(now, skips.pop(), w, e, dropout, heads[i], rngs=rngs))
                now = w
        self.enc, self.dec = nnx.List(enc), nnx.List(dec)
        self.out = MPConv(now, outputs * c, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))

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
            s: None; other networks take a second time.
            mask: None; other networks take masks.
            key: of the dropout, for all rows or one for each; None for none.
            forward_mode: use only operations that JAX differentiates in forward mode.

        Raises:
            ValueError: on a condition that is not one of `fields`, a mask, or a second time where it has no meaning.
        """
        refuse_mask(mask)
        time_difference(batch_time(t, x), s, two_times=False)
        cond = check(cond, self.fields)
        embedding = self._embed(batch_time(t, x), cond)
        blocks = len(self.enc) + len(self.dec)
        keys = iter(split_keys(row_keys(key, x.shape[0]), blocks))
        run = lambda block, h, key: remat(self.remat, lambda *args: block(*args, key, forward_mode))(h, embedding)
        h = beside(x.astype(self.dtype), self.fields, cond)
        # a channel of ones stands in for all biases
        h = self.stem(jnp.pad(h, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1))
        skips = [h]
        for block in self.enc:
            h = run(block, h, next(keys))
            skips.append(h)
        for block in self.dec:
            h = run(block, (h, skips.pop()) if block.joins else (h,), next(keys))
        return self.out(h, gain=self.gain[...]).astype(jnp.float32)

    def _embed(self, t: Float[Array, " B"], cond: Mapping[str, Array]) -> Float[Array, "B E"]:
        """mp_silu of the embedding of noise level and conditions, in float32: it is small.

        The conditions with a magnitude of their own share `LABEL_BALANCE` of the sum: each has the same part in it. One
        whose null value is 0 is added, through a gain that starts at zero.
        """
        e = self.noise(fourier(noise_level(t, self.time) * self.time_scale, self.features))
        rows, joined = t.shape[0], 0
        for field in self.fields:
            if field.kind == "image":
                continue
            [encoded] = encode(self.encoders, [field], cond, rows) or [None]
            if field.kind == "vector" and field.zero_is_null:
                e = e if encoded is None else e + encoded
                continue
            assert encoded is not None
            joined += 1
            e = mp_sum(e, encoded, LABEL_BALANCE if joined == 1 else 1 / (1 + math.sqrt(joined)))
        return mp_silu(e)
