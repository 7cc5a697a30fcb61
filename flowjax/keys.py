"""Random keys for the rows of a batch.

The random numbers of a row depend only on the key and on the index of the row, not on the batch size, the other rows,
or the number of devices.
"""

from typing import overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from flowjax.typing import PRNGKey

RowKeys = Key[Array, " B"]
"""One key per row."""

__all__ = ["RowKeys", "fold_rows", "row_keys"]


@overload
def row_keys(key: None, rows: int) -> None: ...
@overload
def row_keys(key: PRNGKey | RowKeys, rows: int) -> RowKeys: ...
def row_keys(key: PRNGKey | RowKeys | None, rows: int) -> RowKeys | None:
    """Returns one key per row: the keys given, or `fold_in(key, i)` for row i from a single key; None for None."""
    return key if key is None or key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def fold_rows(keys: RowKeys, i: Int[Array, ""] | int) -> RowKeys:
    """Folds the same number into the key of every row."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
