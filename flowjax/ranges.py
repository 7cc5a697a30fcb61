"""The allowed values of config keys: one table of ranges, which are checked before anything is built.

Every number has a finite range. The upper bounds are far above any useful setting, so that a mistyped or malicious
value raises a one-line error instead of filling the memory or running for hours.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "FINITE",
    "KINDS",
    "MAX_COORDINATES",
    "MAX_PARAMETERS",
    "NUMBER",
    "RANGES",
    "WHOLE",
    "Items",
    "Range",
    "fault",
    "is_kind",
    "shown",
    "text_fault",
]

MAX_PARAMETERS = 2**34
"""The largest number of parameters of a network: 64 GiB in float32."""

MAX_COORDINATES = 2**26
"""The largest number of coordinates of one example: an image of 4,096 x 4,096 pixels with 4 channels."""

_MAX_TEXT = 4096
"""The largest number of characters of a string in a config."""


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low, high: the ends of the interval.
        ends: whether the ends belong to it, in interval notation: "[]", "(]", "[)" or "()".
        least: the smallest allowed absolute value of a number that is not 0.
    """

    low: float | int
    high: float | int
    ends: str = "[]"
    least: float | int = 0.0

    def fault(self, value: float | int) -> str | None:
        """The end of an error message that starts with the name of the number; None if the number is in the range."""
        above_low = value >= self.low if self.ends[0] == "[" else value > self.low
        below_high = value <= self.high if self.ends[1] == "]" else value < self.high
        if above_low and below_high:
            if value == 0 or abs(value) >= self.least:
                return None
            zero = "0 or " if self.low <= 0 and self.ends[0] == "[" else ""
            size = " in absolute value" if self.low < 0 else ""
            return f"must be {zero}at least {self.least:g}{size}, not {shown(value)}"
        if self.high <= 1:
            return f"must be in {self.ends[0]}{self.low:g}, {self.high:.3g}{self.ends[1]}, not {shown(value)}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be a finite number, not {value}"
        if not above_low and self.low == 0:
            return f"must {'not be negative' if self.ends[0] == '[' else 'be positive'}, it is {shown(value)}"
        if not above_low:
            return f"must be at least {_number(self.low)}, not {shown(value)}"
        return f"must be at most {_number(self.high)}, not {shown(value)}"


@dataclass(frozen=True)
class Items:
    """The allowed elements of a tuple.

    Attributes:
        kind: the type of the elements: int, float (which includes whole numbers) or str.
        range: the range of each number; not used for strings.
        shortest, longest: the smallest and the largest number of elements.
        example: a valid tuple, shown in error messages.
    """

    kind: type
    range: Range
    shortest: int
    longest: int
    example: str

    def fault(self, values: Sequence[Any]) -> str | None:
        """The end of an error message that starts with the name of the tuple; None if the tuple is allowed."""
        if not self.shortest <= len(values) <= self.longest:
            return f"must have {self.shortest} to {self.longest:,} elements, like {self.example}, not {len(values):,}"
        for value in values:
            if not is_kind(value, self.kind):
                return f"must be a tuple of {KINDS[self.kind]}s like {self.example}, and one element is {shown(value)}"
            if self.kind is str and (problem := text_fault(value)):
                return f"like {self.example} has an element that {problem}"
            if self.kind is not str and (problem := self.range.fault(value)):
                return f"has an element that {problem}"
        return None


KINDS = {bool: "true or false", int: "whole number", float: "number", str: "string", type(None): "None", tuple: "tuple"}
"""The names of types in error messages."""

WHOLE = Range(-1_000_000, 1_000_000)
"""The range of whole numbers in the brackets after a name, for parameters without a range."""

NUMBER = Range(-1e9, 1e9, least=1e-12)
"""The same for other numbers. Their squares are finite and not 0 in float32."""

FINITE = Range(-sys.float_info.max, sys.float_info.max)
"""The range of numbers of objects from outside flowjax, which are only checked to be finite."""

_STEPS = Range(1, 2_000_000_000)  # steps are counted in 32 bits
_STEPS_OR_NONE = Range(0, 2_000_000_000)
_SAMPLES = Range(0, 1e15)

RANGES: dict[str, Range | Items] = {
    "seed": Range(0, 2**32 - 1),
    "data.cond": Items(str, NUMBER, 0, 64, "('label',)"),
    "data.cond_dropout": Range(0, 1),
    "data.workers": Range(0, 1024),
    "path.shift": Range(0, 1e6, "(]", least=1e-6),
    "model.width": Range(1, 65_536),
    "model.depth": Range(1, 64),
    "model.expansion": Range(1, 64),
    "model.features": Range(0, 65_536),
    "model.channels": Range(1, 65_536),
    "model.multipliers": Items(int, Range(1, 1024), 1, 10, "(1, 2, 2)"),
    "model.blocks": Range(1, 16),
    "model.patch": Range(1, 1024),
    "model.heads": Range(0, 4096),
    "model.attention": Items(int, Range(1, 65_536), 0, 16, "(16, 8)"),
    "model.head_width": Range(1, 65_536),
    "model.dropout": Range(0, 1, "[)"),
    "model.time_scale": Range(0, 1e6, "(]", least=1e-6),
    "train.steps": _STEPS,
    "train.batch_size": Range(1, 2**24),
    "train.accumulate": Range(1, 65_536),
    "train.loss_scale": Range(0, 1e9, "(]"),
    "train.lr": Range(0, 1e6, "(]"),
    "train.beta2": Range(0, 1, "[)"),
    "train.momentum": Range(0, 1, "[)"),
    "train.weight_decay": Range(0, 1e6),
    "train.warmup": _SAMPLES,
    "train.clip": Range(0, 1e30),
    "train.spike": Range(0, 1e6),
    "train.peak_tflops": Range(0, 1e9),
    "train.log_every": _STEPS,
    "train.save_every": _STEPS,
    "train.keep_last": Range(1, 1_000_000),
    "train.keep_every": _STEPS_OR_NONE,
    "train.keep_at": Items(int, _STEPS, 0, 10_000, "(500, 1000)"),
    "ema.half_life": _SAMPLES,
    "ema.widths": Items(float, Range(0, 12**-0.5, "()", least=1e-3), 0, 64, "(0.05, 0.1)"),
    "ema.snapshots": Range(1, 1_000_000),
    "mesh.data": Range(0, 65_536),
    "mesh.fsdp": Range(1, 65_536),
    "mesh.tensor": Range(1, 65_536),
    "mesh.rules": Items(str, NUMBER, 0, 1000, "('mlp1/kernel$ = -, tensor',)"),
}
"""The range of every key of a config that holds numbers or a tuple."""


def fault(value: Any, like: Any, bounds: Range | Items | None) -> str | None:
    """Checks the value of a config key.

    Args:
        value: the value, with lists instead of tuples.
        like: the default of the key, which has the right type.
        bounds: the entry of the key in `RANGES`; None for a string or a truth value.

    Returns:
        The end of an error message that starts with the key; None if the value is allowed.
    """
    kind = type(like)
    if kind is list:
        if not isinstance(value, list) or not isinstance(bounds, Items):
            return f"must be a tuple, not {shown(value)}"
        return bounds.fault(value)
    if not is_kind(value, kind):
        return f"must be {'' if kind is bool else 'a '}{KINDS[kind]} like {like!r}, not {shown(value)}"
    if kind is str:
        return text_fault(value)
    return None if kind is bool or bounds is None else bounds.fault(value)


def is_kind(value: Any, kind: type) -> bool:
    """Whether a value has this type; a whole number is also a number, and True is neither."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def text_fault(text: str) -> str | None:
    """The end of an error message that starts with the name of the string; None if the string is allowed."""
    if len(text) > _MAX_TEXT:
        return f"must have at most {_MAX_TEXT:,} characters, not {len(text):,}"
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        return f"must not contain control characters, as {shown(text)} does"
    return None


def shown(value: Any) -> str:
    """The `repr` of a value, shortened to 60 characters for error messages."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a number of more than 4,300 digits"
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
