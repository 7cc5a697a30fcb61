"""The project's own errors by exit code. Heavy imports: looked at only once a command has failed after importing
JAX."""

from flowjax.data import DataError
from flowjax.sampling import SolverFault
from flowjax.training.checkpoints import CheckpointError
from flowjax.training.loop import Preempted, RunFault
from flowjax.training.writers import WorkdirError

USAGE: tuple[type[Exception], ...] = (DataError, WorkdirError, CheckpointError)
"""Exit 2: what was asked for cannot be done as asked."""

FAULTS: tuple[type[Exception], ...] = (RunFault, SolverFault)
"""Exit 1: it went wrong on the way."""

__all__ = ["FAULTS", "USAGE", "Preempted"]
