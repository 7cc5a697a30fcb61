"""The launchers' dry runs: what they would do is whole, quoted and valid."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "scripts" / "launch"
OWN = ["--config.train.lr=1e-4", "--config.mesh.rules=('kernel$ = -, tensor',)"]


def dry(name, *arguments, code=0, **env):
    done = subprocess.run(
        ["bash", LAUNCH / name, *arguments], capture_output=True, text=True, env=os.environ | env, timeout=30
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def words_of(shell, marker):
    """The words that a shell makes of the command after the marker."""
    text = shell.split(marker, 1)[1]
    done = subprocess.run(
        ["bash", "-c", f"python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))'{text}"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    return json.loads(done.stdout)


def test_slurm():
    job = dry("slurm.sh", "--dry_run", "2", "8", "12:00:00", "cifar10", "/shared/runs/c", *OWN, FLOWJAX_SETUP="true")
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=12:00:00", "--signal=TERM@120"):
        assert f"#SBATCH {line}\n" in job
    subprocess.run(["bash", "-n"], input=job, text=True, check=True)
    (inner,) = words_of(job.split(" || ", 1)[0], "bash -c")
    assert inner.startswith("true; exec ")
    assert words_of(inner, "exec") == ["flowjax", "train", "--config", "cifar10", "--workdir", "/shared/runs/c", *OWN]


def test_tpu_pod():
    line = dry("tpu_pod.sh", "--dry_run", "pod", "zone", "git+https://x.org/f", "cifar10", "/mnt/c", *OWN)
    command = ["gcloud", *words_of(line, "gcloud")]
    assert command[:9] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "zone", "--worker=all"]
    assert words_of(command[-1], "FLOWJAX_DISTRIBUTED=1 .flowjax/bin/flowjax") == [
        "train",
        "--config",
        "cifar10",
        "--workdir",
        "/mnt/c",
        *OWN,
    ]


def test_skypilot():
    yaml = pytest.importorskip("yaml")
    text = dry("skypilot.sh", "--dry_run", "2", "H200:8", "cifar10", "/bucket/c", *OWN, FLOWJAX_BUCKET="s3://mine")
    task = yaml.safe_load(text)
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H200:8")
    assert task["file_mounts"]["/bucket"] == {"source": "s3://mine", "mode": "MOUNT"}
    env = "SKYPILOT_NUM_NODES=2 SKYPILOT_NODE_RANK=1 SKYPILOT_NODE_IPS=$'a\\nb'\n"
    shown = "exec python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "
    script = env + task["run"].replace("exec ", shown)
    words = json.loads(subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout)
    assert words[1:] == [
        *["train", "--config", "cifar10", "--workdir", "/bucket/c", *OWN],
        *["--coordinator_address", "a:12345", "--num_processes", "2", "--process_id", "1"],
    ]
    assert "file_mounts" not in yaml.safe_load(dry("skypilot.sh", "--dry_run", "1", "H200:1", "cifar10", "/c"))


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_sweep.sh", "tpu_pod.sh", "skypilot.sh"])
def test_too_few_arguments_show_the_usage(name):
    assert f"scripts/launch/{name} [--dry_run]" in dry(name, "--dry_run", "1", code=2)


def test_slurm_sweep(monkeypatch):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    grid = ["train.lr=1e-4,3e-4", "seed=0..4", "--config.train.steps=10"]
    job = dry("slurm_sweep.sh", "--dry_run", "1", "2:00:00", "moons", "/shared/lr", *grid, PATH=path)
    assert "#SBATCH --array=0-9\n" in job
    subprocess.run(["bash", "-n"], input=job, text=True, check=True)
    (inner,) = words_of(job, "bash -c")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    words = ["flowjax", "sweep", "--config", "moons", "--workdir", "/shared/lr", "--grid", *grid, "--only", "7"]
    assert words_of(inner, "exec") == words


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("slurm.sh", ["2", "8", "12:00:00", "cifar10", "/c"]),
        ("tpu_pod.sh", ["pod", "zone", "source", "cifar10", "/c"]),
        ("skypilot.sh", ["1", "H200:1", "cifar10", "/bucket/c"]),
    ],
)
def test_a_dry_run_may_be_asked_for_anywhere(name, arguments):
    assert dry(name, *arguments, "--dry_run") == dry(name, "--dry_run", *arguments)
