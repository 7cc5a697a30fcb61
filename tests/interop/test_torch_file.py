"""PyTorch's files read without PyTorch; `kinds.pt` was written by it."""

import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flowjax.interop import WeightsError, read_state_dict, read_torch

DATA = Path(__file__).parent / "data"


def write(path, payload, **members):
    """An archive as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def test_every_type_and_layout():
    tree = read_torch(DATA / "kinds.pt")
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    want = {
        "float32": base,
        "transposed": base.T,
        "row": base[2],
        "step": base[::2, 1::3],
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.ones(2, np.float32),
        "bfloat16": np.array([1, -2.5, 3e38], ml_dtypes.bfloat16),
        "float16": np.array([1.5], np.float16),
        "float64": np.array([0.1]),
        "int64": np.array([-7]),
        "uint8": np.array([255], np.uint8),
        "bool": np.array([True, False]),
        "expanded": np.array([[2.0], [2.0], [2.0]], np.float32),
    }
    assert set(tree) == set(want) | {"list"}
    for name, array in want.items():
        assert tree[name].dtype == array.dtype, name
        assert tree[name].shape == array.shape, name
        np.testing.assert_array_equal(tree[name], array)
    assert tree["list"] == [1, "a", (2.5, None)]
    with pytest.raises(ValueError, match="read-only"):
        tree["float32"][0, 0] = 1


def test_a_state_dict_is_found_where_training_scripts_put_it():
    average, raw = read_state_dict(DATA / "torchcfm.pt"), read_state_dict(DATA / "torchcfm.pt", ["net_model"])
    assert list(average) == list(raw)
    assert average["time_embed.0.weight"].shape == (128, 32)
    assert np.abs(average["time_embed.0.weight"]).max() > 0 == np.abs(raw["time_embed.0.weight"]).max()
    assert "blocks.0.attn.qkv.weight" in read_state_dict(DATA / "dit.pt")
    assert "label_emb.weight" in read_state_dict(DATA / "torchcfm_film.pt")


class Touches:
    """Unpickled by Python's own reader, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    target = tmp_path / "touched"
    payload = pickle.dumps({"weight": Touches(target)}, protocol=2)
    pickle.loads(payload).popitem()[1].close()
    assert target.exists()  # the pickle does what it says
    target.unlink()
    with pytest.raises(WeightsError, match=r"it refers to .*open, but only tensors and plain containers are read"):
        read_torch(write(tmp_path / "a.pt", payload))
    assert not target.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",  # a dotted name would walk into attributes
        b"\x80\x04\x8c\x05torch\x8c\x14FloatStorage.__doc__\x93.",
        b"ctorch.jit\nload\n.",
        b"cnumpy\ndtype\n.",
    ],
)
def test_other_names_are_refused(tmp_path, payload):
    with pytest.raises(WeightsError, match="but only tensors"):
        read_torch(write(tmp_path / "a.pt", payload))


def test_a_pickle_cannot_change_what_the_names_do(tmp_path):
    """BUILD sets attributes: on the reader's own functions it must fail, and the next file read as before."""
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("torch", "Size")):
        for state in (b"}S'call'\nI1\ns", b"(N}S'call'\nI1\nst"):
            with pytest.raises(WeightsError):
                read_torch(write(tmp_path / "a.pt", f"c{module}\n{name}\n".encode() + state + b"b."))
    assert read_torch(DATA / "kinds.pt")["float32"].shape == (4, 6)


def storage(n, key="0", kind="FloatStorage"):
    return f"(S'storage'\nctorch\n{kind}\nS'{key}'\nS'cpu'\nI{n}\ntQ".encode()


def tensor(pid, offset, shape, strides):
    numbers = lambda ns: b"(" + b"".join(b"I%d\n" % n for n in ns) + b"t"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return call + pid + b"I%d\n" % offset + numbers(shape) + numbers(strides) + b"I00\nNtR."


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (tensor(storage(6), 0, (2, 3), (3, 1)), None),
        (tensor(storage(6), 1, (2, 3), (3, 1)), "past the end"),
        (tensor(storage(6), 0, (2, 3), (1000, 1)), "past the end"),
        (tensor(storage(6), -1, (2,), (1,)), "a tensor with invalid arguments"),
        (tensor(storage(6), 0, (2,), (-1,)), "a tensor with invalid arguments"),
        (tensor(storage(7), 0, (7,), (1,)), "holds 24 bytes, but its storage declares 7"),
        (tensor(storage(-1), 0, (0,), (1,)), "holds 24 bytes"),
        (tensor(storage(1, "../a"), 0, (1,), (1,)), "other than a storage"),
        (tensor(storage(1, "9"), 0, (1,), (1,)), "cannot be read"),
        (storage(1, kind="QInt8Storage") + b".", "QInt8Storage"),
        (b"(S'module'\nNNNI1\ntQ.", "other than a storage"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, payload, message):
    path = write(tmp_path / "a.pt", b"\x80\x02" + payload, **{"data/0": np.arange(6, dtype="<f4").tobytes()})
    if message is None:
        np.testing.assert_array_equal(read_torch(path), np.arange(6.0).reshape(2, 3))
        return
    with pytest.raises(WeightsError, match=message) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_one_line(tmp_path):
    whole = (DATA / "kinds.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weight": 1}))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("word/document.xml", "")
    write(tmp_path / "short.pt", b"\x80\x02}")
    write(tmp_path / "big.pt", b"\x80\x02}.", byteorder="big")
    write(tmp_path / "number.pt", b"\x80\x02K\x01.")
    for name, message in (
        ("cut", "not a PyTorch zip file"),
        ("old", "older than PyTorch 1.6"),
        ("other", "holds no data.pkl"),
        ("short", "cannot be read"),
        ("big", "big-endian"),
        ("number", "holds no state dict"),
        ("none", "no such file"),
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            read_state_dict(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)


def test_a_compressed_member_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + tensor(storage(6), 0, (6,), (1,)))
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(WeightsError, match="compressed"):
        read_torch(tmp_path / "a.pt")


def test_importing_is_cheap():
    """The package loads neither JAX nor NumPy until something of it is used."""
    code = "import sys, flowjax.interop; print(*(m in sys.modules for m in ('jax', 'numpy', 'safetensors', 'torch')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"] * 4


def test_agrees_with_torch_itself(tmp_path):
    torch = pytest.importorskip("torch")
    made = {"a": torch.randn(3, 4).T, "b": [torch.randn(5).bfloat16(), torch.tensor(3)]}
    torch.save(made, tmp_path / "a.pt")
    read = read_torch(tmp_path / "a.pt")
    np.testing.assert_array_equal(read["a"], made["a"].numpy())
    np.testing.assert_array_equal(read["b"][0].astype(np.float32), made["b"][0].float().numpy())
    assert int(read["b"][1]) == 3
    with io.BytesIO() as file:
        torch.save(made, file, _use_new_zipfile_serialization=False)
        (tmp_path / "old.pt").write_bytes(file.getvalue())
    with pytest.raises(WeightsError, match="not a PyTorch zip file"):
        read_torch(tmp_path / "old.pt")
