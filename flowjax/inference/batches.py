"""Functions over many rows: compiled over all devices of a process, and evaluated in blocks of one size.

The rows are divided among the processes, and each block among the devices of its process by `shard_map`. What a device
computes depends on its rows only, so the compiled program has no collectives, and an adaptive solve stops on each
device when the rows of that device are done.

The last block is padded to the size of the others, so there is one compilation. Each block is dispatched before the
previous one is fetched, so the devices work while the host copies, converts and writes.
"""

import time
from collections import deque
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.errors import ConfigError
from flowjax.inference.finished_batches import Block, FinishedBatches
from flowjax.training import processes
from flowjax.training.writers import Progress
from flowjax.typing import PyTree

__all__ = [
    "Batches",
    "Meter",
    "SolverFault",
    "batch_of_densities",
    "default_batch",
    "everywhere",
    "in_batches",
    "over_rows",
    "rows_of_a_block",
    "rows_of_this_process",
]

_QUIET = 30.0
"""Seconds between lines of progress with a rate."""


class SolverFault(RuntimeError):
    """An adaptive solve did not reach its final time; the message is one line."""


class Batches(NamedTuple):
    """The result of `in_batches`.

    Attributes:
        values: the rows of all blocks in order, by name.
        rate: rows per second without compilation; None for a single block.
    """

    values: Block
    rate: float | None


_DENSITIES_ON_A_CPU = 512
"""The largest default number of rows per batch of densities on a CPU, whose caches then hold the values of a network.
"""


def default_batch(coordinates: int) -> int:
    """Rows per batch, a power of two per device, for networks that hold about 64 numbers per coordinate of a row.

    On an accelerator a batch has about 2^27 such numbers, 512 MiB in float32: several hundred images of the size of
    CIFAR's, and at least 64 larger images. On a CPU, whose few cores need less work, it has about 2^21, which fit its
    caches better.

    Args:
        coordinates: of one example.
    """
    numbers = 64 * coordinates
    if jax.default_backend() == "cpu":
        return max(16, min(4096, 2 ** int(np.log2(2**21 / max(64, numbers)))))
    return jax.local_device_count() * max(64, min(4096, 2 ** round(np.log2(2**27 / numbers))))


def batch_of_densities(coordinates: int, exact: bool) -> int:
    """Rows per batch for log-densities; `exact` if the divergence takes a derivative for each coordinate."""
    size = max(16, default_batch(coordinates) // (min(coordinates, 64) if exact else 1))
    return min(size, _DENSITIES_ON_A_CPU) if jax.default_backend() == "cpu" else size


@cache
def _mesh() -> Mesh | None:
    """A mesh of all devices of this process; None for a single device."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,)) if len(devices) > 1 else None


def rows_of_a_block(size: int) -> int:
    """The smallest multiple of the number of devices that is at least `size`."""
    n = 1 if (mesh := _mesh()) is None else mesh.size
    return -(-size // n) * n


def rows_of_this_process(num: int) -> slice:
    """The share of this process in `num` rows.

    Raises:
        ConfigError: if there are fewer rows than processes.
    """
    if processes.process_count() > 1 and num < processes.process_count():
        raise ConfigError(f"{num} rows are fewer than the {processes.process_count()} processes that share them")
    return processes.share(num)


def everywhere(tree: PyTree) -> PyTree:
    """The arrays and keys of a tree, replicated on all devices of this process."""
    mesh = _mesh()
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P()))


def over_rows(f: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `f(shared, *rows)`, with the rows of each call divided among the devices.

    Args:
        f: of arrays that every device needs, and of arrays (or dictionaries of arrays) with a leading axis of rows.
            Its results have that axis too, and each row of them depends only on the same row of the arguments.

    Returns:
        The compiled function. Its first argument comes from `everywhere`; a block has `rows_of_a_block` rows.
    """
    mesh = _mesh()
    if mesh is None:
        return jax.jit(f)

    def mapped(shared: PyTree, *rows: Any) -> Any:
        specs = (P(), *(P("rows") for _ in rows))
        return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("rows"), check_vma=False)(shared, *rows)

    return jax.jit(mapped)


class Meter:
    """Shows progress on stderr, and measures the rate after the first block was dispatched, so without compilation.

    Args:
        num: number of rows.
        kept: number of rows that an earlier call has finished.
        label, unit: of the progress.
        show: whether to show progress: as a bar on a terminal, and otherwise as a line now and then.

    Attributes:
        rate: rows per second; None until two blocks are counted.
    """

    def __init__(self, num: int, kept: int, label: str, unit: str, show: bool):
        self._progress = Progress(num, kept, label, unit) if show else None
        self._unit, self._done = unit, kept
        self._rows = self._blocks = 0
        self._start = self._shown = 0.0
        self.rate: float | None = None

    def dispatched(self) -> None:
        """Starts the clock at its first call."""
        self._start = self._shown = self._start or time.perf_counter()

    def advance(self, rows: int, size: int) -> None:
        """Counts a block of `rows` rows; a padded one took as long as `size` rows, and 0 leaves it out of the rate."""
        now = time.perf_counter()
        self._done, self._rows, self._blocks = self._done + rows, self._rows + size, self._blocks + 1
        rate = self._rows / max(now - self._start, 1e-9)
        self.rate = rate if self._blocks > 1 else None
        if self._progress and now - self._shown > _QUIET:
            self._shown = now
            self._progress.log(self._done, **{f"{self._unit}s_per_second": rate})
        elif self._progress:
            self._progress.advance(self._done)

    def close(self) -> None:
        """Ends the bar."""
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
    """Evaluates f on all rows, `size` at a time.

    Args:
        f: compiled, from blocks of the arrays to (values by name, `Stats`). The result has the values and `nfe`.
        arrays: arguments of f, arrays or dictionaries of arrays, all of one length; at least one row.
        size: rows per block.
        solver: its name, for the message of a fault.
        label, unit: of the progress.
        show: show progress on stderr; of several processes only the first one does.
        finished: blocks that an earlier call has kept are read from it, and each new block is written to it.

    Raises:
        SolverFault: if a solve does not reach its final time.
    """
    num = _length(arrays)
    starts = range(0, num, size)
    done = {s: block for s in starts if finished is not None and (block := finished.read(s)) is not None}
    kept = sum(len(block["nfe"]) for block in done.values())
    with closing(Meter(num, kept, label, unit, show and processes.is_primary())) as meter:
        for start, block in _fetched(f, arrays, size, done, solver, meter):
            if finished is not None:
                finished.write(start, block)
            done[start] = block
            meter.advance(len(block["nfe"]), size)
    return Batches({name: np.concatenate([done[s][name] for s in starts]) for name in done[0]}, meter.rate)


def _block(array: np.ndarray, start: int, size: int) -> np.ndarray:
    """`size` rows from `start` on; where there are fewer, the first of them is repeated."""
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
    """The first row and the values of each block in order, in NumPy without padding; at most two are on the device."""
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
