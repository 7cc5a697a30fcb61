"""The training loop on the host: it runs stretches of compiled steps, logs, saves, and stops on signals.

A stretch is a number of steps that the devices take without the host. It ends where something has to be logged or
saved, and lasts about a second at most, so that training reacts to a signal promptly.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowjax.config import Config, TrainKeys
from flowjax.data import DataError
from flowjax.errors import RunFault
from flowjax.training import processes
from flowjax.training.optimizers import skipped
from flowjax.training.outputs import RunOutputs
from flowjax.training.prefetcher import STRETCH, Prefetcher
from flowjax.training.profiling import Trace
from flowjax.training.state import TrainState, with_empty_metrics
from flowjax.training.trainer import Trainer
from flowjax.training.writers import Progress, disk_problem, say
from flowjax.typing import PyTree

__all__ = ["Preempted", "Result", "train"]

_STRETCH_SECONDS = 1.0


class Preempted(Exception):
    """Training was stopped by SIGTERM or SIGINT, after the state was saved.

    Attributes:
        number: the number of the signal.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, saved; the same command resumes")
        self.number = number


@dataclass(frozen=True)
class Result:
    """The result of a finished training.

    Attributes:
        state: the final state.
        step: the final step, `train.steps`.
        loss: mean loss over the steps of the last record; None if no record was written.
        seconds: duration of the training.
    """

    state: TrainState
    step: int
    loss: float | None
    seconds: float


def train(trainer: Trainer, outputs: RunOutputs, state: TrainState, trace: Trace | None = None) -> Result:
    """Trains from `state` until step `train.steps`.

    Args:
        trainer: the compiled functions and the data.
        outputs: writes records and checkpoints.
        state: from `trainer.init` or a checkpoint; its memory is donated.
        trace: the steps to profile, or None.

    Raises:
        RunFault: if the loss or its gradient is not finite, a metric exceeds its limit, or the disk cannot be written.
            Earlier checkpoints are kept.
        Preempted: on SIGTERM or SIGINT, after saving.
    """
    start = time.perf_counter()
    try:
        with ExitStack() as closing:
            state = _train(trainer, outputs, state, trace or Trace(Path()), start, closing)
    except (RunFault, Preempted):
        raise
    except Exception as error:
        reason = disk_problem(error)
        if reason is None:
            raise
        raise RunFault(
            f"cannot write to {outputs.workdir}: {reason}; what was saved is kept, the same command resumes"
        ) from error
    return Result(state, int(state.step), outputs.loss, time.perf_counter() - start)


def _train(
    trainer: Trainer, outputs: RunOutputs, state: TrainState, trace: Trace, start: float, closing: ExitStack
) -> TrainState:
    """Runs the stretches and returns the final state. Cleanup is registered in `closing`."""
    steps, prefetcher = trainer.config.train.steps, trainer.prefetcher
    step = int(state.step)
    if prefetcher:
        closing.callback(prefetcher.close)
    closing.callback(outputs.close)
    outputs.open(trainer, step, start)
    progress = Progress(steps, step, "train")
    closing.callback(progress.close)
    closing.callback(lambda: trace.close(step))
    arrays = None if prefetcher else trainer.arrays()
    stretch = STRETCH if prefetcher else 1
    remaining = lambda step: min([_next_stop(step, trainer.config), *trace.boundaries(step)]) - step
    n, _ = processes.agree(min(stretch, remaining(step)), 0)
    data = prefetcher(step, n) if prefetcher else arrays
    with _signals() as caught:
        while step < steps:
            trace.begin(step)
            began = time.perf_counter()
            following, done = step + n, n
            n = min(stretch, remaining(following)) if following < steps else 0
            if prefetcher and n:
                prefetcher.start(following, n)  # reads while the devices compute
            if step % trainer.config.train.log_every == 0:
                state = with_empty_metrics(state)
            state, metrics = trainer.run(state, data, done)
            step, data = following, arrays
            outputs.add(step, metrics)
            if not prefetcher:
                stretch = _next_stretch(done, time.perf_counter() - began)
                n = min(stretch, remaining(step)) if n else 0
            trace.end(step)
            progress.advance(step)
            n, number = processes.agree(n, caught[0] if caught else 0)
            stop = number if step < steps else 0
            _record(trainer, outputs, state, step, bool(stop), progress)
            if stop:
                outputs.wait()
                raise Preempted(stop, step)
            if prefetcher and n:
                data = _next_batches(trainer, prefetcher, outputs, state, step, n)
        outputs.wait()
    return state


def _next_batches(
    trainer: Trainer, prefetcher: Prefetcher, outputs: RunOutputs, state: TrainState, step: int, n: int
) -> PyTree:
    """The batches of the next stretch. If a row cannot be read, a single process saves the state before it stops."""
    try:
        return prefetcher(step, n)
    except DataError as error:
        if processes.process_count() > 1:
            raise  # saving needs all processes, and the others may have read their rows
        if not _saves(step, trainer.config.train):
            outputs.save(state, trainer.val_loss(state))
        outputs.wait()
        raise RunFault(f"{error}; saved at step {step}, from where the same command resumes") from None


def _record(
    trainer: Trainer, outputs: RunOutputs, state: TrainState, step: int, stop: bool, progress: Progress
) -> None:
    """Writes the record, the snapshots of averages and the checkpoint that are due at `step`.

    Before a stop a checkpoint is written in any case, but no additional record or snapshot, because these depend only
    on the config and the step.
    """
    train, ema = trainer.config.train, trainer.config.ema
    logs, saves = _logs(step, train), _saves(step, train) or stop
    averages = bool(ema.widths) and (_saves(step, train) or step % _spacing(trainer.config) == 0)
    val_loss = trainer.val_loss(state) if logs or saves else math.nan
    shown = outputs.write(step, val_loss, int(skipped(state.opt_state))) if logs else {}
    if averages:
        outputs.save_averages(step, state.averages)
    if saves:
        outputs.save(state, val_loss)
    if shown:
        progress.log(step, **shown)


def _logs(step: int, train: TrainKeys) -> bool:
    return step % train.log_every == 0 or step == train.steps


def _saves(step: int, train: TrainKeys) -> bool:
    return step % train.save_every == 0 or step in (*train.keep_at, train.steps)


def _spacing(config: Config) -> int:
    """Steps between snapshots of averages. Regular checkpoints also come with a snapshot."""
    return max(1, config.train.steps // config.ema.snapshots)


def _next_stop(step: int, config: Config) -> int:
    """The next step at which the host logs or saves."""
    train = config.train
    cadences = [train.log_every, train.save_every] + [_spacing(config)] * bool(config.ema.widths)
    singles = [s for s in train.keep_at if s > step]
    return min(train.steps, *((step // every + 1) * every for every in cadences), *singles)


def _next_stretch(n: int, seconds: float) -> int:
    """The number of steps that should take about a second, after a stretch of n steps that took `seconds`.

    It grows at most by a factor of 4, because the time of the first stretch includes compilation.
    """
    return max(1, min(4 * n, int(n * _STRETCH_SECONDS / max(seconds, 1e-6))))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yields a list that collects SIGTERM and SIGINT instead of ending the process. A second signal ends it as usual.

    A signal that arrives after the last step is raised again when the context ends.
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
        say("training does not handle signals, because it does not run in the main thread")
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
