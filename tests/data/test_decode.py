"""Image files of every kind: which pixels they become, and that damaged or hostile ones end in one line."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from flowjax.data import DataError
from flowjax.data.decode import MAX_PIXELS, read_header, read_image

RAMP = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
RGB = np.stack([RAMP, 255 - RAMP, RAMP // 2], -1)
WHITE = np.uint8(255)


def png(width, height, depth, colour, rows, *more):
    """A PNG file made by hand, so that its values do not depend on Pillow's writer."""
    chunk = lambda name, data: (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) & 0xFFFFFFFF)
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def test_16_bit_greys_are_divided_by_257(tmp_path):
    """Against round(v / 257) in exact arithmetic, at the ends and on both sides of a tie; clipping gives mostly 255.
    Of 16 bits in colour the upper 8 are read."""
    values = [0, 128, 129, 255, 257, 385, 386, 32767, 40000, 65407, 65535]
    (tmp_path / "a.png").write_bytes(png(len(values), 1, 16, 0, [struct.pack(f">{len(values)}H", *values)]))
    expected = [(2 * v + 257) // 514 for v in values]
    Image.fromarray(np.array([values], np.int32)).save(tmp_path / "b.tif")  # mode I, 32-bit integers
    Image.fromarray(np.array([values], np.uint16)).save(tmp_path / "c.tif")
    for name in ("a.png", "b.tif", "c.tif"):
        image = read_image(tmp_path / name, 1)
        np.testing.assert_array_equal(np.asarray(image)[0], expected)
        assert read_header(tmp_path / name).grey
    assert (expected[0], expected[-1]) == (0, 255)
    (tmp_path / "d.png").write_bytes(png(2, 1, 16, 2, [struct.pack(">6H", *values[-6:])]))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "d.png", 3)).ravel(), [v >> 8 for v in values[-6:]])


def on_white(colour, alpha):
    """The colour over white, to the nearest integer."""
    return np.round((colour * (alpha / 255.0)[..., None]) + 255.0 * (1 - alpha / 255.0)[..., None])


@pytest.mark.parametrize("kind", ["rgba", "la", "palette", "palette_alpha", "cmyk", "one_bit", "grey_key"])
def test_every_mode_becomes_stated_pixels(tmp_path, kind):
    """Against the formulas of the docstring, within one level for the rounding of blended pixels."""
    alpha = np.resize(np.array([0, 255, 128, 51], np.uint8), RAMP.shape)
    file = tmp_path / "a.png"
    if kind == "rgba":
        Image.fromarray(np.dstack([RGB, alpha])).save(file)
        expected = on_white(RGB, alpha)
    elif kind == "la":
        Image.fromarray(np.dstack([RAMP, alpha]), "LA").save(file)
        expected = on_white(np.repeat(RAMP[..., None], 3, -1), alpha)
    elif kind in ("palette", "palette_alpha"):
        colours = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint8)
        index = np.resize(np.arange(3), RAMP.shape)
        transparent = [(b"tRNS", bytes([255, 0, 255]))] * (kind == "palette_alpha")
        rows = [bytes(row.astype(np.uint8)) for row in index]
        file.write_bytes(png(6, 4, 8, 3, rows, (b"PLTE", colours.tobytes()), *transparent))
        expected = colours[index].astype(float)
        if transparent:
            expected[index == 1] = 255
    elif kind == "cmyk":
        file = tmp_path / "a.tif"
        cmyk = np.dstack([RGB, RAMP // 3])
        Image.fromarray(cmyk, "CMYK").save(file)
        expected = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255
    elif kind == "one_bit":
        Image.fromarray(RAMP > 100).save(file)
        expected = np.repeat(np.where(RAMP > 100, 255.0, 0.0)[..., None], 3, -1)
    else:  # grey with one transparent value
        file.write_bytes(png(6, 4, 8, 0, [bytes(row) for row in RAMP], (b"tRNS", struct.pack(">H", 50))))
        expected = np.repeat(np.where(RAMP == 50, 255.0, RAMP)[..., None], 3, -1)
    np.testing.assert_allclose(np.asarray(read_image(file, 3)), expected, atol=1)
    grey = np.asarray(read_image(file, 1))
    np.testing.assert_allclose(grey, expected @ [0.299, 0.587, 0.114], atol=1.5)
    assert read_header(file).grey == (kind in ("la", "one_bit", "grey_key"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    """EXIF 2.3 says where the stored first row and first column are shown: the stored image is made from that."""
    upright = RGB
    stored = {
        1: upright,
        2: upright[:, ::-1],  # row 0 is the top, column 0 the right-hand side
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),  # row 0 is the left-hand side, column 0 the top
        6: upright.transpose(1, 0, 2)[::-1],  # row 0 is the right-hand side, column 0 the top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    # 6: row 0 is the right-hand column of the upright image, read from the top: stored[i, j] = upright[j, W - 1 - i]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png", 3)), upright)


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_damaged_exif_data_do_not_hide_the_image(tmp_path, name):
    """Bytes that are no TIFF structure: Pillow raises SyntaxError on them, or ignores them, by the format."""
    Image.fromarray(RGB).save(tmp_path / "whole", name)
    Image.fromarray(RGB).save(tmp_path / "damaged", name, exif=b"Exif\0\0no TIFF structure")
    whole, damaged = (np.asarray(read_image(tmp_path / file, 3)) for file in ("whole", "damaged"))
    np.testing.assert_array_equal(damaged, whole)


def test_of_several_images_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for name in ("a.png", "a.tif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert read_header(tmp_path / name).several
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name, 3)), RGB)
    frames[0].save(tmp_path / "one.png")
    assert not read_header(tmp_path / "one.png").several


def bomb(path):
    path.write_bytes(png(30_000, 30_000, 8, 0, []))


def large(path):
    width = MAX_PIXELS // 8192 + 1
    path.write_bytes(png(width, 8192, 1, 0, []))


def warned_of(path):
    path.write_bytes(png(10_000, 10_000, 1, 0, []))


def truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def huge_text(path):
    text = b"a\0\0" + zlib.compress(bytes(2**26))
    path.write_bytes(png(6, 4, 8, 0, [bytes(row) for row in RAMP], (b"zTXt", text)))


def broken_chunk(path):
    path.write_bytes(png(6, 4, 8, 0, []).replace(b"IDAT", b"ID\xffT"))


def floats(path):
    Image.fromarray(RAMP.astype(np.float32)).save(path, "TIFF")


def wide_integers(path):
    Image.fromarray(RAMP.astype(np.int32) * 1000).save(path, "TIFF")


def sparse(path):
    path.touch()
    os.truncate(path, 2**30 + 1)


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


def gif(path):
    Image.fromarray(RAMP).save(path, "GIF")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, "has too many pixels, but images of more than 67,108,864 pixels are not read"),
        (large, "has 8193 x 8192 pixels, but images of more than"),
        (warned_of, "has too many pixels, but images of more than"),
        (sparse, "has 1,073,741,825 bytes, but images of more than 1,073,741,824 bytes are not read"),
        (truncated, "is not a readable image: .*truncated"),
        (huge_text, "is not a readable image: ValueError: Decompressed data too large"),
        (broken_chunk, "it is damaged, or its format is not one of"),
        (floats, "floating-point numbers, which have no fixed range"),
        (wide_integers, "32-bit integers that do not fit into 16 bits"),
        (postscript, "it is damaged, or its format is not one of BMP, JPEG, PNG, TIFF, WEBP"),
        (gif, "its format is not one of BMP"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to(path), "is not a readable image: .*symbolic link"),
        (lambda path: path.write_bytes(b""), "its format is not one of"),
    ],
)
def test_hostile_and_damaged_files_end_in_one_line(tmp_path, make, message, monkeypatch):
    """Nothing hangs and nothing starts another program: PostScript in a file named .png made Pillow run Ghostscript."""
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: started.append("gs"))
    file = tmp_path / "005.png"
    make(file)
    with pytest.raises(DataError, match=message) as error:
        read_image(file, 3)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert not started


@pytest.mark.parametrize("error", [MemoryError(), struct.error("unpack\nrequires"), SyntaxError("broken"), KeyError(3)])
def test_any_error_of_a_decoder_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(DataError, match=rf"a\.png is not a readable image: {type(error).__name__}") as caught:
        read_image(tmp_path / "a.png", 3)
    assert "\n" not in str(caught.value)


def test_a_content_of_another_known_format_is_read(tmp_path):
    """The suffix only selects files: a PNG image that is called .jpg is a PNG image."""
    Image.fromarray(RGB).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg", 3)), RGB)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, name):
    """100 files with up to eight random bytes or a random end: each is read or ends in one line."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    Image.fromarray(RGB).save(tmp_path / "whole", name, exif=exif)
    whole = np.frombuffer((tmp_path / "whole").read_bytes(), np.uint8)
    read, refused = 0, []
    for i in range(100):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 1 + i % 8)] = rng.integers(0, 256, 1 + i % 8)
        file = tmp_path / f"{i}.{name}"
        file.write_bytes(damaged[: rng.integers(1, len(whole))].tobytes() if i % 10 == 0 else damaged.tobytes())
        try:
            read += read_image(file, 3).mode == "RGB"
        except DataError as error:
            refused.append((str(file), str(error)))
    assert read + len(refused) == 100
    assert min(read, len(refused)) > 0
    assert all(file in line and "\n" not in line for file, line in refused)
