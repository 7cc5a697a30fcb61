"""What a config asks of a data set: where it is, which of its arrays are conditions or pairs, how it is scaled."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from flowjax.arguments import make_named
from flowjax.conditions import KINDS
from flowjax.data.affine import DataError
from flowjax.errors import ConfigError, lookup
from flowjax.ranges import Range

__all__ = ["DataRequest", "FieldRequest", "check_field_name", "field_requests"]

_RESERVED = ("x", "y", "mask", "augment")


def check_field_name(name: str) -> None:
    """Raises a ValueError of one line unless this can be the name of a condition that is an array of its own."""
    if not name.isidentifier() or len(name) > 100:
        raise ValueError(f"{name[:100]!r} cannot be the name of a condition: it is no identifier")
    if name in _RESERVED or name.endswith("_test"):
        raise ValueError(f"{name} cannot be the name of a condition; the array y is named label")


@dataclass(frozen=True)
class FieldRequest:
    """One name in `data.cond`, such as `label`, `label(dropout=0)` or `points(kind='set')`.

    Attributes:
        name: of the field; `label` is the array `y`.
        dropout: probability with which training replaces the field by its null value; None for `data.cond_dropout`.
        kind: of the field (`flowjax.conditions.KINDS`); "" to take it from the number of axes of the array.

    Raises:
        ValueError: if the name cannot be that of a condition, or the kind is unknown or does not fit the name.
    """

    name: str
    dropout: Annotated[float | int | None, Range(0, 1)] = None
    kind: str = ""

    def __post_init__(self) -> None:
        check_field_name(self.name)
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}: known are {', '.join(KINDS)}")
        if self.kind and (self.kind == "label") != (self.name == "label"):
            raise ValueError("the only condition of kind 'label' is label, the array y")


NORMALISE = ("", "global", "feature", "channel")
"""What `data.normalise` may be."""


@dataclass(frozen=True)
class DataRequest:
    """What a data set is opened with: the argument of every entry of `flowjax.data.DATASETS`.

    Attributes:
        path: `data.path`, with ~ expanded.
        cond: the fields that are read as conditions. A data set delivers its labels whether they are among them or not.
        pairs: the name of the array that holds the source sample of each row; "" for none.
        normalise: "global", one scale and shift for all numbers; "feature", one for each coordinate of vectors;
            "channel", one for each channel of images and sequences; "" to let the data set choose.

    Raises:
        ConfigError: one line, if a value is none of these.
    """

    path: str = ""
    cond: tuple[FieldRequest, ...] = ()
    pairs: str = ""
    normalise: str = ""

    def __post_init__(self) -> None:
        lookup("data.normalise", self.normalise, dict.fromkeys(NORMALISE))
        try:
            if self.pairs:
                check_field_name(self.pairs)
        except ValueError as error:
            raise ConfigError(f"data.pairs: {error}") from None

    def only_labels(self, name: str) -> None:
        """Raises a DataError if the request names more than labels, which are all that the data set `name` has."""
        files = "arrays of your own have it (data.name npz, npy or zarr)"
        if self.pairs:
            raise DataError(f"data.pairs is {self.pairs!r}, and data {name!r} has no pairs: {files}")
        if self.normalise not in ("", "global"):
            raise DataError(f"data.normalise is {self.normalise!r}, and data {name!r} has one fixed scale: {files}")
        if others := [field.name for field in self.cond if field.name != "label"]:
            raise DataError(f"data.cond names {others[0]!r}, and data {name!r} has no such array: {files}")


def field_requests(cond: Iterable[str]) -> tuple[FieldRequest, ...]:
    """The fields that `data.cond` names.

    Raises:
        ConfigError: one line, if a name or its arguments cannot be read, or a name is there twice.
    """
    requests = tuple(make_named("data.cond", text, FieldRequest) for text in cond)
    names = [request.name for request in requests]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.cond names {name!r} twice")
    return requests
