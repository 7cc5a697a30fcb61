"""Series: windows against slices of NumPy, no leakage from test rows, times that are left out, and every refusal."""

import json

import jax
import numpy as np
import pytest

from flowjax.data import DataError, DataSpec, open_dataset
from flowjax.data.series import window_starts
from flowjax.errors import ConfigError

pyarrow = pytest.importorskip("pyarrow")

T, PAST, FUTURE = 200, 5, 3
TRAINED = T - T // 10
SERIES = np.random.default_rng(0).normal(size=(T, 2)) * [1.0, 1e4] + [3.0, -7e5]
NAME = f"series({PAST}, {FUTURE})"


def saved(folder, x=SERIES):
    np.save(folder / "a.npy", x)
    return str(folder / "a.npy")


def text(folder, *lines, name="a.csv"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def opened(path, name=NAME, cond=("past",)):
    return open_dataset(name, path, cond=cond)


def test_windows_are_slices_of_the_series(tmp_path):
    """Each test window is the rows around its first future row; training windows are slices in model space. The series
    is held once, in float32, and all of its rows differ, so that each window can be recognised."""
    dataset = opened(saved(tmp_path))
    assert (dataset.spec.shape, dataset.spec.fields[0].shape) == ((FUTURE, 2), (PAST, 2))
    assert sorted(dataset.test_rows) == list(range(TRAINED, T - FUTURE + 1))
    for first, x, past in zip(dataset.test_rows, dataset.test, dataset.test_cond["past"], strict=True):
        np.testing.assert_array_equal(x, SERIES[first : first + FUTURE].astype(np.float32))
        np.testing.assert_array_equal(past, SERIES[first - PAST : first].astype(np.float32))
    arrays = dataset.arrays()
    assert sum(a.nbytes for a in arrays.values()) == 4 * (TRAINED * 2 + TRAINED - PAST - FUTURE + 1)
    batch = jax.jit(dataset.sample, static_argnums=2)(arrays, jax.random.key(0), 2000)
    encoded = ((SERIES - SERIES[:TRAINED].mean(0)) / SERIES[:TRAINED].std(0)).astype(np.float32)
    windows = np.concatenate([batch.cond["past"], batch.x1], 1)
    starts = np.abs(windows[:, :1, 0] - encoded[None, :, 0]).argmin(1)
    np.testing.assert_allclose(windows, encoded[starts[:, None] + np.arange(PAST + FUTURE)], atol=1e-5)
    assert set(starts) == set(range(TRAINED - PAST - FUTURE + 1))  # one is missing with chance 173 e^-11
    assert DataSpec.from_record(json.loads(json.dumps(dataset.spec.to_record()))) == dataset.spec


def test_training_knows_nothing_of_the_test_rows(tmp_path):
    """Other numbers in the last tenth change neither the scales nor the arrays from which training draws."""
    dataset = opened(saved(tmp_path))
    changed = np.concatenate([SERIES[:TRAINED], 5 * SERIES[TRAINED:] + 1e7])
    other = opened(saved(tmp_path, changed))
    assert other.spec == dataset.spec
    for name, array in dataset.arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)
    np.testing.assert_allclose(dataset.spec.normalise.shift, SERIES[:TRAINED].mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.spec.normalise.scale, SERIES[:TRAINED].std(0), rtol=1e-12)
    np.testing.assert_array_equal(dataset.spec.condition_ranges, [[SERIES[:TRAINED].min(0), SERIES[:TRAINED].max(0)]])
    assert any("do not look like the training rows" in note for note in other.notes)


def test_windows_with_missing_values_are_left_out_and_counted(tmp_path):
    """Row 50 is in 8 training windows; row 190 is in the test windows that start at 183 to 190: their futures start at
    188 to 195."""
    series = SERIES.copy()
    series[50, 0] = series[190, 1] = np.nan
    dataset = opened(saved(tmp_path, series))
    arrays = dataset.arrays()
    assert set(range(TRAINED - 7)) - set(arrays["starts"]) == set(range(43, 51))
    assert set(range(TRAINED, T - FUTURE + 1)) - set(dataset.test_rows) == set(range(188, 196))
    assert np.isfinite(arrays["series"]).all()
    assert np.isfinite(dataset.test).all()
    assert "16 of 191 windows have missing values and are left out" in dataset.notes
    np.testing.assert_allclose(dataset.spec.normalise.shift, np.nanmean(series[:TRAINED], 0), rtol=1e-12)


def test_window_starts_are_those_of_a_loop():
    missing = np.random.default_rng(1).random(60) < 0.1
    expected = [s for s in range(7, 50 - 4 + 1) if not missing[s : s + 4].any()]
    np.testing.assert_array_equal(window_starts(missing, 7, 50, 4), expected)


@pytest.mark.parametrize(
    "times",
    [
        [f"2024-01-{day:02d}" for day in range(1, 21)],
        [f"2024-01-01 {hour:02d}:00:00" for hour in range(20)],
        [f"2024/01/{day:02d}" for day in range(1, 21)],
        [f"{day}.1.2024" for day in range(1, 21)],
    ],
)
def test_times_are_left_out_with_a_note(tmp_path, times):
    path = text(tmp_path, "when,a,b", *(f"{t},{k},{k * k}" for k, t in enumerate(times)))
    dataset = opened(path, "series(2, 1)")
    assert dataset.spec.shape == (1, 2)
    assert [column.name for column in dataset.spec.columns] == ["a", "b"]
    assert dataset.notes[0] == f"{path}: 20 rows; channels: a, b; times, left out: when"


def test_numbers_are_times_if_they_have_the_name_and_increase(tmp_path):
    rows = [f"{k},{k},{k % 7}" for k in range(20)]
    channels = lambda header: [c.name for c in opened(text(tmp_path, header, *rows), "series(2, 1)").spec.columns]
    assert channels("Time,a,b") == ["a", "b"]
    assert channels("t,a,b") == ["t", "a", "b"]
    assert channels("a,b,time") == ["a", "b", "time"]  # which does not increase


def test_gaps_between_times_are_noted(tmp_path):
    days = [*range(1, 11), *range(15, 25)]
    path = text(tmp_path, "date,a", *(f"2024-01-{day:02d},{day % 5}" for day in days))
    assert (
        "1 steps of date are longer than the usual one; windows reach across these gaps"
        in opened(path, "series(2, 1)").notes
    )


def test_names_of_texts_to_leave_out(tmp_path):
    path = text(tmp_path, "a,kind,b", *(f"{k},{'ab'[k % 2]},{k}" for k in range(20)))
    with pytest.raises(DataError, match=r"the column kind holds texts .* write drop='b, kind' in data\.name to leave"):
        opened(path, "series(2, 1, drop='b')")
    assert opened(path, "series(2, 1, drop='b, kind')").spec.shape == (1, 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["a"] + ["1"] * 10,
            r"has 10 rows, but past=5 and future=3 need at least 11: 8 for one training window, and 3",
        ),
        (["a,b", "1,2", "3"], "line 3 has 1 values, but the first line names 2 columns"),
        (["a,b"] + [f"{k},true" for k in range(20)], "the column b holds texts or truth values"),
        (["date,a", "2024-01-02,1", "2024-01-01,2"], "but date does not increase at row 2: sort the rows, and give"),
        (["date", "2024-01-01", "2024-01-02"], "has no column of numbers that is not dropped"),
        (["a,b"] + ["1," if k % 4 else "1,2" for k in range(40)], "missing values in every training window of 8 rows"),
    ],
)
def test_tables_that_are_refused(tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as error:
        opened(text(tmp_path, *lines))
    assert "\n" not in str(error.value)


def test_requests_that_are_refused(tmp_path, monkeypatch):
    path = saved(tmp_path)
    with pytest.raises(DataError, match=r"data\.path must be a file: --config\.data\.path=mine\.csv"):
        opened("")
    with pytest.raises(DataError, match=r"data\.cond names 'b', but the only condition of a series is 'past'"):
        opened(path, cond=("past", "b"))
    with pytest.raises(DataError, match="a series has no pairs"):
        open_dataset(NAME, path, cond=("past",), pairs="x0")
    with pytest.raises(DataError, match="a series has one scale for each channel"):
        open_dataset(NAME, path, cond=("past",), normalise="global")
    with pytest.raises(DataError, match=r"drop='a' names columns of a table, but .* holds an array"):
        opened(path, "series(5, 3, drop='a')")
    with pytest.raises(ConfigError, match="past"):
        opened(path, "series(0, 3)")
    with pytest.raises(DataError, match=r"a series must be \(T, C\) or \(T,\), not \(4, 3, 2\)"):
        opened(saved(tmp_path, np.zeros((4, 3, 2))))
    with pytest.raises(DataError, match="x holds 2 infinite values"):
        opened(saved(tmp_path, np.where(np.arange(T)[:, None] == 9, np.inf, SERIES)))
    monkeypatch.setenv("FLOWJAX_RESIDENT_BYTES", "100")
    with pytest.raises(DataError, match="takes 1,600 bytes, which is more than is kept on the device"):
        opened(saved(tmp_path))


def test_a_vector_is_a_series_of_one_channel_and_the_past_can_be_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(100))
    dataset = opened(str(tmp_path / "a.npz"), cond=())
    assert dataset.spec.shape == (FUTURE, 1)
    assert "the network does not see the past: use --config.data.cond=past for forecasts" in dataset.notes
