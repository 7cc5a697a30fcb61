"""Checksums of the files of a folder, which show that bits have changed on the disk.

`checksums.json` holds the size of each file and the CRC-32 of each of its blocks, and a CRC-32 of these entries. A
CRC-32 finds every change that spans at most 32 bits, and misses one in 2^32 of the others. It protects against faults
of the hardware, not against people. Threads share the blocks, since zlib releases the interpreter's lock.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.files import written

__all__ = ["NAME", "DamagedError", "Entry", "differing", "missing", "of_arrays", "read", "write"]

NAME = "checksums.json"
"""The file, in the folder that it describes."""

_BLOCK = 2**24
_PIECE = 2**20  # bytes read at once: they stay in the processor's cache

Entry = tuple[int, tuple[int, ...]]
"""The size of a file, and the CRC-32 of each of its blocks."""


class DamagedError(ValueError):
    """A `checksums.json` that was damaged itself."""


def of_arrays(arrays: Iterable[Any], start: int = 0) -> int:
    """The CRC-32 of the bytes of NumPy arrays, one after the other, of any types and shapes.

    Args:
        arrays: in order.
        start: the CRC-32 of what comes before them.
    """
    for array in arrays:
        data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        start = zlib.crc32(data, start)
    return start


def write(folder: Path, inside: Iterable[str]) -> None:
    """Writes `checksums.json` for all files in some folders of `folder`.

    Args:
        folder: where `checksums.json` goes.
        inside: names of folders in it.
    """
    paths = [path for name in inside for path in sorted((folder / name).rglob("*")) if path.is_file()]
    sizes = {path: path.stat().st_size for path in paths}
    blocks = [(path, i) for path in paths for i in range(-(-sizes[path] // _BLOCK))]
    with _threads() as pool:
        found = dict(zip(blocks, pool.map(lambda block: _crc(*block), blocks), strict=True))
    files: dict[str, Entry] = {
        path.relative_to(folder).as_posix(): (
            sizes[path],
            tuple(found[path, i] for i in range(-(-sizes[path] // _BLOCK))),
        )
        for path in paths
    }
    record = {"block": _BLOCK, "files": files, "crc32": _own(files)}
    with written(folder / NAME) as part:
        part.write_text(json.dumps(record))


def read(folder: Path) -> dict[str, Entry] | None:
    """The entries of `checksums.json` by the files' names; None where there is no such file.

    Raises:
        DamagedError: if the file is not as `write` wrote it.
    """
    try:
        record = json.loads((folder / NAME).read_bytes())
        files = {name: (int(size), tuple(crcs)) for name, (size, crcs) in record["files"].items()}
        if record["crc32"] == _own(files) and record["block"] == _BLOCK:
            return files
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DamagedError(f"{NAME} is damaged")


def missing(folder: Path, files: Iterable[str]) -> str | None:
    """The first of the files that does not exist; None if all of them do."""
    return next((name for name in files if not (folder / name).is_file()), None)


def differing(folder: Path, files: Mapping[str, Entry], index: int = 0, count: int = 1) -> int | None:
    """Reads files again and compares their sizes and checksums with their entries.

    Args:
        folder: the folder that was passed to `read`.
        files: the entries that `read` returned, or some of them.
        index, count: where `count` processes share the work, the process `index` reads the blocks whose number is
            `index` modulo `count`.

    Returns:
        The position in `files` of the first file that differs or cannot be read; None if there is none.
    """
    names, blocks = list(files), []
    for position, (name, (size, crcs)) in enumerate(files.items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or len(crcs) != -(-size // _BLOCK):
            return position
        blocks += [(position, i, crc) for i, crc in enumerate(crcs)]

    def bad(block: tuple[int, int, int]) -> bool:
        position, i, crc = block
        try:
            return _crc(folder / names[position], i) != crc
        except OSError:  # a disk that notices the damage itself
            return True

    mine = blocks[index::count]
    with _threads() as pool:
        found = pool.map(bad, mine)
        return next((block[0] for block, wrong in zip(mine, found, strict=True) if wrong), None)


def _crc(path: Path, block: int) -> int:
    """The CRC-32 of one block of a file."""
    crc, left = 0, _BLOCK
    with path.open("rb", buffering=0) as file:
        file.seek(block * _BLOCK)
        buffer = memoryview(bytearray(_PIECE))
        while left and (n := file.readinto(buffer[: min(left, _PIECE)])):
            crc = zlib.crc32(buffer[:n], crc)
            left -= n
    return crc


def _own(files: Mapping[str, Entry]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))
