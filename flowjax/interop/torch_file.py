"""Reads PyTorch's `.pt` files without PyTorch and without running code from them.

`torch.save` writes a zip archive with a pickle (`data.pkl`) of containers, in which each tensor is a call to a rebuild
function, and with the uncompressed bytes of the tensors, one member per storage (PyTorch notes, "Serialization
semantics"). A pickle is a program, but here it can use only the few names of `_Unpickler.find_class`, which are
harmless; any other name is refused before it is looked up. Tensors are memory-mapped views of the file.

Memory and time are bounded as well. `data.pkl` may have 16 MiB, which is enough for 80,000 tensors. Instructions that
could copy a large object or hash a nested one many times are refused. All tensors together must not exceed the limit of
`flowjax.archives` on unpacked data, because a view of shape (10^12,) needs a storage of only one number.
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
"""Element types by the name of PyTorch's storage class."""

_LARGEST_PICKLE = 2**24
"""Limit on the bytes of `data.pkl`, in which each tensor takes about 200."""

_LARGEST_KEY = 2**60
"""Smaller integers hash to themselves, so a file cannot slow down a dictionary with keys that share a hash."""

_REFUSED = (
    *(pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8),
    *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4),
)
"""Pickle instructions that torch.save does not use."""

_LARGEST_RANK = 64
"""Limit on the axes of a tensor; NumPy has the same limit."""

_NOT_PLAIN = "it holds a tensor with invalid arguments, or of a kind that is not read: save only the state dict"

_LOCAL_HEADER = struct.Struct("<26xHH")
"""Header of a zip member: lengths of its name and of its extra field, before the data (APPNOTE, sec. 4.3.7)."""


# A pickle can also set attributes. So the objects that it can reach are frozen and have no `__dict__`, and no
# `__setstate__` either, which dataclasses with `slots=True` would have.


@dataclass(frozen=True)
class _Kind:
    """The type of a storage."""

    __slots__ = ("dtype",)
    dtype: Any


@dataclass(frozen=True)
class _Storage:
    """The object for the persistent id of a storage: its elements in the file, not read yet."""

    __slots__ = ("elements",)
    elements: np.ndarray


@dataclass(frozen=True)
class _Name:
    """A function that the pickle may call."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def read_torch(path: str | Path) -> Any:
    """Reads a file that `torch.save` wrote.

    Args:
        path: path of the file.

    Returns:
        The saved dictionaries, lists and numbers, with read-only NumPy arrays for tensors.

    Raises:
        WeightsError: if the file is missing or damaged, has the format used before PyTorch 1.6, or holds anything other
            than tensors and plain containers.
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
    """Reads the arrays of one network from a `.pt` or `.safetensors` file, by their PyTorch names.

    Args:
        path: path of the file. A `.pt` file holds a state dict, or a dictionary with a state dict under one of `parts`;
            a `.safetensors` file holds one state dict.
        parts: keys under which a state dict is looked for; the first one found is used. By default, moving averages
            come first.

    Returns:
        Arrays by name, without the prefix `module.` that PyTorch's wrappers add.

    Raises:
        WeightsError: if the file cannot be read (`read_torch`) or holds no state dict.
    """
    tree: Any = _read_safetensors(Path(path)) if Path(path).suffix == ".safetensors" else read_torch(path)
    if isinstance(tree, Mapping):
        part = next((name for name in parts if isinstance(tree.get(name), Mapping)), None)
        state = tree if part is None else tree[part]
        state = {name: a for name, a in state.items() if isinstance(name, str) and isinstance(a, np.ndarray)}
        if state:
            wrapped = all(name.startswith("module.") for name in state)
            return {name.removeprefix("module.") if wrapped else name: a for name, a in state.items()}
    raise WeightsError(f"{path} holds no state dict, neither at the top level nor under {', '.join(parts)}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        check_regular(path)
        return load_file(path)
    except ArchiveError as error:
        raise WeightsError(str(error)) from None
    except Exception as error:  # safetensors can raise any exception on dtypes that NumPy does not have
        raise WeightsError(f"{path} cannot be read: {one_line(error)}") from None


def _read(path: Path, archive: zipfile.ZipFile) -> Any:
    size = path.stat().st_size
    check_members(archive, size)
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise WeightsError("it was not written by torch.save, because it holds no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _bounded(archive, f"{root}byteorder", 16) != b"little":
        raise WeightsError("its numbers are big-endian: save it again on a little-endian machine")
    elements = lambda key, dtype, n: _elements(path, archive, f"{root}data/{key}", dtype, n)
    return _Unpickler(_bounded(archive, pickles[0], _LARGEST_PICKLE), elements, size).load()


def _bounded(archive: zipfile.ZipFile, member: str, largest: int) -> bytes:
    """Reads a member if it declares at most `largest` bytes."""
    declared = archive.getinfo(member).file_size
    if declared > largest:
        raise WeightsError(
            f"{printable(member)} has {declared} bytes, more than the limit of {largest}: save only the state dict"
        )
    return archive.read(member)


def _elements(path: Path, archive: zipfile.ZipFile, member: str, dtype: Any, n: int) -> np.ndarray:
    """Returns n elements of a member as a memory map of the file."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{member} is compressed, but torch.save writes uncompressed members")
    if not 0 <= n * np.dtype(dtype).itemsize <= info.file_size:
        raise WeightsError(
            f"{member} holds {info.file_size} bytes, but its storage declares {n} of {np.dtype(dtype).name}"
        )
    if n == 0:
        return np.zeros(0, dtype)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return np.memmap(path, dtype, "r", info.header_offset + _LOCAL_HEADER.size + name + extra, (n,))


# The Python implementation, unlike the one in C, calls the methods below and does not allocate declared sizes up front.
class _Unpickler(pickle._Unpickler):
    """An unpickler that supports only tensors, storages and plain containers.

    Args:
        program: the pickle.
        elements: function (key, dtype, n) -> the elements of a storage.
        size: bytes of the whole file, for the limit on the total size of its tensors.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, program: bytes, elements: Callable[[str, Any, int], np.ndarray], size: int):
        super().__init__(io.BytesIO(program))
        self._elements, self._size, self._unpacked = elements, size, 0
        # the arguments of a training script; a new class for each file, in case the pickle changes it
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
            f"it refers to {printable(f'{module}.{name}')}, but only tensors and plain containers are read: save only "
            "the state dict"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, n = pid  # the fourth entry is the device on which it was
        if what != "storage" or not isinstance(kind, _Kind) or type(n) is not int or type(key) not in (str, int):
            raise WeightsError("it holds a reference to something other than a storage")
        if not str(key).isalnum():
            raise WeightsError("it holds a reference to something other than a storage")
        return _Storage(self._elements(str(key), kind.dtype, n))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
        """A view of a storage, with strides in elements. Further arguments, for gradients and hooks, are ignored."""
        if not isinstance(storage, _Storage):
            raise WeightsError(_NOT_PLAIN)
        (offset,), shape, strides = _whole((offset,)), _whole(shape), _whole(strides)
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.elements.size:
            raise WeightsError(f"it holds a tensor of shape {tuple(shape)} that reaches past the end of its storage")
        size = storage.elements.itemsize
        self._unpacked += math.prod(shape) * size
        check_limit(self._unpacked, self._size)
        start = storage.elements[offset:]
        return np.lib.stride_tricks.as_strided(start, shape, [s * size for s in strides], writeable=False)

    # The methods below refuse instructions of a few bytes that cost much time or memory: hashes of nested tuples, sets,
    # copies of dictionaries into the attributes of an object, and buffers of a declared length.

    def _set_items(self) -> None:
        items = self.pop_mark()
        _check_keys(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _check_keys([key])
        self.stack[-1][key] = value

    def _leave_attributes(self) -> None:
        """Ignores attributes: the module versions of a state dict, and the arguments of a training script."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict | self._namespace):
            raise WeightsError("it sets attributes of an object that has none: save only the state dict")

    def _refuse(self) -> None:
        raise WeightsError("it holds something other than tensors and plain containers: save only the state dict")

    dispatch: Any = (
        pickle._Unpickler.dispatch
        | {pickle.SETITEMS[0]: _set_items, pickle.SETITEM[0]: _set_item, pickle.BUILD[0]: _leave_attributes}
        | dict.fromkeys((code[0] for code in _REFUSED), _refuse)
    )


def _whole(numbers: Any) -> list[int]:
    """Checks that an argument is a short list or tuple of non-negative integers."""
    if not isinstance(numbers, list | tuple) or len(numbers) > _LARGEST_RANK:
        raise WeightsError(_NOT_PLAIN)
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise WeightsError(_NOT_PLAIN)
    return list(numbers)


def _check_keys(keys: Sequence[Any]) -> None:
    for key in keys:
        if type(key) is not str and not (type(key) is int and abs(key) < _LARGEST_KEY):
            raise WeightsError(
                "it has a dictionary whose keys are neither strings nor integers: save only the state dict"
            )
