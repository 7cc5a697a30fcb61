"""A streamed set on its way to the devices: stretches of batches, read and placed while the one before them runs.

In a thread of its own: the call of a compiled loop may return at once or, where the host decides after every turn
whether to go on (a GPU), only when the loop has ended.
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

__all__ = ["STRETCH", "Prefetcher", "own_rows"]

STRETCH = 16
"""Batches that travel to the devices together."""


class Prefetcher:
    """The batches of a run from some step on, in order.

    Args:
        rows: of the set.
        seed: of the order.
        size: of a batch, of all processes together.
        mesh: of the devices: each process reads what its own hold.
        workers: processes that read; 0 for threads.

    Attributes:
        stalled: seconds that were waited for what `start` began, since it was last set to 0; the first stretch, for
            which nothing waits yet, and copies to the devices that are still under way are not in it.
    """

    def __init__(self, rows: Rows, seed: int, size: int, mesh: Mesh, workers: int = 0):
        self._sharding = NamedSharding(mesh, P(None, BATCH))
        self._stream = Stream(rows, seed, size, own_rows(self._sharding, size))
        self._size, self._workers = size, workers
        self._batches: Iterator[Batch] | None = None
        self._next = -1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetcher")
        self._begun: tuple[int, int, Future[PyTree]] | None = None
        self._closing = Event()
        self.stalled = 0.0

    def like(self) -> Batch:
        """Shapes, types and shardings of what a call returns."""

        def stretch(one: np.ndarray) -> Any:
            whole = STRETCH, self._size, *one.shape
            return jax.ShapeDtypeStruct(whole, jax.dtypes.canonicalize_dtype(one.dtype), sharding=self._sharding)

        return jax.tree.map(stretch, self._stream.rows[0])

    def start(self, step: int, n: int) -> None:
        """Begins with what the next call will ask for, while the devices work."""
        self._begun = step, n, self._thread.submit(self._read, step, n)

    def __call__(self, step: int, n: int) -> PyTree:
        """The n batches from number `step` on, stacked, and padded to one size: one program for all stretches.

        To be called when the devices are done: waiting for what was begun counts as stalled.

        Args:
            step: the one after the last that was asked for; another one starts the stream there.
            n: at most `STRETCH`.
        """
        if self._begun is None:
            return self._read(step, n)
        *begun, read = self._begun
        since = time.perf_counter()
        wait([read])  # a second Ctrl-C comes here: what was begun is still known then, for `close`
        self._begun = None
        self.stalled += time.perf_counter() - since
        placed = read.result()
        return placed if begun == [step, n] else self._read(step, n)

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
        """Ends what reads ahead, after the batch that is being read; another call starts it again."""
        if self._begun is not None:
            self._closing.set()
            wait([self._begun[2]])
            self._begun = None
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


def own_rows(sharding: NamedSharding, size: int) -> tuple[int, int]:
    """The first row of a batch, the second axis, that the devices of this process hold, and the one after the last.

    Raises:
        ValueError: if they are not side by side, as on a mesh whose processes interleave.
    """
    held = sharding.addressable_devices_indices_map((1, size)).values()
    ranges = sorted({index[1].indices(size)[:2] for index in held if index is not None})
    first, last = ranges[0][0], ranges[-1][1]
    if sum(stop - start for start, stop in ranges) != last - first:
        raise ValueError("a process holds rows of a batch that are not side by side: let mesh.data span the processes")
    return first, last
