"""Zip archives: writes `.npz` files, reads untrusted ones, and checks them and PyTorch files for decompression bombs.

A megabyte of compressed zeros unpacks to a gigabyte, and the header of an array can declare any shape. So all declared
sizes are compared with each other, with the size of the file and with a limit before anything is allocated, and a
member that is longer or shorter than declared is an error.

The limit applies to compressed members: together they may unpack to 4 GiB, or to ten times the size of the file if that
is more. The environment variable FLOWJAX_UNPACKED_BYTES sets another limit in bytes. Uncompressed arrays, which cannot
be larger than the file, are not limited.
"""

import io
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.files import written

__all__ = [
    "LIMIT_BYTES",
    "LIMIT_RATIO",
    "LIMIT_VARIABLE",
    "ArchiveError",
    "check_limit",
    "check_members",
    "check_regular",
    "one_line",
    "printable",
    "read_npz",
    "unpacked_limit",
    "write_npz",
]

LIMIT_BYTES, LIMIT_RATIO = 2**32, 10
"""Compressed members may unpack to this many bytes, or this many times the size of the file if that is more."""

LIMIT_VARIABLE = "FLOWJAX_UNPACKED_BYTES"
"""The environment variable that overrides the limit."""

_LARGEST_HEADER = 10_000
"""Bytes of the header of an array; NumPy has the same limit."""


class ArchiveError(ValueError):
    """An archive cannot be read. The message is one line."""


def check_regular(path: Path) -> None:
    """Checks that a path is a regular file without opening it, because opening a FIFO or a device can block forever.

    Raises:
        ArchiveError: if the path does not exist, or is a directory, a FIFO, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ArchiveError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:  # a path with a zero byte raises ValueError
        raise ArchiveError(f"{printable(str(path))} cannot be opened: {one_line(error)}") from None
    if not stat.S_ISREG(mode):
        raise ArchiveError(f"{path} is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}")


def unpacked_limit(size: int) -> int:
    """Returns the number of bytes that a file of `size` bytes may unpack to.

    Raises:
        ArchiveError: if FLOWJAX_UNPACKED_BYTES is not an integer.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    try:
        return max(LIMIT_BYTES, LIMIT_RATIO * size) if text is None else int(text)
    except ValueError:
        raise ArchiveError(f"{LIMIT_VARIABLE} must be a number of bytes, like {LIMIT_BYTES}, not {text!r}") from None


def check_limit(unpacked: int, size: int) -> None:
    """Checks that unpacked data do not exceed the limit.

    Args:
        unpacked: bytes after unpacking.
        size: bytes of the file; 0 if the bytes were declared without a file that holds them.

    Raises:
        ArchiveError: if they exceed it. The message says how to raise the limit, but does not name the file.
    """
    limit = unpacked_limit(size)
    if unpacked > limit:
        has = f"its {size} bytes unpack to {unpacked}" if size else f"{unpacked} bytes are declared"
        raise ArchiveError(
            f"{has}, more than the limit of {limit}: if you trust the file, set the "
            f"environment variable {LIMIT_VARIABLE}={unpacked}"
        )


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Compares the sizes declared by the directory of a zip archive with the size of the file and with the limit.

    Args:
        archive: the archive, opened for reading.
        size: bytes of its file.

    Raises:
        ArchiveError: if the sizes contradict each other or exceed the limit, or a member uses another compression than
            deflate. The message does not name the file.
    """
    members = archive.infolist()
    if sum(info.compress_size for info in members) > size:
        raise ArchiveError("its members declare more bytes than the file has")
    for info in members:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{printable(info.filename)} uses an unsupported compression method")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise ArchiveError(f"{printable(info.filename)} declares two different sizes")
    check_limit(sum(info.file_size for info in members if info.compress_type == zipfile.ZIP_DEFLATED), size)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an untrusted `.npz` file. Members that are not arrays are skipped.

    Args:
        path: path of the file.

    Returns:
        The arrays by name.

    Raises:
        ArchiveError: if the file is not a regular file, is damaged, holds Python objects, or declares sizes that
            contradict each other or exceed the limit. The message names the file.
    """
    path = Path(path)
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, path.stat().st_size)
            arrays = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _read_array(archive, info) for info in arrays}
    except PermissionError as error:
        raise ArchiveError(f"{path} cannot be opened: {one_line(error)}") from None
    except ArchiveError as error:
        raise ArchiveError(f"{path} is not a readable .npz file: {error}") from None
    except Exception as error:  # zipfile and NumPy can raise any exception on damaged files
        reason = "it is a single array; save it with numpy.savez(path, x=array)" if _is_npy(path) else one_line(error)
        raise ArchiveError(f"{path} is not a readable .npz file: {reason}") from None


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an .npz file atomically, and creates its folder if necessary."""
    with written(path) as part, part.open("wb") as file:
        savez: Any = np.savez  # type checkers take every keyword for `allow_pickle`
        savez(file, **arrays)


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads one array, after comparing its declared shape with the declared size of its member."""
    with archive.open(info) as stream:
        head = io.BytesIO(stream.read(_LARGEST_HEADER + 12))
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise ArchiveError(f"{printable(info.filename)} uses an unsupported version of the NumPy format")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(head, max_header_size=_LARGEST_HEADER)
    if dtype.hasobject:
        raise ArchiveError(f"{printable(info.filename)} holds Python objects, which are not read")
    if not dtype.itemsize or any(n < 0 for n in shape):
        raise ArchiveError(f"{printable(info.filename)} has an invalid dtype or shape")
    declared, held = math.prod(shape) * dtype.itemsize, info.file_size - head.tell()
    if declared != held:
        raise ArchiveError(f"{printable(info.filename)} declares an array of {declared} bytes but holds {held}")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_LARGEST_HEADER)


def _is_npy(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"\x93NUMPY"


def printable(text: str, length: int = 80) -> str:
    """Returns the beginning of an untrusted text, on one line and without control characters."""
    return text[:length] if text[:length].isprintable() else ascii(text[:length])


def one_line(error: BaseException) -> str:
    """Returns the message of an exception on one line of bounded length, or its type if it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = " ".join(str(error).split())
    return printable(message, 160) or type(error).__name__
