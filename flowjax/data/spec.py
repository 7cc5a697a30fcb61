"""The description of a data set that is stored with a trained model: shape, scale, classes and conditions.

Samples and densities are in data space, networks and paths in model space. The affine map between the two belongs to
the data set (`data.affine`). Each numeric condition has such a map, too. Integer images are dequantised: a value k
becomes uniform on [k, k + 1) and is then mapped to x / half - 1 with half = (levels - 1) / 2; samples are floored back.
So bits/dim = -log p_data / (D ln 2). Other integers are dequantised in the same way (`data.integers`). Data with
bounds, such as parameters with a uniform prior, are mapped to all real numbers before the affine map (`data.bounds`).
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.archives import printable
from flowjax.batch import Batch
from flowjax.bits.bins import Bins
from flowjax.conditions import Field
from flowjax.data.affine import Affine, DataError
from flowjax.data.bounds import Bounds
from flowjax.data.columns import Column, check_columns, codes_of, column_record, one_hot, read_column
from flowjax.data.integers import Integers
from flowjax.data.record import (
    ENTRIES,
    LARGEST_LIST,
    ConditionRange,
    affine_record,
    bounds_record,
    read_affine,
    read_bounds,
    read_condition,
    read_entries,
)
from flowjax.typing import Batched, PRNGKey

__all__ = ["AT_ONCE", "MOST_CLASSES", "DataSpec", "all_integers", "shares_of", "shortened"]

MOST_CLASSES = LARGEST_LIST
"""Limit on the number of classes, and on the lengths of lists in a record."""

AT_ONCE = 2**22
"""How many numbers are converted in float64 at a time."""


_IDENTITY = Affine()


@dataclass(frozen=True)
class DataSpec:
    """The description of a data set, sufficient to sample and score a trained model without the data.

    Attributes:
        name: name of the data set in configs.
        shape: shape of one example.
        normalise: map between model space and data space.
        num_classes: number of classes; 0 if there are no labels.
        levels: number of integer values of a pixel; 0 for continuous data.
        class_names: name of each class; empty if the classes have only numbers.
        class_shares: fraction of the training rows in each class; empty if it is not known, which means equal shares.
            A class with share 0 has no example and is never drawn.
        conditions: the conditions other than the label, with dropout 0, because training sets the dropout.
        condition_maps: for each of `conditions`, the map between network inputs and the numbers in the data.
        has_mask: whether examples are sets (n, C) of which some elements can be absent. Training learns from the
            elements that exist; samples are full sets.
        integers: for each entry of the last axis the range of its integers, or None where it is a real number; one
            range for all entries; () if there are no integers, or for pixels (`Integers.ranges`).
        columns: the columns of a table: first those of x in their order, then those that are conditions (other than the
            label); () for other data.
        bounds: for each entry of the last axis its support, the open interval (low, high), infinite where there is no
            bound; () if nothing is bounded. `normalise` then acts on the unbounded numbers (`Bounds.to_unbounded`).
        condition_ranges: for each of `conditions` the smallest and the largest value of each entry of its last axis in
            the training data, ((), ()) where they are not known; () if none is known.
        paired_source: for pairs (x0, x1) that a trained model has made: the `source.name` from which their x0 come. The
            rows of such a set are in model space, and samples of a network that was trained on them start from this
            source. Empty for all other data.
        dequantisation: what the integer k is in training: `uniform` on [k, k + 1), or its centre k + 1/2, for models
            whose noise covers the bins (`none`), or for those that learn the noise (`variational`).

    Raises:
        DataError: if the entries do not fit each other, or the description cannot be stored: `from_record` would refuse
            it or read another one. Conditions of the kind `label` belong in `num_classes`.
    """

    name: str
    shape: tuple[int, ...]
    normalise: Affine = _IDENTITY
    num_classes: int = 0
    levels: int = 0
    class_names: tuple[str, ...] = ()
    class_shares: tuple[float, ...] = ()
    conditions: tuple[Field, ...] = ()
    condition_maps: tuple[Affine, ...] = ()
    has_mask: bool = False
    integers: tuple[tuple[int, int] | None, ...] = ()
    columns: tuple[Column, ...] = ()
    bounds: tuple[tuple[float, float], ...] = ()
    condition_ranges: tuple[ConditionRange, ...] = ()
    paired_source: str = ""
    dequantisation: str = "uniform"

    def __post_init__(self) -> None:
        if not self.normalise.fits(self.shape):
            raise DataError(f"examples of shape {self.shape} cannot have {self.normalise.features} scales and shifts")
        if len(self.conditions) != len(self.condition_maps):
            raise DataError(
                f"{len(self.conditions)} conditions need {len(self.conditions)} maps, not {len(self.condition_maps)}"
            )
        if len({f.name for f in self.fields}) < len(self.fields):
            raise DataError("the description of the data has two conditions of the same name")
        try:
            stored = _arguments(json.loads(json.dumps(self.to_record())))
        except TypeError as error:
            raise DataError(f"the description of the data cannot be stored: {error}") from None
        for name, value in stored.items():
            if value != getattr(self, name):
                raise DataError(
                    f"the description of the data cannot be stored: {name} is {getattr(self, name)!r:.80}, which would "
                    f"be read as {value!r:.80}"
                )

    @property
    def fields(self) -> tuple[Field, ...]:
        """All conditions of the data: `label` if there are classes, then `conditions`."""
        label = (Field("label", "label", num_classes=self.num_classes),) if self.num_classes else ()
        return label + self.conditions

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each class: `class_shares`, or equal shares if these are not known."""
        return self.class_shares or (1.0 / max(self.num_classes, 1),) * self.num_classes

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that have an example in the training data."""
        return tuple(k for k, share in enumerate(self.shares) if share > 0)

    @property
    def integer_names(self) -> bool:
        """Whether the class names are integers: the labels of the data, which are not 0, 1, ..., K - 1."""
        return all_integers(self.class_names)

    def label_values(self, labels: np.ndarray) -> np.ndarray:
        """Returns the labels of the data for the numbers of classes (N,), if they are integers; else these numbers."""
        return np.array([int(name) for name in self.class_names])[labels] if self.integer_names else labels

    def describe_classes(self) -> str:
        """Returns `classes` as text for a message: "0 to 9", "3, 7" (labels of the data), or "0 (cat), 1 (dog)"."""
        if self.integer_names:
            return shortened([self.class_names[k] for k in self.classes])
        if self.class_names:
            return shortened([f"{k} ({printable(self.class_names[k])})" for k in self.classes])
        if self.classes == tuple(range(self.num_classes)):
            return f"0 to {self.num_classes - 1}"
        return shortened([str(k) for k in self.classes])

    def label(self, text: str) -> int:
        """Returns the label of a class that is given by its name or its number.

        A class name has precedence: if a class is called "7", then "7" means that class. If all names are integers, as
        they are for labels of the data such as 3 and 7, a number is always such a name.

        Args:
            text: a class name, with any capitalisation if only one name matches, or a label.

        Raises:
            DataError: if the training data have no example of such a class; the message lists the classes.
        """
        same = [k for k, name in enumerate(self.class_names) if name.lower() == text.lower()]
        if text in self.class_names:
            label = self.class_names.index(text)
        elif len(same) == 1:
            label = same[0]
        else:
            label = int(text) if re.fullmatch("[0-9]{1,9}", text) and not self.integer_names else -1
        if label in self.classes:
            return label
        near = difflib.get_close_matches(text, self.class_names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        nameless = "" if self.class_names else "; this run has no class names"
        raise DataError(f"no class {text!r}: {hint}the classes are {self.describe_classes()}{nameless}")

    def to_record(self) -> dict[str, Any]:
        """Returns the description as a dictionary for JSON, which `from_record` reads."""
        conditions = [
            {
                "name": f.name,
                "kind": f.kind,
                "shape": list(f.shape),
                "zero_is_null": f.zero_is_null,
                **affine_record(affine),
                "low": list(low),
                "high": list(high),
            }
            for f, affine, (low, high) in zip(self.conditions, self.condition_maps, self._ranges, strict=True)
        ]
        return {
            "name": self.name,
            "shape": list(self.shape),
            **affine_record(self.normalise),
            "num_classes": self.num_classes,
            "levels": self.levels,
            "class_names": list(self.class_names),
            "class_shares": list(self.class_shares),
            "conditions": conditions,
            "has_mask": self.has_mask,
            "integers": [None if one is None else list(one) for one in self.integers],
            "columns": [column_record(column) for column in self.columns],
            "bounds": bounds_record(self.bounds),
            "paired_source": self.paired_source,
            "dequantisation": self.dequantisation,
        }

    @classmethod
    def from_record(cls, record: Any) -> "DataSpec":
        """Reads a dictionary that `to_record` wrote, from an untrusted file.

        Raises:
            DataError: if an entry is missing or invalid; the message names it.
        """
        return cls(**_arguments(record))

    def differences(self, other: "DataSpec") -> list[str]:
        """Returns how this description differs from an earlier one, such as "shape is [2] and was [3]".

        Scales and shifts are compared up to 1e-5 of the scale (`Affine.near`). Class shares are not compared, because
        a few additional examples do not make a different data set, and class names only if both descriptions have them.
        """
        now, then = self.to_record(), other.to_record()
        same = ["class_shares"] + ["class_names"] * (not (now["class_names"] and then["class_names"]))
        if self.normalise.near(other.normalise):
            same += ["scale", "shift"]
        maps = zip(self.condition_maps, other.condition_maps, strict=False)
        if self.conditions == other.conditions and all(a.near(b) for a, b in maps):
            same.append("conditions")
        return [f"{key} is {now[key]} and was {then[key]}" for key in now if key not in same and now[key] != then[key]]

    @property
    def d(self) -> int:
        """The number of coordinates of an example."""
        return math.prod(self.shape)

    @property
    def _integers(self) -> Integers:
        return Integers(self.integers)

    @property
    def _ranges(self) -> tuple[ConditionRange, ...]:
        return self.condition_ranges or (((), ()),) * len(self.conditions)

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.bounds)

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def dtype(self) -> np.dtype:
        """The dtype of samples in data space: uint8 for pixels, int64 for other integers, otherwise `float_dtype`."""
        if self.levels:
            return np.dtype(np.uint8)
        return np.dtype(np.int64) if self._integers.complete else self.float_dtype

    @property
    def float_dtype(self) -> np.dtype:
        """The floating-point dtype of rows in data space: float32 if it resolves the data.

        Otherwise float64: if the mean is more than 1,000 standard deviations from 0, where float32 would round by more
        than 6e-5 standard deviations, if the data are outside the range of float32, or if integers are beyond 2^24.
        """
        exact = self._integers.exact_in_float32
        real = not self.levels and not self._integers.complete
        resolved = not real or (self.normalise.resolved_by_float32() and self._bounds.resolved_by_float32)
        return np.dtype(np.float32 if exact and resolved else np.float64)

    def to_model(self, x: np.ndarray, missing: bool = False) -> np.ndarray:
        """Maps rows from data space to model space as float32, without dequantisation.

        The map is computed in float64, before the result is rounded to float32.

        Args:
            x: (N, *shape).
            missing: whether x may hold NaN, as source samples do where they are not given.

        Raises:
            DataError: if a result is not finite in float32.
        """
        y = np.empty(x.shape, np.float32)
        some = max(1, AT_ONCE // self.d)
        with np.errstate(over="ignore"):
            for i in range(0, len(x), some):
                y[i : i + some] = self.normalise.to_model(self.unbounded(np.asarray(x[i : i + some], np.float64)))
                if not (np.isfinite(y[i : i + some]) | (missing & np.isnan(x[i : i + some]))).all():
                    raise DataError(
                        f"the data ({self.name}) hold values that are not finite, or that are too far from the mean "
                        f"{_shown(self.normalise.shift)} for float32 in units of the scale "
                        f"{_shown(self.normalise.scale)}"
                    )
        return y

    def unbounded(self, x: Any) -> Any:
        """Maps rows from data space to the numbers that `normalise` standardises, which are the data without bounds."""
        return self._bounds.to_unbounded(x) if self._bounds else x

    def to_data(self, x: Array | np.ndarray) -> np.ndarray:
        """Maps rows from model space to data space in float64, without rounding integers."""
        found = self.normalise.to_data(np.asarray(x, np.float64))
        return self._bounds.to_bounded(found) if self._bounds else found

    def in_support(self, x: np.ndarray) -> np.ndarray:
        """Returns which rows of data space (N, *shape) lie in the support of the data, (N,) bool."""
        return self._bounds.contain(x) if self._bounds else np.ones(len(x), bool)

    def log_prob_to_data(self, log_prob: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Converts log-densities in nats from model space to data space; they are -inf outside the support.

        Args:
            log_prob: (N,) log-densities in model space.
            x: (N, *shape) the points in data space.
        """
        found = self.normalise.log_prob_to_data(log_prob, self.d)
        if not self._bounds:
            return found
        with np.errstate(invalid="ignore"):
            slopes = self._bounds.log_derivative(self.unbounded(np.asarray(x, np.float64)))
            return np.where(self.in_support(x), found - slopes, -math.inf)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Encodes data-space rows for `prepare` on the device: pixels are unchanged, other data use `to_model`."""
        return x if self.levels else self.to_model(x)

    def encode_source(self, x0: np.ndarray) -> np.ndarray:
        """Encodes source samples like the data (`encode`). Their numbers that are NaN are drawn from the source."""
        return x0 if self.levels else self.to_model(x0, missing=True)

    def encode_rows(self, rows: Batch) -> Batch:
        """Encodes a batch of data-space rows, with conditions, source samples and mask, for the compiled step.

        Elements of sets that do not exist become 0, whatever their values. Paired source samples are encoded like the
        data.
        """
        encode = self.encode if rows.mask is None else partial(self._encode_present, rows.mask)
        cond = None if rows.cond is None else self.encode_cond(rows.cond)
        source = self.encode_source if rows.mask is None else encode
        return Batch(encode(rows.x1), cond, None if rows.x0 is None else source(rows.x0), rows.mask)

    def _encode_present(self, mask: np.ndarray, x: np.ndarray) -> np.ndarray:
        return self.encode(np.where(mask[..., None], x, np.asarray(self.normalise.shift)))

    def as_numbers(self, name: str, array: np.ndarray) -> np.ndarray:
        """Returns the values of a condition; texts (N,) of a category become one-hot rows, "" a missing value.

        Raises:
            DataError: if a text is not a category of the column.
        """
        column = next((one for one in self.columns if one.condition and one.name == name and one.categories), None)
        if column is None or array.dtype.kind != "U":
            return array
        return one_hot(codes_of(column, array.ravel()), len(column.categories))

    def encode_cond(self, cond: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encodes data-space conditions for the network: labels as int32, other conditions standardised as float32.

        NaN marks missing values and stays NaN.

        Args:
            cond: arrays (N, *shape) by the names of `fields`; also (N,) for vectors of one number.

        Raises:
            DataError: if there is no such field, or an array does not fit it.
        """
        fields, maps = {f.name: f for f in self.fields}, dict(zip(self.conditions, self.condition_maps, strict=True))
        encoded = {}
        for name, array in cond.items():
            if name not in fields:
                raise DataError(f"the data have no condition {name!r}: they have {', '.join(fields) or 'none'}")
            field, array = fields[name], self.as_numbers(name, np.asarray(array))
            if array.shape[1:] != field.shape and (array.ndim, field.shape) != (1, (1,)):
                sizes = ", ".join(map(str, field.shape))
                raise DataError(f"the condition {name} must be (N, {sizes}), not {array.shape}")
            if field.kind == "label":
                encoded[name] = array.astype(np.int32)
                continue
            with np.errstate(over="ignore"):
                numbers = maps[field].to_model(np.asarray(array, np.float64).reshape(-1, *field.shape))
                encoded[name] = np.asarray(numbers, np.float32)
            if np.isinf(encoded[name]).any():
                raise DataError(f"the condition {name} holds infinite values; use NaN for missing values")
        return encoded

    def beyond(self, name: str, array: np.ndarray) -> tuple[float, int]:
        """Returns how far a condition is outside the range of the training data.

        Args:
            name: of the condition.
            array: (N, *shape) in data space; NaN is inside.

        Returns:
            The largest distance from the range, in standard deviations of the training data, and the entry of the last
            axis that has it; 0 if everything is inside, or the range is not known.
        """
        for field, affine, (low, high) in zip(self.conditions, self.condition_maps, self._ranges, strict=True):
            if field.name == name and low:
                gap = np.maximum(np.asarray(low) - array, array - np.asarray(high)) / np.asarray(affine.scale)
                worst = np.nan_to_num(gap, nan=0.0).reshape(-1, len(low)).max(0)
                return max(0.0, float(worst.max())), int(worst.argmax())
        return 0.0, 0

    @property
    def steps(self) -> np.ndarray:
        """The width of [k, k + 1) in model space for each entry of the last axis, or for all; 0 for real numbers."""
        whole = Integers(((0, self.levels - 1),)) if self.levels else self._integers
        return np.atleast_1d(whole.steps(self.normalise)) if whole else np.zeros(1)

    def prepare(self, key: PRNGKey, x: Array) -> Batched:
        """Maps encoded rows to model space as float32, where real numbers are already.

        Integers get noise, or become the centres of their bins, as `dequantisation` says.
        """
        x = x.astype(jnp.float32)
        if not self.integers and not self.levels:
            return x
        noise = jax.random.uniform(key, x.shape) if self.dequantisation == "uniform" else jnp.full(x.shape, 0.5)
        if self.integers:
            return x + noise * jnp.asarray(self.steps, jnp.float32)
        return self.normalise.to_model(x + noise)

    @property
    def bins(self) -> Bins | None:
        """The bins of the integers in model space; None if there are no integers."""
        if not self.levels and not self.integers:
            return None
        widths = tuple(self.steps.tolist())
        return Bins(widths, (float(self.normalise.to_model(0.5)),), self.levels) if self.levels else Bins(widths)

    def dequantises(self, x: np.ndarray) -> bool:
        """Whether `prepare` has to dequantise these rows of data space: the data are integers, and so are all of x."""
        return bool(np.all(x == np.floor(x))) if self.levels else bool(self._integers) and self._integers.are_whole(x)

    def finish(self, x: Array | np.ndarray) -> np.ndarray:
        """Maps samples from model space to data space, as `dtype`. Data other than pixels are mapped in float64.

        Integers are floored, and clipped to their ranges; NaN becomes the smallest integer if all data are integers.
        """
        if not self.levels:
            found = self.to_data(x)
            found = self._integers.rounded(found) if self.integers else found
            if self._integers.complete:
                found = np.where(np.isnan(found), min(one[0] for one in self.integers if one is not None), found)
            return self._bounds.rounded(found, self.dtype) if self._bounds else found.astype(self.dtype)
        return np.clip(np.floor(self.normalise.to_data(np.asarray(x))), 0, self.levels - 1).astype(np.uint8)


def all_integers(names: Sequence[str]) -> bool:
    """Whether there are names, and each is the decimal text of an integer."""
    decimal = lambda name: len(name) <= 40 and name.removeprefix("-").isdecimal() and name.isascii()
    return bool(names) and all(decimal(name) and str(int(name)) == name for name in names)


def _arguments(record: Any) -> dict[str, Any]:
    """Reads a dictionary that `DataSpec.to_record` wrote, and returns the arguments of `DataSpec`.

    Raises:
        DataError: if an entry is missing or invalid; the message names it.
    """
    what = "the description of the data"
    found = read_entries(what, record, ENTRIES)
    classes, shape = found["num_classes"], tuple(found["shape"])
    for key in ("class_names", "class_shares"):
        if len(found[key]) not in (0, classes):
            raise DataError(f"{what}: {key} has {len(found[key])} entries for {classes} classes")
    if found["class_shares"] and not any(found["class_shares"]):
        raise DataError(f"{what}: class_shares are all 0")
    integers = tuple(None if one is None else (one[0], one[1]) for one in found["integers"])
    if integers and (len(integers) not in (1, shape[-1]) or not any(integers) or found["levels"]):
        raise DataError(
            f"{what}: integers must have a range for each of the {shape[-1]} entries of the last axis or one for all, "
            f"and levels must be 0, but there are {len(integers)} and levels is {found['levels']}"
        )
    read = [read_condition(condition) for condition in found["conditions"]]
    columns = tuple(map(read_column, found["columns"]))
    check_columns(columns, shape, integers, {field.name: field.shape for field, _, _ in read})
    ranges = tuple(one for _, _, one in read)
    return {
        "name": found["name"],
        "shape": shape,
        "normalise": read_affine(what, found, shape),
        "num_classes": classes,
        "levels": found["levels"],
        "class_names": tuple(found["class_names"]),
        "class_shares": tuple(map(float, found["class_shares"])),
        "conditions": tuple(field for field, _, _ in read),
        "condition_maps": tuple(affine for _, affine, _ in read),
        "condition_ranges": ranges if any(low for low, _ in ranges) else (),
        "has_mask": found["has_mask"],
        "integers": integers,
        "columns": columns,
        "bounds": read_bounds(what, found["bounds"], shape, bool(integers or found["levels"])),
        "paired_source": found["paired_source"],
        "dequantisation": found["dequantisation"],
    }


def _shown(values: float | tuple[float, ...]) -> str:
    """Formats numbers for a message."""
    return shortened([f"{value:g}" for value in values], 5) if isinstance(values, tuple) else f"{values:g}"


def shares_of(counts: np.ndarray) -> tuple[float, ...]:
    """Returns the share of each class from the numbers of its rows."""
    return tuple((counts / counts.sum()).tolist())


def shortened(names: Sequence[str], most: int = 20) -> str:
    """Joins names with commas; of more than `most`, only the first ones, followed by the total number."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
