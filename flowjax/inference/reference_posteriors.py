"""The reference posteriors of the benchmark of simulation-based inference, read from the cache folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flowjax import archives
from flowjax.data import DataError
from flowjax.inference.run import Run
from flowjax.metrics.cache import cache_folder
from flowjax.simulators import BENCHMARK

__all__ = ["ReferencePosteriors", "path_of", "reference_posteriors", "task_of"]


class ReferencePosteriors(NamedTuple):
    """Observations of a task, with samples of the exact posterior; the benchmark has ten, with 10,000 samples each.

    Attributes:
        observation: (M, F).
        true_parameters: from which the observations were simulated, (M, D).
        reference: R samples for each observation, (M, R, D).
    """

    observation: Float[np.ndarray, "M F"]
    true_parameters: Float[np.ndarray, "M D"]
    reference: Float[np.ndarray, "M R D"]


def task_of(run: Run) -> str | None:
    """The name of the benchmark's task that a run was trained on; None if its data are others."""
    name = run.config.data.simulator.partition("(")[0].strip()
    return name if run.spec.name == "simulator" and name in BENCHMARK else None


def path_of(task: str) -> Path:
    """The file that holds the reference posteriors of a task: sbibm/TASK.npz in the cache folder."""
    return cache_folder() / "sbibm" / f"{task}.npz"


def reference_posteriors(task: str) -> ReferencePosteriors:
    """Reads the reference posteriors of a task of the benchmark from the cache folder.

    Args:
        task: a name in `flowjax.simulators.BENCHMARK`.

    Raises:
        DataError: if the file is missing, or holds other arrays.
    """
    path = path_of(task)
    if not path.is_file():
        raise DataError(
            f"the reference posteriors of {task} are not in {path}: scripts/prepare_sbibm.py of the repository writes "
            "this file, with the arrays observation (10, F), true_parameters (10, D) and reference (10, 10000, D)"
        )
    try:
        found = archives.read_npz(path)
    except archives.ArchiveError as error:
        raise DataError(str(error)) from None
    if missing := [name for name in ReferencePosteriors._fields if name not in found]:
        raise DataError(f"{path} has no array {missing[0]!r}: it needs {', '.join(ReferencePosteriors._fields)}")
    return ReferencePosteriors(*(np.asarray(found[name], np.float64) for name in ReferencePosteriors._fields))
