"""A data set as training and evaluation take it: how rows are drawn, where they are, and fixed test points."""

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
from flowjax.typing import PRNGKey

__all__ = ["RESIDENT_BYTES", "ArrayRows", "Dataset", "Rows", "held_out", "resident", "sample_rows"]

RESIDENT_BYTES = 2**31
"""Sets up to this size live on the device; the environment variable FLOWJAX_RESIDENT_BYTES changes it."""

_TEST_BYTES = 2**30
"""Of the held-out rows of the user's own data, in float32: those beyond are left out."""


@runtime_checkable
class Rows(Protocol):
    """Encoded examples (`DataSpec.encode`) on the host by number. They can be pickled, for processes that read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch:
        """One example: a `Batch` whose arrays have no batch axis."""
        ...


@dataclass(frozen=True)
class ArrayRows:
    """Rows of arrays, in memory or mapped to it.

    Args:
        arrays: all rows, a `Batch` of NumPy arrays or of arrays that read like them.
        without: rows that are left out, in increasing order; None for none.
        encode: from rows to encoded rows; None leaves them as they are.
    """

    arrays: Batch
    without: np.ndarray | None = field(default=None, repr=False)
    encode: Callable[[Batch], Batch] | None = None

    def __len__(self) -> int:
        return len(self.arrays.x1) - (0 if self.without is None else len(self.without))

    def __getitem__(self, index: int) -> Batch:
        return jax.tree.map(lambda a: np.asarray(a[0]), self.take(np.array([index])))

    def take(self, index: np.ndarray) -> Batch:
        """The examples with these numbers side by side, read in one go."""
        rows = index if self._skips is None else skipping(self._skips, index)
        taken = jax.tree.map(lambda a: np.asarray(a[rows]), self.arrays)
        return taken if self.encode is None else self.encode(taken)

    @cached_property
    def _skips(self) -> np.ndarray | None:
        return None if self.without is None else skips(self.without)


@dataclass(frozen=True)
class Dataset:
    """One data set: how to draw from it inside the compiled step, and fixed test points.

    Exactly one of `sample` and `rows` is given.

    Attributes:
        spec: shape, normalisation, labels.
        test: (N, *shape) held-out points in data space, fixed; from `open_dataset`, in a random order. Numbers have the
            type `spec.dtype`, pixels are float32.
        test_cond: the conditions of the test points by name, in data space: `label` (N,) int32 where there are classes,
            and each other field that was asked for, (N, *shape).
        test_x0: the source samples that come in pairs with the test points, in data space; None where there are none.
        test_mask: (N, n) bool, true for the elements of the test points (N, n, C) that exist; None where all do.
        arrays: loads what `sample` draws from, once: for `sample_rows` a `Batch` of all encoded rows; () where it needs
            nothing. Passed to the compiled step as an argument.
        sample: (arrays, key, n) -> Batch of encoded rows, with the names of `test_cond` as its conditions.
        rows: encoded rows of a set that is too large for the device, read from the host batch by batch (`data.stream`).
        log_prob: (N, *shape) -> (N,) nats in data space, where it is known.
        draw: (key, n) -> fresh true samples, where the distribution is known.
        modes: (K, D) centres of a mixture's modes, where it has them.
        test_rows: (N,) the row that each test point has in the array or list of files that it was read from; None where
            the test points are not read from one. `open_dataset` puts the test points into a fixed random order.
        notes: what the user should know of how the data were read, one line each; the commands print them on stderr.
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
    notes: tuple[str, ...] = ()

    @property
    def test_labels(self) -> np.ndarray | None:
        """(N,) int32: the classes of the test points, or None where there are none."""
        return self.test_cond.get("label")

    def encoded_test(self, num: int, names: Iterable[str] = ()) -> Batch:
        """The first test points, encoded as training rows are (`DataSpec.encode_rows`), for a validation loss.

        Args:
            num: how many, at most.
            names: of the conditions to take.
        """
        first = lambda a: None if a is None else a[:num]
        cond = {name: self.test_cond[name][:num] for name in names}
        return self.spec.encode_rows(Batch(self.test[:num], cond, first(self.test_x0), first(self.test_mask)))

    def with_permuted_test(self) -> "Dataset":
        """The same data set with its test points in a fixed random order, so that the first ones represent all."""
        if self.draw is not None:
            return self  # independent draws already
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
    """Whether a set of so many bytes lives on the device.

    Raises:
        DataError: if FLOWJAX_RESIDENT_BYTES is no number.
    """
    text = os.environ.get("FLOWJAX_RESIDENT_BYTES", str(RESIDENT_BYTES))
    try:
        return size <= int(text)
    except ValueError:
        raise DataError(f"FLOWJAX_RESIDENT_BYTES is a number of bytes, like {RESIDENT_BYTES}, not {text!r}") from None


def held_out(rows: int, shape: tuple[int, ...]) -> int:
    """How many of the held-out rows are kept in memory: all but of sets that are very large."""
    return max(1, min(rows, _TEST_BYTES // (4 * math.prod(shape))))


def sample_rows(arrays: Batch, key: PRNGKey, n: int) -> Batch:
    """n rows, uniformly with replacement: a pure function of the key, so that any step can be replayed."""
    index = jax.random.randint(key, (n,), 0, arrays.x1.shape[0])
    return jax.tree.map(lambda a: jnp.asarray(a)[index], arrays)
