"""Arrays with one row per sample that a model contains, for the solvers that solve each sample separately.

Adaptive solvers and diffrax's SDE solvers split the state and the condition into rows. An object with data of its own,
such as the measurement in a guide (`flowjax.guidance.linear_measurement`), must be split in the same way. It has

    rows               a pytree of arrays with the batch as leading axis, or None
    with_rows(rows)    the same object with these rows instead

and is found if it is a field of a frozen dataclass, at any depth: guides, rescheduled models, velocity fields.
"""

import dataclasses
from typing import Any

import jax

from flowjax.typing import PyTree

__all__ = ["rows_of", "with_rows"]


def rows_of(what: Any, batch: int) -> PyTree:
    """The rows of an object and of its fields, as nested dictionaries; None if there are none.

    Raises:
        ValueError: if the number of rows is not the size of the batch.
    """
    if hasattr(what, "with_rows"):
        for leaf in jax.tree.leaves(what.rows):
            if leaf.shape[0] != batch:
                raise ValueError(
                    f"{type(what).__name__} has {leaf.shape[0]} rows and the batch has {batch}: give one row per "
                    "sample, or a single row for all samples"
                )
        return what.rows
    if not dataclasses.is_dataclass(what) or isinstance(what, type):
        return None
    parts = {f.name: rows_of(getattr(what, f.name), batch) for f in dataclasses.fields(what)}
    return {name: rows for name, rows in parts.items() if rows is not None} or None


def with_rows(what: Any, rows: PyTree) -> Any:
    """The same object with other rows, which have the structure that `rows_of` returns."""
    if rows is None:
        return what
    if hasattr(what, "with_rows"):
        return what.with_rows(rows)
    return dataclasses.replace(what, **{name: with_rows(getattr(what, name), part) for name, part in rows.items()})
