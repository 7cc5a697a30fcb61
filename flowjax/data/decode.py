"""Image files: which formats are read, and how each kind of image becomes 8-bit pixels.

Only the formats in `FORMATS` are tried, whatever a file is called: Pillow knows formats that start other programs
(Ghostscript for PostScript) or that are rarely tested against damaged files. A file must be a regular one, not a FIFO
or a device, of at most `MAX_BYTES`, and its image must not have more than `MAX_PIXELS` pixels; this is checked before
any pixel is decoded. Every error of a decoder becomes one `DataError` that names the file.

What becomes of an image:

- It is turned upright as its EXIF orientation says. Damaged EXIF data are ignored.
- 16-bit greys are divided by 257 and rounded, so that 65535 becomes 255. Mode I (32-bit integers) is read as 16 bits if
  its values fit, and refused otherwise; so are floating-point pixels, which have no fixed range. Of 16 bits per channel
  in colour, Pillow reads the upper 8.
- Transparent pixels (RGBA, grey with alpha, palettes and colours with a transparent entry) are laid over white, as
  image viewers show them.
- Palettes are looked up, 1-bit pixels become 0 and 255, and CMYK is converted by Pillow's formula
  R = (255 - C) (255 - K) / 255, without colour profiles. Grey from colour is Rec. 601 luma.
- Of a file with several images (an animation, a TIFF with pages, a JPEG with a second picture) the first one is taken.
"""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from flowjax.archives import one_line
from flowjax.data.affine import DataError

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "SUFFIXES", "Header", "read_header", "read_image"]

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_PIXELS = 2**26
"""64 megapixels: an image of this size takes 200 MB while it is decoded."""

MAX_BYTES = 2**30
"""1 GiB, twice an uncompressed image of `MAX_PIXELS` pixels with four channels of 16 bits."""

_MODES = {1: "L", 3: "RGB"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the EXIF orientation: how to show the image upright."""

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes without colour. A palette counts as colour, whatever its entries are."""

# Pillow only warns about images of up to 179 megapixels. Here these are refused, so the warning would be a second line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded.

    Attributes:
        grey: it has no colours, by its mode.
        several: its file holds more than one image.
    """

    grey: bool
    several: bool


def read_header(file: Path) -> Header:
    """Reads the header of an image file.

    Raises:
        DataError: if the file is not a readable image; one line that names the file.
    """
    with _opened(file) as image:
        return Header(image.mode in _GREY, bool(getattr(image, "is_animated", False)))


def read_image(file: Path, channels: int, grey_only: bool = False) -> Image.Image:
    """Decodes an image file as described in the docstring of this module.

    Args:
        file: the image file.
        channels: 1 for grey (mode L) or 3 for colours (mode RGB).
        grey_only: refuse an image in colour instead of converting it.

    Raises:
        DataError: if the file is not a readable image; one line that names the file.
    """
    with _opened(file) as image:
        if grey_only and image.mode not in _GREY:
            raise DataError(
                f"{file} is in colour, but the images whose headers were inspected are all grey: choose the channels "
                "yourself, data.name=folder(64, 3) for colours or folder(64, 1) for greys"
            )
        return _eight_bits(_upright(image)).convert(_MODES[channels])


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Opens an image file; every error of its decoder, also inside the `with` block, becomes a `DataError`."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file} is not a regular file, so it is not read as an image")
        if status.st_size > MAX_BYTES:
            raise DataError(_too_large(file, f"{status.st_size:,} bytes", f"{MAX_BYTES:,} bytes"))
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(_too_large(file, f"{image.width} x {image.height} pixels"))
            yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{file} is not a readable image: it is damaged, or its format is none of {', '.join(FORMATS)}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(_too_large(file, "too many pixels")) from None
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error, zlib.error and many more
        kind = "" if isinstance(error, OSError) or not str(error) else f"{type(error).__name__}: "
        raise DataError(f"{file} is not a readable image: {kind}{one_line(error)}") from None


def _too_large(file: Path, size: str, limit: str = f"{MAX_PIXELS:,} pixels") -> str:
    return f"{file} has {size}, and images of more than {limit} are not read: make it smaller or remove it"


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says that it is to be shown."""
    image.load()  # errors of the pixels are raised here, so that below only the EXIF data can be at fault
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow can raise any exception on damaged EXIF data
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image in a mode of at most 8 bits per channel and without transparency."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are 32-bit integers that do not fit into 16 bits")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no fixed range; use data.name=npz for them")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image
