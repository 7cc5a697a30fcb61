"""Deeper encoders of conditions, which a field names: `data.cond=obs(encoder='mlp')`.

| encoder | kind | what it computes |
|---|---|---|
| mlp | vector | a multilayer perceptron with two hidden layers; numbers that are NaN are missing one by one |
| cnn | sequence | three convolutions of stride 2 along the sequence, and the mean over what remains |
| attention | set | self-attention among the elements, and their mean, with the number of elements |

All return one vector for each row, or a learned vector for rows that are not given. They suit observations whose
summary the network has to learn, as in posterior estimation (Radev et al. 2020, arXiv:2003.06281).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flowjax.conditions import Field
from flowjax.models.attention import attend
from flowjax.models.encoder_parts import dense, given, learned_vector, present

__all__ = ["NAMED_ENCODERS", "AttentionEncoder", "CNNEncoder", "MLPEncoder"]

_HEADS = 4
_KERNEL = 5


class MLPEncoder(nnx.Module):
    """linear(silu(linear(silu(linear(x, missing))))), where `missing` is 1 for numbers that are NaN, which become 0.

    Args:
        field: the field, of any shape.
        width: width of all layers.
        init: initialiser of the kernels; None for LeCun's.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        numbers = math.prod(field.shape)
        self.linear1, self.linear2, self.linear3 = (dense(a, width, init, rngs) for a in (2 * numbers, width, width))
        self.missing = learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B *event"] | None, rows: int) -> Float[Array, "B width"]:
        missing = self.missing[...]
        if value is None:
            return jnp.broadcast_to(missing, (rows, self.width))
        flat = value.reshape(rows, -1)
        gaps = flat == 0 if self.field.zero_is_null else jnp.isnan(flat)
        h = self.linear1(jnp.concatenate([jnp.where(gaps, 0.0, flat), gaps.astype(flat.dtype)], -1))
        h = self.linear3(jax.nn.silu(self.linear2(jax.nn.silu(h))))
        return jnp.where(gaps.all(1, keepdims=True), missing, h)


class CNNEncoder(nnx.Module):
    """Three convolutions of stride 2 with SiLU, the mean over the positions, and a linear layer.

    An element that contains NaN is missing: its numbers become 0, and a further channel says so.

    Args:
        field: the field, of shape (L, C).
        width: width of the output and of the convolutions.
        init: initialiser of the kernels; None for LeCun's.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        kernel = init or nnx.initializers.lecun_normal()
        channels = (field.shape[1] + 1, width, width)
        conv = lambda c: nnx.Conv(c, width, (_KERNEL,), strides=2, kernel_init=kernel, rngs=rngs)
        self.convs = nnx.List([conv(c) for c in channels])
        self.linear = dense(width, width, init, rngs)
        self.missing = learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B L C"] | None, rows: int) -> Float[Array, "B width"]:
        missing = self.missing[...]
        if value is None:
            return jnp.broadcast_to(missing, (rows, self.width))
        exists = given(self.field, value, 2)
        h = jnp.concatenate([present(exists, value), (~exists)[..., None].astype(value.dtype)], -1)
        for conv in self.convs:
            h = jax.nn.silu(conv(h))
        return jnp.where(exists.any(1)[:, None], self.linear(h.mean(1)), missing)


class AttentionEncoder(nnx.Module):
    """Two blocks of self-attention among the elements of a set, and a linear layer of their mean and of their number.

    The elements have no positions, so that their order does not matter. The number of elements, as log(1 + n), is given
    beside the mean, because a posterior distribution narrows with the number of independent observations.

    Args:
        field: the field, of shape (N, C). Elements that contain NaN are absent.
        width: width of the output and of the blocks, a multiple of 4.
        init: initialiser of the kernels; None for LeCun's.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        self.stem = dense(field.shape[1], width, init, rngs)
        self.blocks = nnx.List([_SetBlock(width, init, rngs=rngs) for _ in range(2)])
        self.linear = dense(width + 1, width, init, rngs)
        self.missing = learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B N C"] | None, rows: int) -> Float[Array, "B width"]:
        missing = self.missing[...]
        if value is None:
            return jnp.broadcast_to(missing, (rows, self.width))
        exists = given(self.field, value, 2)
        h = self.stem(present(exists, value))
        for block in self.blocks:
            h = block(h, exists)
        count = exists.sum(1)[:, None]
        mean = present(exists, h).sum(1) / jnp.maximum(count, 1)
        h = self.linear(jnp.concatenate([mean, jnp.log1p(count.astype(h.dtype))], -1))
        return jnp.where(count > 0, h, missing)


class _SetBlock(nnx.Module):
    """h + attention(norm(h)), and then h + mlp(norm(h)), among the elements that exist."""

    def __init__(self, width: int, init: nnx.Initializer | None, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.qkv, self.out = dense(width, 3 * width, init, rngs), dense(width, width, init, rngs)
        self.mlp1, self.mlp2 = dense(width, 2 * width, init, rngs), dense(2 * width, width, init, rngs)

    def __call__(self, h: Float[Array, "B N W"], exists: Bool[Array, "B N"]) -> Float[Array, "B N W"]:
        heads = lambda a: a.reshape(*a.shape[:2], _HEADS, -1)
        q, k, v = map(heads, jnp.split(self.qkv(self.norm1(h)), 3, -1))
        h = h + self.out(attend(q, k, v, forward_mode=True, mask=exists).reshape(h.shape))
        return h + self.mlp2(jax.nn.silu(self.mlp1(self.norm2(h))))


NAMED_ENCODERS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLPEncoder,
    "cnn": CNNEncoder,
    "attention": AttentionEncoder,
}
"""The encoders that a field can name (`Field.encoder`)."""
