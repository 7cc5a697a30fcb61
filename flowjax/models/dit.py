"""The diffusion transformer: DiT (Peebles & Xie 2023), which SiT (Ma et al. 2024) takes over as it is.

An image is cut into patches; each is a token, with its place added as fixed sines. Blocks of attention and MLP see time
and class through adaLN-zero alone: shift and scale after each layer norm and a gate on each residual branch, linear in
silu(time + class) and zero at the start, so that a fresh block is the identity. With the rows of `SIZES`, patch 2, 1000
classes and `outputs=2` (noise and variance) on latents of 32 x 32 x 4 this is DiT-S/2 to DiT-XL/2.

Computes in `dtype`, with float32 parameters, norms, modulations and softmax. The norms and the GELU are recomputed in
the backward pass: they cost one read of what is kept anyway.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.attention import attend
from flowjax.models.embeddings import batch_time, refuse_mask
from flowjax.models.encoders import beside, check_fields, embed, encode, encoders_of, extra_channels
from flowjax.models.layers import DTYPES, REMAT, dropout, fold, remat, split_keys, unfold
from flowjax.typing import Cond, PRNGKey

__all__ = ["SIZES", "TIME_FEATURES", "Block", "DiT", "patches", "pixels", "positions"]

SIZES: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
"""The published sizes (Peebles & Xie 2023, table 1), as the constructor takes them."""

TIME_FEATURES = 256
"""Numbers that describe a time to the MLP that embeds it."""

_EPS = 1e-6
_zeros = nnx.initializers.zeros_init()
_small = nnx.initializers.normal(0.02)
_xavier = nnx.initializers.xavier_uniform()


def patches(x: Float[Array, "B H W C"], p: int) -> Float[Array, "B T D"]:
    """Squares of p x p pixels as tokens, row by row; in a token, row, column, channel."""
    folded = fold(x, p)
    return folded.reshape(x.shape[0], -1, folded.shape[-1])


def pixels(tokens: Float[Array, "B T D"], p: int, height: int, width: int) -> Float[Array, "B H W C"]:
    """The inverse of `patches`, for images of height x width."""
    return unfold(tokens.reshape(tokens.shape[0], height // p, width // p, -1), p)


def positions(height: int, width: int, features: int) -> Float[np.ndarray, "T D"]:
    """Fixed sines of the place of each token, row by row: half of the features for its column, half for its row.

    Each half holds sin and cos of place / 10000^(k / n) for k = 0 ... n - 1, n a quarter of the features (He et al.
    2022's code, which DiT's follows: columns come first). In float64, then rounded.
    """
    n = features // 4
    omega = 10_000.0 ** -(np.arange(n) / n)
    sines = lambda place: np.concatenate([np.sin(place[:, None] * omega), np.cos(place[:, None] * omega)], 1)
    row, column = (i.reshape(-1) for i in np.indices((height, width)))
    return np.concatenate([sines(column), sines(row)], 1).astype(np.float32)


@jax.checkpoint
def _modulated_norm(
    x: Float[Array, "B T W"], shift: Float[Array, "B W"], scale: Float[Array, "B W"]
) -> Float[Array, "B T W"]:
    """(1 + scale) norm(x) + shift: layer norm without gain or bias, in float32."""
    h = x.astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + _EPS)
    return (h * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


_gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=True))


def _rms_norm(x: Float[Array, "B T N H"], gain: Float[Array, " H"]) -> Float[Array, "B T N H"]:
    h = x.astype(jnp.float32)
    return (h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + _EPS) * gain).astype(x.dtype)


def _linear(layer: nnx.Linear, x: Float[Array, "*B a"]) -> Float[Array, "*B b"]:
    """The layer in the type of its input."""
    (y,) = _products(layer, x, 1)
    return y


def _products(layer: nnx.Linear, x: Float[Array, "*B a"], n: int) -> list[Float[Array, "*B c"]]:
    """The layer's output in n parts, one product each, so that none has to be copied out of the others."""
    assert layer.bias is not None
    kernels, biases = (jnp.split(p.astype(x.dtype), n, -1) for p in (layer.kernel[...], layer.bias[...]))
    return [x @ kernel + bias for kernel, bias in zip(kernels, biases, strict=True)]


class Block(nnx.Module):
    """Attention, then an MLP four times as wide, each as x + gate f((1 + scale) norm(x) + shift)."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rate: float, *, rngs: nnx.Rngs):
        self.heads, self.rate = heads, rate
        dense = lambda a, b, init: nnx.Linear(a, b, kernel_init=init, rngs=rngs)
        self.modulation = dense(width, 6 * width, _zeros)
        self.qkv, self.out = dense(width, 3 * width, _xavier), dense(width, width, _xavier)
        self.mlp1, self.mlp2 = dense(width, 4 * width, _xavier), dense(4 * width, width, _xavier)
        self.q_gain = nnx.Param(jnp.ones(width // heads)) if qk_norm else None
        self.k_gain = nnx.Param(jnp.ones(width // heads)) if qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T W"],
        c: Float[Array, "B W"],
        keys: Sequence[RowKeys | None],
        forward_mode: bool = False,
    ) -> Float[Array, "B T W"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(c), 6, -1)
        h = dropout(self._attention(_modulated_norm(x, shift1, scale1), forward_mode), self.rate, keys[0])
        x = x + gate1[:, None].astype(x.dtype) * h
        h = _linear(self.mlp2, _gelu(_linear(self.mlp1, _modulated_norm(x, shift2, scale2))))
        return x + gate2[:, None].astype(x.dtype) * dropout(h, self.rate, keys[1])

    def _attention(self, x: Float[Array, "B T W"], forward_mode: bool) -> Float[Array, "B T W"]:
        b, n, w = x.shape
        q, k, v = (y.reshape(b, n, self.heads, w // self.heads) for y in _products(self.qkv, x, 3))
        if self.q_gain is not None and self.k_gain is not None:
            q, k = _rms_norm(q, self.q_gain[...]), _rms_norm(k, self.k_gain[...])
        return _linear(self.out, attend(q, k, v, forward_mode).reshape(b, n, w))


class DiT(nnx.Module):
    """The diffusion transformer.

    Args:
        shape: (H, W, C) of one image or latent; `patch` divides H and W.
        patch: side of a token in pixels.
        depth: number of blocks.
        width: of a token; a multiple of 4 and of `heads`.
        heads: of the attention.
        qk_norm: queries and keys are RMS-normed in each head, with a gain each (Esser et al. 2024, sec. 5.3.2).
        dropout: rate, at the end of each residual branch; applied where the call passes a key.
        time_scale: what multiplies t before its sines: 1000 as DiT, whose times are steps of a chain; 1 as SiT.
        fields: of the conditions, of the kinds in `encoders.TAKES`. The elements of a sequence are
            tokens beside those of the image, and are dropped at the end.
        two_times: whether the network takes a second time s. An embedding of t - s is added to that of t.
        outputs: images side by side in the last axis.
        dtype: a name in `DTYPES`.
        remat: a name in `REMAT`, for each block.
        rngs: for the initialisation.

    Raises:
        ValueError: on sizes that do not divide, an unknown dtype or remat.
    """

    cast_parameters: ClassVar[str] = r"^(stem|out|blocks/\d+/(qkv|out|mlp1|mlp2))/(kernel|bias)$"

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch: int = 2,
        depth: int = 12,
        width: int = 384,
        heads: int = 6,
        qk_norm: bool = False,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        dtype: str = "bfloat16",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        *sides, c = shape
        if any(side % patch for side in sides):
            raise ValueError(f"patch {patch} does not divide images of {sides[0]} x {sides[1]}")
        if width % heads or width % 4:
            raise ValueError(f"width must be a multiple of 4 and of the {heads} heads, not {width}")
        check_fields("dit", fields, shape)
        for name, value, known in (("dtype", dtype, DTYPES), ("remat", remat, REMAT)):
            check_name(name, value, known)
        self.patch, self.dtype, self.remat, self.time_scale = patch, DTYPES[dtype], remat, time_scale
        self.features = TIME_FEATURES
        dense = lambda a, b, init: nnx.Linear(a, b, kernel_init=init, rngs=rngs)
        self.fields, self.two_times = fields, two_times
        self.stem = dense(patch**2 * (c + extra_channels(fields)), width, _xavier)
        self.time1, self.time2 = dense(TIME_FEATURES, width, _small), dense(width, width, _small)
        self.encoders = nnx.data(encoders_of(fields, width, _small, rngs=rngs))
        self.blocks = nnx.List([Block(width, heads, qk_norm, dropout, rngs=rngs) for _ in range(depth)])
        self.modulation = dense(width, 2 * width, _zeros)
        self.out = dense(width, patch**2 * outputs * c, _zeros)
        self.difference1 = dense(TIME_FEATURES, width, _small) if two_times else None
        self.difference2 = dense(width, width, _small) if two_times else None

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
        _, height, width, _ = x.shape
        refuse_mask(mask)
        cond = check(cond, self.fields)
        c = embed(self, batch_time(t, x), s, cond)
        h = _linear(self.stem, patches(beside(x.astype(self.dtype), self.fields, cond), self.patch))
        h = h + positions(height // self.patch, width // self.patch, h.shape[-1]).astype(h.dtype)
        tokens = h.shape[1]
        h = self._with_sequences(h, cond)
        drawn = split_keys(row_keys(key, x.shape[0]), 2 * len(self.blocks))
        for block, *keys in zip(self.blocks, drawn[::2], drawn[1::2], strict=True):
            h = remat(self.remat, lambda h, c, block=block, keys=keys: block(h, c, keys, forward_mode))(h, c)
        shift, scale = jnp.split(self.modulation(c), 2, -1)
        h = _linear(self.out, _modulated_norm(h[:, :tokens], shift, scale))
        return pixels(h, self.patch, height, width).astype(jnp.float32)

    def _with_sequences(self, h: Float[Array, "B T W"], cond: Mapping[str, Array]) -> Float[Array, "B U W"]:
        """The tokens of the image, then those of each condition that is a sequence."""
        fields = [f for f in self.fields if f.kind == "sequence"]
        tokens = encode(self.encoders, fields, cond, h.shape[0])
        return jnp.concatenate([h, *(a.astype(h.dtype) for a in tokens)], 1) if tokens else h
