"""The project's own errors by exit code. Heavy imports: looked at only once a command has failed after importing
JAX."""

from flowjax.data import DataError
from flowjax.errors import RunFault, out_of_memory
from flowjax.inference.batches import SolverFault
from flowjax.training.checkpoints import CheckpointError
from flowjax.training.loop import Preempted
from flowjax.training.snapshots import SnapshotError
from flowjax.training.workdir import WorkdirError

USAGE: tuple[type[Exception], ...] = (DataError, WorkdirError, CheckpointError, SnapshotError)
"""Exit 2: what was asked for cannot be done as asked."""

FAULTS: tuple[type[Exception], ...] = (RunFault, SolverFault)
"""Exit 1: it went wrong on the way."""

_MEMORY_KNOBS = {
    "train": "a smaller train.batch_size, then model.remat='block' (of adm, edm2 and dit), takes less",
    "sample": "a smaller --batch takes less",
    "likelihood": "a smaller --batch takes less",
    "evaluate": "a smaller --batch takes less",
}
"""What to turn, in this order, when a command finds too little memory on a device."""


def memory_line(command: str, error: Exception) -> str | None:
    """What to do if a device ran out of memory; None for any other error."""
    reason = out_of_memory(error)
    knobs = _MEMORY_KNOBS.get(command, "a device with more is needed")
    return None if reason is None else f"the device is out of memory ({reason}): {knobs}"


__all__ = ["FAULTS", "USAGE", "Preempted", "memory_line"]
