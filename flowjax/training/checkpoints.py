"""Checkpoints: the one module that knows Orbax.

Saves are asynchronous and atomic (written aside, then renamed). Kept are the last k, every n-th step if asked, and the best by
validation loss. Restoring passes shapes and shardings, so that a run saved on one set of devices opens on another.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flowjax.training.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that is not there or cannot be read; one line, naming what can be done."""


class Checkpoints:
    """The folder `checkpoints/` of a workdir.

    Args:
        folder: created if missing, unless `read_only`.
        keep_last: number of newest checkpoints kept.
        keep_every: also keep each whose step is a multiple; 0 for none.
    """

    def __init__(self, folder: Path, *, keep_last: int = 3, keep_every: int = 0, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save at INFO and WARNING
        kept: list[Any] = [policies.LatestN(keep_last), policies.BestN(get_metric_fn=_loss, reverse=True, n=1)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                best_fn=_loss,
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy(kept),
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, val_loss: float) -> None:
        """Starts saving, after any earlier save has ended; a failure of that one is raised here."""
        self._manager.save(
            int(state.step), args=ocp.args.StandardSave(state), metrics={"val_loss": val_loss}, force=True
        )

    def wait(self) -> None:
        """Until all is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def choose(self, which: str) -> int:
        """The step that `last`, `best` or a number means.

        Raises:
            CheckpointError: if there is none such.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if not which.isdigit() or int(which) not in steps:
            raise CheckpointError(
                f"no checkpoint {which} in {self.folder}: there are {', '.join(map(str, steps))}, last, best"
            )
        return int(which)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, shaped and placed as `like` (arrays or `jax.ShapeDtypeStruct`s with shardings).

        Raises:
            CheckpointError: if it is empty, corrupt or of another network; the one before it is offered.
        """
        try:
            state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
            jax.block_until_ready(state)
        except Exception as error:  # Orbax and TensorStore raise what they like on damaged files
            before = [s for s in self.steps() if s < step]
            offer = (
                f"the one before it is {before[-1]}: add --checkpoint {before[-1]}"
                if before
                else "there is none before it"
            )
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise CheckpointError(f"checkpoint {step} in {self.folder} cannot be read ({reason}); {offer}") from error
        return state


def _loss(metrics: Any) -> float:
    return metrics["val_loss"]
