"""Writers for the metrics of a run (`metrics.jsonl`, TensorBoard, Weights & Biases), and progress on stderr.

`metrics.jsonl` is always written. TensorBoard and Weights & Biases are trackers: a tracker that fails is dropped with
one line on stderr, and training continues.
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
"""The metrics at one step, by name."""

_LOSSES = ("loss", "val_loss")

_NOTEBOOK_COLUMNS = 110
"""Width of a progress bar in a notebook, where it cannot be measured."""


class MetricsWriter:
    """Writes `metrics.jsonl`, with one JSON object per line, and flushes after every line.

    Only the first process writes. Records after the step from which a run resumes are removed, because these steps will
    be taken again; incomplete lines are removed as well.

    Args:
        path: the file.
        step: the step from which training starts.

    Attributes:
        elapsed: the training time in seconds of the last record that was kept, or 0.
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
    """Reads the records of a `metrics.jsonl`, in order; none if the file does not exist.

    Incomplete or damaged lines are skipped with a warning.
    """
    lines = [line for line in path.read_bytes().splitlines() if line.strip()] if path.exists() else []
    records = [record for line in lines if (record := _record(line)) is not None]
    if skipped := len(lines) - len(records):
        warn_once(f"{skipped} damaged line{'s' * (skipped > 1)} of {path} skipped")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if it lacks an entry that the readers need, or an entry has the wrong type."""
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
    """Writes a warning to stderr, at most once per process."""
    say(f"warning: {line}")


class Progress:
    """Shows progress on stderr: a progress bar on a terminal or in a notebook, and otherwise one line per record.

    Args:
        total: the final count.
        start: the initial count.
        label: the text in front.
        unit: what is counted.
    """

    def __init__(self, total: int, start: int, label: str, unit: str = "step"):
        notebook = _in_notebook()
        shown = (notebook or sys.stderr.isatty()) and processes.is_primary()
        columns = _NOTEBOOK_COLUMNS if notebook else None
        bar = lambda: tqdm(total=total, initial=start, desc=label, unit=unit, ncols=columns, dynamic_ncols=not notebook)
        self._bar = bar() if shown else None
        self._label, self._total = label, total

    def advance(self, done: int) -> None:
        """Moves the bar to `done`."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def log(self, done: int, **values: float) -> None:
        """Shows values at `done`, on the bar or as a line."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self.advance(done)
        else:
            say(f"{self._label} {done}/{self._total}  {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def say(line: str) -> None:
    """Writes a line to stderr without disturbing the progress bar. Only the first process writes."""
    if processes.is_primary():
        tqdm.write(line, file=sys.stderr)


def disk_problem(error: BaseException) -> str | None:
    """The reason if an exception or one of its causes is a file system error, such as a full disk; otherwise None."""
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
    """A service that shows the metrics of a run."""

    def write(self, step: int, record: Record) -> None:
        """Sends the record of `step`."""
        ...

    def close(self) -> None:
        """Waits until all records have been delivered, and closes."""
        ...


class TensorBoard:
    """Writes event files for TensorBoard.

    After a run was resumed, TensorBoard hides the earlier records after the step from which it was resumed. The files
    are written in the calling thread. The thread of tensorboardX's `SummaryWriter` ends without an error on a full
    disk, and training would then wait for it forever.

    Args:
        folder: the folder of the event files.
        step: the step from which training starts.
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
    """Sends metrics to Weights & Biases.

    The id of the W&B run is stored in `wandb.json`, so that a resumed training continues the same W&B run. W&B ignores
    records of steps that it already has, so after a resume from an earlier step it keeps the older records.

    Args:
        workdir: the workdir of the run.
        config: the config, which W&B shows.
        project: the name of the W&B project.
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
            settings={"console": "off"},  # W&B does not capture stdout and stderr
        )
        kept.write_text(json.dumps(known | {project: self._run.id}) + "\n")

    def write(self, step: int, record: Record) -> None:
        self._run.log(_plotted(record), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackers:
    """Sends records to several trackers. A tracker that fails is dropped. It is a context manager that closes them.

    Args:
        makers: functions that open the trackers, by name.
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
            say(f"train: {name} is dropped ({reason}); training continues, its records are in metrics.jsonl")


def _load(module: str) -> Any:
    """Imports a module of an optional package."""
    return importlib.import_module(module)


def _plotted(record: Record) -> dict[str, float | int]:
    """The entries of a record that trackers show."""
    return {tag: value for tag, value in record.items() if tag != "step" and value is not None}
