"""The exit codes of flowjax's exceptions. Imported only if a command fails after it has imported JAX."""

from flowjax.data import DataError
from flowjax.errors import RunFault, out_of_memory
from flowjax.inference.batches import SolverFault
from flowjax.inference.figure_inputs import PlotError
from flowjax.training.checkpoints import CheckpointError
from flowjax.training.loop import Preempted
from flowjax.training.snapshots import SnapshotError
from flowjax.training.workdir import WorkdirError

USAGE: tuple[type[Exception], ...] = (DataError, WorkdirError, CheckpointError, SnapshotError)
"""Exit code 2: the command cannot be run as given."""

FAULTS: tuple[type[Exception], ...] = (RunFault, SolverFault, PlotError)
"""Exit code 1: something failed while the command ran."""

_MEMORY_KNOBS = {
    "train": "use a smaller train.batch_size, then model.remat='block' (of adm, edm2 and dit)",
    "sample": "use a smaller --batch",
    "pairs": "use a smaller --batch",
    "likelihood": "use a smaller --batch",
    "encode": "use a smaller --batch",
    "decode": "use a smaller --batch",
    "evaluate": "use a smaller --batch",
    "plot": "use a smaller --batch",
}
"""Advice for each command if a device runs out of memory."""


def memory_line(command: str, error: Exception) -> str | None:
    """Returns a message with advice if a device ran out of memory; None for any other error."""
    reason = out_of_memory(error)
    knobs = _MEMORY_KNOBS.get(command, "use a device with more memory")
    return None if reason is None else f"the device is out of memory ({reason}): {knobs}"


__all__ = ["FAULTS", "USAGE", "Preempted", "memory_line"]
