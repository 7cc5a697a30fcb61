"""What training, evaluation and the command line know of a data set, wherever it comes from.

Networks and paths live in model space; users and densities in data space. The affine map between the two belongs to the
data set: `data = scale * model + shift`, so `log p_data = log p_model - D log scale`. Integer images are dequantised:
a value k becomes uniform on [k, k + 1), then x / half - 1 with half = (levels - 1) / 2, and samples are floored back.
So bits/dim = -log p_data / (D ln 2).
"""

import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.data.splits import permutation, skipping, skips
from flowjax.objectives import Batch
from flowjax.typing import Batched, PRNGKey

Numbers = TypeVar("Numbers", Array, np.ndarray, np.float32, float)


RESIDENT_BYTES = 2**31
"""Sets up to this size live on the device; the environment variable FLOWJAX_RESIDENT_BYTES changes it."""

MOST_CLASSES = 100_000
"""The limit of labels, and of a description's lists."""

_LARGEST_ENTRY, _LARGEST_LIST = 2**31, MOST_CLASSES
"""Bounds on the integers and on the lists of a description that is read from a file."""

_AT_ONCE = 2**22
"""Numbers that are converted in float64 at a time."""

_TEST_BYTES = 2**30
"""Of the held-out rows of the user's own data, in float32: those beyond are left out."""


class DataError(ValueError):
    """A data set that is missing or cannot be read; the message is one line and says what to do."""


@dataclass(frozen=True)
class Affine:
    """data = scale * model + shift, with one scale and shift for the whole set.

    Raises:
        DataError: if the scale is not a positive finite number, or the shift is not finite.
    """

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise DataError(f"the scale of the data must be a positive finite number, not {self.scale}")
        if not math.isfinite(self.shift):
            raise DataError(f"the shift of the data must be a finite number, not {self.shift}")

    def to_model(self, x: Numbers) -> Numbers:
        return (x - self.shift) / self.scale

    def to_data(self, x: Numbers) -> Numbers:
        return x * self.scale + self.shift

    def log_prob_to_data(self, log_prob: Numbers, d: int) -> Numbers:
        """Model-space nats to data-space nats, for events of d coordinates."""
        return log_prob - d * math.log(self.scale)


@dataclass(frozen=True)
class DataSpec:
    """What a trained model must remember of its data: enough to sample and score without the data set.

    Attributes:
        name: as in configs.
        shape: of one example.
        normalise: between model and data space.
        num_classes: 0 where there are no labels.
        levels: number of integer values a pixel takes; 0 for continuous data.
        class_names: the name of each class; empty where classes have numbers only.
        class_shares: the share of the training rows that each class has; empty where it is not known, which is read as
            equal shares. A class of share 0 has no example: labels 1 to K make K + 1 classes, and class 0 is never
            drawn.
    """

    name: str
    shape: tuple[int, ...]
    normalise: Affine = Affine()
    num_classes: int = 0
    levels: int = 0
    class_names: tuple[str, ...] = ()
    class_shares: tuple[float, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each class: `class_shares`, or equal shares where these are not known."""
        return self.class_shares or (1.0 / max(self.num_classes, 1),) * self.num_classes

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes of which the training data have an example."""
        return tuple(k for k, share in enumerate(self.shares) if share > 0)

    def describe_classes(self) -> str:
        """The classes of which the training data have an example, for a message: "0 to 9", "1, 3, 4", "cat, dog"."""
        if self.class_names:
            return shortened([f"{k} ({self.class_names[k]})" for k in self.classes])
        if self.classes == tuple(range(self.num_classes)):
            return f"0 to {self.num_classes - 1}"
        return shortened([str(k) for k in self.classes])

    def label(self, text: str) -> int:
        """The label of a class that is given by its name or by its number.

        A name wins over a number: where a class is called "7", "7" means that class.

        Args:
            text: a class name, in any case if only one name fits, or a label.

        Raises:
            DataError: one line that lists the classes, if the training data have no example of such a class.
        """
        same = [k for k, name in enumerate(self.class_names) if name.lower() == text.lower()]
        if text in self.class_names:
            label = self.class_names.index(text)
        elif len(same) == 1:
            label = same[0]
        else:
            label = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if label in self.classes:
            return label
        near = difflib.get_close_matches(text, self.class_names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        nameless = "" if self.class_names else "; this run has no class names"
        raise DataError(f"no class {text!r}: {hint}the classes are {self.describe_classes()}{nameless}")

    def to_record(self) -> dict[str, Any]:
        """The spec as a dictionary for JSON; `from_record` reads it."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "scale": self.normalise.scale,
            "shift": self.normalise.shift,
            "num_classes": self.num_classes,
            "levels": self.levels,
            "class_names": list(self.class_names),
            "class_shares": list(self.class_shares),
        }

    @classmethod
    def from_record(cls, record: Any) -> "DataSpec":
        """Reads what `to_record` wrote, from a file that may hold anything.

        Raises:
            DataError: one line that names the entry which is missing or wrong.
        """
        if not isinstance(record, dict):
            raise DataError(f"the description of the data must be a JSON object, not {record!r:.40}")
        whole = lambda value: type(value) is int and 0 <= value <= _LARGEST_ENTRY
        number = lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for NaN
        listed = lambda one: (
            lambda value: isinstance(value, list) and len(value) <= _LARGEST_LIST and all(map(one, value))
        )
        kinds: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "name": ("a string", lambda value: isinstance(value, str)),
            "shape": ("a list of positive integers", lambda value: listed(whole)(value) and value and min(value) > 0),
            "scale": ("a positive number", lambda value: number(value) and value > 0),
            "shift": ("a number", number),
            "num_classes": ("an integer that is not negative", whole),
            "levels": ("an integer that is not negative", whole),
            "class_names": ("a list of strings", listed(lambda one: isinstance(one, str))),
            "class_shares": ("a list of shares", listed(lambda one: number(one) and 0 <= one <= 1)),
        }
        nested = record.get("normalise")  # files of weights of earlier versions have scale and shift in here
        found = {"class_names": [], "class_shares": [], **(nested if isinstance(nested, dict) else {}), **record}
        for key, (kind, fits) in kinds.items():
            if key not in found or not fits(found[key]):
                what = f"is {found[key]!r:.40}" if key in found else "is missing"
                raise DataError(f"the description of the data: {key} {what}; it must be {kind}")
        classes = found["num_classes"]
        for key in ("class_names", "class_shares"):
            if len(found[key]) not in (0, classes):
                raise DataError(
                    f"the description of the data: {key} has {len(found[key])} entries for {classes} classes"
                )
        if found["class_shares"] and not any(found["class_shares"]):
            raise DataError("the description of the data: class_shares are all 0")
        return cls(
            found["name"],
            tuple(found["shape"]),
            Affine(float(found["scale"]), float(found["shift"])),
            classes,
            found["levels"],
            tuple(found["class_names"]),
            tuple(map(float, found["class_shares"])),
        )

    def differences(self, other: "DataSpec") -> list[str]:
        """The entries in which two descriptions differ, as "shape is [2] and was [3]"; self is the present one.

        Scale and shift are compared up to 1e-5 of the scale: sums may be rounded otherwise on another machine.

        Shares of classes are not compared, because a few more examples do not make other data, and names of classes
        only if both know them.
        """
        now, then = self.to_record(), other.to_record()
        unknown = ["class_shares"] + ["class_names"] * (not (now["class_names"] and then["class_names"]))
        unknown += [key for key in ("scale", "shift") if abs(now[key] - then[key]) <= 1e-5 * then["scale"]]
        return [
            f"{key} is {now[key]} and was {then[key]}" for key in now if key not in unknown and now[key] != then[key]
        ]

    @property
    def d(self) -> int:
        """Number of coordinates of an example."""
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def dtype(self) -> np.dtype:
        """The type of samples in data space: uint8 for pixels; for numbers float32 where it resolves their scale.

        Otherwise float64: for numbers that lie more than 1,000 times their standard deviation from 0, where float32
        would round them by more than 6e-5 of it, and for numbers outside the range of float32.
        """
        if self.levels:
            return np.dtype(np.uint8)
        scale, shift = self.normalise.scale, abs(self.normalise.shift)
        enough = shift <= 1000 * scale and 2.0**-100 < scale < 2.0**100
        return np.dtype(np.float32 if enough else np.float64)

    def to_model(self, x: np.ndarray) -> np.ndarray:
        """Data-space rows in model space as float32, without dequantisation.

        The shift is subtracted and the scale divided out in float64, before the numbers are rounded to float32.

        Raises:
            DataError: if a result is not finite in float32.
        """
        y = np.empty(x.shape, np.float32)
        some = max(1, _AT_ONCE // self.d)
        with np.errstate(over="ignore"):
            for i in range(0, len(x), some):
                y[i : i + some] = self.normalise.to_model(np.asarray(x[i : i + some], np.float64))
                if not np.isfinite(y[i : i + some]).all():
                    raise DataError(
                        f"the data ({self.name}) hold values that are not finite, or that are too far from the mean "
                        f"{self.normalise.shift:g} for float32 in units of the scale {self.normalise.scale:g}"
                    )
        return y

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Data-space rows as `prepare` takes them on the device: pixels as they are, numbers by `to_model`."""
        return x if self.levels else self.to_model(x)

    def prepare(self, key: PRNGKey, x: Array) -> Batched:
        """Encoded rows as float32 in model space: pixels are dequantised, numbers are there already."""
        x = x.astype(jnp.float32)
        return self.normalise.to_model(x + jax.random.uniform(key, x.shape)) if self.levels else x

    def finish(self, x: Array | np.ndarray) -> np.ndarray:
        """Samples from model space in data space, as `dtype`. Numbers are scaled and shifted in float64."""
        if not self.levels:
            return self.normalise.to_data(np.asarray(x, np.float64)).astype(self.dtype)
        return np.clip(np.floor(self.normalise.to_data(np.asarray(x))), 0, self.levels - 1).astype(np.uint8)


@runtime_checkable
class Rows(Protocol):
    """Encoded examples (`DataSpec.encode`) on the host by number. They can be pickled, for processes that read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32 | None]:
        """One example and its label."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows of arrays, in memory or mapped to it.

    Args:
        x: (N, *event), of NumPy or alike.
        labels: (N,), or None.
        without: rows that are left out, in increasing order; None for none.
        encode: from an array of rows to encoded rows; None leaves them as they are.
    """

    x: Any
    labels: np.ndarray | None = None
    without: np.ndarray | None = field(default=None, repr=False)
    encode: Callable[[np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.x) - (0 if self.without is None else len(self.without))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int32 | None]:
        x, labels = self.take(np.array([index]))
        return x[0], None if labels is None else labels[0]

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The examples with these numbers, side by side, and their labels: one reading for all of them."""
        rows = index if self._skips is None else skipping(self._skips, index)
        x = np.asarray(self.x[rows])
        labels = None if self.labels is None else self.labels[rows].astype(np.int32)
        return x if self.encode is None else self.encode(x), labels

    @cached_property
    def _skips(self) -> np.ndarray | None:
        return None if self.without is None else skips(self.without)


@dataclass(frozen=True)
class Dataset:
    """One data set: how to draw from it inside the compiled step, and fixed test points.

    Exactly one of `sample` and `rows` is given.

    Attributes:
        spec: shape, normalisation, labels.
        test: (N, *shape) held-out points in data space, fixed; from `open_dataset`, in a random order. Numbers have the
            type `spec.dtype`, pixels are float32.
        test_labels: (N,) int32, or None.
        arrays: loads what `sample` draws from, once; () where it needs nothing. Passed to the compiled step as an
            argument.
        sample: (arrays, key, n) -> Batch of encoded rows, from arrays of encoded rows.
        rows: encoded rows of a set that is too large for the device, read from the host batch by batch (`data.stream`).
        log_prob: (N, *shape) -> (N,) nats in data space, where it is known.
        draw: (key, n) -> fresh true samples, where the distribution is known.
        modes: (K, D) centres of a mixture's modes, where it has them.
        test_rows: (N,) the row that each test point has in the array or list of files that it was read from; None where
            the test points are not read from one. `open_dataset` puts the test points into a fixed random order.
        notes: what the user should know of how the data were read, one line each; the commands print them on stderr.
    """

    spec: DataSpec
    test: np.ndarray = field(repr=False)
    test_labels: np.ndarray | None = field(default=None, repr=False)
    arrays: Callable[[], Any] = tuple
    sample: Callable[[Any, PRNGKey, int], Batch] | None = None
    rows: Rows | None = field(default=None, repr=False)
    log_prob: Callable[[Array], Float[Array, " N"]] | None = None
    draw: Callable[[PRNGKey, int], Array] | None = None
    modes: np.ndarray | None = field(default=None, repr=False)
    test_rows: np.ndarray | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def with_permuted_test(self) -> "Dataset":
        """The same data set with its test points in a fixed random order, so that the first ones represent all."""
        if self.draw is not None:
            return self  # independent draws already
        order = permutation(len(self.test))
        labels, rows = self.test_labels, self.test_rows
        return replace(
            self,
            test=self.test[order],
            test_labels=None if labels is None else labels[order],
            test_rows=order if rows is None else rows[order],
        )


def shortened(names: Sequence[str], most: int = 20) -> str:
    """The names with commas between them; of many, the first ones and how many there are."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def resident(size: int) -> bool:
    """Whether a set of so many bytes lives on the device.

    Raises:
        DataError: if FLOWJAX_RESIDENT_BYTES is no number.
    """
    text = os.environ.get("FLOWJAX_RESIDENT_BYTES", str(RESIDENT_BYTES))
    try:
        return size <= int(text)
    except ValueError:
        raise DataError(f"FLOWJAX_RESIDENT_BYTES is a number of bytes, like {RESIDENT_BYTES}, not {text!r}") from None


def held_out(rows: int, shape: tuple[int, ...]) -> int:
    """How many of the held-out rows are kept in memory: all but of sets that are very large."""
    return max(1, min(rows, _TEST_BYTES // (4 * math.prod(shape))))


def image_scale(levels: int) -> Affine:
    """[0, levels - 1] to [-1, 1]: x / 127.5 - 1 for 8 bits."""
    half = (levels - 1) / 2
    return Affine(half, half)


def sample_rows(arrays: tuple[Any, Any], key: PRNGKey, n: int) -> Batch:
    """n rows of (x, labels), uniformly with replacement: a pure function of the key, so any step can be replayed."""
    x, labels = (None if a is None else jnp.asarray(a) for a in arrays)
    assert x is not None
    index = jax.random.randint(key, (n,), 0, x.shape[0])
    return Batch(x[index], None if labels is None else labels[index])
