"""The diffusion transformer DiT (Peebles & Xie 2023, arXiv:2212.09748), which is also the network of SiT (Ma et al.
2024, arXiv:2401.08740).

An image is cut into patches. Each patch is a token, to which a fixed sinusoidal position embedding is added. The blocks
of attention and MLP receive time and conditions through adaLN-zero: a shift and a scale after each layer norm and a
gate on each residual branch. These are linear in silu(time + conditions) and initialised to zero, so that each block is
initially the identity. With the sizes in `SIZES`, patch 2, 1000 classes and `outputs=2` (noise and variance) on latents
of 32 x 32 x 4, the network is DiT-S/2 to DiT-XL/2.

The network computes in `dtype`; parameters, norms, modulations and softmax are float32. The blocks are in
`models.dit_blocks`.
"""

from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.dit_blocks import Block, linear, modulated_norm, xavier, zeros
from flowjax.models.embeddings import batch_time, refuse_mask
from flowjax.models.encoders import beside, check_fields, embed, encode, encoders_of, extra_channels
from flowjax.models.layers import DTYPES, REMAT, fold, remat, split_keys, unfold
from flowjax.precision import at_least_float32
from flowjax.typing import Cond, PRNGKey

__all__ = ["SIZES", "TIME_FEATURES", "DiT", "patches", "pixels", "positions"]

SIZES: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
"""The published sizes (Peebles & Xie 2023, table 1), as arguments of `DiT`."""

TIME_FEATURES = 256
"""The number of sinusoidal features of a time, the inputs of the MLP that embeds it."""

_small = nnx.initializers.normal(0.02)


def patches(x: Float[Array, "B H W C"], p: int) -> Float[Array, "B T D"]:
    """Cuts images into tokens of p x p pixels, row by row. A token is ordered by row, column and channel."""
    folded = fold(x, p)
    return folded.reshape(x.shape[0], -1, folded.shape[-1])


def pixels(tokens: Float[Array, "B T D"], p: int, height: int, width: int) -> Float[Array, "B H W C"]:
    """The inverse of `patches`, for images of size (height, width)."""
    return unfold(tokens.reshape(tokens.shape[0], height // p, width // p, -1), p)


def positions(height: int, width: int, features: int) -> Float[np.ndarray, "T D"]:
    """Returns the fixed position embeddings of the tokens, row by row.

    The first half of the features encodes the column and the second half the row. Each half is sin and cos of
    index / 10000^(k / n) for k = 0 ... n - 1, where n is a quarter of the features. They are computed in float64 and
    then rounded to float32. The order is that of the published code of DiT, which follows He et al. 2022
    (arXiv:2111.06377).
    """
    n = features // 4
    omega = 10_000.0 ** -(np.arange(n) / n)
    sines = lambda index: np.concatenate([np.sin(index[:, None] * omega), np.cos(index[:, None] * omega)], 1)
    row, column = (i.reshape(-1) for i in np.indices((height, width)))
    return np.concatenate([sines(column), sines(row)], 1).astype(np.float32)


class DiT(nnx.Module):
    """The diffusion transformer.

    Args:
        shape: (H, W, C) of one image or latent. H and W must be multiples of `patch`.
        patch: side of a token in pixels.
        depth: number of blocks.
        width: width of a token, a multiple of 4 and of `heads`.
        heads: number of attention heads.
        qk_norm: whether to apply RMS norm with a learned gain to the queries and keys of each head (Esser et al. 2024,
            arXiv:2403.03206, sec. 5.3.2).
        dropout: dropout rate at the end of each residual branch. Dropout is applied only if the call passes a key.
        time_scale: factor on t before its sinusoidal features: 1000 in DiT, whose times are steps of a chain; 1 in SiT.
        fields: the conditions, whose kinds must be in `encoders.TAKES`. The elements of a sequence are appended to the
            tokens of the image, and removed before the output layer.
        two_times: whether the network takes the time s of x beside t. The embedding of t - s is added to that of s.
        outputs: number of output images, concatenated along the last axis.
        dtype: type in which the network computes; its parameters are float32.
        remat: what each block keeps in memory for the backward pass: everything (`none`),
            its input (`block`), its matrix products (`dots`), or those without batch dimensions (`dots_no_batch`).
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if sizes do not divide each other, a name is unknown, or a condition is not supported.
    """

    row_keys: ClassVar[bool] = True
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
        self.stem = dense(patch**2 * (c + extra_channels(fields)), width, xavier)
        self.time1, self.time2 = dense(TIME_FEATURES, width, _small), dense(width, width, _small)
        self.encoders = nnx.data(encoders_of(fields, width, _small, rngs=rngs))
        self.blocks = nnx.List([Block(width, heads, qk_norm, dropout, rngs=rngs) for _ in range(depth)])
        self.modulation = dense(width, 2 * width, zeros)
        self.out = dense(width, patch**2 * outputs * c, zeros)
        self.difference1 = dense(TIME_FEATURES, width, _small) if two_times else None
        self.difference2 = dense(width, width, zeros) if two_times else None

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
        """Returns the network's output (B, H, W, outputs * C) in float32.

        Args:
            t: time, () or (B,), in [0, 1].
            x: (B, H, W, C).
            cond: conditions by name, or None. A field that is absent counts as not given.
            s: the time of x, () or (B,), if `two_times` is True; None otherwise.
            mask: must be None, because networks of images take no mask.
            key: key of the dropout, one for the batch or one per row; None to apply no dropout.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if a mask is given, or if `s` does not fit `two_times`.
        """
        _, height, width, _ = x.shape
        refuse_mask(mask)
        cond = check(cond, self.fields)
        c = embed(self, batch_time(t, x), s, cond)
        h = linear(self.stem, patches(beside(x.astype(self.dtype), self.fields, cond), self.patch))
        h = h + positions(height // self.patch, width // self.patch, h.shape[-1]).astype(h.dtype)
        tokens = h.shape[1]
        h = self._with_sequences(h, cond)
        dropout_keys = split_keys(row_keys(key, x.shape[0]), 2 * len(self.blocks))
        for block, *keys in zip(self.blocks, dropout_keys[::2], dropout_keys[1::2], strict=True):
            h = remat(self.remat, lambda h, c, block=block, keys=keys: block(h, c, keys, forward_mode))(h, c)
        shift, scale = jnp.split(self.modulation(c), 2, -1)
        h = linear(self.out, modulated_norm(h[:, :tokens], shift, scale))
        return at_least_float32(pixels(h, self.patch, height, width))

    def _with_sequences(self, h: Float[Array, "B T W"], cond: Mapping[str, Array]) -> Float[Array, "B U W"]:
        """Returns the tokens of the image, followed by the tokens of each condition of kind `sequence`."""
        fields = [f for f in self.fields if f.kind == "sequence"]
        tokens = encode(self.encoders, fields, cond, h.shape[0])
        return jnp.concatenate([h, *(a.astype(h.dtype) for a in tokens)], 1) if tokens else h
