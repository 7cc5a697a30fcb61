"""The format of data.path, by suffix and content, and names that contradict it."""

import json

import numpy as np
import pytest

from flowjax.config import defaults, resolve
from flowjax.data import DataError, open_dataset
from tests.data.stored import store

X = np.random.default_rng(0).normal(size=(40, 2))


@pytest.mark.parametrize("kind", ["npz", "npy", "zarr"])
def test_the_suffix_or_the_content_names_the_format(tmp_path, kind):
    path = store(tmp_path / "a", kind, x=X, y=np.arange(40) % 2)
    found, named = open_dataset("", path), open_dataset(kind, path)
    assert found.spec == named.spec
    np.testing.assert_array_equal(found.test, named.test)


def test_a_folder_of_images_is_found(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(20):
        image.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
    assert open_dataset("", str(tmp_path)).spec.name == "folder"


@pytest.mark.parametrize("name", ["", "npy"])
def test_a_single_npy_file_of_any_name_is_x(tmp_path, name):
    np.save(tmp_path / "points.npy", X)
    np.save(tmp_path / "y.npy", np.zeros(40, int))  # not read
    dataset = open_dataset(name, str(tmp_path / "points.npy"))
    assert (dataset.spec.name, dataset.spec.shape, dataset.spec.num_classes) == ("npy", (2,), 0)
    np.testing.assert_allclose(dataset.test, X[dataset.test_rows], rtol=1e-6)


def test_a_single_zarr_array_is_x_and_a_group_is_a_folder(tmp_path):
    group = tmp_path / "mine.zarr"
    store(group, "zarr", x=X)
    (group / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    for path in (group, group / "x"):
        dataset = open_dataset("", str(path))
        assert dataset.spec.name == "zarr"
        np.testing.assert_allclose(dataset.test, X[dataset.test_rows], rtol=1e-6)


def test_without_a_path_and_a_name_it_is_gaussians8():
    assert resolve(defaults("mlp")).data.name == ""
    assert open_dataset("").spec.name == "gaussians8"


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("", "nowhere.npz", "no such file or folder"),
        ("", "a.txt", "the format of .* is not known: data.path must be a file that ends in .npz"),
        ("npz", "x.npy", "data.name is 'npz', .* is a single NumPy array: use data.name=npy, or leave data.name empty"),
        ("npz", "arrays", "is a folder with NumPy arrays: use data.name=npy"),
        ("npz", "z", "is a folder with Zarr arrays: use data.name=zarr"),
        ("npy", "a.npz", "is an .npz file: use data.name=npz"),
        ("npy", "z", "use data.name=zarr"),
        ("zarr", "x.npy", "use data.name=npy"),
        ("folder(8)", "a.npz", "which reads a folder of images, but .* use data.name=npz"),
        ("moons", "a.npz", "takes no file, but data.path is .* or leave data.name empty"),
    ],
)
def test_what_contradicts_the_path_is_one_line(tmp_path, name, path, message):
    store(tmp_path / "z", "zarr", x=X)
    store(tmp_path / "arrays", "npy", x=X)
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "a.npz", x=X)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=message) as error:
        open_dataset(name, str(tmp_path / path))
    assert "\n" not in str(error.value)
