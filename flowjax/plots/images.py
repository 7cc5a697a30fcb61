"""Grids of images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flowjax.plots.style import DPI, class_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["image_columns", "image_grid"]

_WIDTH = 640
_GAP, _EDGE, _LINE = 3, 8, 20
"""Pixels between images, around the grid, and for a line of text."""

_CHARACTER = 8
"""Pixels for a character of a caption."""

_HIGHEST = 112
"""The height in pixels up to which images in columns are enlarged."""

_PER_ROW = 10

_MISSING = (176, 196, 222)
"""The colour of pixels that are NaN, which no image in shades of grey has."""


def image_grid(
    images: np.ndarray,
    levels: int = 256,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    title: str = "",
) -> "Figure":
    """Draws all images as a grid, enlarged by a whole number.

    Several classes have rows of their own if there are two images of each on average.

    Args:
        images: (N, H, W, C) in data space. Three channels are red, green and blue; of any other number of channels, the
            first is drawn in shades of grey.
        levels: number of integer values of a pixel; 0 for floats, which are scaled to their range.
        labels: (N,) classes; None for images without classes.
        class_names: the name of each class; empty for numbers.
        title: of the figure.

    Returns:
        The figure.
    """
    from flowjax.plots.notebook import NotebookFigure

    names = [] if labels is None else [class_name(class_names, int(k)) for k in labels]
    classes = [] if labels is None else np.unique(labels)
    by_class = labels is not None and len(classes) > 1 and len(labels) >= 2 * len(classes)
    if labels is not None and by_class:
        of_classes = [np.flatnonzero(labels == k) for k in classes]
        rows = [rows[i : i + _PER_ROW] for rows in of_classes for i in range(0, len(rows), _PER_ROW)]
    else:
        side = int(np.ceil(np.sqrt(len(images))))
        rows = [np.arange(start, min(start + side, len(images))) for start in range(0, len(images), side)]
    columns = max(map(len, rows))
    pixels = _pixels(images, levels)
    zoom = max(1, _WIDTH // (columns * images.shape[2]))
    pixels = pixels.repeat(zoom, 1).repeat(zoom, 2)
    high, wide = pixels.shape[1] + _GAP, pixels.shape[2] + _GAP
    line = _LINE if names and not by_class else 0  # below each image
    left = _EDGE + (_CHARACTER * max(map(len, names)) + _EDGE if by_class else 0)  # beside each row
    top = _EDGE + (_LINE + _EDGE if title else 0)
    width, height = left + columns * wide + _EDGE, top + len(rows) * (high + line) + _EDGE
    sheet = np.full((height, width, 3), 255, np.uint8)
    figure = NotebookFigure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI))  # not a pixel less
    text = lambda x, y, words, **options: figure.text(x / width, 1 - y / height, words, fontsize=9, **options)
    for r, row in enumerate(rows):
        y = top + r * (high + line)
        for c, i in enumerate(row):
            x = left + c * wide
            sheet[y : y + high - _GAP, x : x + wide - _GAP] = pixels[i]
            if line:
                text(x + wide / 2, y + high + line / 2, names[i], ha="center", va="center")
        if by_class:
            text(left - _EDGE, y + high / 2, names[row[0]], ha="right", va="center")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(sheet, interpolation="none", aspect="auto")
    ax.set_axis_off()
    if title:
        text(left + columns * wide / 2, _EDGE + _LINE / 2, title, ha="center", va="center")
    return figure


def image_columns(columns: Mapping[str, np.ndarray], levels: Mapping[str, int]) -> "Figure":
    """Draws images that belong together in one row, such as a condition, samples for it, and the truth.

    Args:
        columns: images (N, H, W, C) in data space by the title of their column; all have N rows. Pixels that are NaN
            are drawn in light blue.
        levels: the number of integer values of a pixel of each column; 0 or absent for floats, which are scaled to the
            range of the column.

    Returns:
        The figure.
    """
    from flowjax.plots.notebook import NotebookFigure

    shown = {title: _pixels(images, levels.get(title, 0)) for title, images in columns.items()}
    side = max(max(images.shape[1:3]) for images in shown.values())
    zoom = max(1, min(_WIDTH // (len(shown) * side), _HIGHEST // side))
    shown = {title: images.repeat(zoom, 1).repeat(zoom, 2) for title, images in shown.items()}
    wide = [max(images.shape[2], _CHARACTER * len(title)) + _GAP for title, images in shown.items()]
    high = max(images.shape[1] for images in shown.values()) + _GAP
    rows, top = min(map(len, shown.values())), _EDGE + _LINE
    width, height = 2 * _EDGE + sum(wide), top + rows * high + _EDGE
    sheet = np.full((height, width, 3), 255, np.uint8)
    figure, left = NotebookFigure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI)), _EDGE
    for (title, images), space in zip(shown.items(), wide, strict=True):
        x = left + (space - images.shape[2]) // 2
        for row, image in enumerate(images[:rows]):
            y = top + row * high
            sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
        figure.text(
            (left + space / 2) / width, 1 - (_EDGE + _LINE / 2) / height, title, fontsize=9, ha="center", va="center"
        )
        left += space
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(sheet, interpolation="none", aspect="auto")
    ax.set_axis_off()
    return figure


def _pixels(images: np.ndarray, levels: int) -> np.ndarray:
    """Images (N, H, W, C) as 8-bit numbers (N, H, W, 3)."""
    images = images[..., :3] if images.shape[-1] in (3, 4) else images[..., [0, 0, 0]]  # colour maps round
    missing, images = np.isnan(images), np.nan_to_num(np.asarray(images, np.float32))
    low, high = (0, levels - 1) if levels else (images.min(), max(images.max(), images.min() + 1e-6))
    pixels = np.round(np.clip((images - low) / (high - low), 0, 1) * 255)
    return np.where(missing, _MISSING, pixels).astype(np.uint8)
