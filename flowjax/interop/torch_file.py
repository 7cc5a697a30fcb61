"""PyTorch's `.pt` files, read without PyTorch and without running anything in them.

`torch.save` writes a zip archive: a pickle (`data.pkl`) of containers in which each tensor is a call to a rebuilding
function, and the tensors' bytes, uncompressed, one member a storage (PyTorch's "serialization semantics" notes). A
pickle is a program; here it can reach only the few names of `_Unpickler.find_class`, all of them harmless and written
in this file, and any other name is refused before it is looked up. Tensors are views of the file, mapped into memory.
"""

import io
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
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flowjax.interop import WeightsError

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
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except FileNotFoundError:
        raise WeightsError(f"no such file: {path}") from None
    except zipfile.BadZipFile:
        raise WeightsError(
            f"{path} is not a PyTorch zip file: it is damaged, or older than PyTorch 1.6; save it again with torch.save"
        ) from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from None


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
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(f"no such file: {path}") from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _read(path: Path, archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise WeightsError("not written by torch.save: it holds no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError("its numbers are big-endian: save it again on a little-endian machine")
    elements = lambda key, dtype, n: _elements(path, archive, f"{root}data/{key}", dtype, n)
    return _Unpickler(archive.read(pickles[0]), elements).load()


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


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """A view of a storage; strides are in elements. Gradients and hooks, which follow, are left out."""
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise WeightsError("a tensor that is not a plain one")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements.size:
        raise WeightsError(f"a tensor of shape {shape} reaches past the end of its storage")
    size = storage.elements.itemsize
    start = storage.elements[offset:]
    return np.lib.stride_tricks.as_strided(start, shape, [s * size for s in strides], writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows tensors, storages and plain containers.

    Args:
        program: the pickle.
        elements: (key, dtype, n) -> the elements of a storage.
    """

    def __init__(self, program: bytes, elements: Callable[[str, Any, int], np.ndarray]):
        super().__init__(io.BytesIO(program))
        self._elements = elements
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Name(OrderedDict),
            ("torch", "Size"): _Name(tuple),
            ("torch._utils", "_rebuild_tensor_v2"): _Name(_tensor),
            ("torch._utils", "_rebuild_parameter"): _Name(lambda data, *_: data),
            # of a training script's arguments; a class of its own for each file, should the pickle change it
            ("argparse", "Namespace"): type("Namespace", (), {}),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if module == "torch" and name in STORAGES:
            return _Kind(np.dtype(STORAGES[name]))
        raise WeightsError(
            f"it wants {module}.{name}, and only tensors and plain containers are read: save the state dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, n = pid  # the fourth is the device it was on
        if what != "storage" or not isinstance(kind, _Kind) or not str(key).isalnum() or type(n) is not int:
            raise WeightsError(f"a reference to something that is not a storage: {pid!r}")
        return _Storage(self._elements(str(key), kind.dtype, n))
