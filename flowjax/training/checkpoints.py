"""Checkpoints of the training state, saved and restored with Orbax. No other module uses Orbax.

Saving is asynchronous and atomic: a checkpoint is written under a temporary name and then renamed. The newest
checkpoints and the one with the lowest validation loss are kept, and on request every n-th step and single steps.
Restoring passes shapes and shardings to Orbax, so that a run saved on one set of devices can be resumed on another.

The checksums of the files are stored in the checkpoint and compared when it is restored. A folder that lacks a file is
not a checkpoint: a process died there while it saved, pruned or copied.
"""

import json
import logging
import math
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flowjax import checksums, files
from flowjax.errors import out_of_memory
from flowjax.training import processes
from flowjax.training.state import TrainState
from flowjax.training.writers import say
from flowjax.trees import path_name

__all__ = ["CheckpointError", "Checkpoints", "Saver"]

_ITEM = "default"  # the subfolder in which Orbax stores the arrays
_METRICS = "metrics"  # the subfolder in which Orbax stores the validation loss
_REQUIRED = ("_CHECKPOINT_METADATA", f"{_ITEM}/_METADATA", f"{_ITEM}/manifest.ocdbt")  # files of every checkpoint


class CheckpointError(RuntimeError):
    """A checkpoint does not exist or cannot be read. The message is one line that says what can be done."""


class Checkpoints:
    """Reads the checkpoints in a folder; `saver` opens the folder for writing.

    Args:
        folder: usually `checkpoints/` of a workdir. It need not exist. The attribute is its absolute path.
    """

    def __init__(self, folder: Path):
        # Orbax logs every save, and for an error that it also raises the traceback of each of its threads
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").addFilter(_is_not_of_a_second_write)
        self.folder = folder.absolute()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in increasing order."""
        return sorted(int(path.name) for path in self._folders() if _complete(path))

    def val_loss(self, step: int) -> float | None:
        """The validation loss saved with a checkpoint; None if it cannot be read or is damaged."""
        folder, name = self.folder / str(step), f"{_METRICS}/metrics"
        try:
            entries = checksums.read(folder) or {}
            if name in entries and checksums.differing(folder, {name: entries[name]}) is not None:
                return None
            return float(json.loads((folder / name).read_bytes())["val_loss"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _folders(self) -> list[Path]:
        """All folders whose name is a step, whether or not their checkpoint is complete."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        # str(int()) excludes names such as "040" and the decimal digits of other alphabets
        return [p for p in found if p.name.isdecimal() and str(int(p.name)) == p.name and p.is_dir()]

    def clean(self, target: Path) -> list[str]:
        """Removes the folders of incomplete and unfinished checkpoints. No other process may be saving in the folder.

        Args:
            target: the folder to which incomplete checkpoints that still hold arrays are moved.

        Returns:
            One line about each incomplete checkpoint.
        """
        lines = []
        for path in self.folder.glob(f"*{ocp.path.atomicity.TMP_DIR_SUFFIX}*"):  # saves that did not finish
            shutil.rmtree(path, ignore_errors=True)
        for path in self._folders():
            if _complete(path):
                continue
            if any(p.is_file() for p in (path / _ITEM).rglob("*")):
                files.set_aside(path, target)
                lines.append(f"the incomplete checkpoint {path} has been moved to {target}")
            else:
                shutil.rmtree(path)
                lines.append(f"the incomplete checkpoint {path}, which held no arrays, has been removed")
        return lines

    def choose(self, which: str, comparable: bool = True) -> int:
        """The step of the checkpoint `which`: "last", "best" (lowest validation loss) or a number.

        Args:
            which: the checkpoint.
            comparable: whether a lower validation loss means a better model (`Method.comparable_loss`).

        Raises:
            CheckpointError: if there is no such checkpoint, or the losses cannot be compared.
        """
        if which == "best" and not comparable:
            raise CheckpointError(
                f"the checkpoint best in {self.folder} would be chosen by the validation loss, which does not measure "
                "the quality of a model of this method: use last, or the number of a step"
            )
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint")
        if which == "last":
            return steps[-1]
        if which == "best":
            found = {s: self.val_loss(s) for s in steps}
            if unknown := [str(s) for s, loss in found.items() if loss is None]:
                say(
                    f"warning: the choice of the best checkpoint in {self.folder} leaves out step "
                    f"{', '.join(unknown)}, whose validation loss is missing or damaged"
                )
            losses = {s: loss for s, loss in found.items() if loss is not None and math.isfinite(loss)}
            return min(losses, key=losses.__getitem__) if losses else steps[-1]
        if not which.isdigit() or int(which) not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(f"no checkpoint {which} in {self.folder}: there are {known}, last, best")
        return int(which)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Restores the state at `step`, with the shapes and shardings of `like` (a state of `jax.ShapeDtypeStruct`s).

        All processes of a run call it, and each compares a part of the checksums.

        Raises:
            CheckpointError: if the checkpoint belongs to another network, or is incomplete or damaged; then the message
                names the one before it.
        """
        self._verify(step)
        self._check_same_network(step, like, self._saved_tree(step))
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                return jax.block_until_ready(checkpointer.restore(self.folder / str(step) / _ITEM, like))
        except Exception as error:  # Orbax and TensorStore can raise any exception on damaged files
            if out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise self._unreadable(step, reason) from error

    def _unreadable(self, step: int, reason: str) -> CheckpointError:
        before = [s for s in self.steps() if s < step]
        offer = (
            f"the one before it is {before[-1]}: add --checkpoint {before[-1]}" if before else "there is none before it"
        )
        return CheckpointError(f"checkpoint {step} in {self.folder} cannot be read ({reason}); {offer}")

    def _verify(self, step: int) -> None:
        """Compares the files of the state with their checksums; raises CheckpointError for the first that differs.

        The checksum of the validation loss is compared in `val_loss`. The other files are not read.
        """
        folder = self.folder / str(step)
        try:
            entries = checksums.read(folder) or {}
        except checksums.DamagedError as error:
            raise self._unreadable(step, str(error)) from None
        entries = {name: entry for name, entry in entries.items() if name.startswith(f"{_ITEM}/")}
        index, count = processes.index_and_count()
        found = checksums.differing(folder, entries, index, count)
        bad = processes.largest(-1 if found is None else found)
        if bad >= 0:
            raise self._unreadable(step, f"{list(entries)[bad]} has changed since it was written")

    def _saved_tree(self, step: int) -> dict[str, Any] | None:
        """Orbax's metadata of each array; None if they cannot be read, an error that `restore` reports later."""
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                saved: Any = checkpointer.metadata(self.folder / str(step) / _ITEM).item_metadata
                return dict(saved.tree)
        except Exception:
            return None

    def _check_same_network(self, step: int, like: TrainState, saved: dict[str, Any] | None) -> None:
        """Raises CheckpointError for the first parameter that differs; Orbax's own message has many lines."""
        if saved is None or "params" not in saved:
            return
        stored = {leaf.name: tuple(leaf.shape) for leaf in jax.tree.leaves(saved["params"])}
        leaves = jax.tree_util.tree_leaves_with_path({"params": like.params})
        expected = {path_name(path, "."): leaf.shape for path, leaf in leaves}
        for name in [*expected, *stored]:
            if expected.get(name) != stored.get(name):
                was, now = (f"has shape {s[name]}" if name in s else "is missing" for s in (stored, expected))
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} is of another network: {name.removeprefix('params.')} {was} "
                    f"there and {now} in the network of this config"
                )

    def set_aside(self, after: int, target: Path) -> list[int]:
        """Moves checkpoints newer than step `after` into `target` and returns their steps, which can be saved again."""
        moved = [s for s in self.steps() if s > after]
        for step in moved:
            files.set_aside(self.folder / str(step), target)
        return moved

    def saver(self, keep_last: int, keep_every: int, keep_at: Sequence[int] = ()) -> "Saver":
        """Opens the folder for writing and creates it if needed; for the arguments see `Saver`."""
        for step in self.steps():
            metrics = self.folder / str(step) / _METRICS / "metrics"
            if metrics.exists() and self.val_loss(step) is None:  # Orbax raises an error for a damaged file
                metrics.write_text(json.dumps({"val_loss": 1e30}))
        return Saver(self.folder, keep_last, keep_every, keep_at)


def _is_not_of_a_second_write(record: logging.LogRecord) -> bool:
    """False for the tracebacks that asyncio logs if several writes of Orbax fail at once; the first error is raised.

    Their first words are the class that held the error: "Task", "Future" or "_GatheringFuture".
    """
    return "exception was never retrieved" not in record.getMessage()


class Saver:
    """Saves checkpoints asynchronously and removes old ones. The one with the lowest validation loss is always kept.

    Args:
        folder: an absolute path.
        keep_last: number of newest checkpoints to keep.
        keep_every: also keep the checkpoints whose step is a multiple of this; 0 for none.
        keep_at: also keep the checkpoints at these steps.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int, keep_at: Sequence[int] = ()):
        _hide_late_callbacks()
        self._folder, self._saving = folder, -1
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
                async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
            ),
        )

    def save(self, state: TrainState, val_loss: float) -> None:
        """Waits for the previous save, raises its error if it failed, and starts to save the state."""
        self.wait()
        self._saving = int(state.step)
        self._manager.save(
            self._saving,
            args=ocp.args.StandardSave(state),
            metrics={"val_loss": val_loss},
            force=True,
        )

    def _add_checksums(self) -> None:
        """Called by Orbax in its thread after all files are written and before the folder gets its final name."""
        final = self._folder / str(self._saving)
        written = next(self._folder.glob(f"{self._saving}{ocp.path.atomicity.TMP_DIR_SUFFIX}*"), final)
        checksums.write(written, (_ITEM, _METRICS))

    def wait(self) -> None:
        """Waits until the checkpoint that is being saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and closes the manager."""
        self._manager.close()


def _complete(folder: Path) -> bool:
    """Whether a folder holds all files of a checkpoint, damaged or not, with their checksums."""
    if checksums.missing(folder, _REQUIRED):
        return False
    try:
        entries = checksums.read(folder)
    except checksums.DamagedError:
        return True  # `restore` reports the damage
    return entries is not None and checksums.missing(folder, entries) is None


@cache
def _hide_late_callbacks() -> None:
    """Hides the reports of writes that end after their save has failed: the error of the save itself is raised."""
    previous = sys.unraisablehook

    def hook(report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed":
            previous(report)

    sys.unraisablehook = hook


def _loss(metrics: Any) -> float:
    return metrics["val_loss"]
