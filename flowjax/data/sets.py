"""The table of data sets that configs can name."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flowjax.arguments import make
from flowjax.data.affine import DataError
from flowjax.data.arrays import open_npy, open_npz, open_zarr
from flowjax.data.dataset import Dataset
from flowjax.data.degrade import DEGRADED, degrade_dataset
from flowjax.data.densities import open_density
from flowjax.data.digits import open_digits
from flowjax.data.formats import check_format, format_of
from flowjax.data.images import open_tfds
from flowjax.data.model_pairs import open_pairs
from flowjax.data.requests import DEQUANTISATIONS, DataRequest, field_requests
from flowjax.data.series import open_series
from flowjax.data.simulated import open_simulator
from flowjax.data.table import open_table
from flowjax.errors import ConfigError, lookup
from flowjax.extras import require
from flowjax.plugins import Kind, Outside
from flowjax.simulators import BENCHMARK, Simulator

__all__ = ["DATASET", "DATASETS", "SIMULATOR", "make_simulator", "open_dataset"]

DATASET = Kind("a data set", base=Dataset, makes=Dataset)
"""A data set of another module: a function from a `DataRequest` and the arguments in brackets to a `Dataset`."""

SIMULATOR = Kind("a simulator", base=Simulator, makes=Simulator)
"""A simulator of another module: a `Simulator`, or a function from the arguments in brackets to one."""


def make_simulator(text: str, plugins: Sequence[str] = ()) -> Simulator:
    """Returns the simulator that `data.simulator` names.

    Args:
        text: a task of `flowjax.simulators.BENCHMARK`, or a simulator of another module.
        plugins: modules that may be imported, with their submodules.

    Raises:
        ConfigError: if the name is unknown, or its module must not be imported.
    """
    return make("data.simulator", text, BENCHMARK, outside=Outside(SIMULATOR, plugins))


def _density(name: str) -> Callable[[DataRequest], Dataset]:
    def opened(request: DataRequest) -> Dataset:
        _refuse(name, request)
        return open_density(name)

    return opened


def _digits(request: DataRequest, label: int | tuple[int, ...] | None = None) -> Dataset:
    _refuse("digits", request)
    return open_digits(label)


def _tfds(name: str) -> Callable[[DataRequest], Dataset]:
    def opened(request: DataRequest) -> Dataset:
        request.only_labels(name)
        return open_tfds(name, request.path)

    return opened


def _folder(request: DataRequest, size: int = 0, channels: int = 0) -> Dataset:
    request.only_labels("folder")
    require("PIL", "data")
    from flowjax.data.folder import open_folder  # imports Pillow

    return open_folder(request.path, size, channels)


def _refuse(name: str, request: DataRequest) -> None:
    if request.path:
        raise DataError(
            f"data.name {name!r} takes no file, but data.path is {request.path!r}: leave data.path empty, or leave "
            "data.name empty (--config.data.name=) to read that path"
        )
    request.only_labels(name)


DATASETS: dict[str, Callable[..., Dataset]] = {
    **{
        name: _density(name)
        for name in ("gaussians8", "moons", "checkerboard", "s_curve", "two_spirals", "pinwheel", "swiss_roll")
    },
    "digits": _digits,
    **{name: _tfds(name) for name in ("mnist", "fashion_mnist", "cifar10")},
    "npz": open_npz,
    "npy": open_npy,
    "zarr": open_zarr,
    "table": open_table,
    "series": open_series,
    "folder": _folder,
    "simulator": open_simulator,
    "pairs": open_pairs,
}
"""Data sets by name: functions of a `DataRequest` and the arguments in brackets, such as 1 in `digits(1)`."""

_WITHOUT_PATH = "gaussians8"
"""The data set of a config with neither `data.name` nor `data.path`."""


def open_dataset(
    name: str,
    path: str = "",
    cond: Sequence[str] = (),
    pairs: str = "",
    normalise: str = "",
    simulator: str = "",
    degrade: str = "",
    dequantisation: str = "uniform",
    plugins: Sequence[str] = (),
) -> Dataset:
    """Opens a data set by its config name.

    Args:
        name: `data.name`, with arguments in brackets, such as "folder(64)". "" for the format of `path`
            (`formats.format_of`), or for `gaussians8` if there is no path.
        path: the file for `npz` and `table`; the folder for `npy`, `zarr` and `folder`, or a single array for `npy`
            and `zarr`; the data_dir for TFDS sets, "" for TFDS's default.
        cond: `data.cond`, the fields that are read as conditions, such as ("label", "points(kind='set')").
        pairs: `data.pairs`, the name of the array with the source sample of each row; "" for none.
        normalise: `data.normalise`; "" lets the data set choose.
        simulator: `data.simulator`, a task of `flowjax.simulators.BENCHMARK` or a simulator of another module; "" for
            none.
        degrade: `data.degrade`, such as "downsample(4)", which makes the array `degraded` of a set of images; "" for
            none.
        dequantisation: `data.dequantisation`, what integers are in training; "uniform" for all other data.
        plugins: modules that may be imported, with their submodules (`flowjax.plugins`).

    Returns:
        The data set. Its test points are in a fixed random order, so that the first ones, which validation loss,
        metrics and figures use, represent the whole test set; `Dataset.test_rows` has their original rows.

    Raises:
        ConfigError: if the name is unknown, or an option is invalid.
        DataError: if the data are missing or malformed, or the name and the path contradict each other.
    """
    known = make_simulator(simulator, plugins) if simulator else None
    place = str(Path(path).expanduser()) if path else ""
    fields, made = field_requests(cond), bool(degrade) and pairs == DEGRADED
    read = tuple(field for field in fields if not degrade or field.name != DEGRADED)
    request = DataRequest(place, read, "" if made else pairs, normalise, known)
    if simulator and name.partition("(")[0].strip() in DATASETS.keys() - {"simulator"} | {""}:
        raise DataError(f"data.simulator is {simulator!r}, so data.name must be simulator, not {name!r}")
    outside = Outside(DATASET, plugins, (request,))
    name = name or (format_of(request.path) if path else _WITHOUT_PATH)
    check_format(name.partition("(")[0].strip(), request.path)
    dataset = make("data.name", name, DATASETS, request, outside=outside).with_permuted_test()
    dataset = degrade_dataset(dataset, degrade, fields, made) if degrade else dataset
    return _dequantised(dataset, dequantisation)


def _dequantised(dataset: Dataset, dequantisation: str) -> Dataset:
    """Returns the data set with this value of `data.dequantisation`.

    Raises:
        ConfigError: if the value is unknown, or the data are not integers.
    """
    lookup("data.dequantisation", dequantisation, dict.fromkeys(DEQUANTISATIONS))
    if dequantisation == "uniform":
        return dataset
    if dataset.spec.bins is None:
        raise ConfigError(
            f"data.dequantisation is {dequantisation!r}, but the data ({dataset.spec.name}) are not integers: leave it "
            "at 'uniform'"
        )
    return replace(dataset, spec=replace(dataset.spec, dequantisation=dequantisation))
