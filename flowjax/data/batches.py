"""From rows of a data set to what a loss takes: augmented, dequantised, in model space, with conditions dropped."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from flowjax import conditions
from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.data.augment import Augmentation
from flowjax.data.dataset import Dataset
from flowjax.data.spec import DataSpec
from flowjax.typing import PRNGKey

__all__ = ["GetBatch", "batch_like", "condition_names", "make_get_batch", "prepared"]

GetBatch = Callable[[Any, PRNGKey, Any], Batch]
"""(arrays, key, position) -> the batch of a step, inside the compiled program."""

_AUGMENT = 3  # folded into a batch's key: the other draws are those of a run without augmentation
_SOURCE = 1  # folded into the key of the dequantisation of x1, for that of x0


def condition_names(fields: Sequence[Field]) -> list[str]:
    """The names of the fields that a data set delivers: all but `augment`, which augmentation makes."""
    return [f.name for f in fields if f.name != "augment"]


def make_get_batch(dataset: Dataset, fields: Sequence[Field], augmentation: Augmentation, size: int) -> GetBatch:
    """The function that makes the batch of a training step.

    Args:
        dataset: which draws rows, or whose rows are streamed.
        fields: the conditions of the network, with their dropout.
        augmentation: of x1.
        size: rows of a batch.

    Returns:
        (arrays, key, position) -> Batch in model space. `arrays` are those of `dataset.arrays()`, or stacked batches of
        a stream, of which batch number `position` is taken. The key alone decides on all random draws.
    """
    names = condition_names(fields)

    def get_batch(arrays: Any, key: PRNGKey, position: Any) -> Batch:
        key_rows, key_prepare, key_drop = jax.random.split(key, 3)
        if dataset.sample is not None:
            rows = dataset.sample(arrays, key_rows, size)
        else:
            rows = jax.tree.map(lambda a: a[position], arrays)
        delivered = rows.cond or {}
        cond = conditions.drop(key_drop, {name: delivered[name] for name in names}, fields)
        x1, augment_labels = augmentation.apply(jax.random.fold_in(key, _AUGMENT), rows.x1)
        if augment_labels is not None:
            cond["augment"] = augment_labels
        return prepared(dataset.spec, key_prepare, rows._replace(x1=x1, cond=cond))

    return get_batch


def prepared(spec: DataSpec, key: PRNGKey, rows: Batch) -> Batch:
    """Encoded rows in model space as float32 (`DataSpec.prepare`), and with them their source samples."""
    x0 = None if rows.x0 is None else spec.prepare(jax.random.fold_in(key, _SOURCE), rows.x0)
    return rows._replace(x1=spec.prepare(key, rows.x1), x0=x0)


def batch_like(dataset: Dataset, fields: Sequence[Field], size: int) -> Batch:
    """Shapes and types of a batch in model space of so many rows."""
    shape = lambda a: None if a is None else jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
    x = jax.ShapeDtypeStruct((size, *dataset.spec.shape), "float32")
    x0 = None if dataset.test_x0 is None else x
    return Batch(x, {f.name: f.like(size) for f in fields}, x0, shape(dataset.test_mask))
