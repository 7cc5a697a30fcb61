"""Image folders, NumPy files and Zarr arrays: what is read, held out, streamed and refused."""

import numpy as np
import pytest
from PIL import Image

from flowjax.data import DataError, open_dataset
from flowjax.data.splits import held_out_tenth
from flowjax.data.stream import Stream

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 3), np.uint8)


def save(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def streams(monkeypatch):
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)


def test_a_folder_without_splits_or_classes(tmp_path):
    dataset = open_dataset("folder", str(save(tmp_path / "a", PIXELS)))
    assert (dataset.spec.shape, dataset.spec.num_classes, dataset.spec.levels) == ((8, 6, 3), 0, 256)
    held = held_out_tenth(30)
    np.testing.assert_array_equal(dataset.test, PIXELS[dataset.test_rows])
    assert sorted(dataset.test_rows) == held.tolist()
    rows = dataset.arrays()
    x, labels = rows.x1, rows.cond.get("label")
    np.testing.assert_array_equal(x, np.delete(PIXELS, held, 0))
    assert labels is None


def test_splits_and_classes(tmp_path):
    for i, name in enumerate(("cat", "dog")):
        save(tmp_path / "train" / name, PIXELS[10 * i : 10 * i + 10])
        save(tmp_path / "val" / name, PIXELS[20 + 5 * i : 25 + 5 * i])
    dataset = open_dataset("folder", str(tmp_path))
    rows = dataset.arrays()
    x, labels = rows.x1, rows.cond.get("label")
    np.testing.assert_array_equal(x, PIXELS[:20])
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 10))
    np.testing.assert_array_equal(dataset.test, PIXELS[20:][dataset.test_rows])
    np.testing.assert_array_equal(dataset.test_labels, np.repeat([0, 1], 5)[dataset.test_rows])
    assert (dataset.spec.num_classes, dataset.spec.class_names) == (2, ("cat", "dog"))


def test_images_are_cropped_resized_and_made_grey(tmp_path):
    """A grey ramp from left to right, wider than high: its middle square, at half the size, is a steeper one."""
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (16, 24, 3)))
    save(tmp_path, [ramp] * 12)
    image, *_ = open_dataset("folder(8, 1)", str(tmp_path)).arrays().x1
    assert image.shape == (8, 8, 1)
    # pixel j is the mean of columns 4 + 2 j and 5 + 2 j, away from the edges of the filter, rounded
    np.testing.assert_allclose(image[4, 1:-1, 0], [10 * (4 + 2 * j) + 5 for j in range(1, 7)], atol=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_folder(tmp_path, streams, workers):
    dataset = open_dataset("folder", str(save(tmp_path / "a", PIXELS)))
    assert dataset.sample is None
    batch = next(Stream(dataset.rows, 0, 27).start(0, workers))
    trained = np.delete(PIXELS, held_out_tenth(30), 0)
    assert sorted(x.tobytes() for x in batch.x1) == sorted(x.tobytes() for x in trained)


def store_npy(folder, **arrays):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def store_zarr(folder, driver="zarr3", **arrays):
    import tensorstore as ts

    for name, array in arrays.items():
        where = {"driver": driver, "kvstore": {"driver": "file", "path": str(folder / f"{name}.zarr")}}
        ts.open(where, create=True, dtype=array.dtype, shape=array.shape).result().write(array).result()


def store_zarr2(folder, **arrays):
    store_zarr(folder, "zarr", **arrays)


KINDS = {"npy": store_npy, "zarr": store_zarr, "zarr2": store_zarr2}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_in_a_folder(tmp_path, kind, monkeypatch):
    """Images and labels as they were stored; resident or streamed the same rows, of which one in ten is held out."""
    labels = np.arange(30) % 3
    KINDS[kind](tmp_path / "a", x=PIXELS, y=labels)
    dataset = open_dataset(kind.rstrip("2"), str(tmp_path / "a"))
    rows = dataset.arrays()
    x, y = rows.x1, rows.cond["label"]
    held = dataset.test_rows
    assert sorted(labels[held]) == [0, 1, 2]
    np.testing.assert_array_equal(x, np.delete(PIXELS, held, 0))
    np.testing.assert_array_equal(y, np.delete(labels, held))
    np.testing.assert_array_equal(dataset.test, PIXELS[held])
    assert dataset.spec.num_classes == 3
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    streamed = open_dataset(kind.rstrip("2"), str(tmp_path / "a"))
    assert len(streamed.rows) == 27
    batch = next(Stream(streamed.rows, 0, 9).start(2, workers=2))
    for image, label in zip(batch.x1, batch.cond["label"], strict=True):
        (row,) = np.flatnonzero((image == PIXELS).all((1, 2, 3)))
        assert (row in held, labels[row]) == (False, label)


def test_numbers_are_standardised_by_what_is_seen_of_them(tmp_path, streams):
    x = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    store_npy(tmp_path / "a", x=x)
    dataset = open_dataset("npy", str(tmp_path / "a"))
    trained = np.delete(x, dataset.test_rows, 0)
    assert dataset.spec.normalise.shift == pytest.approx(trained.mean(), rel=1e-12)
    assert dataset.spec.normalise.scale == pytest.approx(trained.std(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("folder", lambda path: None, "must be a folder of images"),
        ("folder", lambda path: path.mkdir(), "too few images to train on \\(0\\)"),
        ("folder", lambda path: save(path, PIXELS[:1]), "too few images to train on \\(1\\)"),
        (r"folder(8, 2)", lambda path: save(path, PIXELS), "channels must be 1, 3, or 0"),
        ("npy", lambda path: path.mkdir(), "holds no x.npy"),
        ("zarr", lambda path: path.mkdir(), "holds no x or x.zarr"),
        ("npy", lambda path: store_npy(path, x=PIXELS, y=np.arange(4)), "y must hold one label"),
    ],
)
def test_what_is_refused(tmp_path, name, make, message):
    make(tmp_path / "a")
    with pytest.raises(DataError, match=message) as error:
        open_dataset(name, str(tmp_path / "a"))
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(tmp_path):
    save(tmp_path / "a", PIXELS)
    (tmp_path / "a" / "003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"003\.png is not a readable image"):
        open_dataset("folder", str(tmp_path / "a")).arrays()
    Image.fromarray(PIXELS[0, :4]).save(tmp_path / "a" / "003.png")
    with pytest.raises(DataError, match=r"003.png is 4 x 6, but the first image is 8 x 6.*folder\(64\)"):
        open_dataset("folder", str(tmp_path / "a")).arrays()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"x\.npy cannot be read"):
        open_dataset("npy", str(tmp_path / "b"))
