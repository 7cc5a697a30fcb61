"""Random keys of the rows of a batch.

What is drawn for a row depends on the key and on the row's number alone: not on the size of the batch, on the other
rows, or on how many devices share them.
"""

from typing import overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from flowjax.typing import PRNGKey

RowKeys = Key[Array, " B"]
"""One key for each row."""

__all__ = ["RowKeys", "fold_rows", "row_keys"]


@overload
def row_keys(key: None, rows: int) -> None: ...
@overload
def row_keys(key: PRNGKey | RowKeys, rows: int) -> RowKeys: ...
def row_keys(key: PRNGKey | RowKeys | None, rows: int) -> RowKeys | None:
    """Returns one key for each row: those given, or from one key `fold_in(key, i)` for row i; None for None."""
    return key if key is None or key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def fold_rows(keys: RowKeys, i: Int[Array, ""] | int) -> RowKeys:
    """Folds the same number into the key of every row."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
