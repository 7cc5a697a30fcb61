"""Finished batches of a long call, kept in a folder until all are written: the same call continues from them.

`request.json` holds everything that the results depend on. Each block is one .npz file, named after its first row. The
folder is created with the first block, and any call may use a folder without blocks, so that a call that failed early
does not block the next one. Every file is written whole or not at all, so that the process may be killed at any moment.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowjax import checksums
from flowjax.archives import ArchiveError, read_npz, write_npz
from flowjax.errors import ConfigError, RunFault
from flowjax.files import written
from flowjax.inference.choose import Guide, SolverSettings
from flowjax.inference.run import Run
from flowjax.training import processes
from flowjax.training.writers import say
from flowjax.trees import on_host

__all__ = [
    "Block",
    "FinishedBatches",
    "differences",
    "open_finished",
    "open_request",
    "remove_finished",
    "request_of",
    "unless_single",
]

Block = dict[str, np.ndarray]
"""Values of consecutive rows by name."""

_REQUEST = "request.json"


@dataclass(frozen=True)
class FinishedBatches:
    """The blocks of one request, in a folder that holds no others.

    Attributes:
        folder: where the blocks are; the first `write` creates it.
        request: everything that the blocks depend on, as JSON.
        first: the number that is added to the first row of a block in the name of its file.
    """

    folder: Path
    request: dict[str, Any]
    first: int = 0

    def part(self, index: int, rows: int) -> "FinishedBatches":
        """The blocks of one of several passes over the same number of rows, in the same folder."""
        return dataclasses.replace(self, first=index * rows)

    def read(self, start: int) -> Block | None:
        """The block whose first row is `start`; None if it is missing or damaged, so that it is drawn again."""
        try:
            return read_npz(self._file(start))
        except ArchiveError:
            return None

    def write(self, start: int, block: Block) -> None:
        """Keeps a block.

        Raises:
            RunFault: if the disk is full or refuses it.
        """
        try:
            if not (self.folder / _REQUEST).exists():
                with written(self.folder / _REQUEST) as part:
                    part.write_text(json.dumps(self.request, indent=2) + "\n")
            write_npz(self._file(start), block)
        except OSError as error:
            raise RunFault(f"cannot write to {self.folder}: {error.strerror}") from None

    def _file(self, start: int) -> Path:
        return self.folder / f"{self.first + start:010d}.npz"


def unless_single(keep: Path | None, is_single: bool) -> Path | None:
    """The folder of finished batches; None for a single batch, of which nothing has to be kept.

    A folder that exists is returned, because it may hold batches of another call.
    """
    return None if keep is not None and is_single and not keep.exists() else keep


def open_request(
    run: Run,
    solver: SolverSettings,
    guide: Guide | None,
    keep: Path | None,
    arrays: Mapping[str, Mapping[str, Any]],
    **values: Any,
) -> FinishedBatches | None:
    """Checks that all processes have made the same request, and opens its finished batches.

    A checksum identifies the parameters. The folder and the step of the checkpoint do not, because the run may have
    been trained again, and because `--no-ema` and `--width` select other parameters of it.

    Args:
        run, solver, guide: what is solved, and how.
        keep: the folder of finished batches, or None.
        arrays: named arrays that the results depend on; their checksum becomes an entry of the request.
        values: other entries of the request.

    Returns:
        The finished batches; None without `keep`.

    Raises:
        ConfigError: if processes have made different requests, or have found different checkpoints, or if the folder
            holds blocks of another request, or other files.
        RunFault: if the folder cannot be used.
    """
    if keep is None and processes.process_count() == 1:
        return None
    request = request_of(run, solver, guide, arrays, **values)
    processes.check_same("request", request)
    return None if keep is None else open_finished(keep, request)


def request_of(
    run: Run,
    solver: SolverSettings,
    guide: Guide | None,
    arrays: Mapping[str, Mapping[str, Any]],
    **values: Any,
) -> dict[str, Any]:
    """Everything that the results of a solve depend on; the arguments are those of `open_request`."""
    request: dict[str, Any] = _network("", run) | values
    request |= {name: _checksum(of) for name, of in arrays.items()}
    request |= {"solver" if name == "name" else name: value for name, value in dataclasses.asdict(solver).items()}
    if guide is None:
        request |= {"guidance": None}
    else:
        request |= {"guidance": guide.name, "scale": guide.scale, "interval": guide.interval, "rescale": guide.rescale}
        request |= {"fields": ", ".join(guide.fields)}
        request |= {} if guide.weak is None else _network("weak ", guide.weak)
    return request


def _network(prefix: str, run: Run) -> dict[str, Any]:
    return {
        f"{prefix}run": str(run.workdir.resolve()),
        f"{prefix}checkpoint": run.step,
        f"{prefix}parameters": f"{checksums.of_arrays(map(on_host, jax.tree.leaves(run.arrays))):08x}",
    }


def _checksum(arrays: Mapping[str, Any]) -> str | None:
    """A checksum of named arrays, their types and shapes; None if there are none."""
    if not arrays:
        return None
    total = 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        total = checksums.of_arrays([array], total)
    return f"{total:08x}"


def open_finished(folder: Path, request: dict[str, Any]) -> FinishedBatches:
    """Opens the finished batches of a request. It creates nothing, and removes what a call without a batch has left.

    Raises:
        ConfigError: if the folder holds blocks of another request, or other files.
        RunFault: if the folder cannot be used.
    """
    request = json.loads(json.dumps(request))
    fix = "remove the folder, or take another --out"
    try:
        if not folder.exists():
            return FinishedBatches(folder, request)
        blocks = _blocks(folder)
        if any(not _is_part(p) for p in folder.iterdir()) or (blocks and not (folder / _REQUEST).exists()):
            raise ConfigError(f"{folder} holds other files than finished batches: {fix}")
        if not blocks:
            remove_finished(folder)
            return FinishedBatches(folder, request)
        text = (folder / _REQUEST).read_bytes()
    except OSError as error:
        raise RunFault(f"cannot use {folder}: {error.strerror}; {fix}") from None
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict):
        raise ConfigError(f"{folder}/{_REQUEST} cannot be read: {fix}")
    if text := differences(known, request):
        raise ConfigError(f"{folder} holds finished batches of another request: {text}; {fix}")
    say(f"going on from the {len(blocks)} finished batches in {folder}")
    return FinishedBatches(folder, request)


def differences(known: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """How a request differs from one that is kept, such as "seed is 0 there and 1 here"; empty if it does not."""
    differing = [name for name in {**known, **request} if known.get(name) != request.get(name)]
    return ", ".join(f"{name} is {known.get(name)} there and {request.get(name)} here" for name in differing)


def remove_finished(folder: Path) -> None:
    """Removes the files that `FinishedBatches.write` has written, and then the folder if it is empty."""
    if folder.is_dir() and ((folder / _REQUEST).exists() or not _blocks(folder)):
        with contextlib.suppress(OSError):
            # the request last: without it the blocks could not be identified
            for path in sorted(folder.iterdir(), key=lambda p: p.name == _REQUEST):
                if _is_part(path):
                    path.unlink()
            folder.rmdir()


def _is_part(path: Path) -> bool:
    return path.name == _REQUEST or path.suffix == ".part" or _is_block(path)


def _is_block(path: Path) -> bool:
    return path.suffix == ".npz" and path.stem.isdigit()


def _blocks(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _is_block(path)]
