"""Random keys of the rows of a batch.

What is drawn for a row depends on the key and on the row's number alone: not on the size of the batch, on the other
rows, or on how many devices share them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from flowjax.typing import PRNGKey

RowKeys = Key[Array, " B"]
"""One key for each row."""

__all__ = ["RowKeys", "fold_rows", "row_keys"]


def row_keys(key: PRNGKey | RowKeys, rows: int) -> RowKeys:
    """Returns one key for each row: those given, or from one key `fold_in(key, i)` for row i."""
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def fold_rows(keys: RowKeys, i: Int[Array, ""] | int) -> RowKeys:
    """Folds the same number into the key of every row."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
