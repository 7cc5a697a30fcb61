"""Lines for the user from code that takes long or doubts its own answer; whoever calls it may send them elsewhere."""

import sys
from collections.abc import Callable

__all__ = ["Say", "to_stderr"]

Say = Callable[[str], None]


def to_stderr(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{line}\n")
