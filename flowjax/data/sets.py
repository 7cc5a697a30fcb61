"""The data sets that configs can name: one visible table."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flowjax.arguments import make
from flowjax.data.affine import DataError
from flowjax.data.arrays import open_npy, open_npz, open_zarr
from flowjax.data.dataset import Dataset
from flowjax.data.densities import open_density
from flowjax.data.digits import open_digits
from flowjax.data.folder import open_folder
from flowjax.data.images import open_tfds


def _density(name: str) -> Callable[[str], Dataset]:
    def opened(path: str) -> Dataset:
        _refuse(name, path)
        return open_density(name)

    return opened


def _digits(path: str, label: int | None = None) -> Dataset:
    _refuse("digits", path)
    return open_digits(label)


def _refuse(name: str, path: str) -> None:
    if path:
        raise DataError(
            f"data.name {name!r} takes no file, and data.path is {path!r}: leave data.path empty, or take data.name "
            "npz, npy, zarr or folder"
        )


DATASETS: dict[str, Callable[..., Dataset]] = {
    **{
        name: _density(name)
        for name in ("gaussians8", "moons", "checkerboard", "s_curve", "two_spirals", "pinwheel", "swiss_roll")
    },
    "digits": _digits,
    **{name: partial(open_tfds, name) for name in ("mnist", "fashion_mnist", "cifar10")},
    "npz": open_npz,
    "npy": open_npy,
    "zarr": open_zarr,
    "folder": open_folder,
}
"""name -> (data.path, arguments in brackets -> Dataset): `digits(1)` is one class of digits."""


def open_dataset(name: str, path: str = "") -> Dataset:
    """Opens a data set by its config name; `path` is the file of `npz`, the folder of `npy`, `zarr` and `folder`, or
    that of TFDS sets ("" for TFDS's own).

    Returns:
        The data set. Its test points are in a fixed random order, so any first few of them represent the whole test set
        (validation loss, metrics and figures use the first ones); `Dataset.test_rows` says where each one comes from.

    Raises:
        ConfigError: if the name is unknown.
        DataError: if the data are missing or malformed.
    """
    return make("data.name", name, DATASETS, str(Path(path).expanduser()) if path else "").with_permuted_test()
