"""Encoders of conditions: modules that map the array of a field (`flowjax.conditions`) to an input of a network.

| kind | encoder | output |
|---|---|---|
| label | a learned vector for each class and for "no label" | a vector |
| vector | a linear layer, or a learned vector for rows that are not given | a vector |
| set | the mean of a small MLP over the present elements, or a learned vector for an empty set | a vector, or tokens |
| sequence | a linear layer of each element plus a learned position embedding | tokens, a vector, or channels |
| image | the values, and a channel that is 1 where they are given | channels concatenated to the input, or tokens |

NaN is replaced by zeros before the first layer, so that gradients are finite, and the outputs of these rows or elements
are replaced after the last layer. In fields whose null value is 0, zeros mean "not given".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flowjax.conditions import Field, Kind
from flowjax.models.embeddings import positional, times_of
from flowjax.models.encoder_parts import dense, given, learned_vector, present
from flowjax.models.named_encoders import NAMED_ENCODERS

__all__ = [
    "ENCODERS",
    "TAKES",
    "VECTOR_ENCODERS",
    "LabelEmbedding",
    "SequenceEncoder",
    "SetEncoder",
    "VectorEncoder",
    "beside",
    "check_fields",
    "embed",
    "encode",
    "encoders_of",
    "extra_channels",
]

TAKES: dict[str, tuple[Kind, ...]] = {
    "mlp": ("label", "vector", "set", "sequence"),
    "transformer": ("label", "vector", "set", "image", "sequence"),
    "unet1d": ("label", "vector", "set", "sequence"),
    "resmlp": ("label", "vector", "set", "sequence"),
    "unet": ("label", "vector", "set", "image"),
    "adm": ("label", "vector", "set", "image"),
    "edm2": ("label", "vector", "set", "image"),
    "dit": ("label", "vector", "set", "image", "sequence"),
}
"""The kinds of conditions that each network takes."""

_TAKE_NAMED: dict[str, tuple[str, ...]] = {
    "mlp": ("mlp", "resmlp", "transformer", "unet1d", "unet", "adm", "dit"),
    "cnn": ("mlp", "resmlp"),
    "attention": ("mlp", "resmlp", "unet1d", "unet", "adm"),
}
"""The networks that take each of the `NAMED_ENCODERS`. Others have encoders of their own, or attend to tokens."""


class LabelEmbedding(nnx.Module):
    """A learned vector for each class and for "no label".

    The vector of `NO_LABEL` is the last one, because `NO_LABEL` is the index -1.

    Args:
        num_classes: number of classes K. Labels are 0 ... K - 1, or `NO_LABEL`.
        width: width of a vector.
        init: initialiser of the vectors; None for normal numbers of variance 1 / width.
    """

    def __init__(self, num_classes: int, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        shape = (num_classes + 1, width)
        self.table = nnx.Param(jax.random.normal(rngs.params(), shape) / jnp.sqrt(width))
        if init is not None:  # uses a second key, so that the keys of later layers stay what they have always been
            self.table = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(self, label: Int[Array, " B"] | None, rows: int) -> Float[Array, "B width"]:
        table = self.table[...]
        if label is None:
            return jnp.broadcast_to(table[-1], (rows, table.shape[1]))
        return table[label]


class VectorEncoder(nnx.Module):
    """A linear layer of all numbers of an example, or a learned vector for rows that contain NaN.

    If the null value of the field is 0, the layer has no bias, and zeros are encoded as zeros.

    Args:
        field: the field, of any shape.
        width: width of the output.
        init: initialiser of the kernel.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        self.linear = dense(_numbers(field), width, init, rngs, use_bias=not field.zero_is_null)
        self.missing = None if field.zero_is_null else learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B *event"] | None, rows: int) -> Float[Array, "B width"]:
        """Returns the encoded rows. If `value` is None, all rows are zeros or the learned vector."""
        if self.missing is None:
            return jnp.zeros((rows, self.width)) if value is None else self.linear(value.reshape(rows, -1))
        missing = self.missing[...]
        if value is None:
            return jnp.broadcast_to(missing, (rows, self.width))
        flat = value.reshape(rows, -1)
        mask = given(self.field, flat, 1)
        return jnp.where(mask[:, None], self.linear(present(mask, flat)), missing)


class SetEncoder(nnx.Module):
    """The mean over the present elements of linear(silu(linear(element))), or a learned vector if there are none.

    Args:
        field: the field, of shape (N, C).
        width: width of the output.
        init: initialiser of the kernels.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        self.linear1 = dense(field.shape[1], width, init, rngs)
        self.linear2 = dense(width, width, init, rngs)
        self.empty = learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B N C"] | None, rows: int) -> Float[Array, "B width"]:
        empty = self.empty[...]
        if value is None:
            return jnp.broadcast_to(empty, (rows, self.width))
        h, mask = self._encoded(value)
        count = mask.sum(1)[:, None]
        return jnp.where(count > 0, present(mask, h).sum(1) / jnp.maximum(count, 1), empty)

    def elements(
        self, value: Float[Array, "B N C"] | None, rows: int
    ) -> tuple[Float[Array, "B M width"], Bool[Array, "B M"]]:
        """Returns the encoded elements before the mean as tokens, and which of them exist.

        The last token is the learned vector of an empty set, and exists only if no other does.
        """
        empty = jnp.broadcast_to(self.empty[...], (rows, 1, self.width))
        if value is None:
            return empty, jnp.ones((rows, 1), bool)
        h, mask = self._encoded(value)
        nothing = ~mask.any(1, keepdims=True)
        return jnp.concatenate([h, empty.astype(h.dtype)], 1), jnp.concatenate([mask, nothing], 1)

    def _encoded(self, value: Float[Array, "B N C"]) -> tuple[Float[Array, "B N width"], Bool[Array, "B N"]]:
        mask = given(self.field, value, 2)
        return self.linear2(jax.nn.silu(self.linear1(present(mask, value)))), mask


class SequenceEncoder(nnx.Module):
    """A token for each element: a linear layer of the element, or a learned vector if it is not given, plus a learned
    position embedding.

    Args:
        field: the field, of shape (L, C).
        width: width of a token.
        init: initialiser of the kernel and of the position embeddings.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field = field
        self.linear = dense(field.shape[1], width, init, rngs)
        self.missing = learned_vector(width, rngs)
        self.position = nnx.Param(
            (init or nnx.initializers.normal(0.02))(rngs.params(), (field.shape[0], width), jnp.float32)
        )

    def __call__(self, value: Float[Array, "B L C"] | None, rows: int) -> Float[Array, "B L width"]:
        missing, position = self.missing[...], self.position[...]
        if value is None:
            return jnp.broadcast_to(missing + position, (rows, *position.shape))
        mask = given(self.field, value, 2)
        return jnp.where(mask[..., None], self.linear(present(mask, value)), missing) + position


def _numbers(field: Field) -> int:
    return math.prod(field.shape)


Encoder = Callable[..., nnx.Module]
"""`encoder(field, width, init, rngs=rngs)` makes a module that maps (value or None, rows) to the encoded rows."""

ENCODERS: dict[Kind, Encoder] = {
    "label": lambda field, width, init, *, rngs: LabelEmbedding(field.num_classes, width, init, rngs=rngs),
    "vector": VectorEncoder,
    "set": SetEncoder,
    "sequence": SequenceEncoder,
}
"""The encoder of each kind. Images have none, because `beside` concatenates their channels to the input, except in the
transformer (`models.image_tokens`); sequences have none either in `unet1d`, for the same reason."""

VECTOR_ENCODERS: dict[Kind, Encoder] = {**ENCODERS, "sequence": VectorEncoder}
"""The encoders of networks without tokens, all of which return vectors."""


def check_fields(network: str, fields: Sequence[Field], shape: tuple[int, ...], joined: Kind | None = "image") -> None:
    """Checks that a network supports the given conditions.

    Args:
        network: name of the network in `TAKES`.
        fields: the conditions.
        shape: shape of one example of the input.
        joined: the kind of the conditions whose channels the network concatenates to the input (`beside`), or None.

    Raises:
        ValueError: if the network does not support the kind of a condition, or if a condition of the kind `joined` does
            not have the height and width of the input. `unet1d` extends its sequences to one length before this check.
    """
    for field in fields:
        if field.kind not in TAKES[network]:
            others = ", ".join(name for name, kinds in TAKES.items() if field.kind in kinds)
            raise ValueError(f"{network} takes no condition of the kind {field.kind} ({field.name!r}): use {others}")
        if field.encoder and network not in _TAKE_NAMED[field.encoder]:
            others = ", ".join(_TAKE_NAMED[field.encoder])
            raise ValueError(f"{network} takes no encoder {field.encoder!r} ({field.name!r}): use {others}")
        if field.kind == joined and field.shape[:-1] != tuple(shape[:-1]):
            raise ValueError(
                f"condition {field.name!r} must have the height and width of the data, {tuple(shape[:-1])}, not "
                f"{field.shape[:-1]}"
            )


def encoders_of(
    fields: Sequence[Field],
    width: int,
    init: nnx.Initializer | None = None,
    table: Mapping[Kind, Encoder] = ENCODERS,
    *,
    rngs: nnx.Rngs,
) -> dict[str, Any]:
    """Makes an encoder for each field whose kind is in `table`: that of the table, or that of `Field.encoder`.

    Args:
        fields: the conditions.
        width: width of the encoded vectors and tokens.
        init: initialiser of the kernels; None for the default of each encoder.
        table: the encoder of each kind.
        rngs: random number generators of the initialisation.

    Returns:
        The encoders by the names of the fields, in the order of the fields.
    """
    encoder_of: Callable[[Field], Encoder] = lambda f: NAMED_ENCODERS[f.encoder] if f.encoder else table[f.kind]
    return {f.name: encoder_of(f)(f, width, init, rngs=rngs) for f in fields if f.kind in table}


def encode(
    encoders: Mapping[str, Any],
    fields: Sequence[Field],
    cond: Mapping[str, Array],
    rows: int,
    skip: tuple[Kind, ...] = (),
) -> list[Array]:
    """Encodes conditions.

    Args:
        encoders: the encoders, from `encoders_of`.
        fields: the conditions.
        cond: the arrays, from `conditions.check`. A field that is absent counts as not given.
        rows: batch size B.
        skip: the kinds of conditions to leave out.

    Returns:
        The encoded conditions in the order of the fields. Vectors that are absent and whose null value is 0 are left
        out, because they would be zeros.
    """
    return [
        encoders[f.name](cond.get(f.name), rows)
        for f in fields
        if f.name in encoders and f.kind not in skip and (f.name in cond or not _adds_nothing(f))
    ]


def embed(
    network: Any,
    t: Float[Array, " B"],
    s: Array | float | None,
    cond: Mapping[str, Array],
    featured: Callable[[Array], Array] | None = None,
    skip: tuple[Kind, ...] = ("sequence",),
) -> Float[Array, "B width"]:
    """Returns silu of the sum of the embeddings of times and conditions, in float32.

    Args:
        network: a network with the layers `time1` and `time2` for the time of x, `difference1` and `difference2` for
            t - s, and the attributes `two_times`, `fields` and `encoders`; also `features` and `time_scale`, if
            `featured` is None.
        t: one time per row, (B,).
        s: the time of x, () or (B,), if the network takes two times; None otherwise.
        cond: the arrays, from `conditions.check`.
        featured: the features of a time, which `time1` and `difference1` take; None for `network.features` sinusoidal
            features of `network.time_scale` times the time (`embeddings.positional`).
        skip: the kinds of conditions to leave out, because the network takes them elsewhere.

    Raises:
        ValueError: if `s` does not fit `network.two_times`.
    """
    featured = featured or (lambda t: positional(t * network.time_scale, network.features))
    of_time = lambda t, one, two: two(jax.nn.silu(one(featured(t))))
    time, difference = times_of(t, s, network.two_times)
    e = of_time(time, network.time1, network.time2)
    if difference is not None:
        e = e + of_time(difference, network.difference1, network.difference2)
    for encoded in encode(network.encoders, network.fields, cond, t.shape[0], skip):
        e = e + encoded
    return jax.nn.silu(e)


def _adds_nothing(field: Field) -> bool:
    return field.kind == "vector" and field.zero_is_null


def extra_channels(fields: Sequence[Field], kind: Kind = "image") -> int:
    """Returns the number of channels that `beside` adds."""
    return sum(f.shape[-1] + 1 for f in fields if f.kind == kind)


def beside(
    x: Float[Array, "B *space C"], fields: Sequence[Field], cond: Mapping[str, Array], kind: Kind = "image"
) -> Float[Array, "B *space D"]:
    """Concatenates to the input the channels of each condition of a kind, and a channel that is 1 where it is given.

    Args:
        x: images (B, H, W, C), or sequences (B, L, C).
        fields: the conditions.
        cond: the arrays, from `conditions.check`.
        kind: the kind of the conditions to concatenate: `image` for images, `sequence` for sequences.
    """
    parts = [x]
    for field in fields:
        if field.kind != kind:
            continue
        value = cond.get(field.name)
        if value is None:
            parts.append(jnp.zeros((*x.shape[:-1], field.shape[-1] + 1), x.dtype))
            continue
        mask = given(field, value, value.ndim - 1)
        parts += [present(mask, value).astype(x.dtype), mask[..., None].astype(x.dtype)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
