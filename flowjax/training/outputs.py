"""The files that a run writes while it trains: metrics, checkpoints and snapshots of averages."""

import time
from pathlib import Path

from flowjax.errors import RunFault
from flowjax.training import processes, profiling
from flowjax.training.checkpoints import Checkpoints, Saver
from flowjax.training.snapshots import FOLDER, SnapshotError, write_snapshot
from flowjax.training.state import TrainState
from flowjax.training.step import Metrics, exceeded
from flowjax.training.trainer import Trainer
from flowjax.training.writers import MetricsWriter, Trackers
from flowjax.typing import PyTree

__all__ = ["RunOutputs"]


class RunOutputs:
    """Writes the metrics, checkpoints and averages of one run.

    Args:
        workdir: folder of `metrics.jsonl` and of the averages.
        checkpoints: the checkpoints of that workdir.
        trackers: TensorBoard and Weights & Biases; the caller closes them.

    Attributes:
        workdir, checkpoints: the arguments.
        loss: mean loss over the steps of the last record; None before the first record.
    """

    def __init__(self, workdir: Path, checkpoints: Checkpoints, trackers: Trackers | None = None):
        self.workdir, self.checkpoints = workdir, checkpoints
        self.loss: float | None = None
        self._trackers = trackers or Trackers()
        self._saver: Saver | None = None
        self._writer: MetricsWriter | None = None
        self._checkpoint_seconds = 0.0  # time for which saving has delayed training since the last record
        self._rate_start: tuple[float, int] | None = None  # time and step from which the rate is measured
        self._metrics: Metrics | None = None  # the latest, over the steps since the last record

    def open(self, trainer: Trainer, step: int, start: float) -> None:
        """Opens the files for writing.

        Args:
            trainer: the trainer of the run.
            step: the step from which training starts.
            start: `time.perf_counter()` at the start.
        """
        train = trainer.config.train
        self._trainer, self._start = trainer, start
        self._peak = profiling.peak_flops(train.peak_tflops)
        self._saver = self.checkpoints.saver(train.keep_last, train.keep_every, train.keep_at)
        self._writer = MetricsWriter(self.workdir / "metrics.jsonl", step)

    def add(self, step: int, metrics: Metrics) -> None:
        """Stores the metrics at `step` for the next record.

        Raises:
            RunFault: if the loss or its gradient was not finite, or a metric exceeded its limit.
        """
        if bad := int(metrics.bad_step):
            self.wait()
            above = exceeded(metrics.values, self._trainer.method.limits, bad)
            raise RunFault(_bad_line(bad, above, self.checkpoints))
        self._metrics = metrics
        if self._rate_start is None:
            self._rate_start = time.perf_counter(), step  # leaves out the first stretch, which includes compilation

    def write(self, step: int, val_loss: float, skipped_steps: int) -> dict[str, float]:
        """Writes the record of `step` and returns the entries that the progress bar shows.

        A record depends only on the config and the step, except for the rates, times and memory, which begin at
        `samples_per_second`.
        """
        assert self._metrics is not None
        assert self._rate_start is not None
        assert self._writer is not None
        now, batch = time.perf_counter(), self._trainer.config.train.batch_size
        since, first = self._rate_start
        rate = (step - first) * batch / (now - since) if step > first else None
        self.loss = float(self._metrics.loss)
        flops, prefetcher = self._trainer.flops_per_step, self._trainer.prefetcher
        mfu = None if rate is None else profiling.utilisation(flops, rate / batch, self._peak)
        record = {
            "step": step,
            "samples_seen": step * batch,
            "loss": self.loss,
            "val_loss": val_loss,
            "learning_rate": float(self._trainer.schedule(step - 1)),
            "grad_norm": float(self._metrics.grad_norm),
            **{name: float(value) for name, value in self._metrics.values.items()},
            "skipped_steps": skipped_steps,
            "samples_per_second": rate,
            "mfu": mfu,
            "device_gib": profiling.memory_gib(),
            "checkpoint_seconds": self._checkpoint_seconds,
            "stall_seconds": prefetcher.stalled if prefetcher else 0.0,
            "time": self._writer.elapsed + now - self._start,
        }
        self._writer.write(record)
        self._trackers.write(step, record)
        self._checkpoint_seconds = 0.0
        if prefetcher:
            prefetcher.stalled = 0.0
        self._rate_start = now, step
        shown = {"loss": self.loss, "val_loss": val_loss}
        return shown if rate is None else shown | {"samples/s": rate}

    def save_averages(self, step: int, averages: PyTree) -> None:
        """Writes a snapshot of the power-function averages. All processes call it, and the first one writes.

        Raises:
            RunFault: on all processes, if a value is not finite in float16.
        """
        began, fault = time.perf_counter(), None
        gathered = processes.to_first(averages, self._trainer.mesh)
        if processes.is_primary():
            try:
                for width, average in zip(self._trainer.config.ema.widths, gathered, strict=True):
                    write_snapshot(self.workdir / FOLDER, step, width, average)
            except SnapshotError as error:
                fault = f"{error}; {_kept(self.checkpoints)}; try a lower train.lr in another workdir"
        if processes.agree(0, int(fault is not None))[1]:
            self.wait()
            raise RunFault(fault or "the first process could not write a snapshot of the averages")
        self._checkpoint_seconds += time.perf_counter() - began

    def save(self, state: TrainState, val_loss: float) -> None:
        """Starts to save a checkpoint."""
        assert self._saver is not None
        began = time.perf_counter()
        self._saver.save(state, val_loss)
        self._checkpoint_seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk."""
        if self._saver is not None:
            self._saver.wait()

    def close(self) -> None:
        """Closes the files, if they are open."""
        if self._writer is not None:
            self._writer.close()
        if self._saver is not None:
            self._saver.close()


def _bad_line(step: int, above: str | None, checkpoints: Checkpoints) -> str:
    """The error message for a bad step: `above` describes a metric above its limit; None means a non-finite value."""
    kept = _kept(checkpoints)
    if above is not None:
        return f"{above}; {kept}"
    return f"the loss or its gradient is not finite at step {step}; {kept}; try a lower train.lr in another workdir"


def _kept(checkpoints: Checkpoints) -> str:
    steps = checkpoints.steps()
    return f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint had been saved yet"
