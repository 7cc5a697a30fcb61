"""Snapshots of power-function averages, and the reconstruction of averages of any width from them.

A snapshot is an average stored at some step of the run. The profiles of a few snapshots of two widths nearly span the
profiles of other widths and steps. A least-squares fit of profiles gives coefficients, and the same combination of the
stored parameters is the reconstructed average (Karras et al. 2024, arXiv 2312.02696, section 3.2 and appendix C).
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flowjax import files
from flowjax.archives import one_line, read_npz
from flowjax.files import written
from flowjax.training.averages import gamma_of
from flowjax.typing import Params

__all__ = [
    "FOLDER",
    "LARGEST_MISFIT",
    "PowerProfile",
    "Snapshot",
    "SnapshotError",
    "inner",
    "misfit",
    "posthoc",
    "read_params",
    "read_snapshots",
    "reconstruct",
    "set_aside",
    "solve_weights",
    "write_snapshot",
]

FOLDER = "averages"
"""The folder of a workdir that holds the snapshots of the averages in `ema.widths`."""

LARGEST_MISFIT = 0.05
"""`posthoc` refuses a reconstruction whose profile is further than this from the requested one (see `misfit`)."""

PowerProfile = tuple[float | int, float]
"""(step, gamma): the step at which the profile ends, and its exponent."""


class SnapshotError(RuntimeError):
    """Snapshots are missing, unreadable or insufficient. The message is one line."""


class Snapshot(NamedTuple):
    """A stored average.

    Attributes:
        step: number of steps taken when it was stored.
        sigma_rel: the relative width of its profile.
        path: its file.
    """

    step: int
    sigma_rel: float
    path: Path


def inner(a: PowerProfile, b: PowerProfile) -> float:
    """The integral over time of the product of two profiles, in units of 1 / step (Karras et al. 2024, eq. 151)."""
    (t, g), (s, h) = sorted([a, b])
    return (g + 1) * (h + 1) / (g + h + 1) * (t / s) ** h / s


def solve_weights(snapshots: Sequence[PowerProfile], target: PowerProfile) -> Float[np.ndarray, " n"]:
    """The coefficients with which the profiles of the snapshots approximate a target profile best in L2.

    This is algorithm 3 of Karras et al. 2024 in float64, with the constraint that the coefficients sum to 1.

    Args:
        snapshots: the profile of each of the n snapshots.
        target: the profile to approximate.

    Returns:
        The coefficients, (n,) float64.
    """
    n, t = len(snapshots), target[0]
    scaled = [(step / t, gamma) for step, gamma in snapshots]  # makes the entries of order gamma for any run length
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = [[inner(a, b) for b in scaled] for a in scaled]
    system[n, :n] = system[:n, n] = 1
    right = np.array([*(inner(a, (1.0, target[1])) for a in scaled), 1.0])
    return np.linalg.lstsq(system, right, rcond=1e-13)[0][:n]


def misfit(snapshots: Sequence[PowerProfile], target: PowerProfile, coefficients: Float[np.ndarray, " n"]) -> float:
    """The L2 distance between the combined and the target profile, divided by the norm of the target profile."""
    c = coefficients
    gram = np.array([[inner(a, b) for b in snapshots] for a in snapshots])
    cross = np.array([inner(a, target) for a in snapshots])
    square = c @ gram @ c - 2 * c @ cross + inner(target, target)
    return math.sqrt(max(square, 0.0) / inner(target, target))


def reconstruct(snapshots: Iterable[Params], coefficients: Float[np.ndarray, " n"]) -> Params:
    """The linear combination of trees of parameters, in float32. An iterator of trees is consumed one at a time."""
    total: Params = None
    for tree, c in zip(snapshots, coefficients, strict=True):
        if total is None:
            total = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), tree)
        total = jax.tree.map(lambda sum, a, c=c: sum + np.float32(c) * np.asarray(a, np.float32), total, tree)
    return total


def write_snapshot(folder: Path, step: int, sigma_rel: float, params: Params) -> Path:
    """Stores an average atomically as `STEP-SIGMA.npz` and returns the path.

    The file has one float16 array per parameter, named by the keys of the parameter as a JSON list. Rounding to float16
    is a relative error of at most 2^-11, far below the differences between averages of different widths.

    Args:
        folder: created if it does not exist.
        step: number of steps taken.
        sigma_rel: the relative width of the average's profile.
        params: the average, a nested dictionary of arrays.

    Raises:
        SnapshotError: if a value is not finite in float16.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        with np.errstate(over="ignore"):
            flat[json.dumps([entry.key for entry in path])] = half = np.asarray(leaf).astype(np.float16)
        if not np.isfinite(half).all():
            raise SnapshotError(f"no snapshot at step {step}: {jax.tree_util.keystr(path)} has numbers beyond float16")
    target = folder / f"{step:09d}-{sigma_rel:g}.npz"
    with written(target) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, **flat)
    return target


def read_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, sorted by step and then by width; none if the folder does not exist."""
    found = []
    for path in folder.glob("*.npz"):
        step, _, width = path.stem.partition("-")
        try:
            found.append(Snapshot(int(step), float(width), path))
        except ValueError:
            continue  # not a snapshot
    return sorted(found)


def set_aside(folder: Path, after: int, target: Path) -> list[int]:
    """Moves the snapshots newer than step `after` into `target`, because a resumed run will take these steps again.

    Returns:
        The steps of the snapshots that were moved.
    """
    moved = [s for s in read_snapshots(folder) if s.step > after]
    for snapshot in moved:
        files.set_aside(snapshot.path, target)
    return sorted({s.step for s in moved})


def read_params(path: Path) -> Params:
    """Reads a snapshot as a nested dictionary of float16 arrays.

    Raises:
        SnapshotError: if the file cannot be read.
    """
    params: dict = {}
    try:
        for name, array in read_npz(path).items():
            *above, last = json.loads(name)
            inside = params
            for key in above:
                inside = inside.setdefault(key, {})
            inside[last] = array
    except Exception as error:  # names that are not lists of keys can raise any exception
        raise SnapshotError(f"snapshot {path} cannot be read: {one_line(error)}") from error
    return params


def posthoc(
    folder: Path, sigma_rel: float, step: int | None = None, tracked: Mapping[float, Params] | None = None
) -> Params:
    """Reconstructs the average of any width at any step from the snapshots in a folder.

    Args:
        folder: the folder of the snapshots.
        sigma_rel: the requested relative width.
        step: the step at which the profile ends, by default the step of the newest snapshot. A profile drops to zero at
            its end, so averages stored at exactly this step are needed, as snapshots or in `tracked`.
        tracked: the averages in the training state at `step`, by width. They are needed if training was stopped
            between two snapshots, so that the folder has no snapshot of that step.

    Returns:
        The average, a nested dictionary of float32 arrays.

    Raises:
        SnapshotError: if there are no snapshots, or their profiles do not approximate the requested one.
        ValueError: if no profile has this width.
    """
    snapshots = read_snapshots(folder)
    stored = {s.sigma_rel for s in snapshots if s.step == step}
    extra = {width: average for width, average in (tracked or {}).items() if width not in stored}
    if not snapshots and not extra:
        raise SnapshotError(f"{folder} holds no snapshots of averages: a width needs a run trained with ema.widths")
    end = snapshots[-1].step if step is None else step
    known = [(s.step, s.sigma_rel) for s in snapshots] + [(end, width) for width in extra]
    profiles = [(s, gamma_of(width)) for s, width in known]
    target = (end, gamma_of(sigma_rel))
    coefficients = solve_weights(profiles, target)
    error = misfit(profiles, target, coefficients)
    if not error <= LARGEST_MISFIT:
        widths = ", ".join(f"{w:g}" for w in sorted({width for _, width in known}))
        steps = [s for s, _ in known]
        raise SnapshotError(
            f"the average of width {sigma_rel:g} at step {end} is out of reach of the {len(known)} snapshots "
            f"in {folder} (steps {min(steps)} to {max(steps)}, widths {widths}): its profile would be {error:.0%} off"
        )
    return reconstruct(chain((read_params(s.path) for s in snapshots), extra.values()), coefficients)
