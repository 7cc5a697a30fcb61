"""Progress notes and warnings for the user, as functions that a caller may replace."""

import sys
from collections.abc import Callable

__all__ = ["Say", "to_stderr"]

Say = Callable[[str], None]
"""A function that is called with one line of text for the user."""


def to_stderr(line: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(f"{line}\n")
