"""TFDS image sets, read with `as_data_source` (ArrayRecord) and Grain, without TensorFlow.

A set that fits on the device is decoded at once and kept there as uint8. A larger one is streamed (`data.stream`).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.batch import Batch
from flowjax.data.affine import DataError, image_scale
from flowjax.data.dataset import Dataset, resident, sample_rows
from flowjax.data.spec import DataSpec
from flowjax.extras import require

__all__ = ["open_tfds", "prepare_line"]

_SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
_CLASSES = {
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    "cifar10": "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck",
}


def prepare_line(name: str, path: str = "") -> str:
    """Returns the shell command that prepares a TFDS set; only this step needs TensorFlow.

    Args:
        name: the TFDS name of the set.
        path: TFDS's data_dir; "" for its default.
    """
    where = f", data_dir='{path}'" if path else ""
    return (
        'pip install tensorflow && python -c "import tensorflow_datasets as tfds; tfds.builder'
        f"('{name}', file_format='array_record'{where}).download_and_prepare()\""
    )


def open_tfds(name: str, path: str = "") -> Dataset:
    """Opens a TFDS image set with its official train and test splits.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        path: TFDS's data_dir; "" for $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        DataError: if the set is not prepared there; the message holds the command that prepares it.
    """
    train, test = _sources(name, path)
    shape = _SHAPES[name]
    tested = _decode(test, shape)
    names = tuple(_CLASSES[name].split(",")) if name in _CLASSES else ()
    fits = resident(len(train) * int(np.prod(shape)))
    return Dataset(
        spec=DataSpec(name, shape, image_scale(256), num_classes=10, levels=256, class_names=names),
        test=tested.x1.astype(np.float32),
        test_cond=tested.cond or {},
        arrays=(lambda: _decode(train, shape)) if fits else tuple,
        sample=sample_rows if fits else None,
        rows=None if fits else _Rows(train, shape),
    )


def _sources(name: str, path: str) -> tuple[Any, Any]:
    require("tensorflow_datasets", "data")
    import tensorflow_datasets as tfds

    folder = Path(path or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    missing = f"{name} is not prepared in {folder}; prepare it once with: {prepare_line(name, path)}"
    try:
        builder = tfds.builder(name, data_dir=str(folder))
        source: Any = builder.as_data_source()
        return source["train"], source["test"]
    except (
        OSError,
        KeyError,
        AssertionError,
        NotImplementedError,
        AttributeError,
        ValueError,
        tfds.core.DatasetNotFoundError,
    ):
        raise DataError(missing) from None


def _decode(source: Any, shape: tuple[int, ...]) -> Batch:
    """Decodes all images and labels of a split, in order."""
    rows = source.__getitems__(range(len(source)))
    x = np.stack([row["image"] for row in rows]).reshape(-1, *shape)
    return Batch(x, {"label": np.array([row["label"] for row in rows], np.int32)})


@dataclass(frozen=True)
class _Rows:
    source: Any
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        row = self.source[index]
        return Batch(row["image"].reshape(self.shape), {"label": np.asarray(row["label"], np.int32)})
