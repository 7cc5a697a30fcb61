"""Batches of a data set that does not fit on the device, prefetched from the host with Grain.

The order is a pure function of the seed: the epochs, each with a new shuffle, are concatenated and cut into batches of
the total size. Batch number i can be read without the batches before it, so the state of a stream is the number of
steps, which every checkpoint holds, and a resumed run continues in the same order. If there are several processes, each
reads a part of the rows of every batch; the order does not depend on the number of processes.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from flowjax import plugins
from flowjax.batch import Batch
from flowjax.data.dataset import ArrayRows, Rows
from flowjax.extras import require

__all__ = ["Stream"]

_THREADS = 8
_AHEAD = 4
"""Number of prefetched batches per worker process; the threads together prefetch twice as many."""

_ENDLESS = 2**60
"""The approximate number of rows in a stream."""


@dataclass(frozen=True)
class Stream:
    """Training batches of a set of rows.

    Args:
        rows: the encoded rows.
        seed: seed of the order.
        size: number of rows of a batch in all processes together.
        own: the range (start, stop) of the rows of a batch that this process reads; None for all rows.
    """

    rows: Rows
    seed: int
    size: int
    own: tuple[int, int] | None = None

    def __getitem__(self, step: int) -> Batch:
        """Returns batch number `step`."""
        return self._batches()[step]

    def start(self, step: int, workers: int = 0) -> Iterator[Batch]:
        """Returns an iterator over the batches from number `step` on, with prefetching.

        Args:
            step: number of the first batch.
            workers: number of worker processes; 0 for threads, which are suitable if reading releases the GIL.
        """
        require("grain", "data")
        import grain

        rest = self._batches()[step:]
        if not workers:
            return iter(rest.to_iter_dataset(grain.ReadOptions(_THREADS, 2 * _AHEAD)))
        _let_grain_read_flags()
        one_by_one = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        start = partial(_start_worker, plugins.searched())
        return iter(one_by_one.mp_prefetch(grain.MultiprocessingOptions(workers, _AHEAD), start))

    def _batches(self) -> Any:
        require("grain", "data")
        import grain

        order: Any = grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle()
        order = order.repeat(
            _ENDLESS // max(len(self.rows), 1)
        )  # more rows would overflow 2^63 - 1 with batches of one row
        return order.batch(self.size).map(partial(_read, self.rows, slice(*(self.own or (None,)))))


def _read(rows: Rows, part: slice, numbers: np.ndarray) -> Batch:
    """Returns a part of the rows with these numbers as one batch on the host."""
    if isinstance(rows, ArrayRows):
        return rows.take(numbers[part])
    return jax.tree.map(lambda *one: np.stack(one), *(rows[int(i)] for i in numbers[part]))


def _start_worker(finder: plugins.Finder, index: int, count: int) -> None:
    """Prepares a worker process before it receives the rows.

    It ignores Ctrl-C, which a terminal sends to all processes, because the parent process stops the workers. It finds
    the same modules as the parent process, because the rows may be of a class from outside flowjax.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    finder.install()


def _let_grain_read_flags() -> None:
    """Marks absl flags as parsed, because Grain's workers read one, which fails otherwise (google/grain#1355)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
