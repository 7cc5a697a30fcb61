"""Turns rows of a data set into training batches: augmentation, dequantisation, scaling and condition dropout."""

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
"""Function (arrays, key, position) -> the batch of a step, called inside the compiled program."""

_AUGMENT = 3  # folded into the key of a batch, so that augmentation does not change the other random draws
_SOURCE = 1  # folded into the key that dequantises x1, which gives the key for x0


def condition_names(fields: Sequence[Field]) -> list[str]:
    """Returns the names of the fields that come from the data set: all except `augment`."""
    return [f.name for f in fields if f.name != "augment"]


def make_get_batch(dataset: Dataset, fields: Sequence[Field], augmentation: Augmentation, size: int) -> GetBatch:
    """Returns the function that makes the batch of a training step.

    Args:
        dataset: the data set; its rows are drawn on the device (`Dataset.sample`) or streamed.
        fields: the conditions of the network, with their dropout rates.
        augmentation: the augmentation of x1.
        size: number of rows of a batch.

    Returns:
        A function (arrays, key, position) -> Batch in model space. `arrays` is the result of `dataset.arrays()`, or
        batches of a stream stacked along a new axis, of which the one at `position` is taken. All random draws depend
        only on the key.
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
    """Maps encoded rows and their source samples to model space as float32 (`DataSpec.prepare`).

    Pairs that a model has made are in model space already.
    """
    if spec.paired_source:
        return rows
    x0 = None if rows.x0 is None else spec.prepare(jax.random.fold_in(key, _SOURCE), rows.x0)
    return rows._replace(x1=spec.prepare(key, rows.x1), x0=x0)


def batch_like(dataset: Dataset, fields: Sequence[Field], size: int) -> Batch:
    """Returns the shapes and dtypes of a batch of `size` rows in model space."""
    shape = lambda a: None if a is None else jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
    x = jax.ShapeDtypeStruct((size, *dataset.spec.shape), "float32")
    x0 = None if dataset.test_x0 is None and dataset.held is None else x
    return Batch(x, {f.name: f.like(size) for f in fields}, x0, shape(dataset.test_mask))
