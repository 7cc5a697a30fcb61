"""Names of the leaves of a pytree, and copies of leaves on the host."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["is_key", "on_host", "path_name"]


def path_name(path: Sequence[Any], separator: str = "/") -> str:
    """Joins the keys of a path from `jax.tree_util.tree_leaves_with_path`, as in `blocks/0/mlp1/kernel`.

    Args:
        path: keys of dictionaries, indices of sequences and names of attributes, from the root to the leaf.
        separator: between two keys.
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator=separator)


def is_key(leaf: Any) -> bool:
    """Whether a leaf, which may be a number or a `jax.ShapeDtypeStruct`, is a typed PRNG key."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def on_host(leaf: Any) -> np.ndarray:
    """Copies a leaf into a contiguous NumPy array; a typed PRNG key becomes its `jax.random.key_data`."""
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf, order="C")
