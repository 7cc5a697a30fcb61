"""What a run leaves behind while it runs: `config.json`, `metrics.jsonl`, and progress on stderr."""

import json
import math
import os
import subprocess
import sys
import zlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from flowjax.config import Config
from flowjax.data import DataError, DataSpec
from flowjax.files import written
from flowjax.training import hosts

_PACKAGES = ("flowjax-research", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "diffrax", "numpy")
_CHECKSUM = "crc32"  # a key of config.json
_LOSSES = ("loss", "val_loss")


class WorkdirError(ValueError):
    """A folder that is not a run; one line."""


def write_config(workdir: Path, config: Config, spec: DataSpec, size: dict[str, Any], streamed: bool) -> None:
    """All resolved values, what the model must remember of its data, its size, versions, git commit and devices."""
    record = {
        "config": config.to_dict(),
        "data": spec.to_record() | {"streamed": streamed},
        "size": size,
        "versions": {"python": sys.version.split()[0]} | {p: _version(p) for p in _PACKAGES},
        "git_commit": _git_commit(),
        "devices": [d.device_kind for d in jax.devices()],
    }
    record = json.loads(json.dumps(record))
    with written(workdir / "config.json") as part:
        part.write_text(json.dumps(record | {_CHECKSUM: _crc(record)}, indent=2) + "\n")


def read_config(workdir: Path) -> tuple[dict[str, Any], DataSpec]:
    """The config, not yet checked, and the data spec of a workdir. Warns if the file was edited or damaged.

    Raises:
        WorkdirError: if it is not the workdir of a run, or its `config.json` cannot be read.
    """
    record = _read_record(workdir)
    if _CHECKSUM in record and record.pop(_CHECKSUM) != _crc(record):
        _warn(f"{workdir}/config.json has been edited or damaged since it was written: it does not fit its checksum")
    try:
        config, spec = record["config"], DataSpec.from_record(record["data"])
    except (KeyError, DataError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise WorkdirError(f"{workdir}/config.json cannot be read: {reason}") from None
    if not isinstance(config, dict):
        raise WorkdirError(f"{workdir}/config.json cannot be read: 'config' must be a JSON object")
    return config, spec


def read_streamed(workdir: Path) -> bool | None:
    """Whether the data of the run were streamed; None if `config.json` does not say so."""
    data = _read_record(workdir).get("data")
    return data.get("streamed") if isinstance(data, dict) else None


def read_size(workdir: Path) -> dict[str, Any]:
    """`parameters` and `flops_per_step`, as passed to `write_config`; empty if `config.json` does not have them."""
    size = _read_record(workdir).get("size")
    return size if isinstance(size, dict) else {}


def _read_record(workdir: Path) -> dict[str, Any]:
    """The JSON object in `config.json`, whose entries are not checked; WorkdirError if the file does not hold one."""
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


class MetricsWriter:
    """`metrics.jsonl`, one JSON object a line, flushed as written.

    Opened at the step that a run resumes from: later records, of steps that will be taken again, are dropped, and so
    is a line that a kill cut short.
    """

    def __init__(self, path: Path, step: int):
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        self.elapsed = kept[-1]["time"] if kept else 0.0
        self._file = None
        if hosts.leader():
            with written(path) as part:
                part.write_text("".join(json.dumps(record) + "\n" for record in kept))
            self._file = path.open("a")

    def write(self, record: dict[str, float | int | None]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, which need not exist.

    Lines that are not such a record, since a kill cut them short or a disk damaged them, are skipped with a warning.
    """
    lines = [line for line in path.read_bytes().splitlines() if line.strip()] if path.exists() else []
    records = [record for line in lines if (record := _record(line)) is not None]
    if skipped := len(lines) - len(records):
        _warn(f"{skipped} damaged line{'s' * (skipped > 1)} of {path} skipped")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if it lacks an entry that all readers of records need, or one has a wrong type."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    number = lambda value: type(value) in (int, float) and math.isfinite(value)
    whole = type(record.get("step")) is int and record["step"] > 0
    timed = all(number(record.get(key)) for key in ("samples_seen", "time"))
    losses = all(key in record and (record[key] is None or type(record[key]) in (int, float)) for key in _LOSSES)
    return record if whole and timed and losses else None


@cache
def _warn(line: str) -> None:
    """Writes a warning to stderr, each of them once in a process."""
    say(f"warning: {line}")


class Progress:
    """A bar with loss, rate and ETA on a terminal; a plain line a log record where there is none."""

    def __init__(self, total: int, start: int, label: str, unit: str = "step"):
        shown = sys.stderr.isatty() and hosts.leader()
        self._bar = tqdm(total=total, initial=start, desc=label, unit=unit, dynamic_ncols=True) if shown else None
        self._label, self._total = label, total

    def advance(self, done: int) -> None:
        """Moves the bar to `done`."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def log(self, done: int, **values: float) -> None:
        """Shows values at `done`: on the bar, or as a line."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self.advance(done)
        else:
            say(f"{self._label} {done}/{self._total}  {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    """One line on stderr, past any progress bar; of several processes the first one says it."""
    if hosts.leader():
        tqdm.write(line, file=sys.stderr)


def disk_problem(error: BaseException) -> str | None:
    """The operating system's reason if an exception, or one behind it, is about files: a full disk, a denied folder."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno:
            return os.strerror(seen.errno) + (f": {seen.filename}" if seen.filename else "")
        for phrase in ("No space left on device", "Disk quota exceeded", "Permission denied", "File too large"):
            if phrase in str(seen):
                return phrase
        seen = seen.__cause__ or seen.__context__
    return None
