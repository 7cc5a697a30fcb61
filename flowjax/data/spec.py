"""The description of a data set that a trained model keeps: its shape, scale and classes.

Networks and paths live in model space; users and densities in data space. The affine map between the two belongs to the
data set: `data = scale * model + shift`, so `log p_data = log p_model - D log scale`. Integer images are dequantised:
a value k becomes uniform on [k, k + 1), then x / half - 1 with half = (levels - 1) / 2, and samples are floored back.
So bits/dim = -log p_data / (D ln 2).
"""

import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.archives import printable
from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.typing import Batched, PRNGKey

Numbers = TypeVar("Numbers", Array, np.ndarray, np.float32, float)

MOST_CLASSES = 100_000
"""The limit of labels, and of a description's lists."""

_LARGEST_ENTRY, _LARGEST_LIST = 2**31, MOST_CLASSES
"""Bounds on the integers and on the lists of a description that is read from a file."""

AT_ONCE = 2**22
"""Numbers that are converted in float64 at a time."""


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
    def fields(self) -> tuple[Field, ...]:
        """What the data offer as conditions: `label` where there are classes."""
        return (Field("label", "label", num_classes=self.num_classes),) if self.num_classes else ()

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each class: `class_shares`, or equal shares where these are not known."""
        return self.class_shares or (1.0 / max(self.num_classes, 1),) * self.num_classes

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes of which the training data have an example."""
        return tuple(k for k, share in enumerate(self.shares) if share > 0)

    def describe_classes(self) -> str:
        """The classes of which the training data have an example, for a message: "0 to 9" or "0 (cat), 1 (dog)"."""
        if self.class_names:
            return shortened([f"{k} ({printable(self.class_names[k])})" for k in self.classes])
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
        some = max(1, AT_ONCE // self.d)
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

    def encode_rows(self, rows: Batch) -> Batch:
        """Rows in data space, with all that they bring, as the compiled step takes them."""
        return rows._replace(x1=self.encode(rows.x1))

    def prepare(self, key: PRNGKey, x: Array) -> Batched:
        """Encoded rows as float32 in model space: pixels are dequantised, numbers are there already."""
        x = x.astype(jnp.float32)
        return self.normalise.to_model(x + jax.random.uniform(key, x.shape)) if self.levels else x

    def finish(self, x: Array | np.ndarray) -> np.ndarray:
        """Samples from model space in data space, as `dtype`. Numbers are scaled and shifted in float64."""
        if not self.levels:
            return self.normalise.to_data(np.asarray(x, np.float64)).astype(self.dtype)
        return np.clip(np.floor(self.normalise.to_data(np.asarray(x))), 0, self.levels - 1).astype(np.uint8)


def shares_of(counts: np.ndarray) -> tuple[float, ...]:
    """The share of each class, from the number of its rows."""
    return tuple((counts / counts.sum()).tolist())


def image_scale(levels: int) -> Affine:
    """[0, levels - 1] to [-1, 1]: x / 127.5 - 1 for 8 bits."""
    half = (levels - 1) / 2
    return Affine(half, half)


def shortened(names: Sequence[str], most: int = 20) -> str:
    """The names with commas between them; of many, the first ones and how many there are."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
