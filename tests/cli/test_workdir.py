"""A workdir that is in use, cannot be written or was left half-written: one line before anything is compiled."""

import errno
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile

import pytest

from flowjax import runs
from flowjax.config import changed, resolve
from flowjax.errors import ConfigError, RunFault
from flowjax.training import workdir as workdirs
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.workdir import WorkdirError
from tests.conftest import TINY


@pytest.fixture
def nothing_is_built(monkeypatch):
    """A test that gets as far as opening the data fails."""

    def built(config, workdir, fresh=True):
        raise AssertionError("the refusal came too late")

    monkeypatch.setattr(runs, "_assemble", built)


def test_a_second_training_in_a_workdir_is_refused(flowjax, tiny_run, tmp_path, nothing_is_built):
    """The owner is another process. What only reads goes on, and after SIGKILL the workdir is free at once."""
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    owner = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('process 17 on host', file=f, flush=True); print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner, workdir / workdirs.LOCK], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        command = ["train", *TINY, "--config.train.steps=160", f"--workdir={workdir}"]
        code, result, err = flowjax(*command)
        assert (code, result) == (2, None)
        assert err.splitlines()[-1].startswith(f"flowjax: train: {workdir} is in use: process 17 on host trains in it;")
        assert flowjax("train", *TINY, f"--workdir={workdir}")[1]["status"] == "already_finished"
        assert flowjax("sample", f"--workdir={workdir}", "--num=2", f"--out={tmp_path}/a.npz", "--steps=2")[0] == 0
    finally:
        process.kill()
        process.wait()
    with (
        workdirs.locked(workdir),
        pytest.raises(WorkdirError, match=r"is in use: process \d+ on "),
        workdirs.locked(workdir),
    ):
        pass
    assert (workdir / "checkpoints" / "120").is_dir()


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, capsys):
    def none(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with workdirs.locked(tmp_path / "run"):
        (tmp_path / "run" / "config.json").write_text("{}")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "cannot be locked ([Errno 37] No locks available): make sure that no other training is started" in err


@pytest.mark.parametrize(("kind", "error"), [(0, None), (1, RunFault), (2, WorkdirError)])
def test_the_other_processes_of_a_run_do_as_the_first(tmp_path, monkeypatch, kind, error):
    """They take no lock of their own, and end with the exit code of the first one."""
    monkeypatch.setattr(workdirs.processes, "is_primary", lambda: False)
    monkeypatch.setattr(workdirs.processes, "largest", lambda value: max(value, kind))
    with workdirs.locked(tmp_path / "run") if error is None else pytest.raises(error, match="process 0 cannot use"):
        if error is not None:
            with workdirs.locked(tmp_path / "run"):
                pass
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_got_nothing_is_removed_again(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with workdirs.locked(tmp_path / name):
            pass
    with workdirs.locked(tmp_path / "moved"):
        (tmp_path / "moved").rename(tmp_path / "away")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "mine"]


@pytest.mark.parametrize("name", ["checkpoints", "averages", "plots", "metrics.jsonl", "config.json"])
def test_a_file_in_the_place_of_a_folder_is_found_before_compiling(flowjax, tmp_path, nothing_is_built, name):
    if "." in name:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    code, result, err = flowjax("train", *TINY, f"--workdir={tmp_path}")
    assert (code, result) == (1, None)
    assert err.count("\n") == 1
    assert name in err


def test_a_full_disk_is_found_before_compiling(flowjax, tmp_path, nothing_is_built, monkeypatch):
    def full(dir):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    code, _, err = flowjax("train", *TINY, f"--workdir={tmp_path}/run")
    assert (code, err) == (1, f"flowjax: train: cannot write to {tmp_path}/run: No space left on device\n")
    code, _, err = flowjax("train", *TINY, "--workdir=/proc/run")
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot write to /proc/run" in err


def test_what_a_kill_has_left_is_cleared_away_by_the_next_training(flowjax, tiny_run, tmp_path):
    """Step 120 has lost a file, and 99999 is an empty folder: no command lists them, and training goes on from 80."""
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    (workdir / "checkpoints" / "99999").mkdir()
    (workdir / "checkpoints" / "120" / "_CHECKPOINT_METADATA").unlink()
    (workdir / "averages").mkdir()
    for name in ("averages/.000000040-0.1.npz.17.part", ".metrics.jsonl.17.part", ".mine.npz.17.part"):
        (workdir / name).write_text("")
    code, _, err = flowjax("sample", f"--workdir={workdir}", "--checkpoint=99999", "--num=2", f"--out={tmp_path}/a.npz")
    assert (code, err.splitlines()[-1].endswith("there are 40, 80, last, best")) == (2, True)
    code, result, err = flowjax("train", *TINY, f"--workdir={workdir}")
    assert (code, result["step"], result["status"]) == (0, 120, "finished")
    assert f"resuming {workdir} at step 80" in err
    assert "99999, which held no arrays, has been removed" in err
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["120", "40", "80"]
    assert [p.name[:4] for p in (workdir / "set_aside").iterdir()] == ["120-"]
    assert list((workdir / "averages").iterdir()) == []
    assert sorted(p.name for p in workdir.glob(".*")) == [".lock", ".mine.npz.17.part"]


def test_a_run_whose_data_were_moved_goes_on_with_them(tiny_run, tmp_path):
    """The stored path is gone, as after a move of the whole project; where it is still there, another path means other
    data."""
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    record = json.loads((workdir / "config.json").read_text())
    was, now = tmp_path / "was.npz", tmp_path / "now.npz"
    record["config"]["data"]["path"] = str(was)
    del record["crc32"]
    (workdir / "config.json").write_text(json.dumps(record))
    config = changed(resolve(record["config"]), {"data.path": str(now)})
    step = lambda: runs._resume_step(config, workdir, Checkpoints(workdir / "checkpoints"), "last")
    assert step() == 120
    was.touch()
    with pytest.raises(ConfigError, match=r"another config: data\.path is"):
        step()


def test_a_finished_run_is_cleared_of_leftovers_too(flowjax, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    (workdir / "checkpoints" / "99999").mkdir()
    code, result, err = flowjax("train", *TINY, f"--workdir={workdir}")
    assert (code, result["status"], result["step"]) == (0, "already_finished", 120)
    assert not (workdir / "checkpoints" / "99999").exists()
    assert "checkpoints/99999, which held no arrays, has been removed" in err
