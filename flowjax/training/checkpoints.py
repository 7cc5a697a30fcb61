"""Checkpoints: the one module that knows Orbax.

Saves are asynchronous and atomic (written aside, then renamed). Kept are the last k, every n-th step and single ones if
asked, and the best by validation loss. Restoring passes shapes and shardings, so that a run saved on one set of devices
opens on another.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flowjax import files
from flowjax.training.hardware import out_of_memory
from flowjax.training.state import TrainState, with_empty_metrics

_ITEM = "default"  # where the manager puts a checkpoint's arrays


class CheckpointError(RuntimeError):
    """A checkpoint that is not there or cannot be read; one line, naming what can be done."""


class Checkpoints:
    """The folder `checkpoints/` of a workdir, to read; `saver` opens it to write.

    Args:
        folder: it need not exist.
    """

    def __init__(self, folder: Path):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save at INFO and WARNING
        self.folder = folder.absolute()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(p.name) for p in found if p.name.isdigit() and p.is_dir())

    def val_loss(self, step: int) -> float | None:
        """The validation loss saved with a checkpoint; None if that cannot be read."""
        try:
            return float(json.loads((self.folder / str(step) / "metrics" / "metrics").read_text())["val_loss"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def choose(self, which: str) -> int:
        """The step that `last`, `best` (lowest validation loss) or a number means.

        Raises:
            CheckpointError: if there is none such.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint")
        if which == "last":
            return steps[-1]
        if which == "best":
            losses = {s: loss for s in steps if (loss := self.val_loss(s)) is not None and math.isfinite(loss)}
            return min(losses, key=losses.__getitem__) if losses else steps[-1]
        if not which.isdigit() or int(which) not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(f"no checkpoint {which} in {self.folder}: there are {known}, last, best")
        return int(which)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, shaped and placed as `like`, whose leaves are `jax.ShapeDtypeStruct`s with shardings.

        A checkpoint of an earlier version, without running metrics, gets empty ones.

        Raises:
            CheckpointError: if it is empty or corrupt, and the one before it is offered, or of another network.
        """
        saved = self._saved_tree(step)
        self._check_same_network(step, like, saved)
        known = {field.name: getattr(like, field.name) for field in fields(like)}
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                folder = self.folder / str(step) / _ITEM
                if saved is None or "running" in saved:
                    return jax.block_until_ready(checkpointer.restore(folder, like))
                running = known.pop("running")
                state = TrainState(**checkpointer.restore(folder, known), running=running)
                return jax.block_until_ready(with_empty_metrics(state))
        except Exception as error:  # Orbax and TensorStore raise what they like on damaged files
            if out_of_memory(error):
                raise
            before = [s for s in self.steps() if s < step]
            offer = (
                f"the one before it is {before[-1]}: add --checkpoint {before[-1]}"
                if before
                else "there is none before it"
            )
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise CheckpointError(f"checkpoint {step} in {self.folder} cannot be read ({reason}); {offer}") from error

    def _saved_tree(self, step: int) -> dict[str, Any] | None:
        """Orbax's metadata of each array of a checkpoint; None if they cannot be read, which `restore` then reports."""
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                saved: Any = checkpointer.metadata(self.folder / str(step) / _ITEM).item_metadata
                return dict(saved.tree)
        except Exception:
            return None

    def _check_same_network(self, step: int, like: TrainState, saved: dict[str, Any] | None) -> None:
        """Names the first parameter that differs; Orbax would list all of them, after many other lines."""
        if saved is None or "params" not in saved:
            return
        there = {leaf.name: tuple(leaf.shape) for leaf in jax.tree.leaves(saved["params"])}
        leaves = jax.tree_util.tree_leaves_with_path({"params": like.params})
        here = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
        for name in [*here, *there]:
            if here.get(name) != there.get(name):
                was, now = (f"has shape {s[name]}" if name in s else "is missing" for s in (there, here))
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} is of another network: {name.removeprefix('params.')} {was} "
                    f"there and {now} in the network of this config"
                )

    def set_aside(self, after: int, target: Path) -> list[int]:
        """Moves checkpoints newer than `after` into `target`, so that their steps can be saved again; returns them."""
        moved = [s for s in self.steps() if s > after]
        for step in moved:
            files.set_aside(self.folder / str(step), target)
        return moved

    def saver(self, keep_last: int, keep_every: int, keep_at: Sequence[int] = ()) -> "Saver":
        """Opens the folder to write, creating it."""
        for step in self.steps():
            metrics = self.folder / str(step) / "metrics" / "metrics"
            if metrics.exists() and self.val_loss(step) is None:  # Orbax would stop here
                metrics.write_text(json.dumps({"val_loss": 1e30}))
        return Saver(self.folder, keep_last, keep_every, keep_at)


class Saver:
    """Saves asynchronously and prunes.

    Args:
        folder: absolute.
        keep_last: number of newest checkpoints kept.
        keep_every: also keep each whose step is a multiple; 0 for none. The best one is always kept.
        keep_at: also keep those of these steps.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int, keep_at: Sequence[int] = ()):
        kept: list[Any] = [policies.LatestN(keep_last), policies.BestN(get_metric_fn=_loss, reverse=True, n=1)]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        if keep_at:
            kept.append(policies.CustomSteps(list(keep_at)))
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_loss,
                best_mode="min",
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: TrainState, val_loss: float) -> None:
        """Starts saving, after any earlier save has ended; a failure of that one is raised here."""
        metrics = {"val_loss": val_loss}
        self._manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def wait(self) -> None:
        """Until all is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _loss(metrics: Any) -> float:
    return metrics["val_loss"]
