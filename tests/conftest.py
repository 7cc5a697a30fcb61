"""Run-time shape and type checks for all of flowjax, and one tiny trained run that many tests share."""

import gc
import json
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are kept from run to run, and shared by the workers: most of the time is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""Flags of XLA for tests, whose programs are compiled more often than run: compilation takes a third of the time."""

if version("jaxlib").startswith("0.10."):
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"  # XLA of later versions ends at this flag as unknown
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("flowjax", "beartype.beartype")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("flowjax", max_examples=15, deadline=None)
settings.load_profile("flowjax")

TINY = [
    "--config=gaussians8",
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.train.steps=120",
    "--config.train.batch_size=64",
    "--config.train.log_every=40",
    "--config.train.save_every=40",
]


def simulated(devices: int) -> str:
    """The value of XLA_FLAGS for a process with simulated devices."""
    return f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}"


TIMES = {"samples_per_second", "mfu", "device_gib", "checkpoint_seconds", "stall_seconds", "time"}
"""Fields of a record of `metrics.jsonl` that depend on the clock and on the machine."""


def reproducible_records(workdir: Path) -> list[str]:
    """The other fields of all records, as text: equal numbers have equal digits."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.dumps({k: v for k, v in json.loads(line).items() if k not in TIMES}) for line in lines]


def pytest_addoption(parser):
    parser.addoption("--part", default="1/1", help="K/N runs the K-th of N parts: every N-th test of each file")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Keeps the tests of `--part`, after the selection by -m and -k."""
    part, parts = map(int, config.getoption("--part").split("/"))
    seen, kept, left = {}, [], []
    for item in items:
        i = seen[item.path] = seen.get(item.path, -1) + 1
        (kept if (i - part) % parts == 0 else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    """Collects garbage before a worker of pytest-xdist reports its end: 5 s after that it is interrupted.

    pytest itself collects twice at its very end, which takes seconds where JAX has traced much: an interrupt then comes
    as a traceback out of JAX's callback of the collector. `gc.freeze` leaves nothing to do for it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def flowjax(capsys):
    """`flowjax(*argv) -> (exit code, the JSON line or None, stderr)`: the command line, in this process."""
    from flowjax.cli.main import main

    def call(*argv):
        capsys.readouterr()
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert len(lines) <= 1 or "--help" in argv, f"stdout must hold one line: {out!r}"
        return code, json.loads(lines[0]) if lines and "--help" not in argv else out or None, err

    return call


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The workdir of a finished tiny run on 8 Gaussians; tests must not write into it."""
    from flowjax.cli.main import main

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["train", *TINY, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def as_users_call():
    """Without the run-time shape checks, which would refuse a bad call before the code's own message does."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
