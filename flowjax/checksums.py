"""Checksums of the files in a folder, to detect data that were corrupted on the disk.

`checksums.json` holds the size of each file, the CRC-32 of each of its blocks, and a CRC-32 of these entries. A CRC-32
detects every change that spans at most 32 bits, and misses one in 2^32 of the others. It protects against hardware
faults, not against tampering. Blocks are processed in several threads, because zlib releases the GIL.
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
"""The name of the file, in the folder that it describes."""

_BLOCK = 2**24
_PIECE = 2**20  # bytes per read, few enough for the cache of the processor

Entry = tuple[int, tuple[int, ...]]
"""The size of a file in bytes, and the CRC-32 of each of its blocks."""


class DamagedError(ValueError):
    """The file `checksums.json` itself is damaged."""


def of_arrays(arrays: Iterable[Any], start: int = 0) -> int:
    """Returns the CRC-32 of the concatenated bytes of NumPy arrays of any dtype and shape.

    Args:
        arrays: the arrays, in order.
        start: the CRC-32 of the bytes that precede them.
    """
    for array in arrays:
        data: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        start = zlib.crc32(data, start)
    return start


def write(folder: Path, inside: Iterable[str]) -> None:
    """Writes `checksums.json` for all files in some subfolders of a folder.

    Args:
        folder: the folder to which `checksums.json` is written.
        inside: names of the subfolders.
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
    record = {"block": _BLOCK, "files": files, "crc32": _crc_of_entries(files)}
    with written(folder / NAME) as part:
        part.write_text(json.dumps(record))


def read(folder: Path) -> dict[str, Entry] | None:
    """Reads the entries of `checksums.json` by file name; None if there is no `checksums.json`.

    Raises:
        DamagedError: if `checksums.json` is malformed or does not match its checksum.
    """
    try:
        record = json.loads((folder / NAME).read_bytes())
        files = {name: (int(size), tuple(crcs)) for name, (size, crcs) in record["files"].items()}
        if record["crc32"] == _crc_of_entries(files) and record["block"] == _BLOCK:
            return files
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DamagedError(f"{NAME} is damaged")


def missing(folder: Path, files: Iterable[str]) -> str | None:
    """Returns the first of the files that does not exist, or None if all exist."""
    return next((name for name in files if not (folder / name).is_file()), None)


def differing(folder: Path, files: Mapping[str, Entry], index: int = 0, count: int = 1) -> int | None:
    """Reads files and compares their sizes and checksums with their entries.

    Args:
        folder: the folder that was passed to `read`.
        files: the entries that `read` returned, or some of them.
        index, count: if `count` processes share the work, process `index` reads the blocks whose number is `index`
            modulo `count`.

    Returns:
        The position in `files` of the first file that differs or cannot be read; None if all files match.
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
        except OSError:  # the disk itself reports damage
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


def _crc_of_entries(files: Mapping[str, Entry]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))
