"""Data sets from a folder of images, with or without a subfolder for each class.

    cats-and-dogs/train/cat/001.png         with the splits FOLDER/train and FOLDER/test (or val)
    cats-and-dogs/cat/001.png               without splits: a fixed random tenth of each class is held out
    faces/001.jpg                           without classes

`data.layout` documents the layout of the folder, and `data.decode` the file formats and the conversion to 8-bit pixels.
`folder(64)` crops the central square of each image and resizes it to 64 x 64; `folder` requires images of one size.

Images have one channel if all are grey by the modes in their headers, and three otherwise, unless the channels are
given by `folder(64, 1)` or `folder(64, 3)`. For this the headers of all images are read, or of 10,000 fixed random ones
if there are more. A coloured image that is found later among grey ones is an error.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flowjax.archives import printable
from flowjax.batch import Batch
from flowjax.data.affine import DataError, image_scale
from flowjax.data.dataset import Dataset, held_out, resident, sample_rows
from flowjax.data.decode import SUFFIXES, read_header, read_image
from flowjax.data.layout import Layout, read_layout
from flowjax.data.spec import DataSpec, shares_of, shortened
from flowjax.data.splits import complement, held_out_tenth, stratified_rows

__all__ = ["ImageRows", "open_folder"]

_LARGEST_SIDE = 4096
_INSPECTED = 10_000
"""The largest number of images whose headers are read to choose the channels."""


@dataclass(frozen=True)
class ImageRows:
    """Image files that are decoded on access.

    Args:
        files: the image files.
        labels: the label of each file, or None.
        shape: the shape of all images, (H, W, C).
        fit: whether to crop and resize images to `shape`; otherwise an image of another size is an error.
        grey_only: whether an image in colour is an error; otherwise it is converted if C is 1.
    """

    files: Sequence[Path]
    labels: tuple[int, ...] | None
    shape: tuple[int, int, int]
    fit: bool
    grey_only: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        cond = {} if self.labels is None else {"label": np.asarray(self.labels[index], np.int32)}
        return Batch(self._read(self.files[index]), cond)

    def decode(self) -> Batch:
        """Decodes all images, (N, H, W, C) uint8, with their labels, (N,) int32."""
        with ThreadPoolExecutor() as pool:
            x = np.stack(list(pool.map(self._read, self.files)))
        return Batch(x, {} if self.labels is None else {"label": np.asarray(self.labels, np.int32)})

    def _read(self, file: Path) -> np.ndarray:
        height, width, channels = self.shape
        image = read_image(file, channels, self.grey_only)
        if self.fit:
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        if (image.height, image.width) != (height, width):
            raise DataError(
                f"{file} is {image.height} x {image.width}, but the first image is {height} x {width}: give them "
                "one size, for example with data.name=folder(64)"
            )
        return np.asarray(image, np.uint8).reshape(self.shape)


def open_folder(path: str, size: int = 0, channels: int = 0) -> Dataset:
    """Opens a folder of images as a data set.

    Args:
        path: the folder.
        size: side in pixels to which images are cropped and resized; 0 if all images have the same size.
        channels: 3 for colours, 1 for grey, 0 to choose by the headers of the images.

    Returns:
        The data set. Its spec has the class names, and a note lists what was found and what was ignored.

    Raises:
        DataError: if there are too few images, or an image whose header is read is damaged.
    """
    if not path or not Path(path).is_dir():
        raise DataError(f"data.name is folder, so data.path must be a folder of images, not {path!r}")
    if not (type(size) is int and 0 <= size <= _LARGEST_SIDE and type(channels) is int and channels in (0, 1, 3)):
        raise DataError(
            f"folder({size}, {channels}): the size must be an integer from 0 to {_LARGEST_SIDE} (0 keeps the size of "
            "the images), and the channels must be 1, 3, or 0 to choose by the images"
        )
    root = Path(path)
    layout = read_layout(root)
    images, test = layout.train, layout.test
    if len(images) < 1 + (test is None):
        suffixes, ignored = ", ".join(SUFFIXES), layout.ignored.describe()
        raise DataError(
            f"{root}: too few images to train on ({len(images)}); images are files with {suffixes}"
            + f"; ignored: {ignored}" * bool(ignored)
        )
    several, grey = _inspect([file for file, _ in [*images, *(test or ())]])
    grey_only = channels == 0 and grey
    channels = channels or (1 if grey else 3)
    width, height = (size, size) if size else read_image(images[0][0], channels).size
    shape = (height, width, channels)
    rows, test_rows = _split(layout, shape)
    train, chosen = [images[i] for i in rows], [(images if test is None else test)[i] for i in test_rows]
    rows, test_set = (_rows(part, layout.classes, shape, bool(size), grey_only) for part in (train, chosen))
    fits = resident(len(rows) * int(np.prod(shape)))
    counts = np.bincount([label for _, label in train], minlength=len(layout.classes))
    spec = DataSpec(
        "folder",
        shape,
        image_scale(256),
        num_classes=len(layout.classes),
        levels=256,
        class_names=layout.classes,
        class_shares=shares_of(counts) if layout.classes else (),
    )
    tested = test_set.decode()
    return Dataset(
        spec=spec,
        test=tested.x1.astype(np.float32),
        test_cond=tested.cond or {},
        arrays=rows.decode if fits else tuple,
        sample=sample_rows if fits else None,
        rows=None if fits else rows,
        test_rows=test_rows,
        notes=(_note(root, layout, counts, len(test_rows), grey_only, several),),
    )


def _inspect(files: list[Path]) -> tuple[int, bool]:
    """Returns how many of at most `_INSPECTED` files hold several images, and whether all are grey."""
    chosen = [files[i] for i in stratified_rows(len(files), min(len(files), _INSPECTED))]
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(read_header, chosen))
    return sum(header.several for header in headers), all(header.grey for header in headers)


def _split(layout: Layout, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the training images, and of the test images in `layout.test` or, if None, `layout.train`."""
    n = len(layout.train)
    if layout.test is not None:
        return np.arange(n), stratified_rows(len(layout.test), held_out(len(layout.test), shape))
    labels = np.array([label for _, label in layout.train])
    test_rows = held_out_tenth(n, labels if layout.classes else None, held_out(n, shape))
    return complement(n, test_rows), test_rows


def _rows(
    part: list[tuple[Path, int]], classes: tuple[str, ...], shape: tuple[int, int, int], fit: bool, grey_only: bool
) -> ImageRows:
    labels = tuple(label for _, label in part) if classes else None
    return ImageRows([file for file, _ in part], labels, shape, fit, grey_only)


def _note(root: Path, layout: Layout, counts: np.ndarray, tested: int, grey: bool, several: int) -> str:
    """Returns a line that says which images were found, how they are used, and what was ignored."""
    names = [f"{printable(name)} {n:,}" for name, n in zip(layout.classes, counts, strict=False)]
    classes = f"{len(names)} classes ({shortened(names, 10)})" if names else "no classes"
    held = f"from {layout.test_name}/" if layout.test is not None else "held out at random"
    parts = [f"{root}: {counts.sum():,} training images, {classes}; {tested:,} test images {held}"]
    if grey:
        parts.append("all grey, so one channel")
    if several:
        parts.append(f"the first image is taken from files with several: {several:,}")
    if ignored := layout.ignored.describe():
        parts.append(f"ignored: {ignored}")
    return "; ".join(parts)
