"""Where else the records of training go: TensorBoard, Weights & Biases.

`metrics.jsonl` is a run's record and is always written. No run stops for a tracker: one that fails is dropped, with one
line on stderr.
"""

import importlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from flowjax.config import Config
from flowjax.training.writers import say

Record = Mapping[str, float | int | None]


@runtime_checkable
class Tracker(Protocol):
    """Takes the records of a run."""

    def write(self, step: int, record: Record) -> None:
        """Takes the record of `step`."""
        ...

    def close(self) -> None:
        """Until all is where it goes."""
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
    """A module of a package that need not be there."""
    return importlib.import_module(module)


def _plotted(record: Record) -> dict[str, float | int]:
    return {tag: value for tag, value in record.items() if tag != "step" and value is not None}
