"""What the commands on a trained run share, after the heavy imports."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags

from flowjax.cli.flags import UsageError
from flowjax.data import DataError, open_dataset
from flowjax.data.arrays import read_npz
from flowjax.run import Run, load
from flowjax.sampling import Solver
from flowjax.solvers import ode
from flowjax.training.loop import RunFault


def open_run(values: absl_flags.FlagValues, workdir: str) -> Run:
    """The run that --workdir, --checkpoint and --ema name."""
    solver(values)  # a bad solver is told before anything is read
    return load(workdir, values.ema, values.checkpoint)


def solver(values: absl_flags.FlagValues) -> Solver:
    """--solver, --rtol, --atol, --steps."""
    chosen = Solver(values.solver, values.rtol, values.atol, values.steps)
    try:
        ode.check_solver(chosen.name, chosen.steps)
    except ValueError as error:
        raise UsageError(f"--solver: {error}".replace("steps=N", "--steps N")) from None
    return chosen


def points(run: Run, path: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The points to score: `x` (and `y`) of a file, or the test split of the run's data."""
    spec = run.spec
    if path is None:
        dataset = open_dataset(run.config.data.name, run.config.data.path)
        x, labels = dataset.test, dataset.test_labels
    else:
        arrays = read_npz(path)
        x, labels = arrays["x"], arrays.get("y")
        if x.shape[1:] != tuple(spec.shape) or len(x) == 0:
            raise DataError(f"{path}: x must be (N, {', '.join(map(str, spec.shape))}) with N >= 1, not {x.shape}")
        if not (np.issubdtype(x.dtype, np.number) and np.isfinite(x.astype(np.float64)).all()):
            raise DataError(f"{path}: x must be finite numbers")
        if spec.levels and (x.min() < 0 or x.max() > spec.levels):
            raise DataError(f"{path}: pixels of this run lie in 0 to {spec.levels}, not {x.min()} to {x.max()}")
    if not run.config.model.conditional or labels is None:
        return x, None
    if labels.shape != x.shape[:1] or labels.min() < 0 or labels.max() >= spec.num_classes:
        raise DataError(
            f"{path or run.config.data.name}: y must hold a label 0 to {spec.num_classes - 1} for each row of x"
        )
    return x, labels.astype(np.int32)


def save_npz(path: Path, **arrays: Any) -> None:
    """Writes the arrays that are not None, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunFault(f"cannot write {path}: {error.strerror}") from None
