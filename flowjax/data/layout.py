"""The layout of a folder of images: which images are for training and testing, and the class of each image.

The rules:

- Subfolders with images are classes if there are at least two of them; images at any depth below one belong to it.
  Otherwise there are no classes, and all images below the folder are used.
- Folders named `train` (or `training`), `test` (or `testing`) and `val` (or `valid`, `validation`), in upper or lower
  case, are splits. But `train` is a class if there is no test split and other folders next to it hold images. The test
  split is `test`, or `val` if `test` does not exist or cannot be used.
- Without `train`, the other images next to a test split are the training images. If there are none, this is an error,
  because a test split is never used for training.
- Links to folders and files are followed. A folder is entered only once for each class, so cycles of links end.
- The following are ignored and counted in `Layout.ignored`: hidden files and folders, files without an image suffix,
  special files, images next to class folders, folders next to `train`, a test split without class folders if the
  training images have classes, and test classes without training images.
"""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowjax.archives import printable
from flowjax.data.affine import DataError
from flowjax.data.decode import SUFFIXES
from flowjax.data.spec import shortened

__all__ = ["Ignored", "Layout", "read_layout"]

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


@dataclass
class Ignored:
    """Names (or suffixes) of files that were not read, counted by reason.

    Attributes:
        reasons: the counted names for each reason.
    """

    reasons: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str, times: int = 1) -> None:
        """Counts a name under a reason."""
        self.reasons.setdefault(reason, Counter())[name] += times

    def describe(self) -> str:
        """Returns all reasons as text: "hidden (2: .DS_Store x2), images next to class folders (1: logo.png)"."""
        parts = []
        for reason, names in self.reasons.items():
            shown = [printable(name) + (f" x{n}" if n > 1 else "") for name, n in names.most_common()]
            parts.append(f"{reason} ({names.total()}: {shortened(shown, 3)})")
        return ", ".join(parts)


@dataclass(frozen=True)
class Layout:
    """The images of a folder.

    Attributes:
        classes: class names in the order of the labels; () if there are no classes.
        train: training images with their labels (0 without classes), sorted by class and path.
        test: test images with their labels; None if there is no usable test split, so that a part of `train` has to be
            held out.
        test_name: the name of the folder of the test split; "" if there is none.
        ignored: files that were not read.
    """

    classes: tuple[str, ...]
    train: Sequence[tuple[Path, int]]
    test: Sequence[tuple[Path, int]] | None
    test_name: str
    ignored: Ignored


def read_layout(root: Path) -> Layout:
    """Finds the images below a folder by the rules in the docstring of this module.

    Raises:
        DataError: if a folder cannot be listed, or there is a test split but no training images.
    """
    ignored = Ignored()
    folders, loose = _list(root, ignored)
    splits = {kind: _only(root, [name for name in folders if _kind(name) == kind]) for kind in ("train", "test", "val")}
    tests = [name for name in (splits["test"], splits["val"]) if name is not None]
    trained = splits["train"]
    others = {name: files for name in folders if _kind(name) is None and (files := _below(root / name, ignored))}
    if trained is not None and (tests or not others):
        for name, files in others.items():
            ignored.add(f"images next to {trained}", f"{name}/", len(files))
        for file in loose:
            ignored.add(f"images next to {trained}", file.name)
        below, loose = _part(root / trained, ignored)
    else:
        below = others
        if trained is not None and (files := _below(root / trained, ignored)):
            below = dict(sorted({**others, trained: files}.items()))
    classes = tuple(below) if len(below) > 1 else ()
    train = _labelled(below, loose, classes, "images next to class folders", ignored)
    test, test_name = _test_split(root, tests, classes, ignored)
    if tests and not train:
        raise DataError(
            f"{root} has {tests[0]}/ but no images to train on: put these into {root}/train, or next to {tests[0]}/"
        )
    empty = [name for name in folders if _kind(name) is None and name not in others]
    for name in empty:
        ignored.add("folders without images", f"{name}/")
    return Layout(classes, train, test, test_name, ignored)


def _kind(name: str) -> str | None:
    return _SPLITS.get(name.lower())


def _only(root: Path, names: list[str]) -> str | None:
    if len(names) > 1:
        raise DataError(f"{root} has {' and '.join(names)}, which name the same split: keep one of them")
    return names[0] if names else None


def _test_split(
    root: Path, names: list[str], classes: tuple[str, ...], ignored: Ignored
) -> tuple[list[tuple[Path, int]] | None, str]:
    """Returns the first usable test split and its name; other test splits are ignored."""
    found, chosen = None, ""
    for name in names:
        below, loose = _part(root / name, ignored)
        count = len(loose) + sum(map(len, below.values()))
        if found is not None:
            ignored.add(f"images in another test split than {chosen}", f"{name}/", count)
        elif classes and not set(classes) & set(below):
            ignored.add("images of a test split without the training classes", f"{name}/", count)
        elif count:
            for other in set(below) - set(classes) if classes else ():
                ignored.add("test images of a class without training images", f"{name}/{other}/", len(below[other]))
            known = {key: below[key] for key in below if not classes or key in classes}
            found, chosen = _labelled(known, loose, classes, f"images of {name} next to class folders", ignored), name
    return found, chosen


def _labelled(
    below: dict[str, list[Path]], loose: list[Path], classes: tuple[str, ...], reason: str, ignored: Ignored
) -> list[tuple[Path, int]]:
    """Returns all images with their labels; with classes, `loose` images are ignored for the given reason."""
    if classes:
        for file in loose:
            ignored.add(reason, file.name)
        labels = {name: label for label, name in enumerate(classes)}
        return [(file, labels[name]) for name in sorted(below) for file in below[name]]
    return [(file, 0) for file in sorted([*loose, *(file for files in below.values() for file in files)])]


def _part(folder: Path, ignored: Ignored) -> tuple[dict[str, list[Path]], list[Path]]:
    """Returns the images below each subfolder that has any, and the images in the folder itself."""
    folders, loose = _list(folder, ignored)
    below = {name: _below(folder / name, ignored) for name in folders}
    for name in (name for name, files in below.items() if not files):
        ignored.add("folders without images", f"{folder.name}/{name}/")
    return {name: files for name, files in below.items() if files}, loose


def _below(folder: Path, ignored: Ignored) -> list[Path]:
    """Returns the images at any depth below a folder, sorted. Folders that links reach a second time are skipped."""
    found, seen, waiting = [], set(), [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
        except OSError as error:  # it was removed after it had been listed
            raise DataError(f"{here} cannot be listed: {error.strerror}") from None
        if (status.st_dev, status.st_ino) in seen:
            ignored.add("links to a folder that was read already", here.name)
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, images = _list(here, ignored)
        found += images
        waiting += [here / name for name in folders]
    return sorted(found)


def _list(folder: Path, ignored: Ignored) -> tuple[list[str], list[Path]]:
    """Returns the names of the subfolders of a folder, and its images, both sorted; links are followed."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from None
    folders, images = [], []
    for name in names:
        place = folder / name
        if name.startswith(".") or name == "__MACOSX":
            ignored.add("hidden", name)
            continue
        try:
            mode = place.stat().st_mode
        except OSError:
            ignored.add("broken links or unreadable entries", name)
            continue
        if stat.S_ISDIR(mode):
            folders.append(name)
        elif place.suffix.lower() not in SUFFIXES:
            ignored.add("files of other types", place.suffix.lower() or name)
        elif not stat.S_ISREG(mode):
            ignored.add("devices, FIFOs or sockets", name)
        else:
            images.append(place)
    return folders, images
