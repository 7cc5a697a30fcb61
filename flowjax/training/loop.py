"""The host's side of training: resume, run stretches of compiled steps, log, save, and stop cleanly.

The host is touched only to log, save and feed. Between two such moments the device runs on its own; a stretch lasts
about a second at most, so that a signal is obeyed promptly.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import objectives
from flowjax.build import Problem
from flowjax.config import Config
from flowjax.data import Dataset
from flowjax.objectives import Batch
from flowjax.training import optimizers
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.sharding import make_mesh, replicated
from flowjax.training.state import TrainState, abstract_state, init_state
from flowjax.training.step import GetBatch, Metrics, drop_labels, loops_badly, make_run, make_step
from flowjax.training.writers import MetricsWriter, Progress, disk_problem, say
from flowjax.typing import Params, PRNGKey, PyTree

_STRETCH_SECONDS = 1.0
_STREAM_STRETCH = 16
_VAL_ROWS = 1024


class RunFault(RuntimeError):
    """A run that had to stop: NaN, a full disk. One line; the last good checkpoint is kept."""


class Preempted(Exception):
    """SIGTERM or Ctrl-C came; the state was saved. Holds the signal's number."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}, saved; the same command resumes")
        self.number = number


@dataclass(frozen=True)
class Result:
    """Where training ended."""

    state: TrainState
    step: int
    loss: float | None
    seconds: float


class Trainer:
    """A config's training, assembled: the loss, the compiled run, the validation loss.

    Args:
        config: resolved.
        problem: of the config.
        dataset: to train on.
    """

    def __init__(self, config: Config, problem: Problem, dataset: Dataset):
        train = config.train
        self.config, self.problem, self.dataset = config, problem, dataset
        self.mesh = make_mesh(train.batch_size)
        self.schedule = optimizers.learning_rate(train)
        self.loss = objectives.conditional(
            problem.apply, problem.path, problem.source, problem.coupling, problem.prediction
        )
        self._step = make_step(self.loss, optimizers.optimizer(train), train.batch_size, config.ema.half_life)
        self._get_batch = self._make_get_batch()
        self.run = make_run(self._step, self._get_batch, self.mesh, on_host=self._loops_badly())
        self._val = jax.jit(self.loss)
        self._val_key, self._val_batch = self._make_validation()
        self._stream = None if dataset.stream is None else dataset.stream(config.seed, train.batch_size)

    def init(self) -> TrainState:
        """The state at step 0, replicated over the mesh."""
        return jax.jit(lambda: init_state(self.config, self.problem), out_shardings=replicated(self.mesh))()

    def like(self) -> TrainState:
        """Shapes and shardings of the state, for restoring."""
        return abstract_state(self.config, self.problem, replicated(self.mesh))

    def arrays(self) -> PyTree:
        """What the compiled run draws from: the resident data set, placed on the mesh."""
        return jax.device_put(self._loaded, replicated(self.mesh))

    @cached_property
    def _loaded(self) -> PyTree:
        return self.dataset.arrays()

    def feed(self, step: int, n: int) -> PyTree:
        """The next n batches of a streamed set, stacked, and padded to one size: one program for all stretches."""
        assert self._stream is not None
        batches = [self._stream(step + i) for i in range(n)]
        batches += batches[-1:] * (_STREAM_STRETCH - n)
        return jax.device_put(jax.tree.map(lambda *rows: np.stack(rows), *batches), replicated(self.mesh))

    @property
    def streams(self) -> bool:
        return self._stream is not None

    def val_loss(self, params: Params) -> float:
        """The loss at a fixed set of (t, noise, test points)."""
        return float(self._val(params, self._val_key, self._val_batch))

    def _loops_badly(self) -> bool:
        like = self.like()
        x1: Any = jax.ShapeDtypeStruct((self.config.train.batch_size, *self.problem.spec.shape), jnp.float32)
        return loops_badly(lambda state, key, x: self._step(state, key, Batch(x)), like, like.key, x1)

    def flops_per_step(self) -> float | None:
        """Floating-point operations of one step, counted by XLA on the program before optimisation."""

        def one(state: TrainState, arrays: PyTree) -> TrainState:
            batch = self._get_batch(arrays, state.key, jnp.zeros((), jnp.int32))
            return self._step(state, state.key, batch)[0]

        if self.streams:
            arrays = jax.eval_shape(lambda: self.feed(0, 1))
        else:
            arrays = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, self._loaded))
        cost = jax.jit(one).lower(self.like(), arrays).cost_analysis()
        return None if cost is None else float(cost.get("flops", math.nan))

    def parameters(self) -> int:
        return sum(math.prod(a.shape) for a in jax.tree.leaves(self.like().params))

    def _make_get_batch(self) -> GetBatch:
        dataset, train = self.dataset, self.config.train
        conditional, n = self.config.model.conditional, train.batch_size

        def get_batch(arrays: PyTree, key: PRNGKey, position: Any) -> Batch:
            key_rows, key_prepare, key_drop = jax.random.split(key, 3)
            if dataset.sample is not None:
                raw = dataset.sample(arrays, key_rows, n)
            else:
                raw = jax.tree.map(lambda a: a[position], arrays)
            cond = drop_labels(key_drop, raw.cond, train.label_dropout) if conditional else None
            return Batch(dataset.spec.prepare(key_prepare, raw.x1), cond)

        return get_batch

    def _make_validation(self) -> tuple[PRNGKey, Batch]:
        dataset = self.dataset
        key_prepare, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(self.config.seed), 2**31 - 1))
        rows = slice(0, min(_VAL_ROWS, len(dataset.test)))
        x1 = dataset.spec.prepare(key_prepare, jnp.asarray(dataset.test[rows]))
        cond = None
        if self.config.model.conditional and dataset.test_labels is not None:
            cond = jnp.asarray(dataset.test_labels[rows])
        return key_loss, Batch(x1, cond)


def train(trainer: Trainer, workdir: Path, checkpoints: Checkpoints, state: TrainState) -> Result:
    """Trains from `state` to `train.steps`.

    Args:
        trainer: assembled.
        workdir: where metrics go.
        checkpoints: of that workdir.
        state: from `trainer.init` or a checkpoint; its memory is reused.

    Raises:
        RunFault: on a loss that is not finite, or a disk that cannot be written; all is kept as it was saved.
        Preempted: on SIGTERM or SIGINT, after saving.
    """
    train = trainer.config.train
    start = time.perf_counter()
    saver = checkpoints.saver(train.keep_last, train.keep_every)
    step, progress, log = int(state.step), None, None
    feed = trainer.feed if trainer.streams else None
    arrays = None if feed else trainer.arrays()
    stretch = _STREAM_STRETCH if feed else 1
    try:
        log = _Log(trainer, workdir, step, start)
        progress = Progress(train.steps, step, "train")
        n = min(stretch, _next_stop(step, train) - step)
        data = feed(step, n) if feed else arrays
        with _signals() as caught:
            while step < train.steps:
                began = time.perf_counter()
                state, metrics = trainer.run(state, data, n)
                step, done = step + n, n
                n = min(stretch, _next_stop(step, train) - step) if step < train.steps else 0
                if feed and n:
                    data = feed(step, n)  # while the device works
                if bad := int(metrics.bad_step):
                    saver.wait()
                    raise RunFault(_nan_line(bad, checkpoints))
                if not feed:
                    stretch = _next_stretch(done, time.perf_counter() - began)
                    n = min(stretch, _next_stop(step, train) - step) if n else 0
                log.add(done, step, metrics)
                progress.advance(step)
                stop = list(caught) if step < train.steps else []
                logs, saves = _logs(step, train), _saves(step, train)
                val_loss = trainer.val_loss(state.ema) if logs or saves or stop else math.nan
                if logs:
                    progress.log(step, **log.write(step, val_loss))
                if saves or (stop and step not in checkpoints.steps()):
                    saver.save(state, val_loss)
                if stop:
                    saver.wait()
                    raise Preempted(stop[0], step)
            saver.wait()
    except (RunFault, Preempted):
        raise
    except Exception as error:
        reason = disk_problem(error)
        if reason is None:
            raise
        raise RunFault(
            f"cannot write to {workdir}: {reason}; what was saved is kept, the same command resumes"
        ) from error
    finally:
        if progress is not None:
            progress.close()
        if log is not None:
            log.writer.close()
        saver.close()
    return Result(state, step, log.loss if log else None, time.perf_counter() - start)


class _Log:
    """Averages over the steps since the last record, and writes them."""

    def __init__(self, trainer: Trainer, workdir: Path, step: int, start: float):
        self.writer = MetricsWriter(workdir / "metrics.jsonl", step)
        self.loss: float | None = None
        self._trainer, self._start = trainer, start
        self._mark: tuple[float, int] | None = None  # clock and step since which the rate is counted
        self._steps, self._sum, self._norm = 0, 0.0, 0.0

    def add(self, n: int, step: int, metrics: Metrics) -> None:
        self._steps, self._sum, self._norm = (
            self._steps + n,
            self._sum + n * float(metrics.loss),
            float(metrics.grad_norm),
        )
        if self._mark is None:
            self._mark = time.perf_counter(), step  # the first stretch compiles: it does not count

    def write(self, step: int, val_loss: float) -> dict[str, float]:
        """Writes the record of `step` and returns what a person wants to see of it."""
        assert self._mark is not None
        now, batch = time.perf_counter(), self._trainer.config.train.batch_size
        rate = (step - self._mark[1]) * batch / (now - self._mark[0]) if step > self._mark[1] else None
        self.loss = self._sum / self._steps
        self.writer.write(
            {
                "step": step,
                "samples_seen": step * batch,
                "loss": self.loss,
                "val_loss": val_loss,
                "learning_rate": float(jnp.asarray(self._trainer.schedule(step - 1))),
                "grad_norm": self._norm,
                "samples_per_second": rate,
                "time": self.writer.elapsed + now - self._start,
            }
        )
        self._mark, self._steps, self._sum = (now, step), 0, 0.0
        shown = {"loss": self.loss, "val_loss": val_loss}
        return shown if rate is None else shown | {"samples/s": rate}


def _logs(step: int, train: Config) -> bool:
    return step % train.log_every == 0 or step == train.steps


def _saves(step: int, train: Config) -> bool:
    return step % train.save_every == 0 or step == train.steps


def _next_stop(step: int, train: Config) -> int:
    """The next step at which the host has something to do."""
    return min(train.steps, *((step // every + 1) * every for every in (train.log_every, train.save_every)))


def _next_stretch(n: int, seconds: float) -> int:
    """Steps that should take about a second, growing at most fourfold: the first stretches include the compilation."""
    return max(1, min(4 * n, int(n * _STRETCH_SECONDS / max(seconds, 1e-6))))


def _nan_line(step: int, checkpoints: Checkpoints) -> str:
    steps = checkpoints.steps()
    kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint had been saved yet"
    return f"the loss or its gradient is not finite at step {step}; {kept}; try a lower train.lr in another workdir"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second one kills as usual."""
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
