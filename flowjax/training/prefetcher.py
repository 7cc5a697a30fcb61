"""Reads the batches of a streamed data set and copies them to the devices while the devices compute.

The reading is done in a separate thread, because the call of a compiled loop may return only when the loop has ended:
on a GPU the host decides after every iteration whether the loop continues.
"""

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.batch import Batch
from flowjax.data.dataset import Rows
from flowjax.data.stream import Stream
from flowjax.training.sharding import BATCH
from flowjax.typing import PyTree

__all__ = ["STRETCH", "Prefetcher", "local_rows"]

STRETCH = 16
"""The number of batches that are copied to the devices together."""


class Prefetcher:
    """Reads the batches of a run in order, ahead of the training steps.

    Args:
        rows: the data set.
        seed: seed of the order of the rows.
        size: rows per batch, over all processes.
        mesh: the devices. Each process reads the rows of its local devices.
        workers: number of processes that read; 0 to read in threads.

    Attributes:
        stalled: seconds for which calls have waited for a read that `start` began. The caller resets it to 0. The first
            stretch and unfinished copies to the devices do not count.
    """

    def __init__(self, rows: Rows, seed: int, size: int, mesh: Mesh, workers: int = 0):
        self._sharding = NamedSharding(mesh, P(None, BATCH))
        self._stream = Stream(rows, seed, size, local_rows(self._sharding, size))
        self._size, self._workers = size, workers
        self._batches: Iterator[Batch] | None = None
        self._next = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetcher")
        self._pending: tuple[int, int, Future[PyTree]] | None = None  # the arguments and the future of `start`
        self._closing = Event()
        self.stalled = 0.0

    def like(self) -> Batch:
        """The shapes, types and shardings of the arrays that a call returns."""

        def stretch(one: np.ndarray) -> Any:
            whole = STRETCH, self._size, *one.shape
            return jax.ShapeDtypeStruct(whole, jax.dtypes.canonicalize_dtype(one.dtype), sharding=self._sharding)

        return jax.tree.map(stretch, self._stream.rows[0])

    def start(self, step: int, n: int) -> None:
        """Starts to read the n batches from `step` on in the background, for the next call."""
        self._pending = step, n, self._thread.submit(self._read, step, n)

    def __call__(self, step: int, n: int) -> PyTree:
        """Returns the n batches from `step` on.

        It is called when the devices have finished, so that the time it waits for the read counts as stalled.

        Args:
            step: number of the first batch. If it does not follow the last batch read, the stream is started again.
            n: number of batches, at most `STRETCH`.

        Returns:
            The batches, stacked on a new first axis and padded to `STRETCH`, so that all stretches use one program.
        """
        if self._pending is None:
            return self._read(step, n)
        *requested, read = self._pending
        since = time.perf_counter()
        wait([read])  # a second Ctrl-C interrupts here, and `close` still finds the pending read
        self._pending = None
        self.stalled += time.perf_counter() - since
        placed = read.result()
        return placed if requested == [step, n] else self._read(step, n)

    def _read(self, step: int, n: int) -> PyTree:
        if self._batches is None or step != self._next:
            self._stop()
            self._batches = self._stream.start(step, self._workers)
        self._next = step + n
        batches = []
        for _ in range(n):
            if self._closing.is_set():
                raise CancelledError
            batches.append(next(self._batches))
        batches += batches[-1:] * (STRETCH - n)
        return jax.tree.map(lambda *rows: self._put(np.stack(rows)), *batches)

    def close(self) -> None:
        """Stops reading, after the batch that is being read. A later call starts the stream again."""
        if self._pending is not None:
            self._closing.set()
            wait([self._pending[2]])
            self._pending = None
            self._closing.clear()
        self._stop()

    def _stop(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
        self._batches = None

    def _put(self, local: np.ndarray) -> jax.Array:
        whole = (local.shape[0], self._size, *local.shape[2:])
        return jax.make_array_from_process_local_data(self._sharding, local, whole)


def local_rows(sharding: NamedSharding, size: int) -> tuple[int, int]:
    """The range [first, last) of the rows of a batch that the local devices hold.

    Args:
        sharding: of arrays whose second axis is the rows.
        size: rows per batch, over all processes.

    Raises:
        ValueError: if these rows are not contiguous, as on a mesh whose processes interleave.
    """
    indices = sharding.addressable_devices_indices_map((1, size)).values()
    ranges = sorted({index[1].indices(size)[:2] for index in indices if index is not None})
    first, last = ranges[0][0], ranges[-1][1]
    if sum(stop - start for start, stop in ranges) != last - first:
        raise ValueError("the rows of a batch on a process are not contiguous: mesh.data must span the processes")
    return first, last
