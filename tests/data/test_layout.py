"""Folders of images: which files train and test, which classes there are, and what is ignored and said."""

import os

import numpy as np
import pytest
from PIL import Image

from flowjax.data import DataError, open_dataset
from flowjax.data.layout import read_layout


def files(root, *names):
    """Empty files; the layout does not look inside."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root):
    """(classes, {training file: label}, {test file: label} or None, ignored) with names relative to the root."""
    layout = read_layout(root)
    relative = lambda part: None if part is None else {str(file.relative_to(root)): label for file, label in part}
    return layout.classes, relative(layout.train), relative(layout.test), layout.ignored.describe()


TREE = {
    "hidden folders and files, stray images and other types": (
        "cat/1.png cat/.2.png dog/1.TIF .ipynb_checkpoints/1.png __MACOSX/cat/1.png .DS_Store logo.png dog/a.gif n.txt",
        (("cat", "dog"), {"cat/1.png": 0, "dog/1.TIF": 1}, None),
        ["hidden (4: ", "images next to class folders (1: logo.png)", "files of other types (2: .txt, .gif)"],
    ),
    "a flat test split beside classes is no class and cannot test them": (
        "train/cat/1.png train/dog/1.png test/1.png test/2.png",
        (("cat", "dog"), {"train/cat/1.png": 0, "train/dog/1.png": 1}, None),
        ["images of a test split without the training classes (2: test/ x2)"],
    ),
    "the same without a folder train": (
        "cat/1.png dog/1.png test/1.png",
        (("cat", "dog"), {"cat/1.png": 0, "dog/1.png": 1}, None),
        ["images of a test split without the training classes (1: test/)"],
    ),
    "classes beside their test split": (
        "cat/1.png dog/1.png test/cat/2.png test/owl/1.png",
        (("cat", "dog"), {"cat/1.png": 0, "dog/1.png": 1}, {"test/cat/2.png": 0}),
        ["test images of a class without training images (1: test/owl/)"],
    ),
    "a class named train": (
        "train/1.png car/1.png bus/1.png",
        (("bus", "car", "train"), {"bus/1.png": 0, "car/1.png": 1, "train/1.png": 2}, None),
        [],
    ),
    "a folder beside both splits is no class": (
        "train/1.png test/2.png more/3.png logo.png",
        ((), {"train/1.png": 0}, {"test/2.png": 0}),
        ["images next to train (2: more/, logo.png)"],
    ),
    "splits in any case and by their long names": (
        "Train/cat/1.png Train/dog/1.png Validation/cat/2.png Validation/dog/2.png",
        (
            ("cat", "dog"),
            {"Train/cat/1.png": 0, "Train/dog/1.png": 1},
            {"Validation/cat/2.png": 0, "Validation/dog/2.png": 1},
        ),
        [],
    ),
    "of two test splits the one named test is taken": (
        "train/1.png test/2.png val/3.png",
        ((), {"train/1.png": 0}, {"test/2.png": 0}),
        ["images in another test split than test (1: val/)"],
    ),
    "a test split that cannot be used leaves its place to another": (
        "train/a/1.png train/b/1.png test/2.png val/a/3.png",
        (("a", "b"), {"train/a/1.png": 0, "train/b/1.png": 1}, {"val/a/3.png": 0}),
        ["images of a test split without the training classes (1: test/)"],
    ),
    "one folder is no class, and images lie at any depth": (
        "a/b/1.png a/2.png 3.png",
        ((), {"3.png": 0, "a/2.png": 0, "a/b/1.png": 0}, None),
        [],
    ),
    "a class without images is reported": (
        "a/1.png b/1.png c/1.gif",
        (("a", "b"), {"a/1.png": 0, "b/1.png": 1}, None),
        ["files of other types (1: .gif)", "folders without images (1: c/)"],
    ),
}


@pytest.mark.parametrize("case", TREE)
def test_what_is_found_and_what_is_ignored(tmp_path, case):
    names, expected, ignored = TREE[case]
    files(tmp_path, *names.split())
    *layout, described = found(tmp_path)
    assert tuple(layout) == expected
    for line in ignored:
        assert line in described
    assert bool(described) == bool(ignored)


def test_links_are_followed_and_end(tmp_path):
    """A linked class, a linked image, a cycle through the root, two folders that link to each other, a broken link."""
    files(tmp_path, "pool/cats/1.png", "pool/cats/deep/2.png", "root/dog/1.png", "root/dog/more/2.png")
    root = tmp_path / "root"
    (root / "cat").symlink_to(tmp_path / "pool" / "cats")
    (root / "dog" / "3.png").symlink_to(tmp_path / "pool" / "cats" / "1.png")
    (root / "dog" / "up").symlink_to(root / "dog")
    (tmp_path / "pool" / "cats" / "deep" / "back").symlink_to(tmp_path / "pool" / "cats")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "dog" / "4.png")
    classes, train, _, ignored = found(root)
    assert classes == ("cat", "dog")
    assert sorted(train) == ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/3.png", "dog/more/2.png"]
    for part in (
        "links to a folder that was read already (2",
        "broken links or unreadable entries (1",
        "FIFOs or sockets (1: 4.png)",
    ):
        assert part in ignored


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("test/cat/1.png test/dog/1.png", "has test/ but no images to train on"),
        ("Validation/1.png", "has Validation/ but no images to train on"),
        ("train/a.gif test/1.png", "has test/ but no images to train on"),
        ("train/1.png Train/1.png", "has Train and train, which name the same split"),
    ],
)
def test_what_is_refused(tmp_path, names, message):
    files(tmp_path, *names.split())
    with pytest.raises(DataError, match=message) as error:
        read_layout(tmp_path)
    assert "\n" not in str(error.value)


def save(folder, value, count, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new(mode, (4, 4), (value,) * len(mode) if len(mode) > 1 else value).save(folder / f"{i:03d}.png")


def test_the_held_out_tenth_has_every_class_and_leaves_every_class(tmp_path):
    """Classes of 41, 20 and 1 images: the tenth has about a tenth of the large ones and leaves the one image of the
    small one to train on; names, shares and the line that is printed agree with it."""
    for i, (name, count) in enumerate((("few\n", 1), ("many", 41), ("some", 20))):
        save(tmp_path / name, 10 * i, count)
    dataset = open_dataset("folder", str(tmp_path))
    rows = dataset.arrays()
    x, labels = rows.x1, rows.cond["label"]
    trained, tested = np.bincount(labels, minlength=3), np.bincount(dataset.test_labels, minlength=3)
    assert (trained + tested).tolist() == [1, 41, 20]
    assert (tested[0], tested[1] in (3, 4, 5), tested[2] in (1, 2, 3)) == (0, True, True)
    assert tested.sum() == 6
    np.testing.assert_array_equal(x[:, 0, 0, 0], 10 * labels)  # images and labels stay together
    np.testing.assert_array_equal(dataset.test[:, 0, 0, 0], 10 * dataset.test_labels)
    assert dataset.spec.class_names == ("few\n", "many", "some")
    np.testing.assert_allclose(dataset.spec.class_shares, trained / 56)
    (note,) = dataset.notes
    assert "\n" not in note
    assert f": 56 training images, 3 classes ('few\\n' 1, many {trained[1]}, some {trained[2]}); 6 test images" in note
    assert open_dataset("folder", str(tmp_path)).test.tobytes() == dataset.test.tobytes()


def test_grey_images_have_one_channel_unless_three_are_asked_for(tmp_path, monkeypatch):
    save(tmp_path / "a", 200, 12, "L")
    dataset = open_dataset("folder", str(tmp_path / "a"))
    assert dataset.spec.shape == (4, 4, 1)
    assert "all grey, so one channel" in dataset.notes[0]
    assert (dataset.arrays()[0] == 200).all()
    assert open_dataset("folder(4, 3)", str(tmp_path / "a")).spec.shape == (4, 4, 3)
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "005.png")
    assert open_dataset("folder", str(tmp_path / "a")).spec.shape == (4, 4, 3)
    assert open_dataset("folder(0, 1)", str(tmp_path / "a")).arrays()[0].shape[-1] == 1
    monkeypatch.setattr("flowjax.data.folder._INSPECTED", 1)  # an image in colour that was not inspected
    with pytest.raises(DataError, match=r"005\.png is in colour, but the images whose headers were inspected are all"):
        open_dataset("folder", str(tmp_path / "a")).arrays()


def test_animated_images_are_reported(tmp_path):
    save(tmp_path, 7, 12)
    frames = [Image.new("RGB", (4, 4), (i, i, i)) for i in (100, 200)]
    frames[0].save(tmp_path / "000.png", save_all=True, append_images=frames[1:])
    assert "the first image is taken from files with several: 1" in open_dataset("folder", str(tmp_path)).notes[0]
