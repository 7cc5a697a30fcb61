"""Checkpoints: the one module that knows Orbax.

Saves are asynchronous and atomic (written aside, then renamed). Kept are the last k, every n-th step and single ones if
asked, and the best by validation loss. Restoring passes shapes and shardings, so that a run saved on one set of devices
opens on another.

A checkpoint gets the checksums of its files before it is renamed, and they are compared when it is opened. Only
complete checkpoints count: a folder in which a file is missing was left by a process that died while it saved, pruned
or copied. Checkpoints from before there were checksums are opened unchecked.
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

_ITEM = "default"  # where the manager puts a checkpoint's arrays
_METRICS = "metrics"  # where it puts what they are chosen by
_NEEDED = ("_CHECKPOINT_METADATA", f"{_ITEM}/_METADATA", f"{_ITEM}/manifest.ocdbt")  # of any checkpoint
_PROMISE = "checksums"  # key of Orbax's custom metadata


class CheckpointError(RuntimeError):
    """A checkpoint that does not exist or cannot be read; one line that says what can be done."""


class Checkpoints:
    """The folder `checkpoints/` of a workdir, to read; `saver` opens it to write.

    Args:
        folder: it need not exist.
    """

    def __init__(self, folder: Path):
        # Orbax logs every save, and a traceback from each of its threads for an error that it raises as well
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = folder.absolute()

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
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
        """All folders named after a step, complete or not."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        # str(int()) as the name of step 40 is not "040", and isdigit() is true of other alphabets' digits
        return [p for p in found if p.name.isdecimal() and str(int(p.name)) == p.name and p.is_dir()]

    def clean(self, target: Path) -> list[str]:
        """Removes the folders of incomplete and unfinished checkpoints; called by the only process that trains.

        Args:
            target: the folder to which incomplete checkpoints that still hold arrays are moved.

        Returns:
            A line about each incomplete checkpoint.
        """
        lines = []
        for path in self.folder.glob(f"*{ocp.path.atomicity.TMP_DIR_SUFFIX}*"):  # Orbax would, at its first save
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
            found = {s: self.val_loss(s) for s in steps}
            if unknown := [str(s) for s, loss in found.items() if loss is None]:
                say(
                    f"warning: the validation loss in {self.folder} is missing or damaged for step "
                    f"{', '.join(unknown)}, which is therefore not among those of which the best is taken"
                )
            losses = {s: loss for s, loss in found.items() if loss is not None and math.isfinite(loss)}
            return min(losses, key=losses.__getitem__) if losses else steps[-1]
        if not which.isdigit() or int(which) not in steps:
            known = ", ".join(map(str, steps))
            raise CheckpointError(f"no checkpoint {which} in {self.folder}: there are {known}, last, best")
        return int(which)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, shaped and placed as `like`, whose leaves are `jax.ShapeDtypeStruct`s with shardings.

        All processes of a run call it, and share the work of comparing the checksums.

        Raises:
            CheckpointError: if it is incomplete or damaged, and the one before it is offered, or of another network.
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
        """Compares the files of the state with their checksums; CheckpointError names the first that differs.

        The validation loss has a check of its own (`val_loss`), and the other files do not enter the state.
        """
        folder = self.folder / str(step)
        try:
            entries = checksums.read(folder) or {}
        except checksums.DamagedError as error:
            raise self._unreadable(step, str(error)) from None
        entries = {name: entry for name, entry in entries.items() if name.startswith(f"{_ITEM}/")}
        index, count = processes.place()
        found = checksums.differing(folder, entries, index, count)
        bad = processes.largest(-1 if found is None else found)
        if bad >= 0:
            raise self._unreadable(step, f"{list(entries)[bad]} has changed since it was written")

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
        here = {path_name(path, "."): leaf.shape for path, leaf in leaves}
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
            metrics = self.folder / str(step) / _METRICS / "metrics"
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
        """Starts saving, after any earlier save has ended; a failure of that one is raised here."""
        self.wait()
        self._saving = int(state.step)
        self._manager.save(
            self._saving,
            args=ocp.args.StandardSave(state),
            metrics={"val_loss": val_loss},
            custom_metadata={_PROMISE: checksums.NAME},
            force=True,
        )

    def _add_checksums(self) -> None:
        """Orbax calls it in its thread when all files are written, before it gives the folder its final name."""
        final = self._folder / str(self._saving)
        written = next(self._folder.glob(f"{self._saving}{ocp.path.atomicity.TMP_DIR_SUFFIX}*"), final)
        checksums.write(written, (_ITEM, _METRICS))

    def wait(self) -> None:
        """Until all is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _complete(folder: Path) -> bool:
    """Whether a folder is that of a checkpoint with all its files, damaged or not.

    A checkpoint whose metadata promise checksums is not complete without them.
    """
    if checksums.missing(folder, _NEEDED):
        return False
    try:
        entries = checksums.read(folder)
    except checksums.DamagedError:
        return True  # opening it says so
    if entries is not None:
        return checksums.missing(folder, entries) is None
    try:
        return _PROMISE not in json.loads((folder / _NEEDED[0]).read_bytes())["custom_metadata"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


@cache
def _hide_late_callbacks() -> None:
    """Hides what other writes of a failed save report when they end after it: the error of the save is raised."""
    shown = sys.unraisablehook

    def hook(report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed":
            shown(report)

    sys.unraisablehook = hook


def _loss(metrics: Any) -> float:
    return metrics["val_loss"]
