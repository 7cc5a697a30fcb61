"""PyTorch's `.pt` files, read without PyTorch and without running anything in them.

`torch.save` writes a zip archive: a pickle (`data.pkl`) of containers in which each tensor is a call to a rebuilding
function, and the tensors' bytes, uncompressed, one member a storage (PyTorch's "serialization semantics" notes). A
pickle is a program; here it can reach only the few names of `_Unpickler.find_class`, all of them harmless and written
in this file, and any other name is refused before it is looked up. Tensors are views of the file, mapped into memory.

Memory and time are bounded too: `data.pkl` may have 16 MiB, which is enough for 80,000 tensors; whatever could copy a
large object or hash a nested one many times is refused; and the tensors together may be as large as what an archive may
unpack to (`flowjax.archives`), because a view of shape (10^12,) needs a storage of one number only.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from flowjax.archives import ArchiveError, check_limit, check_members, check_regular, one_line, printable
from flowjax.errors import WeightsError

__all__ = ["STORAGES", "read_state_dict", "read_torch"]

STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""Element types by the name of the storage that holds them."""

_LARGEST_PICKLE = 2**24
"""Bytes of `data.pkl`: each tensor takes about 200."""

_LARGEST_KEY = 2**60
"""Integers below are their own hashes, so a file cannot make a dictionary slow by keys that share a hash."""

_REFUSED = (
    *(pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8),
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4),
)
"""Instructions of a pickle that torch.save does not use."""

_LARGEST_RANK = 64
"""Axes of a tensor; NumPy's own bound."""

_LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a zip member: the lengths of its name and of its extra field, which the bytes follow (APPNOTE, sec. 4.3.7)."""


# What the pickle can hold in its hands is frozen, without a dictionary (and without the `__setstate__` that dataclasses
# with `slots=True` have): a pickle sets attributes too, and none of these can be set.


@dataclass(frozen=True)
class _Kind:
    """The type of a storage."""

    __slots__ = ("dtype",)
    dtype: Any


@dataclass(frozen=True)
class _Storage:
    """What a storage's persistent id stands for: its elements in the file, not read yet."""

    __slots__ = ("elements",)
    elements: np.ndarray


@dataclass(frozen=True)
class _Name:
    """A name that the pickle may call."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def read_torch(path: str | Path) -> Any:
    """What `torch.save` wrote: dictionaries, lists and numbers, with read-only NumPy arrays for tensors.

    Raises:
        WeightsError: if the file is missing, damaged, of the format before PyTorch 1.6, or holds anything but tensors
            and plain containers.
    """
    path = Path(path)
    try:
        check_regular(path)
    except ArchiveError as error:
        raise WeightsError(str(error)) from None
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except zipfile.BadZipFile:
        raise WeightsError(
            f"{path} is not a PyTorch zip file: it is damaged, or older than PyTorch 1.6; save it again with torch.save"
        ) from None
    except (WeightsError, ArchiveError) as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {one_line(error)}") from None


def read_state_dict(path: str | Path, parts: Sequence[str] = ("ema", "ema_model", "model", "net_model")) -> Any:
    """The arrays of one network in a `.pt` or `.safetensors` file, by their PyTorch names.

    Args:
        path: of the file: a state dict, or a dictionary of several things with a state dict under one of `parts`.
            Safetensors hold one state dict.
        parts: names to look under, the first that is there; moving averages come first by default.

    Returns:
        Names to arrays, without the prefix `module.` that PyTorch's wrappers add.

    Raises:
        WeightsError: as `read_torch`, or if there is no state dict.
    """
    tree: Any = _read_safetensors(Path(path)) if Path(path).suffix == ".safetensors" else read_torch(path)
    if isinstance(tree, Mapping):
        part = next((name for name in parts if isinstance(tree.get(name), Mapping)), None)
        state = tree if part is None else tree[part]
        state = {name: a for name, a in state.items() if isinstance(name, str) and isinstance(a, np.ndarray)}
        if state:
            wrapped = all(name.startswith("module.") for name in state)
            return {name.removeprefix("module.") if wrapped else name: a for name, a in state.items()}
    raise WeightsError(f"{path} holds no state dict, neither by itself nor under {', '.join(parts)}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        check_regular(path)
        return load_file(path)
    except ArchiveError as error:
        raise WeightsError(str(error)) from None
    except Exception as error:  # the package can raise any exception on types that NumPy does not have
        raise WeightsError(f"{path} cannot be read: {one_line(error)}") from None


def _read(path: Path, archive: zipfile.ZipFile) -> Any:
    size = path.stat().st_size
    check_members(archive, size)
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise WeightsError("not written by torch.save: it holds no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _bounded(archive, f"{root}byteorder", 16) != b"little":
        raise WeightsError("its numbers are big-endian: save it again on a little-endian machine")
    elements = lambda key, dtype, n: _elements(path, archive, f"{root}data/{key}", dtype, n)
    return _Unpickler(_bounded(archive, pickles[0], _LARGEST_PICKLE), elements, size).load()


def _bounded(archive: zipfile.ZipFile, member: str, largest: int) -> bytes:
    """A member, which is read only if it declares at most `largest` bytes."""
    declared = archive.getinfo(member).file_size
    if declared > largest:
        raise WeightsError(
            f"{printable(member)} has {declared} bytes, more than the limit of {largest}: save the state dict alone"
        )
    return archive.read(member)


def _elements(path: Path, archive: zipfile.ZipFile, member: str, dtype: Any, n: int) -> np.ndarray:
    """n elements of a member, mapped from the file."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{member} is compressed, which torch.save never does")
    if not 0 <= n * np.dtype(dtype).itemsize <= info.file_size:
        raise WeightsError(f"{member} holds {info.file_size} bytes, not the {n} {np.dtype(dtype).name} it should")
    if n == 0:
        return np.zeros(0, dtype)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return np.memmap(path, dtype, "r", info.header_offset + _LOCAL_HEADER.size + name + extra, (n,))


# The reader in Python, not the one in C: it calls the methods below, and does not allocate what a pickle declares.
class _Unpickler(pickle._Unpickler):
    """Knows tensors, storages and plain containers.

    Args:
        program: the pickle.
        elements: (key, dtype, n) -> the elements of a storage.
        size: of the whole file in bytes, for the limit on what its tensors may unpack to.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, program: bytes, elements: Callable[[str, Any, int], np.ndarray], size: int):
        super().__init__(io.BytesIO(program))
        self._elements, self._size, self._unpacked = elements, size, 0
        # of a training script's arguments; a class of its own for each file, should the pickle change it
        self._namespace = type("Namespace", (), {})
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Name(lambda: OrderedDict()),
            ("torch", "Size"): _Name(lambda shape: tuple(_whole(shape))),
            ("torch._utils", "_rebuild_tensor_v2"): _Name(self._tensor),
            ("torch._utils", "_rebuild_parameter"): _Name(lambda data, *_: data),
            ("argparse", "Namespace"): self._namespace,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch" and name in STORAGES:
            return _Kind(np.dtype(STORAGES[name]))
        raise WeightsError(
            f"it refers to {printable(f'{module}.{name}')}, and only tensors and plain containers are read: save the "
            "state dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, n = pid  # the fourth is the device it was on
        if what != "storage" or not isinstance(kind, _Kind) or type(n) is not int or type(key) not in (str, int):
            raise WeightsError("a reference to something that is not a storage")
        if not str(key).isalnum():
            raise WeightsError("a reference to something that is not a storage")
        return _Storage(self._elements(str(key), kind.dtype, n))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
        """A view of a storage; strides are in elements. Gradients and hooks, which follow, are left out."""
        if not isinstance(storage, _Storage):
            raise WeightsError("a tensor that is not a plain one")
        (offset,), shape, strides = _whole((offset,)), _whole(shape), _whole(strides)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.elements.size:
            raise WeightsError(f"a tensor of shape {tuple(shape)} reaches past the end of its storage")
        size = storage.elements.itemsize
        self._unpacked += math.prod(shape) * size
        check_limit(self._unpacked, self._size)
        start = storage.elements[offset:]
        return np.lib.stride_tricks.as_strided(start, shape, [s * size for s in strides], writeable=False)

    # What a pickle could make slow or large by a few bytes each: hashes of nested tuples, sets, copies of dictionaries
    # into the attributes of an object, buffers of a declared length.

    def _set_items(self) -> None:
        items = self.pop_mark()
        _check_keys(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _check_keys([key])
        self.stack[-1][key] = value

    def _leave_attributes(self) -> None:
        """Attributes (of a state dict: the versions of its modules; of a script: its arguments) are left out."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict | self._namespace):
            raise WeightsError("it sets attributes of something that has none")

    def _refuse(self) -> None:
        raise WeightsError("it holds something other than tensors and plain containers: save the state dict alone")

    dispatch: Any = (
        pickle._Unpickler.dispatch
        | {pickle.SETITEMS[0]: _set_items, pickle.SETITEM[0]: _set_item, pickle.BUILD[0]: _leave_attributes}
        | dict.fromkeys((code[0] for code in _REFUSED), _refuse)
    )


def _whole(numbers: Any) -> list[int]:
    """A few whole numbers that are not negative, of a list or tuple."""
    if not isinstance(numbers, list | tuple) or len(numbers) > _LARGEST_RANK:
        raise WeightsError("a tensor that is not a plain one")
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise WeightsError("a tensor that is not a plain one")
    return list(numbers)


def _check_keys(keys: Sequence[Any]) -> None:
    for key in keys:
        if type(key) is not str and not (type(key) is int and abs(key) < _LARGEST_KEY):
            raise WeightsError(
                "it has a dictionary whose keys are neither texts nor numbers: save the state dict alone"
            )
