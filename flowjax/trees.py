"""Names of the leaves of a pytree."""

from collections.abc import Sequence
from typing import Any

import jax

__all__ = ["path_name"]


def path_name(path: Sequence[Any], separator: str = "/") -> str:
    """Joins the keys of a path from `jax.tree_util.tree_leaves_with_path`, as in `blocks/0/mlp1/kernel`.

    Args:
        path: keys of dictionaries, indices of sequences and names of attributes, from the root to the leaf.
        separator: between two of them.
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator=separator)
