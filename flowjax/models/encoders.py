"""Encoders of conditions: from the array of a field (`flowjax.conditions`) to what a network takes.

| kind | encoder | what becomes of it |
|---|---|---|
| label | a vector for each class, and one for "no label" | a vector |
| vector | a linear layer, or a learned vector for rows that are not given | a vector |
| set | the mean over present elements of a small MLP of each, or a learned vector for an empty set | a vector |
| sequence | a linear layer of each element with a learned position | tokens; in `mlp` as a vector of all its numbers |
| image | its values, and a channel that is 1 where they are given | channels beside those of the input |

NaN never reaches the arithmetic: it is replaced by zeros before the first layer, so that gradients are finite, and the
result is replaced behind the last. Where a field's null value is 0, zeros are what is not given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from flowjax.conditions import Field, Kind
from flowjax.models.embeddings import positional, time_difference

__all__ = [
    "ENCODERS",
    "TAKES",
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
    "given",
]

TAKES: dict[str, tuple[Kind, ...]] = {
    "mlp": ("label", "vector", "set", "sequence"),
    "unet": ("label", "vector", "set", "image"),
    "adm": ("label", "vector", "set", "image"),
    "edm2": ("label", "vector", "set", "image"),
    "dit": ("label", "vector", "set", "image", "sequence"),
}
"""The kinds of conditions that each network takes."""


def given(field: Field, value: Float[Array, "B *rest"], axes: int | tuple[int, ...]) -> Bool[Array, "B *kept"]:
    """Where a condition is given: true where no number along the axes is NaN, or where one is not 0."""
    return (value != 0).any(axes) if field.zero_is_null else ~jnp.isnan(value).any(axes)


def _present(mask: Bool[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """The values, and zeros where they are not given; the mask has no last axis."""
    return jnp.where(mask[..., None], value, 0.0)


class LabelEmbedding(nnx.Module):
    """One vector a class, and a last one for `NO_LABEL`, which as the index -1 needs no case of its own.

    Args:
        num_classes: K; labels are 0 ... K - 1, or `NO_LABEL`.
        width: of a vector.
        init: of the vectors; None for normal numbers of variance 1 / width.
    """

    def __init__(self, num_classes: int, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        shape = (num_classes + 1, width)
        self.table = nnx.Param(jax.random.normal(rngs.params(), shape) / jnp.sqrt(width))
        if init is not None:  # a second key: those of the later layers have always been what follows it
            self.table = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(self, label: Int[Array, " B"] | None, rows: int) -> Float[Array, "B width"]:
        table = self.table[...]
        if label is None:
            return jnp.broadcast_to(table[-1], (rows, table.shape[1]))
        return table[label]


class VectorEncoder(nnx.Module):
    """A linear layer of all numbers of an example, or a learned vector for rows of which some number is NaN.

    Where the field's null value is 0 the layer has no bias, and zeros encode to zeros.

    Args:
        field: of any shape.
        width: of the result.
        init: of the layer's kernel.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        self.linear = _linear(_numbers(field), width, init, rngs, use_bias=not field.zero_is_null)
        self.missing = None if field.zero_is_null else _learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B *event"] | None, rows: int) -> Float[Array, "B width"]:
        """The encoded rows; all zeros, or all the learned vector, if there is no value."""
        if self.missing is None:
            return jnp.zeros((rows, self.width)) if value is None else self.linear(value.reshape(rows, -1))
        missing = self.missing[...]
        if value is None:
            return jnp.broadcast_to(missing, (rows, self.width))
        flat = value.reshape(rows, -1)
        mask = given(self.field, flat, 1)
        return jnp.where(mask[:, None], self.linear(_present(mask, flat)), missing)


class SetEncoder(nnx.Module):
    """The mean over the present elements of linear(silu(linear(element))), or a learned vector if there are none.

    Args:
        field: of shape (N, C).
        width: of the result.
        init: of the layers' kernels.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        self.linear1 = _linear(field.shape[1], width, init, rngs)
        self.linear2 = _linear(width, width, init, rngs)
        self.empty = _learned_vector(width, rngs)

    def __call__(self, value: Float[Array, "B N C"] | None, rows: int) -> Float[Array, "B width"]:
        empty = self.empty[...]
        if value is None:
            return jnp.broadcast_to(empty, (rows, self.width))
        mask = given(self.field, value, 2)
        h = self.linear2(jax.nn.silu(self.linear1(_present(mask, value))))
        count = mask.sum(1)[:, None]
        return jnp.where(count > 0, _present(mask, h).sum(1) / jnp.maximum(count, 1), empty)


class SequenceEncoder(nnx.Module):
    """A token for each element: a linear layer of it, or a learned vector where it is not given, plus its position.

    Args:
        field: of shape (L, C).
        width: of a token.
        init: of the layer's kernel and of the positions.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field = field
        self.linear = _linear(field.shape[1], width, init, rngs)
        self.missing = _learned_vector(width, rngs)
        self.position = nnx.Param(
            (init or nnx.initializers.normal(0.02))(rngs.params(), (field.shape[0], width), jnp.float32)
        )

    def __call__(self, value: Float[Array, "B L C"] | None, rows: int) -> Float[Array, "B L width"]:
        missing, position = self.missing[...], self.position[...]
        if value is None:
            return jnp.broadcast_to(missing + position, (rows, *position.shape))
        mask = given(self.field, value, 2)
        return jnp.where(mask[..., None], self.linear(_present(mask, value)), missing) + position


def _numbers(field: Field) -> int:
    return math.prod(field.shape)


def _linear(a: int, b: int, init: nnx.Initializer | None, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    return nnx.Linear(a, b, use_bias=use_bias, kernel_init=init or nnx.initializers.lecun_normal(), rngs=rngs)


def _learned_vector(width: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), (width,)) / jnp.sqrt(width))


Encoder = Callable[..., nnx.Module]
"""`encoder(field, width, init, rngs=rngs)`: a module that maps (value or None, rows) to the encoded rows."""

ENCODERS: dict[Kind, Encoder] = {
    "label": lambda field, width, init, *, rngs: LabelEmbedding(field.num_classes, width, init, rngs=rngs),
    "vector": VectorEncoder,
    "set": SetEncoder,
    "sequence": SequenceEncoder,
}
"""The encoder of each kind. Images have none: `beside` puts their channels beside those of the input."""


def check_fields(network: str, fields: Sequence[Field], shape: tuple[int, ...]) -> None:
    """Checks that a network takes these conditions.

    Args:
        network: its name in `TAKES`.
        fields: of its conditions.
        shape: of one example of its input.

    Raises:
        ValueError: in one line, on a kind that the network does not take, or an image of another height and width.
    """
    for field in fields:
        if field.kind not in TAKES[network]:
            others = ", ".join(name for name, kinds in TAKES.items() if field.kind in kinds)
            raise ValueError(f"{network} takes no condition of the kind {field.kind} ({field.name!r}): take {others}")
        if field.kind == "image" and field.shape[:2] != tuple(shape[:2]):
            raise ValueError(
                f"condition {field.name!r} must have the height and width of the data, {tuple(shape[:2])}, not "
                f"{field.shape[:2]}"
            )


def encoders_of(
    fields: Sequence[Field],
    width: int,
    init: nnx.Initializer | None = None,
    table: Mapping[Kind, Encoder] = ENCODERS,
    *,
    rngs: nnx.Rngs,
) -> dict[str, Any]:
    """An encoder for each field that needs one, by the field's name, in the order of the fields.

    Args:
        fields: of the conditions.
        width: of what the encoders make.
        init: of their kernels; None for the default of each layer.
        table: the encoder of each kind.
        rngs: for the initialisation.
    """
    return {f.name: table[f.kind](f, width, init, rngs=rngs) for f in fields if f.kind in table}


def encode(
    encoders: Mapping[str, Any], fields: Sequence[Field], cond: Mapping[str, Array], rows: int, skip: str = ""
) -> list[Array]:
    """The encoded conditions in the order of the fields; a field that is absent from `cond` is not given.

    A field whose null value is 0 and that is absent encodes to zeros, and is left out.

    Args:
        encoders: from `encoders_of`.
        fields: of the conditions.
        cond: from `conditions.check`.
        rows: B.
        skip: a kind that is left out.
    """
    return [
        encoders[f.name](cond.get(f.name), rows)
        for f in fields
        if f.name in encoders and f.kind != skip and (f.name in cond or not _adds_nothing(f))
    ]


def embed(
    network: Any, t: Float[Array, " B"], s: Array | float | None, cond: Mapping[str, Array]
) -> Float[Array, "B width"]:
    """silu of the embedding of times and conditions, in float32: it is small. Sequences are not in it.

    Args:
        network: with the layers `time1` and `time2` of t, `difference1` and `difference2` of t - s for two times, and
            with `features`, `time_scale`, `two_times`, `fields` and `encoders`.
        t: one time a row.
        s: the second time, () or (B,); None for one time.
        cond: from `conditions.check`.

    Raises:
        ValueError: if a network of two times gets no `s`, or a network of one time gets one.
    """
    of_time = lambda t, one, two: two(jax.nn.silu(one(positional(t * network.time_scale, network.features))))
    e = of_time(t, network.time1, network.time2)
    difference = time_difference(t, s, network.two_times)
    if difference is not None:
        e = e + of_time(difference, network.difference1, network.difference2)
    for encoded in encode(network.encoders, network.fields, cond, t.shape[0], skip="sequence"):
        e = e + encoded
    return jax.nn.silu(e)


def _adds_nothing(field: Field) -> bool:
    return field.kind == "vector" and field.zero_is_null


def extra_channels(fields: Sequence[Field]) -> int:
    """How many channels `beside` adds."""
    return sum(f.shape[-1] + 1 for f in fields if f.kind == "image")


def beside(x: Float[Array, "B H W C"], fields: Sequence[Field], cond: Mapping[str, Array]) -> Float[Array, "B H W D"]:
    """The input with the channels of each image condition, and one that is 1 where it is given, beside its own."""
    parts = [x]
    for field in fields:
        if field.kind != "image":
            continue
        value = cond.get(field.name)
        if value is None:
            parts.append(jnp.zeros((*x.shape[:3], field.shape[-1] + 1), x.dtype))
            continue
        mask = given(field, value, 3)
        parts += [_present(mask, value).astype(x.dtype), mask[..., None].astype(x.dtype)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
