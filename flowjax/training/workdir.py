"""The workdir of a run: reads and writes `config.json`, and locks the workdir against a second training.

Taking the lock also checks that files can be written in the workdir, before anything is compiled.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax

from flowjax.config import Config
from flowjax.data import DataError, DataSpec
from flowjax.errors import RunFault
from flowjax.files import written
from flowjax.training import processes, snapshots
from flowjax.training.writers import disk_problem, say, warn_once

__all__ = [
    "FORMAT",
    "LOCK",
    "NO_FORMAT",
    "WorkdirError",
    "locked",
    "package_versions",
    "read_config",
    "read_environment",
    "read_size",
    "read_streamed",
    "write_config",
]

LOCK = ".lock"
"""The lock file in the workdir. It is not removed: only the lock on it counts, which the operating system releases."""

_FOLDERS = ("checkpoints", snapshots.FOLDER, "plots", "set_aside")
_FILES = ("config.json", "metrics.jsonl")

_PACKAGES = ("flowjax-research", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
_CHECKSUM = "crc32"  # a key of config.json


class WorkdirError(ValueError):
    """A folder is not the workdir of a run, or cannot be used. The message is one line."""


FORMAT = 1
"""The format of `config.json` and of the metadata of exported weights. Files with another format are refused."""

NO_FORMAT = f"its format is not {FORMAT}; train it again, or use the version that wrote it"
"""The end of the error message for a file with another format."""


def write_config(workdir: Path, config: Config, spec: DataSpec, size: dict[str, Any], streamed: bool) -> None:
    """Writes `config.json`: the resolved config, the data spec, the size, versions, the git commit and the devices.

    Args:
        workdir: the workdir, which must exist.
        config: the resolved config.
        spec: the data spec, which sampling needs.
        size: `parameters` and `flops_per_step`.
        streamed: whether the data set is streamed.
    """
    record = {
        "format": FORMAT,
        "config": config.to_dict(),
        "data": spec.to_record() | {"streamed": streamed},
        "size": size,
        "versions": {"python": sys.version.split()[0]} | package_versions(),
        "git_commit": _git_commit(),
        "devices": [d.device_kind for d in jax.devices()],
    }
    record = json.loads(json.dumps(record))
    with written(workdir / "config.json") as part:
        part.write_text(json.dumps(record | {_CHECKSUM: _crc(record)}, indent=2) + "\n")


def read_config(workdir: Path) -> tuple[dict[str, Any], DataSpec]:
    """Reads the config, which is not checked here, and the data spec. Warns if the file was edited or damaged.

    Raises:
        WorkdirError: if it is not the workdir of a run, or its `config.json` cannot be read.
    """
    record = _read_record(workdir)
    if record.get("format") != FORMAT and all(isinstance(record.get(key), dict) for key in ("config", "data")):
        raise WorkdirError(f"{workdir} was written by another version of flowjax: {NO_FORMAT}")
    if _CHECKSUM in record and record.pop(_CHECKSUM) != _crc(record):
        warn_once(f"{workdir}/config.json has been edited or damaged since it was written: its checksum differs")
    try:
        config, spec = record["config"], DataSpec.from_record(record["data"])
    except (KeyError, DataError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise WorkdirError(f"{workdir}/config.json cannot be read: {reason}") from None
    if not isinstance(config, dict):
        raise WorkdirError(f"{workdir}/config.json cannot be read: 'config' must be a JSON object")
    return config, spec


def read_streamed(workdir: Path) -> bool | None:
    """Whether the data of the run were streamed; None if `config.json` has no such entry."""
    data = _read_record(workdir).get("data")
    return data.get("streamed") if isinstance(data, dict) else None


def read_size(workdir: Path) -> dict[str, Any]:
    """The size that was passed to `write_config`; an empty dictionary if `config.json` has none."""
    size = _read_record(workdir).get("size")
    return size if isinstance(size, dict) else {}


def read_environment(workdir: Path) -> dict[str, Any]:
    """Where a run was trained: `versions` by package, the `git_commit` of flowjax and the kinds of `devices`.

    What `config.json` does not say is an empty dictionary, None or an empty list.
    """
    record = _read_record(workdir)
    versions, devices = record.get("versions"), record.get("devices")
    return {
        "versions": versions if isinstance(versions, dict) else {},
        "git_commit": record.get("git_commit"),
        "devices": devices if isinstance(devices, list) else [],
    }


def _read_record(workdir: Path) -> dict[str, Any]:
    """The JSON object in `config.json`, with unchecked entries; raises WorkdirError if the file does not hold one."""
    try:
        record = json.loads((workdir / "config.json").read_bytes())
    except FileNotFoundError:
        raise WorkdirError(f"{workdir} is not the workdir of a run: it has no config.json") from None
    except NotADirectoryError:
        hint = "; files of weights are for Python: flowjax.interop.open_weights" * (workdir.suffix == ".safetensors")
        raise WorkdirError(f"{workdir} is a file, not the workdir of a run{hint}") from None
    except OSError as error:
        raise WorkdirError(f"{workdir}/config.json cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{workdir}/config.json cannot be read: it is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise WorkdirError(f"{workdir}/config.json cannot be read: it is not a JSON object")
    return record


def _crc(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def package_versions() -> dict[str, str | None]:
    """The versions of flowjax and of the packages on which its numbers depend; None for one that is not installed."""
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a workdir against other trainings until the context ends or the process dies.

    All processes of a run call it, and the first one holds the lock. The folder is created if it does not exist, and
    removed at the end if it was created here and is still empty.

    Raises:
        WorkdirError: if another process trains in the workdir.
        RunFault: if files cannot be written in it.
    """
    made, lock, fault = not workdir.exists(), None, None
    try:
        if processes.is_primary():
            try:
                lock = _acquire(workdir)
                _probe(workdir)
            except (WorkdirError, RunFault) as error:
                fault = error
        if kind := processes.largest(0 if fault is None else 1 + isinstance(fault, WorkdirError)):
            raise fault or (RunFault, WorkdirError)[kind - 1](f"process 0 cannot use {workdir}, and reports the reason")
        yield
    finally:
        if lock is not None:
            with lock, contextlib.suppress(OSError):  # the folder may have been moved away meanwhile
                if made and os.listdir(workdir) == [LOCK]:
                    (workdir / LOCK).unlink()
                    workdir.rmdir()


def _acquire(workdir: Path) -> IO[str]:
    """Opens and locks the lock file, and writes the process and host into it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a+")
    except OSError as error:
        raise RunFault(f"cannot write to {workdir}: {disk_problem(error)}") from None
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = " ".join(lock.read(200).split()) or "another process"
        lock.close()
        raise WorkdirError(
            f"{workdir} is in use: {owner} trains in it; wait until it ends, or choose another --workdir"
        ) from None
    except (ImportError, OSError) as error:  # Windows; some network file systems
        say(
            f"train: warning: {workdir} cannot be locked ({error}): make sure that no other training is started in it "
            "while this one runs"
        )
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            lock.close()
        raise RunFault(f"cannot write to {workdir}: {disk_problem(error)}") from None
    return lock


def _probe(workdir: Path) -> None:
    """Raises RunFault unless files can be written in the workdir and in its existing folders."""
    for name in _FILES:
        if (workdir / name).is_dir():
            raise RunFault(f"cannot write to {workdir}: {name} is a folder there; move it away")
    for folder in (workdir, *(workdir / name for name in _FOLDERS)):
        if not os.path.lexists(folder):
            continue
        if not folder.is_dir():
            raise RunFault(f"cannot write to {workdir}: {folder.name} is not a folder there; move it away")
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise RunFault(f"cannot write to {folder}: {disk_problem(error)}") from None
