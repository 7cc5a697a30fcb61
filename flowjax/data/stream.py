"""Batches of a set that does not fit on the device: read from the host by Grain, ahead of the training step.

The order is a pure function of the seed: epoch after epoch, each shuffled anew, cut into batches of the total size.
Batch number i can be asked for without those before it, so the state of a stream is the number of steps done, which
every checkpoint has; a resumed run reads on in the same order. Of several processes each reads its own rows of every
batch: the order does not depend on how many there are.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from flowjax.batch import Batch
from flowjax.data.dataset import ArrayRows, Rows

__all__ = ["Stream"]

_THREADS = 8
_AHEAD = 4
"""Batches that a worker process has ready, or all threads together have twice."""

_ENDLESS = 2**60
"""Rows of a stream, about."""


@dataclass(frozen=True)
class Stream:
    """Training batches of a set of rows.

    Args:
        rows: by number.
        seed: of the order.
        size: rows of a batch, of all processes together.
        own: of the rows of a batch, the first that this process reads and the one after its last; None for all.
    """

    rows: Rows
    seed: int
    size: int
    own: tuple[int, int] | None = None

    def __getitem__(self, step: int) -> Batch:
        """Batch number `step`."""
        return self._batches()[step]

    def start(self, step: int, workers: int = 0) -> Iterator[Batch]:
        """The batches from number `step` on, read ahead.

        Args:
            step: the first.
            workers: processes that read; 0 for threads of this one, which suit what releases Python's lock.
        """
        import grain

        rest = self._batches()[step:]
        if not workers:
            return iter(rest.to_iter_dataset(grain.ReadOptions(_THREADS, 2 * _AHEAD)))
        _let_grain_read_flags()
        one_by_one = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return iter(one_by_one.mp_prefetch(grain.MultiprocessingOptions(workers, _AHEAD), _ignore_interrupts))

    def _batches(self) -> Any:
        import grain

        order: Any = grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle()
        order = order.repeat(_ENDLESS // max(len(self.rows), 1))  # or batches of one row overflow: 2^63 - 1, in a float
        return order.batch(self.size).map(partial(_read, self.rows, slice(*(self.own or (None,)))))


def _read(rows: Rows, own: slice, numbers: np.ndarray) -> Batch:
    """These rows, encoded, side by side, still on the host."""
    if isinstance(rows, ArrayRows):
        return rows.take(numbers[own])
    return jax.tree.map(lambda *one: np.stack(one), *(rows[int(i)] for i in numbers[own]))


def _ignore_interrupts(index: int, count: int) -> None:
    """In a worker: a terminal sends Ctrl-C to all processes, and it is for their parent to end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _let_grain_read_flags() -> None:
    """Grain's workers read an absl flag, which fails where nobody has parsed the global ones (google/grain#1355)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
