"""The blocks of the magnitude-preserving U-Net of EDM2 (Karras et al. 2024, arXiv:2312.02696, configuration G)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.keys import RowKeys
from flowjax.models.attention import attend
from flowjax.models.layers import dropout
from flowjax.models.magnitude import MPConv, MPLinear, cat_gains, double, halve, mp_silu, mp_sum, pixel_norm

__all__ = ["RESIDUAL_BALANCE", "SKIP_BALANCE", "Attention", "Decoder", "Encoder", "Residual"]

RESIDUAL_BALANCE = 0.3
"""The weight t of a residual or attention branch in its `mp_sum` with the main path."""

SKIP_BALANCE = 0.5
"""The weight t of an encoder's feature map in its concatenation with the main path (`cat_gains`)."""


class Residual(nnx.Module):
    """conv(dropout(mp_silu(c conv(mp_silu(x))))) with c = 1 + gain linear(embedding), and the gain initialised to zero.

    Args:
        a, b: number of input and output channels.
        width: width of the embedding.
        rate: dropout rate.
        up: whether the first convolution doubles the resolution.
        rngs: random number generators of the initialisation.
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
    """Cosine self-attention over the pixels of a feature map.

    Queries, keys and values are normalised to mean square 1 in every head.

    Args:
        channels: number of channels.
        head_width: number of channels of each head.
        rngs: random number generators of the initialisation.
    """

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
    """A block of the encoder. It normalises every pixel of its input before the residual branch.

    Args:
        a, b: number of input and output channels.
        width: width of the embedding.
        rate: dropout rate.
        head_width: number of channels of each attention head; 0 for no attention.
        down: whether to halve the resolution first.
        rngs: random number generators of the initialisation.
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
    """A block of the decoder, with or without a skip connection from the encoder.

    Args:
        a: number of channels of the main path.
        skip: number of channels of the skip connection; 0 for none.
        b: number of output channels, which must be `a` if `skip` is 0.
        width: width of the embedding.
        rate: dropout rate.
        head_width: number of channels of each attention head; 0 for no attention.
        up: whether to double the resolution first.
        rngs: random number generators of the initialisation.
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
