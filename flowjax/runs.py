"""From a config to a trained run: `train` for Python, and `train_workdir` for the command line."""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from flowjax import files
from flowjax.build import build
from flowjax.config import OUTSIDE_KEYS, Config, changed, differences, flatten, own_plugins, resolve
from flowjax.config_files import config_path, load_config
from flowjax.config_keys import method_of
from flowjax.data import Dataset
from flowjax.errors import ConfigError, RunFault, out_of_memory
from flowjax.extras import MissingPackage
from flowjax.inference import figures, teachers
from flowjax.inference.data_of_run import check_same_data, open_data
from flowjax.inference.run import Run, load
from flowjax.methods.base import has_comparable_loss
from flowjax.models.functional import Variables
from flowjax.plugins import is_outside
from flowjax.training import loop, processes, snapshots
from flowjax.training import workdir as workdirs
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.outputs import RunOutputs
from flowjax.training.profiling import Trace
from flowjax.training.sharding import table
from flowjax.training.trainer import Trainer
from flowjax.training.workdir import WorkdirError, read_config, read_size, read_streamed, write_config
from flowjax.training.writers import Record, TensorBoard, Tracker, Trackers, Wandb, read_metrics, say

__all__ = ["dry_run", "train", "train_workdir"]


def _assemble(config: Config, workdir: Path, fresh: bool = True) -> tuple[Trainer, dict[str, Any]]:
    """The trainer of a config with its teacher, and the record of the teacher (`teachers.open_teacher`).

    A fresh run also gets the parameters from which it starts.
    """
    plugins = own_plugins(config)
    teacher, record = teachers.open_teacher(config, plugins, None if fresh else workdir)
    dataset = open_data(config, plugins)
    method = build(config, dataset.spec, plugins, teacher and teacher.method)
    if teacher is not None:
        teachers.check_teacher(teacher, method, config, dataset.spec)
    start = teachers.starting_parameters(config, method, dataset.spec, plugins) if fresh else None
    frozen = None if teacher is None else Variables(teacher.params, teacher.variables)
    return Trainer(config, method, dataset, teacher=frozen, start=start), record


def dry_run(config: Config, workdir: Path) -> dict[str, Any]:
    """Builds everything, and prints the parameters and the FLOPs per step. Nothing is written."""
    start = time.perf_counter()
    trainer, _ = _assemble(config, workdir)
    size = {"parameters": trainer.parameters(), "flops_per_step": trainer.flops_per_step}
    say(json.dumps(config.to_dict(), indent=2))
    say(table(trainer.like(), trainer.shardings))
    flops = size["flops_per_step"] or float("nan")
    axes = " x ".join(f"{n} {axis}" for axis, n in trainer.mesh.shape.items())
    say(f"{size['parameters']:,} parameters, {flops:,.0f} FLOPs per step, {_devices(trainer)}: {axes}")
    return _result(config, workdir, "dry_run", 0, None, start, size)


def _devices(trainer: Trainer) -> str:
    n, there = trainer.mesh.size, jax.device_count()
    return f"{n} devices" if n == there else f"{n} of {there} devices"


def train(
    config: Config | str | Path,
    workdir: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    plots: bool = True,
) -> Run:
    """Trains a run, or resumes it if its workdir exists, and opens it.

    Args:
        config: a config (`flowjax.config.defaults`), the name of a shipped config such as "gaussians8", or the path of
            a config file.
        workdir: the folder of the run; a new temporary folder if None.
        changes: values of config keys that replace those of the config, such as {"train.steps": 2000}.
        callback: called with each record of `metrics.jsonl`, for example to draw the loss during training.
        plots: whether to draw the figures of the run into `plots/` of its workdir when training has ended.

    Returns:
        The trained run, whose `sample` and `log_prob` use the moving average of the parameters.

    Raises:
        ConfigError: if the config is wrong, or the workdir belongs to another config.
        DataError: if the data cannot be read.
        RunFault: if training stops, for example because the loss is not finite.
    """
    loaded = load_config(config_path(str(config))) if isinstance(config, str | Path) else config
    resolved = changed(loaded, changes or {}, plugins=None)
    folder = Path(tempfile.mkdtemp(prefix="flowjax-") if workdir is None else workdir)
    trackers = {} if callback is None else {"callback": lambda: _Callback(callback)}
    train_workdir(resolved, folder, trackers=trackers, plots=plots)
    return load(folder, plugins=own_plugins(resolved))


@dataclass(frozen=True)
class _Callback:
    """A tracker that passes records to a function."""

    function: Callable[[dict[str, Any]], None]

    def write(self, step: int, record: Record) -> None:
        self.function(dict(record))

    def close(self) -> None:
        pass


def train_workdir(
    config: Config,
    workdir: Path,
    checkpoint: str = "last",
    tensorboard: bool = False,
    wandb: str | None = None,
    traced: tuple[int, int] = (0, 0),
    trackers: Mapping[str, Callable[[], Tracker]] | None = None,
    plots: bool = True,
) -> dict[str, Any]:
    """Trains a run or resumes it, and draws its plots.

    Args:
        config: the resolved config.
        workdir: the folder of the run.
        checkpoint: the checkpoint to resume from: "last", "best" or a step.
        tensorboard: whether to write TensorBoard events.
        wandb: a project of Weights & Biases to log to, or None.
        traced: the first and the last step to profile; equal for no profile.
        trackers: makers of other trackers by name.
        plots: whether to draw the plots.

    Returns:
        The result that the command prints.
    """
    start = time.perf_counter()
    same = flatten(config) | {"--checkpoint": checkpoint, "--trace": traced, "--plots": plots}
    same.pop("data.path")  # the path may differ between processes; the data are compared below
    processes.check_same("config", same)
    processes.check_shared(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints")
    with contextlib.ExitStack() as stack:
        resume = _agreed_step(config, workdir, checkpoints, checkpoint)
        if resume is None or resume < config.train.steps:  # the folder of a finished run may be read-only
            stack.enter_context(workdirs.locked(workdir))
            # another process may have ended just before
            resume = _agreed_step(config, workdir, checkpoints, checkpoint)
        if resume is not None and resume >= config.train.steps:
            return _already_finished(config, workdir, checkpoints, resume, plots, start)
        makers = _trackers(config, workdir, resume or 0, tensorboard, wandb) | dict(trackers or {})
        return _train(config, workdir, checkpoints, resume, makers, traced, plots, start)


def _train(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    resume: int | None,
    makers: Mapping[str, Callable[[], Tracker]],
    traced: tuple[int, int],
    plots: bool,
    start: float,
) -> dict[str, Any]:
    """Trains from the step `resume` on, while the workdir is locked."""
    trainer, teacher = _assemble(config, workdir, fresh=resume is None)
    if processes.process_count() > 1:
        processes.check_same("data set", trainer.fingerprint())
        processes.check_same("teacher", teacher)
    if (rows := trainer.dataset.rows) is not None:
        say(f"train: streaming {len(rows):,} rows from the host, as they exceed FLOWJAX_RESIDENT_BYTES")
    if trainer.mesh.size < jax.device_count():
        say(f"train: on {_devices(trainer)}, as set by config.mesh")
    if config.train.warmup >= (samples := config.train.steps * config.train.batch_size):
        warmup = f"{config.train.warmup:g}"
        say(
            f"train: warning: the learning rate only rises: train.warmup is {warmup} samples, and the run has {samples}"
        )
    say("train: compiling the training step")
    if resume is None:
        trainer.compile_ahead(fresh=True)
        state = trainer.init()
        trainer.forget_start()
    else:
        _check_same_data(workdir, trainer)
        state = checkpoints.restore(resume, trainer.like())  # before any file is moved or written
        trainer.compile_ahead(fresh=False)
        say(f"train: resuming {workdir} at step {resume} of {config.train.steps}")
    size = {"parameters": trainer.parameters(), "flops_per_step": trainer.flops_per_step}
    if processes.is_primary():
        _prepare_workdir(config, trainer, teacher, workdir, size, checkpoints, resume or 0)
    trace = Trace(workdir / "trace", *traced)
    with Trackers(makers) as trackers:
        result = loop.train(trainer, RunOutputs(workdir, checkpoints, trackers), state, trace)
    drawing = f"; drawing {workdir}/plots" if plots else ""
    say(f"train: {result.step - (resume or 0)} steps in {result.seconds:.1f} s{drawing}")
    step, loss = result.step, result.loss
    if not plots:
        return _result(config, workdir, "finished", step, loss, start, size)
    variables = processes.to_first((result.state.ema, result.state.variables), trainer.mesh)
    del state, result  # frees the rest of the state on the device
    if processes.is_primary():
        with processes.single_process():
            _draw(
                Run(workdir, config, step, trainer.dataset.spec, trainer.method, *jax.device_put(variables)),
                trainer.dataset,
            )
    processes.wait("drawn")
    return _result(config, workdir, "finished", step, loss, start, size)


def _trackers(
    config: Config, workdir: Path, step: int, tensorboard: bool, wandb: str | None
) -> dict[str, Callable[[], Tracker]]:
    makers: dict[str, Callable[[], Tracker]] = {}
    if tensorboard and processes.is_primary():
        makers["tensorboard"] = lambda: TensorBoard(workdir / "tensorboard", step)
    if wandb and processes.is_primary():
        makers["wandb"] = lambda: Wandb(workdir, config, wandb)
    return makers


def _agreed_step(config: Config, workdir: Path, checkpoints: Checkpoints, checkpoint: str) -> int | None:
    """Returns `_resume_step`, and checks that all processes find the same step."""
    step = _resume_step(config, workdir, checkpoints, checkpoint)
    late = "the file system is slow: start the processes again"
    processes.check_same("checkpoint to go on from", {"its step": step}, late)
    return step


def _resume_step(config: Config, workdir: Path, checkpoints: Checkpoints, checkpoint: str) -> int | None:
    """Returns the step to resume from, or None for a new run.

    Raises:
        ConfigError: if the workdir belongs to another config, or has no config.
        CheckpointError: if there is no such checkpoint.
    """
    if not (workdir / "config.json").exists():
        if checkpoint != "last" or checkpoints.steps():
            raise ConfigError(f"{workdir} has no config.json: its checkpoints belong to no run; use another --workdir")
        return None
    if checkpoint == "last" and not checkpoints.steps():
        return None  # there is no checkpoint to lose, so another config may start here
    raw, spec = read_config(workdir)
    plugins = own_plugins(config)
    others = _other_names(raw, config) or differences(resolve(raw, plugins), config)
    if "data.path" in others and not Path(others["data.path"][0]).exists():
        del others["data.path"]  # the files were moved; their contents are compared later
    if others:
        build(config, spec, plugins)  # an unknown name is reported first
        key, (was, now) = next(iter(others.items()))
        more = f" (so do {', '.join(list(others)[1:])})" if len(others) > 1 else ""
        raise ConfigError(
            f"{workdir} is the workdir of another config: {key} is {was!r} there and {now!r} here{more}; "
            "use another --workdir"
        )
    return checkpoints.choose(checkpoint, has_comparable_loss(method_of(config.method.name, plugins)))


def _other_names(raw: dict[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the keys with a name from outside flowjax in the raw config of a run, and another value in this config.

    Only the modules that this config names may be imported, so `resolve` would refuse the names of the run.
    """
    was, now = flatten(raw), flatten(config)
    others = {key: (was.get(key), now.get(key)) for key in OUTSIDE_KEYS if was.get(key) != now.get(key)}
    return {key: names for key, names in others.items() if is_outside(names[0])}


def _check_same_data(workdir: Path, trainer: Trainer) -> None:
    """Checks that the data are those that the run was started with, and are streamed or not as before."""
    check_same_data(workdir, trainer.dataset.spec, read_config(workdir)[1])
    streamed, now = read_streamed(workdir), trainer.prefetcher is not None
    if streamed is not None and streamed != now:
        raise ConfigError(
            f"the data of {workdir} were {'streamed' if streamed else 'on the device'} and would now be "
            f"{'streamed' if now else 'on the device'}, in another order: set FLOWJAX_RESIDENT_BYTES as before"
        )


def _prepare_workdir(
    config: Config,
    trainer: Trainer,
    teacher: dict[str, Any],
    workdir: Path,
    size: dict[str, Any],
    checkpoints: Checkpoints,
    step: int,
) -> None:
    """Writes the config and the record of the teacher, and sets checkpoints and snapshots after `step` aside."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(workdir, config, trainer.dataset.spec, size, trainer.prefetcher is not None)
        teachers.write_record(workdir, teacher)
    except OSError as error:
        raise RunFault(f"cannot write to {workdir}: {error.strerror}") from None
    _clear_leftovers(workdir, checkpoints)
    for newer in checkpoints.set_aside(step, workdir / "set_aside"):
        say(f"train: the checkpoint of step {newer} is set aside in {workdir}/set_aside")
    snapshots.set_aside(workdir / snapshots.FOLDER, step, workdir / "set_aside")


def _clear_leftovers(workdir: Path, checkpoints: Checkpoints) -> None:
    """Removes incomplete checkpoints and files of a training that was killed."""
    for line in checkpoints.clean(workdir / "set_aside"):
        say(f"train: {line}")
    for name in ("config.json", "metrics.jsonl"):
        files.remove_unfinished(workdir, name)
    files.remove_unfinished(workdir / snapshots.FOLDER)


def _already_finished(
    config: Config, workdir: Path, checkpoints: Checkpoints, step: int, plots: bool, start: float
) -> dict[str, Any]:
    say(f"train: {workdir} is already finished at step {step}; a larger train.steps would resume from there")
    if processes.process_count() == 1:
        # a finished run may be read-only, or another process may be resuming it
        with contextlib.suppress(WorkdirError, RunFault), workdirs.locked(workdir):
            _clear_leftovers(workdir, checkpoints)
    if plots and not (workdir / "plots").is_dir() and jax.process_count() == 1:  # stopped while drawing
        say(f"train: drawing {workdir}/plots, which are missing")
        plugins = own_plugins(config)
        _draw(load(workdir, plugins=plugins), open_data(config, plugins))
    records = read_metrics(workdir / "metrics.jsonl")
    return _result(
        config, workdir, "already_finished", step, records[-1]["loss"] if records else None, start, read_size(workdir)
    )


def _draw(run: Run, dataset: Dataset) -> None:
    """Draws the figures. If that fails, the run is finished all the same, and a line on stderr names the cause."""
    try:
        figures.draw_all(run, dataset)
    except Exception as error:
        memory = out_of_memory(error)
        reason = memory or " ".join(str(error).split())[:300] or type(error).__name__
        # unlike a property of the run, such as a loss of NaN
        passing = memory or isinstance(error, OSError | MissingPackage)
        again = "; the same command draws them once this is fixed" if passing else ""
        say(f"train: the plots could not be drawn: {reason}{again}")


def _result(
    config: Config, workdir: Path, status: str, step: int, loss: float | None, start: float, size: dict[str, Any]
) -> dict[str, Any]:
    return {
        "workdir": str(workdir),
        "step": step,
        "samples_seen": step * config.train.batch_size,
        "loss": loss,
        "seconds": round(time.perf_counter() - start, 2),
        "status": status,
        **size,
    }
