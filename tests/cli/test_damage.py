"""Every kind of file that a run leaves, damaged in every way: a right answer, or one line and the right exit code."""

import shutil

import numpy as np
import pytest

from flowjax import load, runs
from flowjax.errors import ConfigError
from flowjax.interop import WeightsError, open_weights
from flowjax.training import writers
from tests.conftest import TINY

WAYS = ("empty", "half", "zeros", "noise", "flip", "longer", "folder", "gone")
AVERAGED = [*TINY, "--config.ema.widths=(0.05,0.1)", "--config.ema.snapshots=6"]


def damage(path, way):
    whole = path.read_bytes()
    path.unlink()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    if way == "folder":
        path.mkdir()
    elif way != "gone":
        contents = {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "zeros": bytes(len(whole)),
            "noise": np.random.default_rng(0).bytes(len(whole)),
            "flip": bytes(flipped),
            "longer": whole + b"\n\xff",
        }
        path.write_bytes(contents[way])


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A finished run with snapshots of averages; tests must not write into it."""
    from flowjax.cli.main import main

    workdir = tmp_path_factory.mktemp("averaged") / "run"
    assert main(["train", *AVERAGED, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def check(flowjax, monkeypatch):
    """`check(code or codes, *argv) -> stderr`: the command ends so, with one line of its own if it fails."""
    monkeypatch.setattr(runs, "_draw", lambda run, dataset: None)

    def call(codes, *argv):
        writers.warn_once.cache_clear()  # each command is a process of its own
        code, result, err = flowjax(*argv)
        assert code in np.atleast_1d(codes), (code, err)
        assert (result is None) == (code != 0)
        assert "Traceback" not in err
        assert "FLOWJAX_TRACEBACK" not in err, err  # the mark of an error that nobody foresaw
        lines = [line for line in err.splitlines() if line.startswith("flowjax: ")]
        assert len(lines) == (code != 0), err
        assert not lines or err.splitlines()[-1] == lines[0]
        return err

    return call


def one(pattern):
    return lambda workdir: max(workdir.glob(pattern), key=lambda path: path.stat().st_size)


OF_CHECKPOINTS = {
    "data": one("checkpoints/120/default/d/*"),
    "process": one("checkpoints/120/default/ocdbt.process_0/d/*"),
    "manifest": one("checkpoints/120/default/manifest.ocdbt"),
    "metadata": one("checkpoints/120/default/_METADATA"),
    "sharding": one("checkpoints/120/default/_sharding"),
    "step metadata": one("checkpoints/120/_CHECKPOINT_METADATA"),
    "checksums": one("checkpoints/120/checksums.json"),
    "metric": one("checkpoints/120/metrics/metrics"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", OF_CHECKPOINTS)
def test_a_damaged_checkpoint(averaged, tmp_path, check, file, way):
    """A file that is gone leaves no checkpoint; one that enters the state is missed; others change nothing."""
    workdir = shutil.copytree(averaged, tmp_path / "run")
    damage(OF_CHECKPOINTS[file](workdir), way)
    gone = way == "gone" or (way == "folder" and file != "checksums")
    harmless = file in ("step metadata", "metric")
    sample = ["sample", f"--workdir={workdir}", "--num=2", "--solver=euler", "--steps=2", f"--out={tmp_path}/a.npz"]
    err = check(0 if gone or harmless else 2, *sample)
    if not (gone or harmless):
        assert "checkpoint 120" in err
        assert "the one before it is 80: add --checkpoint 80" in err
        check(0, *sample, "--checkpoint=80")
    elif gone:
        assert load(workdir).step == 80
    # the last one is the best one, but a loss that cannot be checked does not count
    check(0 if gone or harmless or file == "checksums" else 2, *sample, "--checkpoint=best")
    if way not in ("half", "flip", "gone"):  # training takes longer, and opens checkpoints in the same way
        return
    train = ["train", *AVERAGED, "--config.train.steps=130", f"--workdir={workdir}"]
    err = check(0 if gone or harmless else 2, *train)
    if not (gone or harmless):
        err = check(0, *train, "--checkpoint=80")
    assert f"at step {120 if harmless and not gone else 80} of 130" in err
    check(0, *sample)
    assert load(workdir).step == 130


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_damaged_json(averaged, tmp_path, check, way):
    workdir = shutil.copytree(averaged, tmp_path / "a")
    damage(workdir / "config.json", way)
    for command in (
        ["sample", "--num=2", "--solver=euler", "--steps=2", f"--out={tmp_path}/a.npz"],
        ["evaluate", "--solver=euler", "--steps=2"],
        ["likelihood", f"--out={tmp_path}/b.npz"],
        ["export", f"--out={tmp_path}/c.safetensors"],
        ["train", *AVERAGED],
    ):
        err = check((0, 2) if way == "flip" else 2, *command, f"--workdir={workdir}")
        assert "config.json" in err
    workdir = shutil.copytree(averaged, tmp_path / "b")
    damage(workdir / "metrics.jsonl", way)
    check(1 if way == "folder" else 0, "train", *AVERAGED, "--config.train.steps=130", f"--workdir={workdir}")
    workdir = tmp_path / "sweep"
    sweep = ["sweep", *AVERAGED, f"--workdir={workdir}", "--grid", "seed=0,1"]
    for seed in (0, 1):
        shutil.copytree(averaged, workdir / f"seed={seed}")
    check(0, *sweep, "--collect")
    damage(workdir / "seed=0" / "metrics.jsonl", way)
    damage(workdir / "sweep.json", way)
    check(1 if way == "folder" else 0, *sweep, "--collect")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_damaged_averages_plots_and_what_is_set_aside(averaged, tmp_path, check, way):
    workdir = shutil.copytree(averaged, tmp_path / "run")
    shutil.copytree(workdir / "checkpoints" / "40", workdir / "set_aside" / "40-20260101T000000.000000000")
    damage(one("averages/*")(workdir), way)
    damage(one("set_aside/*/default/d/*")(workdir), way)
    (workdir / "plots").mkdir(exist_ok=True)
    (workdir / "plots" / "loss.png").write_bytes(b"a plot")
    damage(workdir / "plots" / "loss.png", way)
    out = f"--out={tmp_path}/a.npz"
    sample = ["sample", f"--workdir={workdir}", "--num=2", "--solver=euler", "--steps=2", out]
    check((0, 2) if way in ("gone", "folder", "longer") else 2, *sample, "--width=0.1")  # a zip file may be longer
    check(0, *sample)
    check(0, "train", *AVERAGED, "--config.train.steps=130", f"--workdir={workdir}")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["request.json", "0000000000.npz"])
def test_damaged_finished_batches(averaged, tmp_path, check, name, way):
    """A damaged batch is drawn again, to the same bits; a damaged request says what to do."""
    out = tmp_path / "a.npz"
    sample = ["sample", f"--workdir={averaged}", "--num=6", "--batch=2", "--solver=euler", "--steps=2", f"--out={out}"]
    check(0, *sample)
    whole = np.load(out)["samples"]
    from flowjax.inference import finished_batches, sampling
    from flowjax.inference.choose import SolverSettings

    keep = tmp_path / "a.npz.parts"
    sampling.sample(load(averaged), 6, 0, SolverSettings("euler", steps=2), batch=2, keep=keep)
    assert len(list(keep.iterdir())) == 4
    damage(keep / name, way)
    refused = name == "request.json" or way == "folder"
    err = check((0, 1, 2) if refused else 0, *sample)
    if "flowjax: " in err:
        assert "remove the folder, or take another --out" in err or "Is a directory" in err
        finished_batches.remove_finished(keep)
        shutil.rmtree(keep, ignore_errors=True)
        check(0, *sample)
    np.testing.assert_array_equal(np.load(out)["samples"], whole)
    assert not keep.exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_export(averaged, tmp_path, check, way):
    """It has no checksum: a flipped bit of a number is not found, and all that a header tells is."""
    path = tmp_path / "w.safetensors"
    check(0, "export", f"--workdir={averaged}", f"--out={path}")
    damage(path, way)
    if way != "flip":
        with pytest.raises((WeightsError, ConfigError)) as error:
            open_weights(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
