"""The host's side of training: resume, run stretches of compiled steps, log, save, and stop cleanly.

The host is touched only to log, save and feed. Between two such moments the device runs on its own; a stretch lasts
about a second at most, so that a signal is obeyed promptly.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.config import Config
from flowjax.data import DataError
from flowjax.training import hosts
from flowjax.training.feed import STRETCH, Feed
from flowjax.training.guard import skipped
from flowjax.training.lane import Lane
from flowjax.training.state import TrainState, with_empty_metrics
from flowjax.training.together import Together
from flowjax.training.trace import Trace
from flowjax.training.trainer import Trainer
from flowjax.training.writers import Progress, disk_problem, say
from flowjax.typing import PyTree

_STRETCH_SECONDS = 1.0


class RunFault(RuntimeError):
    """A run that had to stop: NaN, a full disk. One line; the last good checkpoint is kept."""


class Preempted(Exception):
    """SIGTERM or Ctrl-C came; the state was saved. Holds the signal's number."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, saved; the same command resumes")
        self.number = number


@dataclass(frozen=True)
class Result:
    """Where training ended; `fault` says why if it was before the end."""

    state: TrainState
    step: int
    loss: float | None
    seconds: float
    fault: str | None = None


def train(
    trainer: Trainer | Together, lanes: Sequence[Lane], state: TrainState, trace: Trace | None = None
) -> list[Result]:
    """Trains from `state` to `train.steps`.

    Args:
        trainer: assembled.
        lanes: where the records and checkpoints of each run go that `trainer` trains: one, or one a seed.
        state: from `trainer.init` or checkpoints; its memory is reused.
        trace: of some steps.

    Returns:
        a result a lane. One whose loss is not finite stops there, and the others go on.

    Raises:
        RunFault: if the only lane fails, or a disk cannot be written; all is kept as it was saved.
        Preempted: on SIGTERM or SIGINT, after saving.
    """
    start = time.perf_counter()
    try:
        with ExitStack() as closing:
            state = _train(trainer, lanes, state, trace or Trace(Path()), start, closing)
    except (RunFault, Preempted):
        raise
    except Exception as error:
        reason = disk_problem(error)
        if reason is None:
            raise
        folder = lanes[0].workdir if len(lanes) == 1 else lanes[0].workdir.parent
        raise RunFault(
            f"cannot write to {folder}: {reason}; what was saved is kept, the same command resumes"
        ) from error
    seconds = time.perf_counter() - start
    pairs = zip(lanes, trainer.apart(state), strict=True)
    return [Result(own, int(own.step), lane.loss, seconds, lane.fault) for lane, own in pairs]


def _train(
    trainer: Trainer | Together,
    lanes: Sequence[Lane],
    state: TrainState,
    trace: Trace,
    start: float,
    closing: ExitStack,
) -> TrainState:
    """The stretches, one after the other; what they open is closed by `closing`. Returns the last state."""
    steps, feed = trainer.config.train.steps, trainer.feed
    step = int(np.max(np.asarray(state.step)))
    if feed:
        closing.callback(feed.close)
    for lane in lanes:
        closing.callback(lane.close)
        lane.open(trainer, step, start, len(lanes))
    progress = Progress(steps, step, "train")
    closing.callback(progress.close)
    closing.callback(lambda: trace.close(step))
    arrays = None if feed else trainer.arrays()
    stretch = STRETCH if feed else 1
    ahead = lambda step: min([_next_stop(step, trainer.config), *trace.borders(step)]) - step
    n, _ = hosts.agree(min(stretch, ahead(step)), 0)
    data = feed(step, n) if feed else arrays
    with _signals() as caught:
        while step < steps:
            trace.begin(step)
            began = time.perf_counter()
            following, done = step + n, n
            n = min(stretch, ahead(following)) if following < steps else 0
            if feed and n:
                feed.start(following, n)  # while the devices work
            if step % trainer.config.train.log_every == 0:
                state = with_empty_metrics(state)
            state, metrics = trainer.run(state, data, done)
            step, data = following, arrays
            for lane, own in zip(lanes, trainer.apart(metrics), strict=True):
                lane.add(step, own)
            if all(lane.fault for lane in lanes):
                break
            if not feed:
                stretch = _next_stretch(done, time.perf_counter() - began)
                n = min(stretch, ahead(step)) if n else 0
            trace.end(step)
            progress.advance(step)
            n, number = hosts.agree(n, caught[0] if caught else 0)
            stop = number if step < steps else 0
            _record(trainer, lanes, state, step, bool(stop), progress)
            if stop:
                _wait(lanes)
                raise Preempted(stop, step)
            if feed and n:
                data = _next_batches(trainer, feed, lanes, state, step, n)
        _wait(lanes)
    if len(lanes) == 1 and lanes[0].fault:
        raise RunFault(lanes[0].fault)
    return state


def _next_batches(
    trainer: Trainer | Together, feed: Feed, lanes: Sequence[Lane], state: TrainState, step: int, n: int
) -> PyTree:
    """Those of the next stretch; where a row cannot be read, what is trained is saved, unless others have to help."""
    try:
        return feed(step, n)
    except DataError as error:
        if hosts.sharing() > 1:
            raise
        if not _saves(step, trainer.config.train):
            for lane, own, val_loss in zip(lanes, trainer.apart(state), trainer.val_losses(state.ema), strict=True):
                lane.save(own, val_loss)
        _wait(lanes)
        raise RunFault(f"{error}; saved at step {step}, from where the same command goes on") from None


def _wait(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        lane.wait()


def _record(
    trainer: Trainer | Together, lanes: Sequence[Lane], state: TrainState, step: int, stop: bool, progress: Progress
) -> None:
    """Writes what is due at `step`: records, averages, checkpoints; and a checkpoint before a stop.

    A stop adds neither a record nor a snapshot of averages: both are functions of the config and the step alone.
    """
    train, ema = trainer.config.train, trainer.config.ema
    logs, saves = _logs(step, train), _saves(step, train)
    averages = bool(ema.widths) and (saves or step % _spacing(trainer.config) == 0)
    if not (logs or saves or stop or averages):
        return
    val_losses = trainer.val_losses(state.ema) if logs or saves or stop else [math.nan] * len(lanes)
    shown = []
    for lane, own, val_loss in zip(lanes, trainer.apart(state), val_losses, strict=True):
        if lane.fault:
            continue
        if logs:
            shown.append(lane.write(step, val_loss, int(skipped(own.opt_state))))
        if averages:
            lane.save_averages(step, own.averages)
        if (saves or stop) and not lane.fault:
            lane.save(own, val_loss)
    if shown:
        progress.log(step, **{key: sum(one[key] for one in shown) / len(shown) for key in shown[0]})


def _logs(step: int, train: Config) -> bool:
    return step % train.log_every == 0 or step == train.steps


def _saves(step: int, train: Config) -> bool:
    return step % train.save_every == 0 or step in (*train.keep_at, train.steps)


def _spacing(config: Config) -> int:
    """Steps between snapshots of averages; one is also written with each checkpoint that is due."""
    return max(1, config.train.steps // config.ema.snapshots)


def _next_stop(step: int, config: Config) -> int:
    """The next step at which the host has something to do."""
    train = config.train
    cadences = [train.log_every, train.save_every] + [_spacing(config)] * bool(config.ema.widths)
    singles = [s for s in train.keep_at if s > step]
    return min(train.steps, *((step // every + 1) * every for every in cadences), *singles)


def _next_stretch(n: int, seconds: float) -> int:
    """Steps that should take about a second, growing at most fourfold: the first stretches include the compilation."""
    return max(1, min(4 * n, int(n * _STRETCH_SECONDS / max(seconds, 1e-6))))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one kills as usual.

    One that nobody has acted upon, since it came when all was done, is sent again at the end.
    """
    caught: list[int] = []
    old: dict[int, Callable[..., Any] | int | None] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, old[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            old[number] = signal.signal(number, note)
    except ValueError:
        say("not in the main thread: signals are left alone")
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
