"""Where a run reports: `metrics.jsonl`, TensorBoard and Weights & Biases, and progress on stderr.

`metrics.jsonl` is a run's record and is always written. No run stops for a tracker, that is TensorBoard or Weights &
Biases: one that fails is dropped, with one line on stderr.
"""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from flowjax.config import Config
from flowjax.files import written
from flowjax.training import processes

__all__ = [
    "MetricsWriter",
    "Progress",
    "Record",
    "TensorBoard",
    "Tracker",
    "Trackers",
    "Wandb",
    "disk_problem",
    "read_metrics",
    "say",
    "warn_once",
]

Record = Mapping[str, float | int | None]

_LOSSES = ("loss", "val_loss")


class MetricsWriter:
    """`metrics.jsonl`, one JSON object a line, flushed as written.

    Opened at the step that a run resumes from: later records, of steps that will be taken again, are dropped, and so
    is a line that a kill cut short.
    """

    def __init__(self, path: Path, step: int):
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        self.elapsed = kept[-1]["time"] if kept else 0.0
        self._file = None
        if processes.is_primary():
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
        warn_once(f"{skipped} damaged line{'s' * (skipped > 1)} of {path} skipped")
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
def warn_once(line: str) -> None:
    """Writes a warning to stderr, each of them once in a process."""
    say(f"warning: {line}")


class Progress:
    """A bar with loss, rate and ETA on a terminal; a plain line a log record where there is none."""

    def __init__(self, total: int, start: int, label: str, unit: str = "step"):
        shown = sys.stderr.isatty() and processes.is_primary()
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
    if processes.is_primary():
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


@runtime_checkable
class Tracker(Protocol):
    """Takes the records of a run."""

    def write(self, step: int, record: Record) -> None:
        """Takes the record of `step`."""
        ...

    def close(self) -> None:
        """Waits until all records have been delivered, and closes."""
        ...


class TensorBoard:
    """Event files. Of a run that was resumed, TensorBoard leaves out what came after the step it was resumed from.

    They are written here and now. tensorboardX's `SummaryWriter` has a thread for it, which dies of a full disk unseen
    and lets training wait for it.

    Args:
        folder: of the event files.
        step: that training starts from.
    """

    def __init__(self, folder: Path, step: int):
        files, proto = (_load(f"tensorboardX.{name}") for name in ("event_file_writer", "proto.event_pb2"))
        self._event, self._summary = proto.Event, _load("tensorboardX.proto.summary_pb2").Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = files.EventsWriter(str(folder / "events"), f".{step}")
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._writer.write_event(self._event(step=step + 1, wall_time=time.time(), session_log=start))

    def write(self, step: int, record: Record) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _plotted(record).items()]
        self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, the same one whenever this workdir is resumed: its id is kept in `wandb.json`.

    Steps that W&B has already seen are not logged again: a run taken up at an earlier step keeps the older records.

    Args:
        workdir: of the run.
        config: its keys.
        project: of W&B.
    """

    def __init__(self, workdir: Path, config: Config, project: str):
        kept = workdir / "wandb.json"
        known = json.loads(kept.read_text()) if kept.exists() else {}
        self._run = _load("wandb").init(
            project=project,
            id=known.get(project),
            resume="allow",
            name=workdir.absolute().name,
            dir=str(workdir),
            config=config.to_dict(),
            settings={"console": "off"},  # stdout and stderr are left alone
        )
        kept.write_text(json.dumps(known | {project: self._run.id}) + "\n")

    def write(self, step: int, record: Record) -> None:
        self._run.log(_plotted(record), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Several trackers as one, of which each may fail; closed by `with`.

    Args:
        makers: what opens each, by name.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]] | None = None):
        self._open: dict[str, Tracker] = {}
        for name, make in (makers or {}).items():
            self._guarded(name, lambda name=name, make=make: self._open.update({name: make()}))

    def write(self, step: int, record: Record) -> None:
        for name, tracker in list(self._open.items()):
            self._guarded(name, lambda tracker=tracker: tracker.write(step, record))

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)
        self._open.clear()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a service that is down, a full disk, a package that does not fit
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            say(f"train: {name} is dropped ({reason}); training goes on, its records are in metrics.jsonl")


def _load(module: str) -> Any:
    """A module of an optional package."""
    return importlib.import_module(module)


def _plotted(record: Record) -> dict[str, float | int]:
    return {tag: value for tag, value in record.items() if tag != "step" and value is not None}
