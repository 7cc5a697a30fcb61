"""Windows of a multivariate series for forecasting: the future is the example, and the past its condition.

The series is a table whose rows are in the order of time, or an array (T, C). It is held once, and windows are cut out
of it in the compiled step. The last tenth of the rows is held out: the future of a test window lies in it, and no
training window reaches into it. The past of a test window may lie before it, as it does when a model is used.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from flowjax.archives import printable
from flowjax.arguments import separate
from flowjax.batch import AnyArray, Batch
from flowjax.conditions import Field
from flowjax.data.affine import DataError
from flowjax.data.arrays import read_npz
from flowjax.data.checks import check_test
from flowjax.data.columns import Column
from flowjax.data.dataset import Dataset, held_out, resident
from flowjax.data.formats import format_of
from flowjax.data.read_table import check_has, read_table, read_values
from flowjax.data.record import LARGEST_LIST
from flowjax.data.requests import DataRequest
from flowjax.data.scales import feature_scales
from flowjax.data.spec import DataSpec, shortened
from flowjax.data.splits import stratified_rows
from flowjax.data.stored import open_files
from flowjax.data.time_columns import is_time, remark_on_times
from flowjax.ranges import Range
from flowjax.typing import PRNGKey

__all__ = ["PAST", "open_series", "sample_windows", "window_starts"]

PAST = "past"
"""The name of the condition: the rows before the future, which is the example."""

_MOST_TESTED = 10_000
"""The largest number of test windows."""

_LONGEST = 2**20


class _Rows(NamedTuple):
    """A series (T, C) in float64 with NaN where a value is missing, the names of its channels, and notes."""

    values: np.ndarray
    channels: tuple[str, ...]
    notes: tuple[str, ...]


def open_series(
    request: DataRequest,
    past: Annotated[int, Range(1, _LONGEST)],
    future: Annotated[int, Range(1, _LONGEST)],
    drop: str = "",
) -> Dataset:
    """Opens a series as a data set of windows: x is the future (future, C), and the condition `past` is (past, C).

    Windows with missing values are left out. Each channel is standardised with the mean and the standard deviation of
    the training rows.

    Args:
        request: its path is a .csv, .tsv or .parquet file, an .npz file with an array x (T, C), or an .npy file.
        past: the number of rows before the future.
        future: the number of rows of the future.
        drop: names of columns to leave out, separated by commas.

    Raises:
        DataError: if the file cannot be read, has too few rows, a column is neither a time nor numbers, or the request
            asks for what a series does not have.
    """
    _check_request(request)
    path, (series, channels, notes) = request.path, _read(request.path, drop)
    rows, length = len(series), past + future
    tested = max(rows // 10, future)
    trained = rows - tested
    if trained < length:
        raise DataError(
            f"{path} has {rows:,} rows, but past={past} and future={future} need at least {length + future:,}: "
            f"{length:,} for one training window, and {future:,} that are held out for the test"
        )
    if not resident(4 * series.size):
        raise DataError(
            f"{path}: the series takes {4 * series.size:,} bytes, which is more than is kept on the device: leave out "
            "channels or rows, or set FLOWJAX_RESIDENT_BYTES"
        )
    missing = np.asarray(np.isnan(series).any(1))
    starts = window_starts(missing, 0, trained, length)
    test_starts = window_starts(missing, trained - past, rows, length)
    for what, found in (("training", starts), ("test", test_starts)):
        if not len(found):
            raise DataError(f"{path} has missing values in every {what} window of {length:,} rows: fill them in")
    affine, constant, low, high = feature_scales(
        path, "the series", trained, lambda index: series[:trained][index], series.shape[1:], trained
    )
    shape = (future, series.shape[1])
    columns = tuple(Column(name, "real") for name in channels)
    fields = (Field(PAST, "sequence", (past, series.shape[1])),)
    spec = DataSpec(
        *("series", shape, affine),
        conditions=fields,
        condition_maps=(affine,),
        columns=columns,
        condition_ranges=((low, high),),
    )
    possible = trained - length + 1 + tested - future + 1
    notes += _notes(request, channels, constant, len(starts), len(test_starts), possible, tested)
    most = min(_MOST_TESTED, held_out(len(test_starts), (length, series.shape[1])))
    test_starts = test_starts[stratified_rows(len(test_starts), min(len(test_starts), most))]
    windows = series[test_starts[:, None] + np.arange(length)].astype(spec.float_dtype)

    def load() -> dict[str, np.ndarray]:
        known = np.where(np.isnan(series[:trained]), np.asarray(affine.shift), series[:trained])  # in no window
        return {"series": spec.to_model(known), "starts": starts.astype(np.int32)}

    return Dataset(
        spec=spec,
        test=windows[:, past:],
        test_cond={PAST: windows[:, :past]},
        arrays=load,
        sample=partial(sample_windows, past=past, future=future),
        test_rows=test_starts + past,
        notes=notes + check_test(spec, windows[:, past:]),
    )


def sample_windows(arrays: Mapping[str, AnyArray], key: PRNGKey, n: int, *, past: int, future: int) -> Batch:
    """Draws n windows uniformly with replacement, as a pure function of the key.

    Args:
        arrays: `series` (T, C) in model space, and `starts` (W,), the first rows of the windows.
        key: of the draw.
        n: the number of windows.
        past, future: the numbers of rows of the condition and of the example.

    Returns:
        x1 (n, future, C), and the condition `past` (n, past, C).
    """
    starts = jnp.asarray(arrays["starts"])
    first = starts[jax.random.randint(key, (n,), 0, len(starts))]
    rows = jnp.asarray(arrays["series"])[first[:, None] + jnp.arange(past + future)]
    return Batch(rows[:, past:], {PAST: rows[:, :past]})


def window_starts(missing: np.ndarray, begin: int, end: int, length: int) -> Int[np.ndarray, " W"]:
    """Returns the first rows of the windows of `length` rows in [begin, end) that have no missing value.

    Args:
        missing: (T,) bool, true for the rows that have one.
        begin, end: the rows that windows may have.
        length: the number of rows of a window.
    """
    count = np.concatenate([[0], np.cumsum(missing)])
    starts = np.arange(begin, end - length + 1)
    return starts[count[starts + length] == count[starts]]


def _check_request(request: DataRequest) -> None:
    if not request.path:
        raise DataError("data.name is series, so data.path must be a file: --config.data.path=mine.csv")
    if request.pairs:
        raise DataError(f"data.pairs is {request.pairs!r}, but a series has no pairs")
    if request.normalise not in ("", "channel"):
        raise DataError(
            f"data.normalise is {request.normalise!r}, but a series has one scale for each channel: leave it empty"
        )
    if others := [field.name for field in request.cond if field.name != PAST]:
        raise DataError(
            f"data.cond names {others[0]!r}, but the only condition of a series is {PAST!r}: other columns are channels"
        )


def _read(path: str, drop: str) -> _Rows:
    """Reads a series from a table or an array."""
    form = format_of(path)
    if form == "table":
        return _of_table(path, [name for name in separate(drop) if name])
    if form not in ("npz", "npy"):
        raise DataError(f"data.name is series, so data.path must be a table, an .npz file or an .npy file, not {path}")
    if drop:
        raise DataError(f"data.name: drop={drop!r} names columns of a table, but {path} holds an array")
    x = np.asarray((read_npz(path) if form == "npz" else open_files(path)[0])["x"])
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise DataError(
            f"{path}: a series must be (T, C) or (T,), not {x.shape}: windows that are already cut are x and a "
            "condition past of data.name=npz"
        )
    if x.dtype.kind not in "iub" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(f"{path}: a series must hold real numbers, not {x.dtype}")
    values = x.reshape(len(x), -1).astype(np.float64)
    if np.isinf(values).any():
        raise DataError(f"{path}: x holds {np.isinf(values).sum():,} infinite values: remove or clip them")
    return _Rows(values, (), (f"{path}: {len(x):,} rows and {values.shape[1]} channels",))


def _of_table(path: str, dropped: list[str]) -> _Rows:
    import pyarrow

    table = read_table(path)
    names, rows = table.column_names, len(table)
    check_has(path, names, dropped, "drop")
    channels: dict[str, Float[np.ndarray, " T"]] = {}
    times, notes = [], []
    texts = (pyarrow.string(), pyarrow.large_string())  # which may hold more texts than a category can have
    for name in (name for name in names if name not in dropped):
        column = table.column(name)
        if is_time(name, column):
            times.append(name)
            notes += remark_on_times(path, name, column)
            continue
        read = read_values(path, name, column) if column.type not in texts else None
        if read is None or read.categories:
            leave = ", ".join([*dropped, name])
            raise DataError(
                f"{path}: the column {printable(name)} holds texts or truth values, and a series holds numbers: "
                f"write drop={printable(leave)!r} in data.name to leave it out"
            )
        channels[name] = read.values
    if not channels:
        raise DataError(f"{path} has no column of numbers that is not dropped: there is nothing to learn")
    if len(channels) > LARGEST_LIST:
        raise DataError(f"{path} has {len(channels):,} channels, and at most {LARGEST_LIST:,} are possible")
    first = f"{path}: {rows:,} rows; channels: {printable(shortened(list(channels)), 300)}"
    first += f"; times, left out: {printable(shortened(times), 100)}" if times else ""
    return _Rows(np.stack(list(channels.values()), -1), tuple(channels), (first, *notes))


def _notes(
    request: DataRequest,
    channels: tuple[str, ...],
    constant: set[int],
    trained: int,
    tested: int,
    possible: int,
    rows: int,
) -> tuple[str, ...]:
    """Returns remarks about the windows, the condition, and channels that do not vary."""
    left_out = possible - trained - tested
    notes = [f"{trained:,} training windows, and {tested:,} test windows whose future lies in the last {rows:,} rows"]
    if left_out:
        notes.append(f"{left_out:,} of {possible:,} windows have missing values and are left out")
    if not request.cond:
        notes.append(f"the network does not see the past: use --config.data.cond={PAST} for forecasts")
    if constant:
        shown = shortened([channels[c] if channels else str(c) for c in sorted(constant)], 8)
        notes.append(f"channels that do not vary in the training rows keep the scale 1: {printable(shown, 200)}")
    return tuple(notes)
