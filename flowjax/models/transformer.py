"""A transformer for sequences, signals and sets.

Each element is a token. The blocks are those of DiT (`models.dit_blocks`): attention among the tokens and an MLP, which
receive times, labels and vectors through adaptive layer norm. Conditions that are sequences, sets or images (in
patches) are tokens of their own, to which each block attends first (cross-attention).

With `positions="rotary"`, attention uses rotary position embeddings (Su et al. 2021, arXiv:2104.09864), so that the
score of two tokens depends on their positions only through the difference. This includes the cross-attention to the
elements of a sequence: without it, an element of x would not know how far away they are. With `positions="none"`, the
network is equivariant under permutations, as functions of sets are. There is no norm before the output layer, so that
the output can grow linearly with x.

The network computes in `dtype`; parameters, norms, modulations and softmax are float32.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flowjax.conditions import Field, Kind, check
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.models.attention import attend
from flowjax.models.dit_blocks import Block, linear, modulated_norm, products, xavier, zeros
from flowjax.models.embeddings import batch_time, check_features, check_mask, time_features
from flowjax.models.encoders import ENCODERS, check_fields, embed, encoders_of
from flowjax.models.image_tokens import ImageEncoder
from flowjax.models.layers import DTYPES, REMAT, dropout, remat, split_keys
from flowjax.models.signals import as_sequence, as_signal, channels_of
from flowjax.precision import at_least_float32
from flowjax.typing import Cond, PRNGKey

__all__ = ["POSITIONS", "CrossAttention", "Transformer", "rotated"]

POSITIONS = ("rotary", "none")
"""The possible values of `positions`."""

_TOKENS: tuple[Kind, ...] = ("sequence", "set", "image")
"""The kinds of conditions that are tokens."""


def rotated(x: Float[Array, "B T N H"], positions: Int[Array, " T"] | None = None) -> Float[Array, "B T N H"]:
    """Rotates the queries or keys at position m by the angles m / 10000^(2 k / H) (Su et al. 2021, eq. 34).

    Numbers k and k + H / 2 of a head, for k = 0 ... H / 2 - 1, are the two coordinates of a rotated pair. The scalar
    product of a rotated query at m and a rotated key at n depends on m and n only through m - n.

    Args:
        x: queries or keys.
        positions: the position of each token; None for 0, 1, ....
    """
    tokens, half = x.shape[1], x.shape[3] // 2
    angle = (jnp.arange(tokens) if positions is None else positions)[:, None] * 10_000.0 ** -(jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(at_least_float32(x), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


class CrossAttention(nnx.Module):
    """x + gate attention from (1 + scale) norm(x) + shift to the tokens of conditions. The gate is initially zero."""

    def __init__(self, width: int, heads: int, rate: float, *, rngs: nnx.Rngs):
        self.heads, self.rate = heads, rate
        dense = lambda a, b, init: nnx.Linear(a, b, kernel_init=init, rngs=rngs)
        self.modulation = dense(width, 3 * width, zeros)
        self.q, self.kv, self.out = (dense(width, n * width, xavier) for n in (1, 2, 1))

    def __call__(
        self,
        x: Float[Array, "B T W"],
        c: Float[Array, "B W"],
        tokens: Float[Array, "B S W"],
        exists: Bool[Array, "B S"],
        keys: RowKeys | None,
        forward_mode: bool = False,
        positions: Int[Array, " S"] | None = None,
    ) -> Float[Array, "B T W"]:
        """Returns the tokens x after the attention.

        Args:
            x: tokens of the example.
            c: embedding of times and conditions.
            tokens: tokens of the conditions.
            exists: which of these exist.
            keys: a key per row for the dropout, or None.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.
            positions: positions of the tokens of the conditions, for rotary embeddings of these and of x; None for no
                such embeddings.
        """
        shift, scale, gate = jnp.split(self.modulation(c), 3, -1)
        heads = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
        q = linear(self.q, modulated_norm(x, shift, scale))
        k, v = products(self.kv, tokens, 2)
        q, k, v = heads(q), heads(k), heads(v)
        if positions is not None:
            q, k = rotated(q), rotated(k, positions)
        y = linear(self.out, attend(q, k, v, forward_mode, exists).reshape(x.shape))
        return x + gate[:, None].astype(x.dtype) * dropout(y, self.rate, keys)


class Transformer(nnx.Module):
    """A transformer whose tokens are the elements of a sequence, a signal or a set.

    Args:
        shape: (L, C) of a sequence or a set, or (L,) of a signal, which is treated as (L, 1).
        depth: number of blocks.
        width: width of a token, a multiple of `heads`.
        heads: number of attention heads.
        positions: `rotary` for sequences and signals, whose elements have an order, or `none` for sets.
        features: number of sines and cosines of t, which must be even.
        dropout: dropout rate at the end of each residual branch. Dropout is applied only if the call passes a key.
        fields: the conditions, whose kinds must be in `encoders.TAKES`.
        two_times: whether the network takes the time s of x beside t. The embedding of t - s is added to that of s.
        outputs: number of output arrays of the example's shape, concatenated along the last axis.
        dtype: type in which the network computes; its parameters are float32.
        remat: what each block keeps in memory for the backward pass: everything (`none`),
            its input (`block`), its matrix products (`dots`), or those without batch dimensions (`dots_no_batch`).
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if sizes do not divide each other, a name is unknown, or a condition is not supported.
    """

    row_keys: ClassVar[bool] = True
    cast_parameters: ClassVar[str] = r"^(stem|out|blocks/\d+/(qkv|out|mlp1|mlp2)|cross/\d+/(q|kv|out))/(kernel|bias)$"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        depth: int = 6,
        width: int = 256,
        heads: int = 4,
        positions: str = "rotary",
        features: int = 16,
        dropout: float = 0.0,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        dtype: str = "float32",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        c = channels_of(shape)
        for name, value, known in (
            ("dtype", dtype, DTYPES),
            ("remat", remat, REMAT),
            ("positions", positions, POSITIONS),
        ):
            check_name(name, value, known)
        if not heads or width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, not {width}")
        if positions == "rotary" and width // heads % 2:
            raise ValueError(f"rotary positions need heads of even width, not {width} / {heads} = {width // heads}")
        check_features(features)
        check_fields("transformer", fields, shape, joined=None)
        self.heads, self.positions, self.features = heads, positions, features
        self.dtype, self.remat = DTYPES[dtype], remat
        self.fields, self.two_times = fields, two_times
        dense = lambda a, b: nnx.Linear(a, b, rngs=rngs)
        # a bias of zero would make the first norm invariant to the scale of x
        self.stem = nnx.Linear(c, width, bias_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.time1, self.time2 = dense(features, width), dense(width, width)
        self.encoders = nnx.data(encoders_of(fields, width, table={**ENCODERS, "image": ImageEncoder}, rngs=rngs))
        self.blocks = nnx.List([Block(width, heads, False, dropout, rngs=rngs) for _ in range(depth)])
        crossed = depth if any(f.kind in _TOKENS for f in fields) else 0
        self.cross = nnx.List([CrossAttention(width, heads, dropout, rngs=rngs) for _ in range(crossed)])
        self.modulation = nnx.Linear(width, 2 * width, kernel_init=zeros, rngs=rngs)
        self.out = nnx.Linear(width, outputs * c, kernel_init=zeros, rngs=rngs)
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
            x: (B, L, C), or (B, L).
            cond: conditions by name, or None. A field that is absent counts as not given.
            s: the time of x, () or (B,), if `two_times` is True; None otherwise.
            mask: (B, N), True for the elements of x (B, N, C) that exist; None if all exist. Elements that do not exist
                have no influence on the others, and the output is zero there.
            key: key of the dropout, one for the batch or one per row; None to apply no dropout.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if the shape of the mask does not fit x, or if `s` does
                not fit `two_times`.
        """
        check_mask(mask, x)
        cond, rows = check(cond, self.fields), x.shape[0]
        c = embed(self, batch_time(t, x), s, cond, lambda t: time_features(t, self.features), skip=_TOKENS)
        sequence = as_sequence(x)
        sequence = sequence if mask is None else jnp.where(mask[..., None], sequence, 0)
        h = linear(self.stem, sequence.astype(self.dtype))
        context = self._context(cond, rows) if self.cross else None
        rotate = rotated if self.positions == "rotary" else None
        keys = split_keys(row_keys(key, rows), 3 * len(self.blocks))

        def layer(i: int, h: Array, c: Array) -> Array:
            if context is not None:
                tokens, exists, positions = context
                places = None if rotate is None else positions
                h = self.cross[i](h, c, tokens, exists, keys[3 * i + 2], forward_mode, places)
            return self.blocks[i](h, c, keys[3 * i : 3 * i + 2], forward_mode, mask=mask, rotate=rotate)

        for i in range(len(self.blocks)):
            h = remat(self.remat, lambda h, c, i=i: layer(i, h, c))(h, c)
        shift, scale = jnp.split(self.modulation(c)[:, None].astype(h.dtype), 2, -1)
        y = at_least_float32(linear(self.out, h * (1 + scale) + shift))
        return as_signal(y if mask is None else jnp.where(mask[..., None], y, 0), x)

    def _context(
        self, cond: Mapping[str, Array], rows: int
    ) -> tuple[Float[Array, "B S W"], Bool[Array, "B S"], Int[Array, " S"]]:
        """Returns the tokens of the conditions, which of them exist, and their positions, which are 0 without order."""
        encoded: list[Any] = []
        for field in self.fields:
            encoder: Any = self.encoders.get(field.name)
            if field.kind == "set":
                tokens, exists = encoder.elements(cond.get(field.name), rows)
            elif field.kind in _TOKENS:
                tokens = encoder(cond.get(field.name), rows)
                exists = jnp.ones(tokens.shape[:2], bool)
            else:
                continue
            count = tokens.shape[1]
            encoded.append((tokens, exists, jnp.arange(count) if field.kind == "sequence" else jnp.zeros(count, int)))
        tokens, exists, positions = zip(*encoded, strict=True)
        return jnp.concatenate(tokens, 1).astype(self.dtype), jnp.concatenate(exists, 1), jnp.concatenate(positions)
