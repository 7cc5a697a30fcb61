"""Numbers and values of configs as text: on the command line, in tables and on pages."""

import math
from typing import Any

__all__ = ["NONE", "format_duration", "format_mean", "format_number", "format_value"]

NONE = "-"
"""The text for a number or a value that does not exist."""


def format_value(value: Any) -> str:
    """Returns the value of a config key or of a flag as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(format_value, value))}{',' * (len(value) == 1)})"
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


def format_number(value: Any) -> str:
    """Returns a number with four significant digits, or a hyphen for none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_mean(mean: float | None, deviation: float | None, sign: str = " ± ") -> str:
    """Returns a mean with its deviation, both to the second significant digit of the deviation.

    If the deviation is 0 or only a rounding error, the mean has five significant digits.

    Args:
        mean: the mean, or a single number; None for a hyphen.
        deviation: its standard deviation or standard error; None or a number that is not finite is left out.
        sign: between the two numbers.
    """
    if mean is None or deviation is None or not math.isfinite(mean) or not math.isfinite(deviation):
        return format_number(mean)
    if deviation <= 0:
        return f"{mean:.5g}{sign}0"
    digits = 1 - math.floor(math.log10(deviation))
    if 0 < digits < 10:
        return f"{mean:.{digits}f}{sign}{deviation:.{digits}f}"
    if -4 < digits <= 0:
        return f"{round(mean, digits):.0f}{sign}{round(deviation, digits):.0f}"
    significant = math.floor(math.log10(abs(mean))) + digits + 1 if mean else 1
    return f"{mean:.{min(max(significant, 1), 5)}g}{sign}{deviation:.2g}"


def format_duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
