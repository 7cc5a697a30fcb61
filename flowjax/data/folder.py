"""A folder of images: a subfolder for each class, or images alone.

    cats-and-dogs/train/cat/001.png         FOLDER/train and FOLDER/test (or val): the splits
    cats-and-dogs/cat/001.png               no splits: a tenth of each class is held out, by a fixed random choice
    faces/001.jpg                           no classes

`data.layout` has the rules in full, and `data.decode` says which files are read and how they become 8-bit pixels.
`folder(64)` crops the middle square of each image and brings it to 64 x 64; `folder` takes images of one size as they
are.

Images have one channel if all are grey by the modes in their headers, and three otherwise; `folder(64, 1)` and
`folder(64, 3)` choose. For this the headers of all images are read, or of 10,000 by a fixed choice where there are
more; an image in colour that is then found among greys is an error.
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
"""The number of images, at most, whose headers decide on the channels."""


@dataclass(frozen=True)
class ImageRows:
    """Images of files, decoded when they are asked for.

    Args:
        files: the image files.
        labels: the label of each file, or None.
        shape: of all images, (H, W, C).
        fit: crop and resize every image to `shape`; otherwise an image of another size is an error.
        grey_only: an image in colour is an error; otherwise it is converted where C is 1.
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
        """All images, (N, H, W, C) uint8, and their labels, (N,) int32."""
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
                f"{file} is {image.height} x {image.width}, and the first image {height} x {width}: give all of them "
                "one side with data.name=folder(64)"
            )
        return np.asarray(image, np.uint8).reshape(self.shape)


def open_folder(path: str, size: int = 0, channels: int = 0) -> Dataset:
    """The images below a folder.

    Args:
        path: the folder.
        size: the side to crop and resize to; 0 for images that have one size.
        channels: 3 for colours, 1 for grey, 0 for grey if all images are grey.

    Returns:
        The data set. Its spec has the class names, and one note says what was found and what was ignored.

    Raises:
        DataError: one line, if there are no images, too few, or one whose header is read is damaged.
    """
    if not path or not Path(path).is_dir():
        raise DataError(f"data.name is folder, so data.path must name a folder of images, not {path!r}")
    if not (type(size) is int and 0 <= size <= _LARGEST_SIDE and type(channels) is int and channels in (0, 1, 3)):
        raise DataError(
            f"folder({size}, {channels}): the side is a whole number up to {_LARGEST_SIDE} (0 keeps the size of the "
            "images), and the channels are 1 or 3 (0 chooses by the images)"
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
    """How many files hold several images, and whether all are grey, by the headers of at most `_INSPECTED`."""
    chosen = [files[i] for i in stratified_rows(len(files), min(len(files), _INSPECTED))]
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(read_header, chosen))
    return sum(header.several for header in headers), all(header.grey for header in headers)


def _split(layout: Layout, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of the images to train on, and of those to test on in their own list or in that of all images."""
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
    """One line that says what was found, what was made of it, and what was ignored."""
    names = [f"{printable(name)} {n:,}" for name, n in zip(layout.classes, counts, strict=False)]
    classes = f"{len(names)} classes ({shortened(names, 10)})" if names else "no classes"
    held = f"of {layout.test_name}/" if layout.test is not None else "held out at random"
    parts = [f"{root}: {counts.sum():,} images to train on, {classes}; {tested:,} to test on, {held}"]
    if grey:
        parts.append("all grey, so one channel")
    if several:
        parts.append(f"files with several images, of which the first is taken: {several:,}")
    if ignored := layout.ignored.describe():
        parts.append(f"ignored: {ignored}")
    return "; ".join(parts)
