"""A griffe extension: `x, y: text` in a docstring documents both parameters, as the source writes them."""

import re
from typing import Any

import griffe

_JOINT = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", flags=re.M)


class JointParameters(griffe.Extension):
    """Splits an entry for several parameters (or attributes) into one entry for each, with the same text."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            split = lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", "))
            obj.docstring.value = _JOINT.sub(split, obj.docstring.value)
