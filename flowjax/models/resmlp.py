"""A residual multilayer perceptron with adaptive layer norm, for vectors and tables.

The example is one vector, which a linear layer maps to `width` numbers. Each block is the second half of a block of DiT
(Peebles & Xie 2023, arXiv:2212.09748, sec. 3.2): h + gate mlp((1 + scale) norm(h) + shift), where scale, shift and gate
are linear in silu(time + conditions) and initialised to zero (adaLN-Zero). A fresh block is therefore the identity, and
a fresh network returns zeros.

There is no norm before the output layer, so that the output can grow linearly with x: the velocity between a normal
distribution and data does so far from the data.

The network computes in `dtype`; parameters, norms and modulations are float32.
"""

import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flowjax.conditions import Field, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.dit_blocks import gelu, linear, modulated_norm, xavier, zeros
from flowjax.models.embeddings import batch_time, check_features, check_mask, time_features
from flowjax.models.encoders import VECTOR_ENCODERS, check_fields, embed, encoders_of
from flowjax.models.layers import DTYPES, dropout, split_keys
from flowjax.precision import at_least_float32
from flowjax.typing import Cond, PRNGKey

__all__ = ["ResBlock", "ResMLP"]


class ResBlock(nnx.Module):
    """h + gate mlp((1 + scale) norm(h) + shift), with one hidden layer of `expansion` times the width."""

    def __init__(self, width: int, expansion: int, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        self.modulation = nnx.Linear(width, 3 * width, kernel_init=zeros, rngs=rngs)
        self.mlp1 = nnx.Linear(width, expansion * width, kernel_init=xavier, rngs=rngs)
        self.mlp2 = nnx.Linear(expansion * width, width, kernel_init=xavier, rngs=rngs)

    def __call__(self, h: Float[Array, "B 1 W"], c: Float[Array, "B W"], keys: RowKeys | None) -> Float[Array, "B 1 W"]:
        shift, scale, gate = jnp.split(self.modulation(c), 3, -1)
        y = linear(self.mlp2, gelu(linear(self.mlp1, modulated_norm(h, shift, scale))))
        return h + gate[:, None].astype(h.dtype) * dropout(y, self.rate, keys)


class ResMLP(nnx.Module):
    """A residual multilayer perceptron whose blocks are modulated by times and conditions.

    Args:
        shape: shape of one example.
        width: width of the residual stream.
        depth: number of blocks.
        expansion: width of the hidden layer of each block divided by `width`.
        features: number of sines and cosines of t, which must be even.
        dropout: dropout rate at the end of each block. Dropout is applied only if the call passes a key.
        fields: the conditions, whose kinds must be in `encoders.TAKES`.
        two_times: whether the network takes the time s of x beside t. The embedding of t - s is added to that of s.
        outputs: number of output arrays of the event's shape, concatenated along the last axis.
        dtype: type in which the network computes; its parameters are float32.
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if `features` is odd, a name is unknown, or a condition is not supported.
    """

    row_keys: ClassVar[bool] = True
    cast_parameters: ClassVar[str] = r"^(stem|out|blocks/\d+/mlp[12])/(kernel|bias)$"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 256,
        depth: int = 4,
        expansion: int = 2,
        features: int = 16,
        dropout: float = 0.0,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        check_features(features)
        check_fields("resmlp", fields, shape)
        check_name("dtype", dtype, DTYPES)
        self.features, self.dtype, self.outputs = features, DTYPES[dtype], outputs
        self.fields, self.two_times = fields, two_times
        d = math.prod(shape)
        dense = lambda a, b: nnx.Linear(a, b, rngs=rngs)
        # a bias of zero would make the first norm invariant to the scale of x
        self.stem = nnx.Linear(d, width, bias_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.time1, self.time2 = dense(features, width), dense(width, width)
        self.encoders = nnx.data(encoders_of(fields, width, table=VECTOR_ENCODERS, rngs=rngs))
        self.blocks = nnx.List([ResBlock(width, expansion, dropout, rngs=rngs) for _ in range(depth)])
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.out = nnx.Linear(width, outputs * d, kernel_init=zeros, rngs=rngs)
        self.difference1 = dense(features, width) if two_times else None
        self.difference2 = nnx.Linear(width, width, kernel_init=zeros, rngs=rngs) if two_times else None

    def __call__(
        self,
        t: Array | float,
        x: Float[Array, "B *event"],
        cond: Cond = None,
        *,
        s: Array | float | None = None,
        mask: Bool[Array, "B N"] | None = None,
        key: PRNGKey | RowKeys | None = None,
        forward_mode: bool = False,
    ) -> Float[Array, "B *output"]:
        """Returns the network's output in float32, which has the shape of x with a last axis `outputs` times as long.

        Args:
            t: time, () or (B,), in [0, 1].
            x: (B, *shape).
            cond: conditions by name, or None. A field that is absent counts as not given.
            s: the time of x, () or (B,), if `two_times` is True; None otherwise.
            mask: (B, N), True for the elements of x (B, N, C) that exist; None if all exist. The input and the output
                are zero at the other elements.
            key: key of the dropout, one for the batch or one per row; None to apply no dropout.
            forward_mode: ignored, because JAX differentiates all operations of this network in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if the shape of the mask does not fit x, or if `s` does
                not fit `two_times`.
        """
        check_mask(mask, x)
        cond, rows = check(cond, self.fields), x.shape[0]
        c = embed(self, batch_time(t, x), s, cond, lambda t: time_features(t, self.features), skip=())
        x = x if mask is None else jnp.where(mask[..., None], x, 0)
        h = linear(self.stem, x.reshape(rows, 1, -1).astype(self.dtype))
        for block, keys in zip(self.blocks, split_keys(row_keys(key, rows), len(self.blocks)), strict=True):
            h = block(h, c, keys)
        shift, scale = jnp.split(self.modulation(c), 2, -1)
        h = h * (1 + scale[:, None]).astype(h.dtype) + shift[:, None].astype(h.dtype)
        y = at_least_float32(linear(self.out, h))
        y = y.reshape(*x.shape[:-1], self.outputs * x.shape[-1])
        return y if mask is None else jnp.where(mask[..., None], y, 0)
