"""A compiled function over many rows: blocks of one size, the device never waiting for the host.

The last block is padded to the size of the others, so there is one compilation; the next block is dispatched before
the one before it is fetched, so the device works while the host copies, converts and writes.
"""

import time
from collections import deque
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from flowjax.inference.finished_batches import Block, FinishedBatches
from flowjax.training.writers import Progress

__all__ = ["Batches", "SolverFault", "default_batch", "in_batches"]

_QUIET = 30.0
"""Seconds between lines of progress with a rate."""


class SolverFault(RuntimeError):
    """An adaptive solve did not arrive; one line."""


class Batches(NamedTuple):
    """The rows of all blocks in order, by name, and rows a second without compilation; None for a single block."""

    values: Block
    rate: float | None


def default_batch(coordinates: int) -> int:
    """Rows a batch, from the numbers that a network holds: about 64 for each coordinate of a row.

    A power of two for each device. On an accelerator about 2^27 of them at a time, 512 MiB in float32: some hundred
    images of CIFAR's size, which keep it busy, and no fewer than 64 of larger ones. On a CPU, whose few cores are busy
    with less, about 2^21, which stay nearer to its caches.

    Args:
        coordinates: of one example.
    """
    numbers = 64 * coordinates
    if jax.default_backend() == "cpu":
        return max(16, min(4096, 2 ** int(np.log2(2**21 / max(64, numbers)))))
    return jax.local_device_count() * max(64, min(4096, 2 ** round(np.log2(2**27 / numbers))))


class Meter:
    """Progress on stderr, and the rate since the first block was dispatched, which is when it had been compiled."""

    def __init__(self, num: int, kept: int, label: str, unit: str, show: bool):
        self._progress = Progress(num, kept, label, unit) if show else None
        self._unit, self._done = unit, kept
        self._rows = self._blocks = 0
        self._start = self._told = 0.0
        self.rate: float | None = None

    def dispatched(self) -> None:
        self._start = self._told = self._start or time.perf_counter()

    def advance(self, rows: int, size: int) -> None:
        """Counts a block of `rows` rows; a padded one took as long as `size`."""
        now = time.perf_counter()
        self._done, self._rows, self._blocks = self._done + rows, self._rows + size, self._blocks + 1
        rate = self._rows / max(now - self._start, 1e-9)
        self.rate = rate if self._blocks > 1 else None
        if self._progress and now - self._told > _QUIET:
            self._told = now
            self._progress.log(self._done, **{f"{self._unit}s_per_second": rate})
        elif self._progress:
            self._progress.advance(self._done)

    def close(self) -> None:
        if self._progress:
            self._progress.close()


def in_batches(
    f: Callable[..., tuple[dict[str, Any], Any]],
    arrays: tuple[Any, ...],
    size: int,
    *,
    solver: str,
    label: str,
    unit: str = "row",
    show: bool = False,
    finished: FinishedBatches | None = None,
) -> Batches:
    """f over all rows, `size` at a time.

    Args:
        f: from blocks of the arrays to (values by name, `Stats`), compiled; the values gain `nfe`.
        arrays: arguments of f, arrays or dictionaries of them, all of equal length; at least one row.
        size: rows a block.
        solver: its name, for a fault.
        label, unit, show: of progress on stderr.
        finished: blocks that an earlier call has kept are taken from it, and each new one is given to it.

    Raises:
        SolverFault: if a solve did not arrive.
    """
    num = _length(arrays)
    starts = range(0, num, size)
    done = {s: block for s in starts if finished is not None and (block := finished.read(s)) is not None}
    kept = sum(len(block["nfe"]) for block in done.values())
    with closing(Meter(num, kept, label, unit, show)) as meter:
        for start, block in _fetched(f, arrays, size, done, solver, meter):
            if finished is not None:
                finished.write(start, block)
            done[start] = block
            meter.advance(len(block["nfe"]), size)
    return Batches({name: np.concatenate([done[s][name] for s in starts]) for name in done[0]}, meter.rate)


def _block(array: np.ndarray, start: int, size: int) -> np.ndarray:
    """`size` rows from `start` on, the first of them repeated where there are fewer."""
    rows = array[start : start + size]
    return rows if len(rows) == size else np.concatenate([rows, np.repeat(rows[:1], size - len(rows), 0)])


def _length(arrays: tuple[Any, ...]) -> int:
    return len(jax.tree.leaves(arrays)[0])


def _fetched(
    f: Callable[..., Any],
    arrays: tuple[Any, ...],
    size: int,
    skip: Container[int],
    solver: str,
    meter: Meter,
) -> Iterator[tuple[int, Block]]:
    """Blocks in order with their first row, as NumPy without the padding; at most two of them are on the device."""
    waiting: deque[tuple[int, int, Any]] = deque()
    wanted = [start for start in range(0, _length(arrays), size) if start not in skip]
    for start in wanted:
        n = min(size, _length(arrays) - start)
        result = f(*jax.tree.map(partial(_block, start=start, size=size), arrays))
        meter.dispatched()
        for a in jax.tree.leaves(result):
            a.copy_to_host_async()
        waiting.append((start, n, result))
        if len(waiting) == 2:
            yield _fetch(*waiting.popleft(), solver)
    while waiting:
        yield _fetch(*waiting.popleft(), solver)


def _fetch(start: int, n: int, result: Any, solver: str) -> tuple[int, Block]:
    values, stats = jax.tree.map(lambda a: np.asarray(a)[:n], result)
    if late := int((~stats.converged).sum()):
        fix = "loosen --rtol and --atol, or use --steps"
        raise SolverFault(f"{solver} did not arrive for {late} of {n} rows: {fix}")
    return start, values | {"nfe": stats.nfe}
