"""Finished batches of a long job, kept in a folder until the whole is written: the same call goes on from there.

`request.json` says what was asked for; each block is one .npz, named after its first row. The folder is created with
the first block, and any call may use a folder without blocks, so that a call that failed early does not block the next.
All files are written whole or not at all, so that the same call can go on from the folder after a kill at any moment.
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.archives import ArchiveError, read_npz
from flowjax.errors import ConfigError, RunFault
from flowjax.files import written
from flowjax.metrics.cache import write_npz
from flowjax.training.writers import say

__all__ = ["Block", "FinishedBatches", "open_finished", "remove_finished"]

Block = dict[str, np.ndarray]
"""Values of consecutive rows by name."""

_REQUEST = "request.json"


@dataclass(frozen=True)
class FinishedBatches:
    """The blocks in a folder that is known to be of this request.

    Attributes:
        folder: where the blocks are; the first `write` creates it.
        request: all that the blocks depend on, as JSON.
    """

    folder: Path
    request: dict[str, Any]

    def read(self, start: int) -> Block | None:
        """The block whose first row is `start`; None where there is none, or a damaged one, which is drawn again."""
        try:
            return read_npz(self._file(start))
        except ArchiveError:
            return None

    def write(self, start: int, block: Block) -> None:
        """Keeps a block; RunFault if the disk will not take it."""
        try:
            if not (self.folder / _REQUEST).exists():
                with written(self.folder / _REQUEST) as part:
                    part.write_text(json.dumps(self.request, indent=2) + "\n")
            write_npz(self._file(start), block)
        except OSError as error:
            raise RunFault(f"cannot write to {self.folder}: {error.strerror}") from None

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:010d}.npz"


def open_finished(folder: Path, request: dict[str, Any]) -> FinishedBatches:
    """Opens the finished batches of a request. It creates nothing, and removes what a call without a batch has left.

    Raises:
        ConfigError: if the folder holds blocks of another request, or other files.
        RunFault: if it cannot be used.
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
    gaps = [name for name in {**known, **request} if known.get(name) != request.get(name)]
    if gaps:
        text = ", ".join(f"{name} is {known.get(name)} there and {request.get(name)} here" for name in gaps)
        raise ConfigError(f"{folder} holds finished batches of another request: {text}; {fix}")
    say(f"sample: going on from the {len(blocks)} finished batches in {folder}")
    return FinishedBatches(folder, request)


def remove_finished(folder: Path) -> None:
    """Removes what `FinishedBatches.write` has left there, and the folder with it; nothing else."""
    if folder.is_dir() and ((folder / _REQUEST).exists() or not _blocks(folder)):
        with contextlib.suppress(OSError):
            # the request last: without it the blocks would be nobody's
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
