"""Files of weights that may come from a stranger: nothing hangs, allocates what is only declared, or is more than one
line."""

import functools
import itertools
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from flowjax.cli.common import points
from flowjax.data import DataError
from flowjax.errors import ConfigError
from flowjax.interop import (
    WeightsError,
    from_dit,
    from_sit,
    from_torchcfm,
    open_weights,
    read_state_dict,
    read_torch,
    weights,
)
from tests.interop.test_converters import cfm, dit
from tests.interop.test_torch_file import DATA, storage, tensor, write
from tests.untrusted import assert_read_or_refused, memory_below


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    from flowjax.cli.main import main

    path = tmp_path_factory.mktemp("exported") / "w.safetensors"
    assert main(["export", f"--workdir={tiny_run}", f"--out={path}"]) == 0
    return path


@pytest.fixture
def changed(exported, tmp_path):
    """`changed(edit, arrays)`: the exported file with its record edited in place, and other arrays if there are any."""
    with safe_open(exported, "np") as file:
        record = json.loads(file.metadata()["flowjax"])

    def change(edit=lambda record: None, arrays=None):
        copy = json.loads(json.dumps(record))
        text = edit(copy)
        arrays = load_file(exported) if arrays is None else arrays
        save_file(arrays, tmp_path / "w.safetensors", {"flowjax": text if isinstance(text, str) else json.dumps(copy)})
        return tmp_path / "w.safetensors"

    return change


def refused(path, message, read=open_weights, error=(WeightsError, ConfigError)):
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, float("nan"), float("inf"), "1", None, True, 10**400])
def test_a_scale_that_is_not_positive_is_refused(changed, scale):
    refused(changed(lambda record: record["data"].update(scale=scale)), "scale is .*it must be a positive number")


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "1"])
def test_a_scale_that_is_not_positive_is_refused_in_a_workdir(flowjax, tiny_run, tmp_path, scale):
    record = json.loads((tiny_run / "config.json").read_text())
    record["data"]["scale"] = scale
    record.pop("crc32", None)  # a checksum that does not fit would print a warning of its own
    (tmp_path / "config.json").write_text(json.dumps(record))
    code, _, err = flowjax("sample", f"--workdir={tmp_path}", "--num=2", f"--out={tmp_path}/a.npz")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "scale" in err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["config"]["model"].update(depth=10_000_000), "model.depth must be at most 64"),
        (lambda r: r["config"]["model"].update(width=10**12), "width|in another shape"),
        (lambda r: r["config"]["model"].update(width=10**400), "."),
        (lambda r: r["config"]["model"].update(width=None), "model.width must be"),
        (lambda r: r["config"]["model"].update(wdth=1), "unknown config key"),
        (lambda r: r["config"]["model"].update(name="mpl"), "did you mean 'mlp'"),
        (lambda r: r["config"].update(model=5), "is a section|unknown config key"),
        (lambda r: r["config"].update(model=[]), "."),
        (lambda r: r.update(config=[]), "does not hold config, data, step"),
        (lambda r: r.update(data=[]), "does not hold config, data, step"),
        (lambda r: r.update(step="5"), "does not hold config, data, step"),
        (lambda r: r["data"].update(shape=[]), "shape"),
        (lambda r: r["data"].update(shape=[2**20, 2**20]), "coordinates|numbers|memory"),
        (lambda r: r["data"].update(shape=["2"]), "shape"),
        (lambda r: r["data"].update(shape=2), "shape"),
        (lambda r: r["data"].update(num_classes=-1), "num_classes"),
        (lambda r: r["data"].update(levels=0.5), "levels"),
        (lambda r: r["data"].pop("name") and None, "name is missing"),
        (lambda r: "[" * 100_000 + "]" * 100_000, "cannot be read"),
        (lambda r: '{"config": ' * 900 + "1" + "}" * 900, "."),
        (lambda r: "1" * 10_000, "cannot be read"),
        (lambda r: "null", "does not hold config, data, step"),
        (lambda r: "", "cannot be read"),
    ],
)
def test_malformed_records(changed, edit, message):
    refused(changed(edit), message)


def test_a_large_network_is_refused_before_it_is_built(changed, monkeypatch):
    """Whatever bounds a config has: a network has a tensor for each of its blocks."""
    monkeypatch.setattr(weights, "build", None)
    refused(changed(lambda record: record["config"]["model"].update(depth=60)), "60 blocks, but the file has 6 tensors")


@pytest.mark.parametrize(
    "dtype", [np.complex64, np.int64, np.bool_, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_other_types_are_refused(changed, exported, tmp_path, dtype):
    arrays = load_file(exported)
    try:
        path = changed(arrays=arrays | {"out.bias": np.ones(2).astype(dtype)})
    except (KeyError, TypeError, ValueError):
        pytest.skip("this version of safetensors does not write the type")
    refused(path, "out.bias|cannot be read")
    state = read_state_dict(DATA / "dit.pt")
    named = {name: np.ascontiguousarray(a, np.float32) for name, a in state.items()}
    save_file(named | {"t_embedder.mlp.0.bias": np.ones(32).astype(dtype)}, tmp_path / "dit.safetensors")
    from flowjax.cli.main import main

    argv = ["convert", "--from=dit", f"--weights={tmp_path}/dit.safetensors", f"--out={tmp_path}/o.safetensors"]
    argv += ["--shape=8,8,4", "--classes=3", "--heads=4"]
    assert main([*argv, "--config.model.depth=2", "--config.model.width=32"]) == 2


def test_shapes_are_compared_before_arrays_are_read(changed, exported, monkeypatch):
    arrays = load_file(exported) | {"out.bias": np.ones(3, np.float32)}
    monkeypatch.setattr(weights, "fill", None)
    refused(changed(arrays=arrays), r"in another shape out.bias \(3,\) for \(2,\)")


@pytest.mark.parametrize("header", [b"[" * 50_000, b'{"a":' * 1000, b"{}", b"\xff" * 8, b'{"a":{"dtype":"F32"}}', b""])
@pytest.mark.parametrize("length", [None, 2**63, 0])
def test_malformed_headers(tmp_path, header, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    for read in (open_weights, read_state_dict):
        refused(path, "cannot be read|no config|no state dict", read)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_file_is_refused_at_once(tmp_path, suffix):
    os.mkfifo(tmp_path / f"fifo{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name, message in (("fifo", "not a regular file"), ("folder", "directory"), ("device", "not a regular file")):
        refused(tmp_path / f"{name}{suffix}", message, read_state_dict)
        refused(tmp_path / f"{name}{suffix}", message)


PAYLOADS = {
    # a list in a list in a list ...: built by the reader without recursion
    "nested lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "holds no state dict"),
    # hashing a tuple in a tuple in a tuple ... recurses in C without a bound
    "a nested tuple as a key": (b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.", "keys are neither strings"),
    # 2^60 leaves, shared: small until something walks through them
    "a shared tuple as a key": (b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.", "keys are neither strings nor integers"),
    "a shared tuple as a storage": (b"\x80\x02)" + b"2\x86" * 60 + b"Q.", "cannot be read|than a storage"),
    "keys of one hash": (b"\x80\x02}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x01s.", "keys are neither"),
    # the reader in C makes room for as many entries as the largest number says
    "a large memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "holds no state dict"),
    "a declared buffer": (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "other than tensors"),
    "a declared text": (b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b".", "cannot be read|no state dict"),
    "a set": (b"\x80\x04\x8f.", "other than tensors"),
    # a few bytes for a copy of a long list
    "a long shape": (b"\x80\x02ctorch\nSize\n(](" + b"K\x01" * 1000 + b"etR.", "a tensor with invalid arguments"),
    "a filled dictionary": (b"\x80\x02ccollections\nOrderedDict\n(]tR.", "cannot be read"),
    "a name": (b"\x80\x02c" + b"a\x1b" * 10_000 + b"\nb\n.", "it refers to 'aa|it refers to 'a.x1ba"),
    # 10^12 numbers over a storage of six
    "a wide view": (
        b"\x80\x02}U\x01a" + tensor(storage(6), 0, (10**12,), (0,))[:-1] + b"s.",
        "unpack to 4000000000000",
    ),
    "many views": (
        b"\x80\x02](" + 5000 * tensor(storage(6), 0, (10**6,), (0,))[:-1] + b"e.",
        "unpack to 429[0-9]{7}, more than the limit of 4294967296.*FLOWJAX_UNPACKED_BYTES",
    ),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_pickles_that_grow(tmp_path, name):
    payload, message = PAYLOADS[name]
    path = write(tmp_path / "a.pt", payload, **{"data/0": bytes(24)})
    with memory_below(100):
        refused(path, message, read_state_dict, WeightsError)


def test_archives_that_declare_too_much(tmp_path):
    path = write(tmp_path / "a.pt", b"\x80\x02}." + bytes(2**24))
    refused(path, "data.pkl has 16777220 bytes, more than the limit of 16777216", read_torch)
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(2**25))
    assert (tmp_path / "b.pt").stat().st_size < 2**16
    with memory_below(1):
        refused(tmp_path / "b.pt", "more than the limit", read_torch)
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/byteorder", bytes(10**6))
    refused(tmp_path / "c.pt", "byteorder has 1000000 bytes", read_torch)


def test_arguments_of_a_training_script_are_passed_over(tmp_path):
    import argparse

    made = {"args": argparse.Namespace(lr=1e-3), "step": 5}
    assert read_torch(write(tmp_path / "a.pt", pickle.dumps(made, 2)))["step"] == 5


@pytest.mark.parametrize("cases", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_pt_files_are_read_or_refused(tmp_path, cases):
    """The whole file, and then the pickle alone in a sound archive."""
    whole = (DATA / "kinds.pt").read_bytes()
    read = functools.partial(read_state_dict, parts=("ema",))
    refused = assert_read_or_refused(tmp_path / "a.pt", whole, read, WeightsError, cases)
    with zipfile.ZipFile(DATA / "kinds.pt") as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))

    def read_pickle(path: Path):
        write(tmp_path / "b.pt", path.read_bytes(), **{f"data/{i}": bytes(200) for i in range(20)})
        return read(tmp_path / "b.pt")

    refused += assert_read_or_refused(tmp_path / "p", program, read_pickle, WeightsError, cases)
    assert refused > cases / 2


@pytest.mark.parametrize("cases", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_files_of_weights_are_read_or_refused(exported, tmp_path, monkeypatch, cases):
    shapes = functools.cache(lambda config, spec: real(json.loads(config), spec))
    real = lambda config, spec: original(weights.resolve(config), spec)
    original = weights.abstract_variables
    monkeypatch.setattr(weights, "abstract_variables", lambda config, spec: shapes(config.to_json(), spec))
    whole = exported.read_bytes()
    path = tmp_path / "w.safetensors"
    for read in (weights.load_weights, read_state_dict):
        refused = assert_read_or_refused(path, whole, read, (WeightsError, ConfigError), cases)
        assert refused > cases / 3


@pytest.mark.parametrize(
    "x",
    [np.zeros((3, 2), dtype) for dtype in (np.complex64, "m8[s]", "U2", np.bool_, "V2")] + [np.full((3, 2), np.nan)],
)
def test_points_that_are_not_real_numbers_are_refused(exported, tmp_path, x):
    np.savez(tmp_path / "a.npz", x=x)
    refused(
        tmp_path / "a.npz",
        "real numbers|NaN or infinite values",
        lambda path: points(open_weights(exported), str(path)),
        DataError,
    )


HOSTILE = {
    "scalar": lambda a: np.float32(1.0).reshape(()),
    "empty": lambda a: np.zeros((0,), np.float32),
    "empty axes": lambda a: np.zeros((0,) * a.ndim, np.float32),
    "another axis": lambda a: np.asarray(a)[None],
    "longer": lambda a: np.concatenate([a, a]),
    "turned": lambda a: np.zeros((*a.shape[:-1], a.shape[-1] + 1), np.float32),
    "complex": lambda a: np.asarray(a, np.complex64),
    "whole numbers": lambda a: np.asarray(a, np.int64),
}


@pytest.mark.parametrize("kinds", [[*HOSTILE], *(pytest.param([kind], marks=pytest.mark.slow) for kind in HOSTILE)])
def test_misshapen_tensors_of_published_networks_are_refused(kinds):
    """Every third tensor of each state dict with the kinds in turn; in the slow tests every one with every kind."""
    cfm_like, dit_likes = cfm().like, [dit(outputs=2).like, dit().like]
    convert = {
        "torchcfm": [lambda state: from_torchcfm(state, cfm_like, heads=4)],
        "dit": [lambda state: from_dit(state, dit_likes[0]), lambda state: from_sit(state, dit_likes[1])],
    }
    for name, converters in convert.items():
        state = read_state_dict(DATA / f"{name}.pt")
        entries = list(state.items())[:: 3 if len(kinds) > 1 else 1]
        for (tensor_name, a), kind in zip(entries, itertools.cycle(kinds), strict=False):
            for converter in converters:
                with pytest.raises(WeightsError, match="another model"):
                    converter({**state, tensor_name: HOSTILE[kind](np.asarray(a, np.float32))})


def test_positions_that_are_not_numbers_are_refused():
    state, like = read_state_dict(DATA / "dit.pt"), dit(outputs=2).like
    with pytest.raises(WeightsError, match="pos_embed"):
        from_dit({**state, "pos_embed": np.full_like(state["pos_embed"], np.nan, np.float32)}, like)
