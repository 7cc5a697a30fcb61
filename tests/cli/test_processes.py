"""Whole processes: start-up time's causes, clean stdout, and kills at arbitrary moments."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import TINY, reproducible_records

LONGER = [*TINY, "--config.train.steps=3000", "--config.train.log_every=200", "--config.train.save_every=200"]


def start(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "flowjax", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def final_parameters(workdir):
    import jax

    from flowjax import load

    return [np.asarray(a) for a in jax.tree.leaves(load(workdir, ema=False).params)]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = start("train", *LONGER, f"--workdir={workdir}")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert len(out.splitlines()) == 1
    return workdir, json.loads(out)


def kill_and_resume(workdir, number, seed):
    """Kills the run at a random moment after its first checkpoint, then lets the same command finish."""
    process = start("train", *LONGER, f"--workdir={workdir}")
    deadline = time.time() + 120
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")) and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0.0, 0.5))
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    code = process.returncode
    again = start("train", *LONGER, f"--workdir={workdir}")
    out, err2 = again.communicate(timeout=300)
    assert again.returncode == 0, err2
    return code, err, json.loads(out)


@pytest.mark.parametrize(
    ("number", "seed"),
    [(signal.SIGKILL, 0)]
    + [
        pytest.param(*at, marks=pytest.mark.slow)
        for at in ((signal.SIGTERM, 0), (signal.SIGKILL, 1), (signal.SIGTERM, 1))
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(never_stopped, tmp_path, number, seed):
    workdir, whole = never_stopped
    code, err, result = kill_and_resume(tmp_path / "run", number, seed)
    if number == signal.SIGTERM:
        assert code in (143, 0), err  # 0 if it had finished before the signal
        if code == 143:
            assert "stopped by SIGTERM at step" in err.splitlines()[-1]
    assert result["step"] == whole["step"]
    for a, b in zip(final_parameters(tmp_path / "run"), final_parameters(workdir), strict=True):
        np.testing.assert_array_equal(a, b)
    records = reproducible_records(tmp_path / "run")
    assert [json.loads(record)["step"] for record in records] == list(range(200, 3001, 200))
    assert records == reproducible_records(workdir)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path):
    """It saves and prunes all the time, so that most kills come in the middle of that; every fifth one at the start."""
    command = [*TINY, "--config.train.steps=4000", "--config.train.log_every=100", "--config.train.save_every=20"]
    command += ["--config.train.keep_last=2", "--config.ema.widths=(0.1,)", "--config.ema.snapshots=200"]
    moments, kills = random.Random(0), 0
    while kills < 20:
        checkpoints = tmp_path / "killed" / "checkpoints"
        before = {path.name for path in checkpoints.glob("*")}
        process = start("train", *command, f"--workdir={tmp_path}/killed")
        if kills % 5 == 4:
            time.sleep(moments.uniform(0.0, 5.0))
        else:
            while process.poll() is None and {path.name for path in checkpoints.glob("*")} <= before:
                time.sleep(0.005)
            time.sleep(moments.uniform(0.0, 0.4))
        process.kill()
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
        kills += 1
    for name in ("killed", "whole"):
        process = start("train", *command, f"--workdir={tmp_path}/{name}")
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    a, b = tmp_path / "killed", tmp_path / "whole"
    for x, y in zip(final_parameters(a), final_parameters(b), strict=True):
        np.testing.assert_array_equal(x, y)
    for pattern in ("checkpoints/*", "averages/*", "averages/.*"):
        assert {path.name for path in a.glob(pattern)} == {path.name for path in b.glob(pattern)}
    for path in (b / "averages").iterdir():
        assert (a / "averages" / path.name).read_bytes() == path.read_bytes()
    assert reproducible_records(a) == reproducible_records(b)


@pytest.mark.parametrize("argv", [["--help"], ["configs"], ["train", "--help"], ["sample", "--workdir=x"]])
def test_light_commands_import_nothing_heavy(argv):
    """What makes them start in well under a second: neither JAX nor NumPy is imported."""
    script = (
        "import sys; from flowjax.cli.main import main; main(sys.argv[1:]); "
        "heavy = {'jax', 'numpy', 'matplotlib', 'tensorflow'} & set(sys.modules); sys.exit(bool(heavy) * 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_nothing_but_the_result_reaches_stdout():
    """Native code, child processes and `print` write to file descriptor 1: all of that goes to stderr."""
    script = (
        "import os, sys, subprocess; from flowjax.cli import configs, main; run = configs.run; "
        "configs.run = lambda argv: (os.write(1, b'native\\n'), subprocess.run(['echo', 'child']), "
        "print('python'), run(argv))[-1]; main.entry()"
    )
    done = subprocess.run([sys.executable, "-c", script, "configs"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "gaussians8" in json.dumps(json.loads(done.stdout))
    assert {"native", "child", "python"} <= set(done.stderr.split())


def test_importing_flowjax_is_cheap():
    script = (
        "import sys, flowjax; assert 'jax' not in sys.modules; flowjax.schedules.CondOT(); assert 'jax' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_a_full_disk_is_one_line_and_exit_1(tmp_path):
    """A file size limit stands in for the disk: the error comes from the real write calls of the checkpoint.

    The limit of 8 KiB lets the small files pass that are written before anything is compiled. Orbax's threads log no
    traceback before the line.
    """
    flags = " ".join([*TINY, "--config.model.width=512", f"--workdir={tmp_path}/run"])
    script = f"ulimit -f 8; exec {sys.executable} -m flowjax train {flags}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        # no compiled program is kept: the limit would cut it short, and other processes read it too
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"},
    )
    assert done.returncode == 1, (done.returncode, done.stderr[-3000:])
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("flowjax: ")]
    assert "cannot write to" in line
    assert "what was saved is kept" in line  # training had begun
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
