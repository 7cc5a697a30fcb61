"""The heavy half of `flowjax train`: everything after the flags."""

import json
import time
from pathlib import Path
from typing import Any

from flowjax import plots
from flowjax.build import build
from flowjax.cli.flags import UsageError
from flowjax.config import Config, differences, resolve
from flowjax.data import open_dataset
from flowjax.run import Run
from flowjax.training import loop
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.writers import read_config, read_metrics, say, write_config


def _assemble(config: Config) -> loop.Trainer:
    dataset = open_dataset(config.data.name, config.data.path)
    return loop.Trainer(config, build(config, dataset.spec), dataset)


def dry_run(config: Config, workdir: Path) -> dict[str, Any]:
    """Builds everything, prints parameters and FLOPs a step, and stops; nothing is written."""
    start = time.perf_counter()
    trainer = _assemble(config)
    parameters, flops = trainer.parameters(), trainer.flops_per_step()
    say(json.dumps(config.to_dict(), indent=2))
    say(f"{parameters:,} parameters, {flops or float('nan'):,.0f} FLOPs a step, {trainer.mesh.size} devices")
    return _result(workdir, "dry_run", 0, 0, None, time.perf_counter() - start, parameters, flops)


def train(config: Config, workdir: Path, checkpoint: str) -> dict[str, Any]:
    """Trains to the end, or from where the workdir stands; draws the plots."""
    start = time.perf_counter()
    resume = _resume_step(config, workdir, checkpoint)
    if resume is not None and resume >= config.train.steps:
        return _already_finished(config, workdir, resume, start)
    trainer = _assemble(config)
    _prepare_workdir(config, trainer, workdir)
    train, checkpoints = config.train, Checkpoints(workdir / "checkpoints")
    for step in checkpoints.set_aside(train.steps if resume is None else resume, workdir / "set_aside"):
        say(f"train: the checkpoint of step {step} is set aside in {workdir}/set_aside")
    if resume is not None:
        say(f"train: resuming {workdir} at step {resume} of {train.steps}")
    result = loop.train(trainer, workdir, checkpoints, resume)
    say(f"train: {result.step} steps in {result.seconds:.1f} s; drawing {workdir}/plots")
    plots.draw_all(Run(workdir, config, result.step, trainer.problem, result.state.ema), trainer.dataset)
    seconds = time.perf_counter() - start
    seen = result.step * train.batch_size
    return _result(
        workdir, "finished", result.step, seen, result.loss, seconds, trainer.parameters(), trainer.flops_per_step()
    )


def _resume_step(config: Config, workdir: Path, checkpoint: str) -> int | None:
    """The step to resume from, None for a new run.

    Raises:
        UsageError: if the workdir is of another config.
        CheckpointError: if the checkpoint asked for is not there.
    """
    if not (workdir / "config.json").exists():
        if checkpoint != "last":
            raise UsageError(f"--checkpoint {checkpoint}: {workdir} is not the workdir of a run")
        return None
    old = resolve(read_config(workdir)[0])
    if changed := differences(old, config):
        key, (was, now) = next(iter(changed.items()))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UsageError(
            f"{workdir} is the workdir of another config: {key} is {was!r} there and {now!r} here{more}; "
            "take another --workdir"
        )
    checkpoints = Checkpoints(workdir / "checkpoints")
    return checkpoints.choose(checkpoint) if checkpoints.steps() or checkpoint != "last" else None


def _prepare_workdir(config: Config, trainer: loop.Trainer, workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_config(workdir, config, trainer.problem.spec)
    except OSError as error:
        raise loop.RunFault(f"cannot write to {workdir}: {error.strerror}") from None


def _already_finished(config: Config, workdir: Path, step: int, start: float) -> dict[str, Any]:
    say(f"train: {workdir} is already finished at step {step}; a larger train.steps would go on from there")
    records = read_metrics(workdir / "metrics.jsonl")
    loss = records[-1]["loss"] if records else None
    trainer = _assemble(config)
    seconds = time.perf_counter() - start
    seen = step * config.train.batch_size
    return _result(
        workdir, "already_finished", step, seen, loss, seconds, trainer.parameters(), trainer.flops_per_step()
    )


def _result(
    workdir: Path,
    status: str,
    step: int,
    samples_seen: int,
    loss: float | None,
    seconds: float,
    parameters: int,
    flops: float | None,
) -> dict[str, Any]:
    return {
        "workdir": str(workdir),
        "step": step,
        "samples_seen": samples_seen,
        "loss": loss,
        "seconds": round(seconds, 2),
        "status": status,
        "parameters": parameters,
        "flops_per_step": flops,
    }
