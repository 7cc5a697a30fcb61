"""Conditions: named arrays beside the input of a network, such as a class label or an observation.

A condition is a dictionary from names to arrays whose leading axis is the batch; an empty dictionary, or None, means
that there is no condition. A `Field` says what one of the arrays is: its kind, its shape, how often it is dropped in
training, and the value that stands for "not given" (its null value). Kinds and their arrays for a batch of B rows:

    label      (B,) integers; the null value is -1
    vector     (B, D) numbers; the null value is NaN
    image      (B, H, W, C) numbers; the null value is NaN
    sequence   (B, L, C) numbers, in order; the null value is NaN
    set        (B, N, C) numbers, in no order; an element of NaN is absent, and if all are, the set is not given

NaN never reaches a network's arithmetic: the encoders of `flowjax.models.encoders` replace it by zeros and a learned
vector. A field may have the null value 0 instead, where zeros mean the same as "not given".
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

__all__ = ["KINDS", "NO_LABEL", "Field", "Kind", "check", "drop", "field_of", "named", "null", "without"]

NO_LABEL = -1
"""The label that means "no label": the null value of fields of the kind `label`."""

Kind = Literal["label", "vector", "image", "sequence", "set"]

KINDS: tuple[Kind, ...] = ("label", "vector", "image", "sequence", "set")

_AXES = {"label": 0, "vector": 1, "image": 3, "sequence": 2, "set": 2}
"""Axes of one example."""


@dataclass(frozen=True)
class Field:
    """One named condition.

    Attributes:
        name: its key in the dictionary of conditions.
        kind: one of `KINDS`.
        shape: of one example; () for a label.
        num_classes: number of classes of a label.
        dropout: probability with which training replaces it by its null value.
        zero_is_null: whether the null value is 0, not NaN. It has no meaning for a label.

    Raises:
        ValueError: if the shape does not fit the kind, or a label has no classes.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...] = ()
    num_classes: int = 0
    dropout: float = 0.0
    zero_is_null: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"condition {self.name!r}: unknown kind {self.kind!r}: known are {', '.join(KINDS)}")
        if len(self.shape) != _AXES[self.kind] or 0 in self.shape:
            raise ValueError(f"condition {self.name!r}: a {self.kind} cannot have examples of shape {self.shape}")
        if (self.kind == "label") != (self.num_classes > 0):
            raise ValueError(f"condition {self.name!r}: a label needs num_classes above 0, and no other kind has any")

    @property
    def null(self) -> float | int:
        """The value of an array that means that the field is not given."""
        return NO_LABEL if self.kind == "label" else 0.0 if self.zero_is_null else math.nan

    @property
    def dtype(self) -> Any:
        return jnp.int32 if self.kind == "label" else jnp.float32

    def like(self, rows: int) -> jax.ShapeDtypeStruct:
        """Shape and type of the field's array for so many rows."""
        return jax.ShapeDtypeStruct((rows, *self.shape), self.dtype)


def field_of(name: str, shape: Sequence[int], dropout: float = 0.0) -> Field:
    """The field of an array of numbers whose examples have this shape: a vector, a sequence or an image.

    Raises:
        ValueError: if examples have more than three axes.
    """
    kinds: dict[int, Kind] = {0: "vector", 1: "vector", 2: "sequence", 3: "image"}
    if len(shape) not in kinds:
        raise ValueError(f"condition {name!r}: examples of {len(shape)} axes are neither vectors, sequences nor images")
    return Field(name, kinds[len(shape)], tuple(shape) or (1,), dropout=dropout)


def named(fields: Sequence[Field], name: str) -> Field | None:
    """The field of this name, or None if there is none."""
    return next((f for f in fields if f.name == name), None)


def check(cond: Cond, fields: Sequence[Field]) -> dict[str, Array]:
    """The condition as a dictionary, if each of its arrays belongs to a field and has its shape.

    Raises:
        ValueError: in one line, on anything but a dictionary, an unknown name, or a wrong shape.
    """
    if cond is None:
        return {}
    names = ", ".join(repr(f.name) for f in fields) or "none"
    if not isinstance(cond, Mapping):
        raise ValueError(f"conditions are given by name, as {{'label': labels}}, and this network takes {names}")
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
    """The array that says that a field is not given, for so many rows."""
    return jnp.full((rows, *field.shape), field.null, field.dtype)


def without(cond: Mapping[str, Array], fields: Sequence[Field], names: Sequence[str] | None = None) -> dict[str, Array]:
    """The condition with some of its fields at their null values.

    Args:
        cond: arrays by name.
        fields: what they are.
        names: the fields that are not given; None for all.
    """
    known = {f.name: f for f in fields}
    return {
        name: jnp.full_like(a, known[name].null) if names is None or name in names else a for name, a in cond.items()
    }


def drop(key: PRNGKey, cond: Mapping[str, Array], fields: Sequence[Field]) -> dict[str, Array]:
    """Each row of each field is replaced by the null value with the field's `dropout`, independently of all others."""
    out = dict(cond)
    for f in fields:
        if f.name in out and f.dropout:
            own = key if f.name == "label" else jax.random.fold_in(key, zlib.crc32(f.name.encode()))
            a = out[f.name]
            dropped = jax.random.bernoulli(own, f.dropout, a.shape[:1])
            out[f.name] = jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), jnp.asarray(f.null, a.dtype), a)
    return out
