"""`.npz` files and folders of arrays that may come from a stranger."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest

from flowjax.archives import ArchiveError
from flowjax.archives import read_npz as read_archive
from flowjax.data import DataError, open_dataset
from flowjax.data.arrays import read_npz
from tests.untrusted import assert_read_or_refused, memory_below

SEVERAL = {"x": np.arange(60, dtype=np.float32).reshape(20, 3), "y": np.arange(20) % 3, "z": np.zeros(())}


def npz(path, save=np.savez, **arrays):
    save(path, **arrays)
    return path


def npy(header, data=b"", version=(1, 0)):
    """A `.npy` file with any header."""
    text = header.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def of_type(descr, shape=(2, 3), **changes):
    return str({"descr": descr, "fortran_order": False, "shape": shape} | changes)


def declaring(path, **sizes):
    """A copy in whose zip directory and local headers the members have other uncompressed sizes."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        begin = archive.start_dir
        for info in archive.infolist():
            size = struct.pack("<I", sizes[info.filename.removesuffix(".npy")])
            data[info.header_offset + 22 : info.header_offset + 26] = size
            data[begin + 24 : begin + 28] = size
            begin += 46 + sum(struct.unpack_from("<HHH", data, begin + 28))
    path.write_bytes(data)
    return path


def refused(path, message, read=read_npz, error=DataError):
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_is_read(tmp_path, save):
    more = {"t": np.asfortranarray(np.ones((2, 3))), "s": np.array("text"), "big": np.arange(3, dtype=">f8")}
    found = read_npz(npz(tmp_path / "a.npz", save, **SEVERAL, **more))
    assert set(found) == {"x", "y", "z", "t", "s", "big"}
    for name, array in (SEVERAL | more).items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_sizes_are_compared_before_anything_is_allocated(tmp_path):
    """12 GiB are declared; nothing like it is allocated, whatever the declaration is compared with."""
    big = 2**32 - 16
    three = npz(tmp_path / "a.npz", np.savez_compressed, x=np.zeros(9), y=np.zeros(9), z=np.zeros(9))
    one, plain = npz(tmp_path / "b.npz", np.savez_compressed, x=np.zeros(9)), npz(tmp_path / "c.npz", x=np.zeros(9))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy(of_type("<f8", (2**40,)), bytes(16)))
    with memory_below(10):
        refused(
            declaring(three, x=big, y=big, z=big), rf"unpack to {3 * big}, more than the limit of {2**32}: if you .*"
        )
        refused(declaring(one, x=big), f"declares an array of 72 bytes but holds {big - 128}")
        refused(declaring(plain, x=big), "declares two different sizes")
        refused(tmp_path / "d.npz", f"declares an array of {2**43} bytes but holds 16")


def test_a_member_that_unpacks_to_more_than_it_declares_is_refused_while_reading(tmp_path):
    """100 MB of zeros that are declared, by the directory and by the array's own header, as 80 bytes."""
    whole = npy(of_type("<f8", (10,)), bytes(10**8))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", whole)
    declaring(tmp_path / "a.npz", x=len(whole) - 10**8 + 80)
    with memory_below(10):
        refused(tmp_path / "a.npz", "CRC")


def test_the_limit_is_for_what_is_compressed_and_can_be_raised(tmp_path, monkeypatch):
    packed = npz(tmp_path / "packed.npz", np.savez_compressed, x=np.zeros(1000))
    plain = npz(tmp_path / "plain.npz", x=np.zeros(1000))
    monkeypatch.setenv("FLOWJAX_UNPACKED_BYTES", "8127")  # 8000 and a header of 128
    refused(packed, "its [0-9]+ bytes unpack to 8128, more than the limit of 8127: .* FLOWJAX_UNPACKED_BYTES=8128")
    assert read_npz(plain)["x"].shape == (1000,)
    monkeypatch.setenv("FLOWJAX_UNPACKED_BYTES", "8128")
    assert read_npz(packed)["x"].shape == (1000,)
    monkeypatch.setenv("FLOWJAX_UNPACKED_BYTES", "much")
    refused(packed, "must be a number of bytes")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(of_type("|O")), "Python objects"),
        (npy(of_type("<f1"), bytes(6)), "not a readable"),  # what float8 of ml_dtypes is stored as
        (npy(of_type("|S0", (10**18,))), "invalid dtype or shape"),
        (npy(of_type("<f4", (-1, 3)), bytes(24)), "invalid dtype or shape"),
        (npy(of_type("<f4", (2.0,)), bytes(24)), "shape is not valid"),
        (npy("(" * 9000), "not a readable"),
        (npy("-" * 9000 + "1"), "not a readable"),
        (npy("{"), "not a readable"),
        (npy(of_type("<f4", more=1), bytes(24)), "not contain the correct keys"),
        (npy(of_type("<f4") + " " * 10**6, bytes(24), (2, 0)), "not a readable"),
        (npy(of_type("<f4"), bytes(24), (3, 0)), "unsupported version"),
        (npy(of_type("<f4", (1,) * 1000), bytes(4)), "not a readable"),
        (b"", "not a readable"),
        (b"\x93NUMPY", "not a readable"),
    ],
)
def test_malformed_arrays(tmp_path, member, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", member)
    refused(tmp_path / "a.npz", message)


def test_other_files(tmp_path):
    (tmp_path / "empty.npz").touch()
    refused(tmp_path / "empty.npz", "not a readable .npz file: File is not a zip file")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    refused(tmp_path / "one.npz", r"a single array; save it with numpy\.savez")
    os.mkfifo(tmp_path / "fifo.npz")
    refused(tmp_path / "fifo.npz", "not a regular file")
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz", "is a directory")
    refused(tmp_path / "none.npz", "no such file")
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", bytes(100))
    refused(tmp_path / "lzma.npz", "unsupported compression method")
    npz(tmp_path / "keys.npz", **{"a\nb\x1b[2J": np.zeros(2)})
    refused(tmp_path / "keys.npz", r"holds no array named 'x': it has 'a\\nb\\x1b\[2J'")
    with pytest.raises(DataError, match="not a regular file"):
        read_npz("/dev/zero")
    (tmp_path / "keys.npz").rename(tmp_path / "x.npy")
    refused(tmp_path / "x.npy", "cannot be read", lambda path: open_dataset("npy", str(path.parent)))
    (tmp_path / "x.npy").unlink()
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(DataError, match="not a regular file"):
        open_dataset("npy", str(tmp_path))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((0, 5), np.float32)},
        {"x": np.zeros((5, 0), np.float32)},
        {"x": np.ones((5, 2)), "y": np.full(5, 0.5)},
        {"x": np.ones((5, 2)), "y": np.full(5, np.inf)},
        {"x": np.float32(1)},
        {"x": np.zeros((5, 2), np.complex64)},
        {"x": np.zeros((5, 2), "V2")},
        {"x": np.full((5, 2), "a")},
        {"x": np.zeros((5, 2), "M8[s]")},
        {"x": np.ones((5, 2)), "y": np.zeros((5, 0), int)},
        {"x": np.ones((5, 2)), "x_test": np.float32(1)},
        {"x": np.ones((5, 2)), "x_test": np.ones((0, 2))},
    ],
    ids=lambda arrays: "-".join(f"{k}{a.dtype}{np.shape(a)}" for k, a in arrays.items()),
)
def test_arrays_that_are_no_data(tmp_path, arrays):
    refused(npz(tmp_path / "a.npz", **arrays), ".", lambda path: open_dataset("npz", str(path)))


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_read_or_refused(tmp_path, save, cases):
    whole = npz(tmp_path / "whole.npz", save, **SEVERAL).read_bytes()
    count = assert_read_or_refused(tmp_path / "a.npz", whole, read_archive, ArchiveError, cases)
    assert count > cases / 2


def test_a_folder_of_damaged_arrays(tmp_path):
    whole = io.BytesIO()
    np.save(whole, SEVERAL["x"])
    assert_read_or_refused(
        tmp_path / "x.npy", whole.getvalue(), lambda path: open_dataset("npy", str(tmp_path)), DataError, 200
    )


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"x": ([2, 10**12], [1, 10])}, "has more than 67,108,864 numbers"),
        ({"x": ([10**12, 2], [10**11, 2])}, "a chunk of shape .* is too large"),
        ({"x": ([10**12, 2], [10, 2]), "y": ([10**12], [10])}, "y of shape .* is too large"),
    ],
)
def test_zarr_arrays_that_only_declare_a_size(tmp_path, declared, message):
    """Chunks that are missing are zeros, so that a file of 100 bytes can stand for any number of them."""
    for name, (shape, chunks) in declared.items():
        (tmp_path / name).mkdir()
        header = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "<i8" if name == "y" else "<f4"}
        header |= {"compressor": None, "fill_value": 0, "order": "C", "filters": None}
        (tmp_path / name / ".zarray").write_text(json.dumps(header))
    with memory_below(100):
        refused(tmp_path, message, lambda path: open_dataset("zarr", str(path)))
