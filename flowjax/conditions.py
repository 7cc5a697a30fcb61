"""Conditions: named arrays that a network receives in addition to its input, such as a class label or an observation.

Conditions are passed as a dictionary from names to arrays whose leading axis is the batch. An empty dictionary, or
None, means that there are no conditions. A `Field` describes one of the arrays: its kind, its shape, the probability
with which training drops it, and the value that means "not given" (its null value). These are the kinds, and the arrays
for a batch of B rows:

    label      (B,) integers; the null value is -1
    vector     (B, D) numbers; the null value is NaN
    image      (B, H, W, C) numbers; the null value is NaN
    sequence   (B, L, C) numbers, in order; the null value is NaN
    set        (B, N, C) numbers, in any order; an element that is NaN is absent, and a set without elements is not
               given

Networks never compute with NaN: the encoders of `flowjax.models.encoders` replace it by zeros and a learned vector. A
field may have the null value 0 instead, if zeros mean the same as "not given".
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.typing import Cond, PRNGKey

__all__ = [
    "KINDS",
    "KINDS_OF_ENCODERS",
    "NO_LABEL",
    "Field",
    "Kind",
    "check",
    "drop",
    "field_of",
    "named",
    "null",
    "without",
]

NO_LABEL = -1
"""The label that means "no label". It is the null value of fields of the kind `label`."""

Kind = Literal["label", "vector", "image", "sequence", "set"]

KINDS: tuple[Kind, ...] = ("label", "vector", "image", "sequence", "set")
"""The possible values of `Field.kind`."""

KINDS_OF_ENCODERS: dict[str, Kind] = {"mlp": "vector", "cnn": "sequence", "attention": "set"}
"""The kind of condition that each encoder of `Field.encoder` takes (`flowjax.models.named_encoders`)."""

_AXES = {"label": 0, "vector": 1, "image": 3, "sequence": 2, "set": 2}
"""The number of axes of one example."""


@dataclass(frozen=True)
class Field:
    """The description of one named condition.

    Attributes:
        name: key in the dictionary of conditions.
        kind: one of `KINDS`.
        shape: shape of one example; () for a label.
        num_classes: number of classes of a label; 0 for all other kinds.
        dropout: probability with which training replaces a row by the null value.
        zero_is_null: whether the null value is 0 instead of NaN. Labels ignore it.
        encoder: a name in `KINDS_OF_ENCODERS` for a deeper encoder; "" for that of the network.

    Raises:
        ValueError: if the kind is unknown, the shape does not fit the kind, a label has no classes, or the encoder is
            unknown or of another kind.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...] = ()
    num_classes: int = 0
    dropout: float = 0.0
    zero_is_null: bool = False
    encoder: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"condition {self.name!r}: unknown kind {self.kind!r}: known are {', '.join(KINDS)}")
        if len(self.shape) != _AXES[self.kind] or 0 in self.shape:
            raise ValueError(f"condition {self.name!r}: a {self.kind} cannot have examples of shape {self.shape}")
        if self.encoder and KINDS_OF_ENCODERS.get(self.encoder) != self.kind:
            known = ", ".join(f"{name} (of a {kind})" for name, kind in KINDS_OF_ENCODERS.items())
            raise ValueError(
                f"condition {self.name!r}: a {self.kind} has no encoder {self.encoder!r}; known are {known}"
            )
        if (self.kind == "label") != (self.num_classes > 0):
            raise ValueError(
                f"condition {self.name!r}: num_classes must be positive for a label and 0 for other kinds, not "
                f"{self.num_classes} for a {self.kind}"
            )

    @property
    def null(self) -> float | int:
        """The value that means that the field is not given."""
        return NO_LABEL if self.kind == "label" else 0.0 if self.zero_is_null else math.nan

    @property
    def dtype(self) -> Any:
        """int32 for a label, float32 for all other kinds."""
        return jnp.int32 if self.kind == "label" else jnp.float32

    def like(self, rows: int) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the field's array for a batch of `rows` rows."""
        return jax.ShapeDtypeStruct((rows, *self.shape), self.dtype)


def field_of(name: str, shape: Sequence[int], dropout: float = 0.0) -> Field:
    """Makes the field of an array of numbers: a vector, a sequence or an image, according to the number of axes.

    Args:
        name: name of the field.
        shape: shape of one example; () becomes a vector of length 1.
        dropout: probability with which training drops the field.

    Raises:
        ValueError: if `shape` has more than three axes.
    """
    kinds: dict[int, Kind] = {0: "vector", 1: "vector", 2: "sequence", 3: "image"}
    if len(shape) not in kinds:
        raise ValueError(f"condition {name!r}: examples of {len(shape)} axes are neither vectors, sequences nor images")
    return Field(name, kinds[len(shape)], tuple(shape) or (1,), dropout=dropout)


def named(fields: Sequence[Field], name: str) -> Field | None:
    """Returns the field with this name, or None if there is none."""
    return next((f for f in fields if f.name == name), None)


def check(cond: Cond, fields: Sequence[Field]) -> dict[str, Array]:
    """Checks that each array of a condition belongs to a field and has its shape.

    Args:
        cond: a dictionary from names to arrays (B, *shape), or None.
        fields: the fields that the network takes. A field may be absent from `cond`.

    Returns:
        The condition as a dictionary, which is empty if `cond` is None.

    Raises:
        ValueError: if `cond` is not a dictionary, has an unknown name, or has an array of the wrong shape.
    """
    if cond is None:
        return {}
    names = ", ".join(repr(f.name) for f in fields) or "none"
    if not isinstance(cond, Mapping):
        raise ValueError(
            f"conditions must be a dictionary such as {{'label': labels}}, not {type(cond).__name__}: this network "
            f"takes {names}"
        )
    known = {f.name: f for f in fields}
    for name, array in cond.items():
        if name not in known:
            raise ValueError(f"unknown condition {name!r}: this network takes {names}")
        if tuple(array.shape[1:]) != known[name].shape:
            raise ValueError(
                f"condition {name!r} must be (B, {', '.join(map(str, known[name].shape))}), not {array.shape}"
            )
    return dict(cond)


def null(field: Field, rows: int) -> Array:
    """Returns an array (rows, *shape) of the field's null value, which means that the field is not given."""
    return jnp.full((rows, *field.shape), field.null, field.dtype)


def without(cond: Mapping[str, Array], fields: Sequence[Field], names: Sequence[str] | None = None) -> dict[str, Array]:
    """Replaces fields of a condition by their null values.

    Args:
        cond: arrays by name.
        fields: the fields that describe them.
        names: names of the fields to replace; None for all fields.
    """
    known = {f.name: f for f in fields}
    return {
        name: jnp.full_like(a, known[name].null) if names is None or name in names else a for name, a in cond.items()
    }


def drop(key: PRNGKey, cond: Mapping[str, Array], fields: Sequence[Field]) -> dict[str, Array]:
    """Replaces each row of each field by the null value, independently, with the probability `dropout` of the field."""
    out = dict(cond)
    for f in fields:
        if f.name in out and f.dropout:
            field_key = key if f.name == "label" else jax.random.fold_in(key, zlib.crc32(f.name.encode()))
            a = out[f.name]
            dropped = jax.random.bernoulli(field_key, f.dropout, a.shape[:1])
            out[f.name] = jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), jnp.asarray(f.null, a.dtype), a)
    return out
