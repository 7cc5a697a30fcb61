"""Where compiled programs are kept: the flag, the variable, the defaults of CPU and GPU."""

import os
import subprocess
import sys

import jax
import pytest

from flowjax.cli import cache
from flowjax.cli.flags import UsageError


@pytest.fixture
def told(monkeypatch):
    """What JAX is told, without telling it."""
    settings = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    return settings


def test_a_folder_that_is_named_is_used(tmp_path, told):
    assert cache.use(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert told["jax_compilation_cache_dir"] == str(tmp_path / "a" / "b")


def test_by_default_each_kind_of_cpu_has_its_own_folder(tmp_path, told, monkeypatch):
    """A program for one CPU may contain instructions that another CPU does not have."""
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    lines = "processor\t: 0\nmodel name\t: A\ncpu MHz\t: {}\nflags\t\t: fpu {}\n\n"
    folders = []
    for mhz, flag in ((2000, "avx2"), (2100, "avx2"), (2000, "avx512f")):
        (tmp_path / "cpuinfo").write_text(lines.format(mhz, flag))
        monkeypatch.setattr(cache, "_CPUINFO", tmp_path / "cpuinfo")
        folders.append(cache.use(None))
        assert told["jax_compilation_cache_dir"] == str(folders[-1])
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.parent == tmp_path / "xla" for folder in folders)
    told.clear()
    monkeypatch.setattr(cache, "_CPUINFO", tmp_path / "none")
    assert cache.use(None) is None
    assert not told


def test_on_a_gpu_there_is_one_by_default(tmp_path, told, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cache.use(None) == tmp_path / "xla"
    assert told["jax_compilation_cache_dir"] == str(tmp_path / "xla")


def test_an_empty_name_and_the_variable_of_jax_leave_it_alone(tmp_path, told, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cache.use("") is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert cache.use(None) is None
    assert cache.use(str(tmp_path / "other")) is None
    assert not told


def test_a_folder_that_cannot_be_made(tmp_path, told, monkeypatch):
    """Asked for, it is a usage error; by default there is none then."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--compilation_cache .*: Not a directory"):
        cache.use(str(tmp_path / "file" / "xla"))
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cache.use(None) is None
    assert not told


@pytest.mark.slow
def test_files_appear_and_are_taken(tiny_run, tmp_path):
    """Two processes: the second adds none, as it finds all that it compiles."""
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}  # the tests' own
    argv = [f"--workdir={tiny_run}", "--num=8", "--steps=2", f"--out={tmp_path}/s.npz"]
    found = []
    for _ in range(2):
        command = [sys.executable, "-m", "flowjax", "sample", *argv, f"--compilation_cache={tmp_path}/xla"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(sorted(p.name for p in (tmp_path / "xla").glob("*-cache")))
    assert found[0]
    assert found[0] == found[1]
