"""The data set interface of training and evaluation: how training rows are drawn, and fixed test points."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.batch import Batch
from flowjax.data.affine import DataError
from flowjax.data.spec import DataSpec
from flowjax.data.splits import permutation, skipping, skips
from flowjax.simulators import Simulator
from flowjax.typing import PRNGKey

__all__ = ["RESIDENT_BYTES", "ArrayRows", "Dataset", "Rows", "held_out", "resident", "sample_rows"]

RESIDENT_BYTES = 2**31
"""Data sets of at most this size are kept on the device; the variable FLOWJAX_RESIDENT_BYTES overrides it."""

_TEST_BYTES = 2**30
"""Limit on the bytes of held-out rows that are kept in memory, in float32."""


@runtime_checkable
class Rows(Protocol):
    """Encoded examples (`DataSpec.encode`) on the host, by index. They can be pickled for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch:
        """Returns one example: a `Batch` whose arrays have no batch axis."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows of arrays that are in memory, memory-mapped, or read on access.

    Args:
        arrays: all rows, a `Batch` of NumPy arrays or of objects that are indexed like them.
        without: indices of rows that are left out, in increasing order; None for none.
        encode: function from rows to encoded rows; None for no encoding.
    """

    arrays: Batch
    without: np.ndarray | None = field(default=None, repr=False)
    encode: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        return len(self.arrays.x1) - (0 if self.without is None else len(self.without))

    def __getitem__(self, index: int) -> Batch:
        return jax.tree.map(lambda a: np.asarray(a[0]), self.take(np.array([index])))

    def take(self, index: np.ndarray) -> Batch:
        """Returns the examples with these indices as one batch."""
        rows = index if self._skips is None else skipping(self._skips, index)
        taken = jax.tree.map(lambda a: np.asarray(a[rows]), self.arrays)
        return taken if self.encode is None else self.encode(taken)

    @cached_property
    def _skips(self) -> np.ndarray | None:
        return None if self.without is None else skips(self.without)


@dataclass(frozen=True)
class Dataset:
    """A data set: how to draw training rows inside the compiled step, and fixed test points.

    Exactly one of `sample` and `rows` is given.

    Attributes:
        spec: shape, normalisation and conditions of the data.
        test: (N, *shape) fixed held-out points in data space; `open_dataset` puts them into a random order. Pixels are
            float32, other data have the dtype `spec.dtype`.
        test_cond: conditions of the test points by name, in data space: `label` (N,) int32 if there are classes, and
            (N, *shape) for each other requested field.
        test_x0: source samples paired with the test points, in data space; None if there are no pairs.
        test_mask: (N, n) bool, true for the elements of the test points (N, n, C) that exist; None if all do.
        arrays: function that loads the data from which `sample` draws: for `sample_rows` a `Batch` of all encoded rows,
            or () if no data are needed. The result is passed to the compiled step as an argument.
        sample: function (arrays, key, n) -> Batch of encoded rows, with the names of `test_cond` as its conditions.
        rows: encoded rows of a set that is too large for the device, which are streamed from the host (`data.stream`).
        log_prob: function (N, *shape) -> (N,) log-densities in nats in data space, or None if they are not known.
        draw: function (key, n) -> new true samples, or None if the distribution is not known.
        modes: (K, D) centres of the modes of a mixture, or None.
        test_rows: (N,) index of each test point in the array or list of files from which it was read, or None.
        simulator: the prior and the simulator of a data set of simulations, otherwise None.
        held: encoded rows for the validation loss where these are not the test points: held-out pairs of a model, whose
            test points are data. None for the test points.
        notes: one-line remarks for the user about how the data were read; the commands print them on stderr.

    Raises:
        DataError: if `test_mask` is given and `spec.has_mask` is False, or the other way round.
    """

    spec: DataSpec
    test: np.ndarray = field(repr=False)
    test_cond: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    test_x0: np.ndarray | None = field(default=None, repr=False)
    test_mask: np.ndarray | None = field(default=None, repr=False)
    arrays: Callable[[], Any] = tuple
    sample: Callable[[Any, PRNGKey, int], Batch] | None = None
    rows: Rows | None = field(default=None, repr=False)
    log_prob: Callable[[Array], Float[Array, " N"]] | None = None
    draw: Callable[[PRNGKey, int], Array] | None = None
    modes: np.ndarray | None = field(default=None, repr=False)
    test_rows: np.ndarray | None = field(default=None, repr=False)
    simulator: Simulator | None = field(default=None, repr=False)
    held: Batch | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.test_mask is not None) != self.spec.has_mask:
            given = "absent" if self.test_mask is None else "given"
            raise DataError(f"data {self.spec.name!r}: has_mask is {self.spec.has_mask}, but test_mask is {given}")

    @property
    def test_labels(self) -> np.ndarray | None:
        """(N,) int32 classes of the test points, or None if there are no classes."""
        return self.test_cond.get("label")

    def encoded_test(self, num: int, names: Iterable[str] = ()) -> Batch:
        """Returns the first test points, or rows of `held`, encoded like training rows, for a validation loss.

        Args:
            num: the largest number of points to return.
            names: names of the conditions to include.
        """
        first = lambda a: None if a is None else a[:num]
        if self.held is not None:
            known = self.held.cond or {}
            return Batch(self.held.x1[:num], {name: known[name][:num] for name in names}, first(self.held.x0))
        cond = {name: self.test_cond[name][:num] for name in names}
        return self.spec.encode_rows(Batch(self.test[:num], cond, first(self.test_x0), first(self.test_mask)))

    def with_permuted_test(self) -> "Dataset":
        """Returns the data set with its test points in a fixed random order, so that the first ones represent all."""
        if self.draw is not None or self.held is not None:
            return self  # the test points are independent samples, or those of another data set in its random order
        order = permutation(len(self.test))
        rows, taken = self.test_rows, lambda a: None if a is None else a[order]
        return replace(
            self,
            test=self.test[order],
            test_cond={name: a[order] for name, a in self.test_cond.items()},
            test_x0=taken(self.test_x0),
            test_mask=taken(self.test_mask),
            test_rows=order if rows is None else rows[order],
        )


def resident(size: int) -> bool:
    """Whether a data set of `size` bytes is kept on the device.

    Raises:
        DataError: if FLOWJAX_RESIDENT_BYTES is not an integer.
    """
    text = os.environ.get("FLOWJAX_RESIDENT_BYTES", str(RESIDENT_BYTES))
    try:
        return size <= int(text)
    except ValueError:
        raise DataError(
            f"FLOWJAX_RESIDENT_BYTES must be a number of bytes, like {RESIDENT_BYTES}, not {text!r}"
        ) from None


def held_out(rows: int, shape: tuple[int, ...]) -> int:
    """Returns how many of the held-out rows of this shape are kept in memory: all, unless they exceed 1 GiB."""
    return max(1, min(rows, _TEST_BYTES // (4 * math.prod(shape))))


def sample_rows(arrays: Batch, key: PRNGKey, n: int) -> Batch:
    """Draws n rows uniformly with replacement, as a pure function of the key."""
    index = jax.random.randint(key, (n,), 0, arrays.x1.shape[0])
    return jax.tree.map(lambda a: jnp.asarray(a)[index], arrays)
