"""Decodes untrusted image files into 8-bit pixels.

Only the formats in `FORMATS` are tried, whatever the name of a file, because Pillow also has formats that start other
programs (Ghostscript for PostScript) or are rarely tested against damaged files. A file must be a regular file of at
most `MAX_BYTES`, and its image must have at most `MAX_PIXELS` pixels; this is checked before pixels are decoded. Every
error of a decoder becomes a `DataError` that names the file.

Images are converted as follows:

- They are rotated according to their EXIF orientation. Damaged EXIF data are ignored.
- 16-bit grey values are divided by 257 and rounded, so that 65535 becomes 255. Mode I (32-bit integers) is read as 16
  bits if the values fit, and refused otherwise. Floating-point pixels are refused, because they have no fixed range.
  For colours with 16 bits per channel, Pillow reads the upper 8 bits.
- Transparent pixels (RGBA, grey with alpha, palettes and colours with a transparent entry) are composed over white.
- Palettes are looked up, 1-bit pixels become 0 and 255, and CMYK is converted with Pillow's formula
  R = (255 - C) (255 - K) / 255, without colour profiles. Colours are converted to grey as Rec. 601 luma.
- The first image is taken from a file with several (an animation, a TIFF with pages, a JPEG with a second picture).
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
"""64 megapixels; decoding an image of this size takes 200 MB."""

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
"""The transpose that shows an image upright, by EXIF orientation."""

_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes without colour. A palette counts as colour, even if all its entries are grey."""

# Pillow only warns about images of 90 to 179 megapixels. They are refused here, with a message of one line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Header(NamedTuple):
    """Properties of an image that are known before its pixels are decoded.

    Attributes:
        grey: whether its mode has no colours.
        several: whether its file holds more than one image.
    """

    grey: bool
    several: bool


def read_header(file: Path) -> Header:
    """Reads the header of an image file.

    Raises:
        DataError: if the file is not a readable image.
    """
    with _opened(file) as image:
        return Header(image.mode in _GREY, bool(getattr(image, "is_animated", False)))


def read_image(file: Path, channels: int, grey_only: bool = False) -> Image.Image:
    """Decodes an image file as described in the docstring of this module.

    Args:
        file: the image file.
        channels: 1 for grey (mode L) or 3 for colours (mode RGB).
        grey_only: whether to refuse an image in colour instead of converting it.

    Returns:
        The image in mode L or RGB.

    Raises:
        DataError: if the file is not a readable image, or is in colour although `grey_only` is set.
    """
    with _opened(file) as image:
        if grey_only and image.mode not in _GREY:
            raise DataError(
                f"{file} is in colour, but the images whose headers were inspected are all grey: set the channels with "
                "data.name=folder(64, 3) for colours or folder(64, 1) for grey"
            )
        return _eight_bits(_upright(image)).convert(_MODES[channels])


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Opens an image file; errors of the decoder, also inside the `with` block, become a `DataError`."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file} is not a regular file, so it cannot be read as an image")
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
            f"{file} is not a readable image: it is damaged, or its format is not one of {', '.join(FORMATS)}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(_too_large(file, "too many pixels")) from None
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error, zlib.error and many more
        kind = "" if isinstance(error, OSError) or not str(error) else f"{type(error).__name__}: "
        raise DataError(f"{file} is not a readable image: {kind}{one_line(error)}") from None


def _too_large(file: Path, size: str, limit: str = f"{MAX_PIXELS:,} pixels") -> str:
    return f"{file} has {size}, but images of more than {limit} are not read: make it smaller or remove it"


def _upright(image: Image.Image) -> Image.Image:
    """Rotates or mirrors an image according to its EXIF orientation."""
    image.load()  # raises errors of the pixels here, so that an error below can only come from the EXIF data
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow can raise any exception on damaged EXIF data
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Converts an image to a mode of at most 8 bits per channel without transparency."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are 32-bit integers that do not fit into 16 bits")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no fixed range: use data.name=npz for them")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image
