"""Pairs (x0, x1) that a trained model has made, in a folder: source samples and the samples to which they are mapped.

The arrays `x0.npy` and `x1.npy`, and `cond_NAME.npy` for each condition, are in the model space of that model, as its
network takes them. `pairs.json` has the description of its data, so that a run on the pairs has the same model space,
and how to open its data, which are the test points of the run. `finished.json` counts the rows that are written.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.archives import check_regular, one_line
from flowjax.batch import Batch
from flowjax.data.affine import DataError
from flowjax.data.dataset import ArrayRows, Dataset, resident, sample_rows
from flowjax.data.requests import DataRequest
from flowjax.data.spec import DataSpec
from flowjax.errors import ConfigError
from flowjax.files import written

__all__ = ["DESCRIPTION", "X0", "PairFolder", "open_pairs"]

DESCRIPTION, _FINISHED = "pairs.json", "finished.json"

X0 = "x0"
"""The name of the source samples, for `data.pairs`."""

_COND = "cond_"

_HELD = 10_000
"""The first tenth of the rows is held out, and at most this many."""


@dataclass(frozen=True)
class PairFolder:
    """A folder of pairs, which are written in blocks.

    Attributes:
        folder: the folder.
        spec: the description of the data of the model, with `paired_source`.
        num: the number of pairs.
        origin: the arguments of `open_dataset` for the data of the model.
        request: everything that the pairs depend on, as JSON.
        cond: the names of the conditions.
    """

    folder: Path
    spec: DataSpec
    num: int
    origin: Mapping[str, Any]
    request: Mapping[str, Any]
    cond: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> "PairFolder":
        """Opens a folder that `create` has made.

        Raises:
            DataError: if it is no such folder, or its description cannot be read.
        """
        path = folder / DESCRIPTION
        try:
            check_regular(path)
            known = json.loads(path.read_bytes())
            num, origin, request, cond = (known[key] for key in ("num", "origin", "request", "cond"))
            spec = DataSpec.from_record(known["data"])
        except DataError:
            raise
        except Exception as error:  # a damaged file can raise any exception
            raise DataError(f"{folder} is not a folder of pairs of a model: {one_line(error)}") from None
        if type(num) is not int or num < 1 or not isinstance(origin, dict) or not isinstance(request, dict):
            raise DataError(f"{path} is damaged: make the pairs again")
        if not spec.paired_source or not isinstance(cond, list) or not set(cond) <= {f.name for f in spec.fields}:
            raise DataError(f"{path} is damaged: make the pairs again")
        return cls(folder, spec, num, origin, request, tuple(cond))

    def create(self) -> None:
        """Writes the description, and arrays without content."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, (shape, dtype) in self._layout().items():
            np.lib.format.open_memmap(self._file(name), "w+", dtype, (self.num, *shape))
        values = {
            "num": self.num,
            "cond": list(self.cond),
            "origin": dict(self.origin),
            "request": dict(self.request),
            "data": self.spec.to_record(),
        }
        with written(self.folder / DESCRIPTION) as part:
            part.write_text(json.dumps(values, indent=2) + "\n")

    @property
    def finished(self) -> int:
        """The number of rows that are written: the first ones."""
        try:
            return int(json.loads((self.folder / _FINISHED).read_bytes())["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def write(self, start: int, block: Mapping[str, np.ndarray]) -> None:
        """Writes rows from `start` on, and counts them as finished once they are on the disk."""
        stop = start + len(block[X0])
        for name, (shape, dtype) in self._layout().items():
            array = np.lib.format.open_memmap(self._file(name), "r+")
            array[start:stop] = np.asarray(block[name], dtype).reshape(-1, *shape)
            array.flush()
        with written(self.folder / _FINISHED) as part:
            part.write_text(json.dumps({"rows": stop}) + "\n")

    def read(self) -> dict[str, np.ndarray]:
        """The arrays by name, memory-mapped.

        Raises:
            DataError: if pairs are missing, or an array does not fit the description.
        """
        if (done := self.finished) != self.num:
            raise DataError(
                f"{self.folder} holds {done} of {self.num} pairs: repeat the command that makes them, which continues"
            )
        found = {}
        for name, (shape, dtype) in self._layout().items():
            try:
                check_regular(self._file(name))
                found[name] = np.lib.format.open_memmap(self._file(name), mode="r")
            except Exception as error:  # NumPy can raise any exception on damaged files
                raise DataError(f"{self._file(name)} cannot be read: {one_line(error)}") from None
            if found[name].shape != (self.num, *shape) or found[name].dtype != dtype:
                raise DataError(
                    f"{self._file(name)} must be {np.dtype(dtype)} of shape {(self.num, *shape)}, not "
                    f"{found[name].dtype} of shape {found[name].shape}"
                )
        return found

    def batch(self, arrays: Mapping[str, np.ndarray]) -> Batch:
        """Arrays by name as the encoded rows of a data set."""
        return Batch(arrays["x1"], {name: arrays[_COND + name] for name in self.cond}, arrays[X0])

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The shape of a row and the dtype of each array."""
        fields = {field.name: field for field in self.spec.fields}
        of = lambda field: ((), np.int32) if field.kind == "label" else (field.shape, np.float32)
        x = tuple(self.spec.shape), np.float32
        return {X0: x, "x1": x} | {_COND + name: of(fields[name]) for name in self.cond}


def open_pairs(request: DataRequest) -> Dataset:
    """Opens pairs of a model as a data set.

    Its test points, its density and so on are those of the data of the model. The validation loss is computed on
    held-out pairs.

    Raises:
        DataError: if the folder is not complete or does not fit the request.
    """
    if not request.path:
        raise DataError("data.name is pairs, so data.path must be a folder that flowjax pairs has written")
    if request.pairs != X0:
        raise DataError(f"data.name is pairs, so data.pairs must be {X0}, not {request.pairs!r}")
    if request.normalise:
        raise DataError(
            f"data.normalise is {request.normalise!r}, but pairs have the scale of the model that has made them: leave "
            "it empty"
        )
    kept = PairFolder.open(Path(request.path))
    if missing := [field.name for field in request.cond if field.name not in kept.cond]:
        known = ", ".join(kept.cond) or "none"
        raise DataError(f"data.cond names {missing[0]!r}, but the pairs in {kept.folder} have the conditions: {known}")
    arrays = kept.read()
    held = np.arange(max(1, min(_HELD, kept.num // 10)))
    rows = ArrayRows(kept.batch(arrays), held)
    tested = ArrayRows(rows.arrays).take(held)
    dataset = replace(_origin(kept, tested), spec=kept.spec, held=tested, test_x0=None)
    if resident(sum(a.nbytes for a in arrays.values())):
        return replace(dataset, arrays=lambda: rows.take(np.arange(len(rows))), sample=sample_rows, rows=None)
    return replace(dataset, arrays=tuple, sample=None, rows=rows)


def _origin(kept: PairFolder, held: Batch) -> Dataset:
    """The data set of the model; if it cannot be opened, one whose test points are held-out samples of the model."""
    from flowjax.data.sets import open_dataset  # which imports this module

    try:
        found = open_dataset(**kept.origin)
        if text := found.spec.differences(replace(kept.spec, paired_source="")):
            raise DataError(f"they have changed: {'; '.join(text)[:200]}")
        return found
    except (ConfigError, DataError, TypeError, OSError, ImportError) as error:
        note = f"the data of the model cannot be opened, so test points are its own samples: {one_line(error)}"
    maps = dict(zip([f.name for f in kept.spec.conditions], kept.spec.condition_maps, strict=True))
    in_data = lambda name, a: maps[name].to_data(np.asarray(a, np.float64)) if name in maps else a
    test = kept.spec.finish(held.x1)
    return Dataset(
        kept.spec,
        test.astype(np.float32) if kept.spec.levels else test,
        {name: in_data(name, a) for name, a in (held.cond or {}).items()},
        notes=(note,),
    )
