"""Several processes that train as one, on this machine: two of two CPU devices each, over gloo."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flowjax.errors import ConfigError
from flowjax.training import heartbeat
from flowjax.training import processes as training_processes
from tests.conftest import simulated

LIMIT = 6
"""Seconds without a heartbeat after which a process counts as gone."""


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def spawn(devices, *argv, cwd=None):
    """Python with these arguments, in a process with that many CPU devices."""
    env = os.environ | {
        "XLA_FLAGS": simulated(devices),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *argv], env=env, cwd=cwd, text=True, **pipes)


def two(devices, *argv, cwds=(None, None)):
    """The same in two processes that work as one."""
    flags = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", f"--heartbeat_timeout={LIMIT}"]
    return [spawn(devices, *argv, *flags, f"--process_id={i}", cwd=cwd) for i, cwd in enumerate(cwds)]


def start(workdir, devices, steps, *more):
    """A training command in a process with that many CPU devices."""
    command = ["-m", "flowjax", "train", "--config", "gaussians8", "--workdir", str(workdir)]
    cadence = [f"--config.train.{key}=50" for key in ("log_every", "save_every")]
    own = ["--config.train.batch_size=64", "--config.train.warmup=0.0", "--config.model.width=16"]
    command += [f"--config.train.steps={steps}", *cadence, *own, *more]
    return spawn(devices, *command)


def pair(workdir, steps, *more, second=()):
    """Two processes of two devices each."""
    address = f"--coordinator_address=localhost:{free_port()}"
    told = lambda i: [address, "--num_processes=2", f"--process_id={i}", f"--heartbeat_timeout={LIMIT}"]
    return [start(workdir, 2, steps, *told(i), *more, *(second if i else ())) for i in range(2)]


def wait_for(path: Path, processes, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert all(p.poll() is None for p in processes), [p.communicate() for p in processes if p.poll() is not None]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def ended(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: (r["loss"], r["val_loss"]) for r in records}


@pytest.fixture
def processes():
    """Whatever is started is stopped."""
    started = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_two_processes_train_lose_one_and_go_on_elsewhere(tmp_path, processes):
    """SIGTERM to one saves on both at one step; SIGKILL of one ends the other in time, naming it.

    The run then goes on in one process of 4 devices, and a copy of it on 1: the same losses but for the order of sums.
    """
    workdir = tmp_path / "run"
    processes += pair(workdir, 1_000_000)
    wait_for(workdir / "checkpoints" / "50", processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, _, errors = zip(*map(ended, processes), strict=True)
    assert codes == (143, 143), errors
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert f"flowjax: train: stopped by SIGTERM at step {saved}, saved" in errors[0], errors
    assert "flowjax" not in errors[1]  # told once

    processes[:] = pair(workdir, 1_000_000)
    wait_for(workdir / "checkpoints" / str((saved // 50 + 2) * 50), processes)
    processes[1].kill()
    began = time.monotonic()
    code, out, error = ended(processes[0], 2 * LIMIT + 10)
    assert code == 70
    assert out == ""
    assert "process 1 of 2 has sent no heartbeat for 6 s: it is gone" in error
    assert time.monotonic() - began < 2 * LIMIT + 5
    processes[1].communicate()

    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    end = (last // 50 + 2) * 50
    processes[:] = [start(workdir, 4, end), start(copy, 1, end)]
    for process in processes:
        code, out, error = ended(process, 240)
        assert code == 0, error
        assert json.loads(out)["step"] == end
    four, one = losses(workdir), losses(copy)
    assert sorted(four) == sorted(one) == list(range(50, end + 1, 50))
    np.testing.assert_allclose(list(four.values()), list(one.values()), rtol=1e-4)


@pytest.mark.slow
def test_the_loss_of_the_first_process_ends_the_others(tmp_path, processes):
    """It keeps the store of the heartbeats: the others end by JAX's own hand, or by ours."""
    workdir = tmp_path / "run"
    processes += pair(workdir, 1_000_000)
    wait_for(workdir / "checkpoints" / "50", processes)
    processes[0].kill()
    code, out, error = ended(processes[1], 2 * LIMIT + 10)
    assert code in (heartbeat.LOST, -signal.SIGABRT)
    assert out == ""
    assert "another task died" in error or "process 0 of 2 has sent no heartbeat" in error


@pytest.mark.slow
def test_processes_read_their_own_rows_of_a_streamed_set(tmp_path, processes, monkeypatch):
    """Two processes, and one with a single device that reads by worker processes: the same losses."""
    monkeypatch.setenv("FLOWJAX_RESIDENT_BYTES", "0")
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x)
    data = ["--config.data.name=npz", f"--config.data.path={tmp_path / 'a.npz'}"]
    processes += [
        *pair(tmp_path / "two", 100, *data),
        start(tmp_path / "one", 1, 100, *data, "--config.data.workers=2"),
    ]
    for process in processes:
        code, _, error = ended(process)
        assert code == 0, error
        assert "leaked" not in error
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert sorted(two) == [50, 100]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_sample_and_score_as_one(tiny_run, tmp_path, processes):
    """Samples, log-densities and metrics are those of one process; the first one alone writes and speaks."""
    points = tmp_path / "x.npz"
    np.savez(points, x=np.random.default_rng(0).normal(size=(31, 2)).astype(np.float32))
    run, of = ["-m", "flowjax"], f"--workdir={tiny_run}"
    commands = {
        "samples": ["sample", of, "--num=101", "--solver=heun", "--steps=3", "--batch=16"],
        "log_prob": ["likelihood", of, f"--data={points}", "--batch=16", "--rtol=1e-4", "--atol=1e-4"],
    }
    for key, command in commands.items():
        together, alone = tmp_path / f"{key}2.npz", tmp_path / f"{key}1.npz"
        processes[:] = [*two(2, *run, *command, f"--out={together}"), spawn(1, *run, *command, f"--out={alone}")]
        (code, out, err), (_, silent, _), (_, known, _) = map(ended, processes)
        assert code == 0, err
        assert silent == ""
        assert json.loads(out)["num"] == json.loads(known)["num"]
        # adaptive steps are chosen by rounded errors: as far apart as the tolerance lets them
        np.testing.assert_allclose(np.load(together)[key], np.load(alone)[key], rtol=1e-3, atol=1e-3)
    theirs = tmp_path / "told.npz.parts.1of2"
    theirs.mkdir()
    (theirs / "mine").touch()
    processes[:] = two(2, *run, *commands["samples"], f"--out={tmp_path / 'told.npz'}")
    code, _, err = ended(processes[1])
    assert code == 2
    assert f"process 1 of 2: sample: {theirs} holds other files" in err
    code, _, err = ended(processes[0])
    assert code == heartbeat.LOST, err
    assert "process 1 of 2 has ended with exit code 2" in err
    for folder in tmp_path.glob("told*"):
        shutil.rmtree(folder)
    left = {"x.npz", *(f"{key}{n}.npz" for key in commands for n in (1, 2))}
    assert {p.name for p in tmp_path.iterdir()} == left  # no finished batches beside
    processes[:] = two(2, *run, "evaluate", of)
    (code, out, err), (_, silent, quiet) = map(ended, processes)
    assert code == 0, err
    assert "nll" in json.loads(out)
    assert silent == ""
    assert "evaluate" not in quiet


COMMANDS = """
import json, sys
from flowjax.cli.main import main
from flowjax.training import processes

address, i = sys.argv[2].partition("=")[2], int(sys.argv[5][-1])
processes.start(address, 2, i, 6)
for command in json.loads(sys.argv[1]):
    assert main(command) == 0
"""


@pytest.mark.slow
def test_two_processes_encode_decode_and_bound_as_one(flowjax, tmp_path, processes):
    """Labelled integers: 11 rows are 5 and 6 for the processes, in batches of 4. Noise and conditions of a wrong row
    would change values by about 1. Each row has the same operations in both, whose float32 sums may differ in their
    order: about 100 roundings of 6e-8 along the solve are 6e-6."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 8, (200, 2)), rng.integers(0, 2, 200)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "x.npz", x=x[:11], y=y[:11])
    of = f"--workdir={tmp_path / 'run'}"
    keys = {"data.name": "npz", "data.path": tmp_path / "a.npz", "data.cond": "label", "data.dequantisation": "none"}
    keys |= {"train.steps": 60, "train.batch_size": 64, "model.width": 16, "path.name": "gaussian"}
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    assert flowjax("train", "--config=gaussians8", of, *given)[0] == 0
    points, solver = f"--data={tmp_path / 'x.npz'}", ["--solver=heun", "--steps=3"]
    commands = {
        "z": ["encode", of, points, *solver],
        "samples": ["decode", of, f"--data={tmp_path / 'z1.npz'}", *solver],
        "bound": ["likelihood", of, points, "--bound=vdm(3)"],
        "draws": ["likelihood", of, points, "--importance_samples=2", "--check=0", *solver],
    }
    of_files = lambda n: [[*argv, "--batch=4", f"--out={tmp_path / f'{key}{n}.npz'}"] for key, argv in commands.items()]
    alone = [flowjax(*argv) for argv in of_files(1)]
    assert [code for code, _, _ in alone] == [0] * 4, alone
    processes += two(1, "-c", COMMANDS, json.dumps(of_files(2)))
    results = [ended(process) for process in processes]
    assert [code for code, _, _ in results] == [0, 0], results
    first, second = ([line for line in out.splitlines() if line.startswith("{")] for _, out, _ in results)  # not gloo's
    assert second == []
    for line, (_, known, _) in zip(map(json.loads, first), alone, strict=True):
        assert {key: line[key] for key in ("num", "nfe")} == {key: known[key] for key in ("num", "nfe")}
    for key in commands:
        together, one = (np.load(tmp_path / f"{key}{n}.npz") for n in (2, 1))
        assert sorted(together.files) == sorted(one.files)
        for name in one.files:
            np.testing.assert_allclose(together[name], one[name], rtol=6e-6, atol=6e-6, err_msg=f"{key}: {name}")
    assert not list(tmp_path.glob("*.parts*"))


GATHER = """
import os, pathlib, sys, time
import numpy as np
from flowjax.metrics.moments import Moments
from flowjax.training import processes

address, i = sys.argv[1].partition("=")[2], int(sys.argv[4][-1])
processes.start(address, 2, i, 6)
rows = np.random.default_rng(0).normal(1e6, 1.0, (11, 3))  # float32 would keep two digits
own = processes.share(11)
assert own.stop - own.start == 5 + i
np.testing.assert_array_equal(processes.gathered(rows[own]), rows)
whole, over = Moments.of(rows), Moments.of(rows[own]).over(processes.gathered)
assert over.count == 11
np.testing.assert_allclose(over.mean, whole.mean, rtol=1e-15)
np.testing.assert_allclose(over.cov, whole.cov, rtol=1e-9)
shared = pathlib.Path(os.environ["SHARED"]) / "made"
if i == 0:
    processes.primary_first(lambda: (time.sleep(1), shared.touch()))
else:
    assert processes.primary_first(shared.exists)
processes._CHUNK = 7
np.testing.assert_array_equal(processes.gathered(rows[own]), rows)
"""


@pytest.mark.slow
def test_rows_and_moments_of_all_processes(processes, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED", str(tmp_path))
    processes += two(1, "-c", GATHER)
    for process in processes:
        code, _, error = ended(process)
        assert code == 0, error


def test_processes_that_disagree_are_told_before_compiling(tmp_path, processes):
    processes += pair(tmp_path / "run", 100, second=["--config.train.lr=0.1"])
    (code0, _, error0), (code1, _, error1) = map(ended, processes)
    assert (code0, code1) == (2, 2), error0 + error1
    line = (
        "flowjax: train: process 1 has another config than process 0: train.lr is 0.1 there and 0.004 here; "
        "start all of them with the same\n"
    )
    assert line in error0
    assert "flowjax" not in error1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_other_data_under_one_name_are_told(tmp_path, processes):
    """Rows in memory are taken for one array by all: it would be another on each."""
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        np.savez(tmp_path / str(i) / "a.npz", x=np.random.default_rng(i).choice([-1.0, 1.0], (400, 2)))
    data = ["--config.data.name=npz", "--config.data.path=a.npz", f"--workdir={tmp_path / 'run'}"]
    processes += two(1, "-m", "flowjax", "train", "--config=gaussians8", *data, cwds=(tmp_path / "0", tmp_path / "1"))
    (code0, _, error0), (code1, _, error1) = map(ended, processes)
    assert (code0, code1) == (2, 2), error0 + error1
    assert "flowjax: train: process 1 has another data set than process 0: " in error0
    assert "flowjax" not in error1
    assert not (tmp_path / "run" / "config.json").exists()


SIGNALLED = """
import signal, sys
from flowjax.cli.main import entry
from flowjax.training import processes

check = processes.check_shared
terminated = sys.argv.pop(1)

def checked(folder):
    if f"--process_id={terminated}" in sys.argv:
        signal.raise_signal(signal.SIGTERM)
    check(folder)

processes.check_shared = checked
entry()
"""


@pytest.mark.slow
@pytest.mark.parametrize("terminated", [0, 1])
def test_sigterm_of_one_process_before_training_ends_both(terminated, tmp_path, processes):
    """The other one is in a collective that fails: that is the loss of a process, and not an error of the other."""
    run = ["-c", SIGNALLED, str(terminated), "train", "--config=gaussians8", f"--workdir={tmp_path / 'run'}"]
    processes += two(1, *run)
    results = [ended(process) for process in processes]
    assert results[terminated][0] == 143, results
    code, out, err = results[1 - terminated]
    assert code == heartbeat.LOST, results
    assert out == ""
    assert f"process {terminated} of 2 has " in err
    assert "start all of them again" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_process_that_waits_in_vain_ends_in_one_line(tmp_path, processes):
    """Nobody is at the coordinator's address. Standard output stays empty, whatever native code prints."""
    address = f"localhost:{free_port()}"
    where = [f"--coordinator_address={address}", "--num_processes=2", "--process_id=1", "--initialization_timeout=1"]
    processes.append(spawn(1, "-m", "flowjax", "train", "--config=gaussians8", f"--workdir={tmp_path / 'run'}", *where))
    code, out, err = ended(processes[0])
    assert code == heartbeat.LOST
    assert out == ""
    [line] = [line for line in err.splitlines() if line]
    assert f"could not reach process 0 at {address} within 1 s" in line


def test_an_address_that_cannot_be_used_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of this machine cannot be used .*in use"):
            training_processes.start(f"localhost:{port}", 2, 0, 6)
    for host in ("nowhere.invalid", "..", "x" * 100):
        with pytest.raises(ConfigError, match=f"the host {re.escape(repr(host))} cannot be found"):
            training_processes.start(f"{host}:1", 2, 1, 6)


STEP = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}


def test_where_processes_find_each_other():
    assert training_processes.in_a_cluster(STEP)
    assert not training_processes.in_a_cluster({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"})  # a command beside a step
    assert not training_processes.in_a_cluster(STEP | {"SLURM_STEP_NUM_TASKS": "1"})
    assert training_processes.in_a_cluster({"TPU_WORKER_HOSTNAMES": "a,b"})
    assert not training_processes.in_a_cluster({"TPU_WORKER_HOSTNAMES": "localhost"})
    assert training_processes.in_a_cluster({"FLOWJAX_DISTRIBUTED": "1"})
    assert not training_processes.in_a_cluster({})


def test_one_task_a_node_has_all_its_gpus():
    assert training_processes.slurm_gpus(STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == [0, 1, 2, 3]
    assert training_processes.slurm_gpus(STEP | {"SLURM_GPUS_ON_NODE": "8"}) == list(range(8))
    assert (
        training_processes.slurm_gpus(STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "4"}) is None
    )
    assert training_processes.slurm_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) is None


def test_a_process_can_be_told_that_it_is_alone(monkeypatch):
    monkeypatch.setattr(training_processes.jax.distributed, "initialize", lambda *a, **k: pytest.fail("it asked"))
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    training_processes.start(None, 1, None, 60)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_id=1"], "--process_id needs --coordinator_address too"),
        (["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"], "2 is not below --num_processes 2"),
        (["--coordinator_address=a", "--num_processes=2", "--process_id=1"], "'a' is not HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_told(flags, message, capsys):
    from flowjax.cli.main import main

    assert main(["train", "--config", "gaussians8", "--workdir", "unused", *flags]) == 2
    assert message in capsys.readouterr().err
