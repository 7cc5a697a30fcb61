"""The request with which a config opens a data set: its path, conditions, pairs and normalisation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from flowjax.arguments import make_named
from flowjax.conditions import KINDS, KINDS_OF_ENCODERS
from flowjax.data.affine import DataError
from flowjax.errors import ConfigError, lookup
from flowjax.ranges import Range
from flowjax.simulators import Simulator

__all__ = ["DEQUANTISATIONS", "DataRequest", "FieldRequest", "check_field_name", "field_requests"]

_RESERVED = ("x", "y", "mask", "augment", "samples", "labels")


def check_field_name(name: str) -> None:
    """Raises a ValueError unless `name` can be the name of an array of conditions."""
    if not name.isidentifier() or len(name) > 100:
        raise ValueError(f"{name[:100]!r} cannot be the name of a condition: it must be a Python identifier")
    if name in _RESERVED or name.endswith("_test"):
        raise ValueError(f"{name} cannot be the name of a condition; labels in the array y are called label")


@dataclass(frozen=True)
class FieldRequest:
    """An entry of `data.cond`, such as `label`, `label(dropout=0)` or `points(kind='set')`.

    Attributes:
        name: name of the field; `label` is the array `y`.
        dropout: probability with which training replaces the field by its null value; None for `data.cond_dropout`.
        kind: kind of the field (`flowjax.conditions.KINDS`); "" to choose it by the number of axes of the array.
        encoder: a deeper encoder (`flowjax.conditions.KINDS_OF_ENCODERS`), such as "mlp"; "" for that of the network.

    Raises:
        ValueError: if the name is not valid, or the kind is unknown or does not fit the name.
    """

    name: str
    dropout: Annotated[float | int | None, Range(0, 1)] = None
    kind: str = ""
    encoder: str = ""

    def __post_init__(self) -> None:
        check_field_name(self.name)
        if self.encoder and self.encoder not in KINDS_OF_ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}: known are {', '.join(KINDS_OF_ENCODERS)}")
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}: known are {', '.join(KINDS)}")
        if self.kind and (self.kind == "label") != (self.name == "label"):
            raise ValueError("kind 'label' is only for the condition label, which is the array y")


NORMALISE = ("", "global", "feature", "channel")
"""Values of `data.normalise`."""

DEQUANTISATIONS = ("uniform", "none", "variational")
"""Values of `data.dequantisation`."""


@dataclass(frozen=True)
class DataRequest:
    """The argument with which every entry of `flowjax.data.DATASETS` opens a data set.

    Attributes:
        path: `data.path`, with ~ expanded.
        cond: the fields that are read as conditions. Labels are always read, even if they are not listed.
        pairs: name of the array with the source sample of each row; "" for none.
        simulator: `data.simulator`, for the data set `simulator`.
        normalise: "global" for one scale and shift for all numbers; "feature" for one per coordinate of vectors;
            "channel" for one per channel of images and sequences; "" to let the data set choose.

    Raises:
        ConfigError: if `normalise` or `pairs` is invalid.
    """

    path: str = ""
    cond: tuple[FieldRequest, ...] = ()
    pairs: str = ""
    normalise: str = ""
    simulator: Simulator | None = None

    def __post_init__(self) -> None:
        lookup("data.normalise", self.normalise, dict.fromkeys(NORMALISE))
        try:
            if self.pairs:
                check_field_name(self.pairs)
        except ValueError as error:
            raise ConfigError(f"data.pairs: {error}") from None

    def only_labels(self, name: str) -> None:
        """Raises a DataError if the request needs more than labels, which is all that the data set `name` offers."""
        files = "use arrays in files for this (data.name npz, npy or zarr)"
        if self.pairs:
            raise DataError(f"data.pairs is {self.pairs!r}, but data {name!r} has no pairs: {files}")
        if self.normalise not in ("", "global"):
            raise DataError(f"data.normalise is {self.normalise!r}, but data {name!r} has one fixed scale: {files}")
        if others := [field.name for field in self.cond if field.name != "label"]:
            raise DataError(f"data.cond names {others[0]!r}, but data {name!r} has no such array: {files}")


def field_requests(cond: Iterable[str]) -> tuple[FieldRequest, ...]:
    """Parses the entries of `data.cond`.

    Raises:
        ConfigError: if an entry cannot be parsed, or a name occurs twice.
    """
    requests = tuple(make_named("data.cond", text, FieldRequest) for text in cond)
    names = [request.name for request in requests]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.cond names {name!r} twice")
    return requests
