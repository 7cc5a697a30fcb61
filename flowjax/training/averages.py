"""Moving averages of the parameters: the exponential one, and those with a power of time as profile.

From two averages of the second kind any other of that kind can be made after the run. The profile at time t weighs the
parameters of time s by (gamma + 1) s^gamma / t^(gamma + 1) on [0, t]: it stretches with the run, so its width is a
share of it. That share, sigma_rel, is its standard deviation over t, and is how averages are named. Tracking two and
storing them now and then, one can choose the width after training: the profiles of the snapshots nearly span those of
other widths, and the parameters follow by linearity (Karras et al. 2024, section 3 and appendix C).

Power profiles depend on ratios of times alone: steps may be optimizer steps or samples, the same throughout. A tracked
average is the integral of its profile exactly, of parameters that are constant between steps.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowjax import files
from flowjax.archives import one_line, read_npz
from flowjax.files import written
from flowjax.typing import Params

__all__ = [
    "FOLDER",
    "LARGEST_MISFIT",
    "MAX_SIGMA_REL",
    "PowerProfile",
    "Snapshot",
    "SnapshotError",
    "beta",
    "ema_decay",
    "gamma_of",
    "init_power",
    "inner",
    "misfit",
    "posthoc",
    "rate",
    "read_params",
    "read_snapshots",
    "reconstruct",
    "set_aside",
    "sigma_rel",
    "solve_weights",
    "update_ema",
    "update_power",
    "write_snapshot",
]

FOLDER = "averages"
"""Of a workdir: the snapshots of `ema.widths`."""

LARGEST_MISFIT = 0.05
"""Of a profile that `posthoc` gives out as the one asked for, in L2 over its norm."""

MAX_SIGMA_REL = 12**-0.5
"""Of gamma = 0, the plain mean of the run."""

PowerProfile = tuple[float | int, float]
"""(step, gamma)."""

_RAMP = 0.05
"""The half-life of `ema_decay` is at most this share of the samples seen."""


class SnapshotError(RuntimeError):
    """Snapshots that are not there or do not serve; one line."""


class Snapshot(NamedTuple):
    """A stored average.

    Attributes:
        step: after which it was stored.
        sigma_rel: its width.
        path: of the file.
    """

    step: int
    sigma_rel: float
    path: Path


def ema_decay(half_life: float, batch_size: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """The factor on the old average when step number `step` (the first is 1) is done.

    The half-life grows with the run, up to 5% of the samples seen, until it is `half_life`: the average forgets its
    start (Karras et al. 2022, appendix F.2).

    Args:
        half_life: in samples, so that the batch size does not matter; 0 switches the average off.
        batch_size: samples in a step.
        step: its number.
    """
    seen = step * float(batch_size)
    ramped = jnp.minimum(half_life, _RAMP * seen)
    return jnp.where(ramped > 0, 0.5 ** (batch_size / jnp.maximum(ramped, 1e-9)), 0.0)


def update_ema(ema: Params, params: Params, factor: Float[Array, ""]) -> Params:
    """factor * ema + (1 - factor) * params.

    Not `optax.incremental_update`, which adds two products: of 100,000 normal numbers 49% got another last bit.
    """
    return jax.tree.map(lambda old, new: new + factor.astype(new.dtype) * (old - new), ema, params)


def sigma_rel(gamma: float) -> float:
    """The standard deviation of the profile, in units of the run: sqrt((g + 1) / ((g + 2)^2 (g + 3))), eq. 123."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile of that width: the largest root of (g + 2)^2 (g + 3) = (g + 1) / sigma_rel^2.

    Raises:
        ValueError: outside (0, 12^-1/2]: beyond it, the profile would weigh the start of the run most.
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL * (1 + 1e-12):
        raise ValueError(f"sigma_rel must be in (0, {MAX_SIGMA_REL:.4f}], not {sigma_rel}")
    # in h = g + 2: h^3 + h^2 - p h + p = 0, p = 1 / sigma_rel^2. Without the square, by h = y - 1/3: three real roots
    p = sigma_rel**-2
    a, b = p + 1 / 3, 2 / 27 + 4 * p / 3
    angle = math.acos(max(-1.0, -b / 2 * (3 / a) ** 1.5)) / 3
    return max(0.0, 2 * math.sqrt(a / 3) * math.cos(angle) - 7 / 3)


def rate(gamma: float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """1 - beta: the share of the parameters in the average when step number `step` (the first is 1) is done.

    Found without forming beta, which float32 rounds to 3e-3 of 1 - beta after a million steps. 1 at the first step.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))


def beta(gamma: float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """(1 - 1 / step)^(gamma + 1), the factor on the old average (eq. 127)."""
    return 1 - rate(gamma, step)


def init_power(params: Params, count: int) -> tuple[Params, ...]:
    """`count` averages at step 0, each in memory of its own."""
    return tuple(jax.tree.map(jnp.copy, params) for _ in range(count))


def update_power(
    averages: tuple[Params, ...], params: Params, gammas: tuple[float, ...], step: Int[Array, ""] | int
) -> tuple[Params, ...]:
    """The averages when step number `step` (the first is 1) is done, which left these parameters.

    Args:
        averages: one tree for each of `gammas`.
        params: after the step.
        gammas: from `gamma_of`.
        step: in optimizer steps, so that batches have one size.
    """

    def one(average: Params, gamma: float) -> Params:
        # not beta old + share new: a share far below float32's step of beta still has all its digits here
        share = rate(gamma, step)
        return jax.tree.map(lambda old, new: old + share.astype(old.dtype) * (new - old), average, params)

    return tuple(one(average, gamma) for average, gamma in zip(averages, gammas, strict=True))


def inner(a: PowerProfile, b: PowerProfile) -> float:
    """The integral of the product of two profiles over time, in 1 / step (eq. 151)."""
    (t, g), (s, h) = sorted([a, b])
    return (g + 1) * (h + 1) / (g + h + 1) * (t / s) ** h / s


def solve_weights(snapshots: Sequence[PowerProfile], target: PowerProfile) -> Float[np.ndarray, " n"]:
    """The coefficients, of sum 1, with which the snapshots' profiles come closest to the target's in L2.

    Algorithm 3, with the sum as a constraint of the least squares, in float64.

    Args:
        snapshots: (step, gamma) of each.
        target: (step, gamma).

    Returns:
        (n,).
    """
    n, t = len(snapshots), target[0]
    scaled = [(step / t, gamma) for step, gamma in snapshots]  # entries of order gamma, at any number of steps
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = [[inner(a, b) for b in scaled] for a in scaled]
    system[n, :n] = system[:n, n] = 1
    right = np.array([*(inner(a, (1.0, target[1])) for a in scaled), 1.0])
    return np.linalg.lstsq(system, right, rcond=1e-13)[0][:n]


def misfit(snapshots: Sequence[PowerProfile], target: PowerProfile, coefficients: Float[np.ndarray, " n"]) -> float:
    """The L2 distance of the combined profile from the target's, over the norm of the target's: 0 is exact."""
    c = coefficients
    gram = np.array([[inner(a, b) for b in snapshots] for a in snapshots])
    cross = np.array([inner(a, target) for a in snapshots])
    square = c @ gram @ c - 2 * c @ cross + inner(target, target)
    return math.sqrt(max(square, 0.0) / inner(target, target))


def reconstruct(snapshots: Iterable[Params], coefficients: Float[np.ndarray, " n"]) -> Params:
    """The combination of the trees, in float32; they may come one at a time, as they are read."""
    total: Params = None
    for tree, c in zip(snapshots, coefficients, strict=True):
        if total is None:
            total = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), tree)
        total = jax.tree.map(lambda sum, a, c=c: sum + np.float32(c) * np.asarray(a, np.float32), total, tree)
    return total


def write_snapshot(folder: Path, step: int, sigma_rel: float, params: Params) -> Path:
    """Stores an average as `STEP-SIGMA.npz`, whole or not at all; returns the path.

    One float16 array a parameter, named by its keys as a JSON list. Half the bytes, and the rounding, of 2^-11 of a
    number, is far below what averages of different widths differ by.

    Args:
        folder: created where it is missing.
        step: steps done.
        sigma_rel: the average's width.
        params: a nested dictionary of arrays.

    Raises:
        SnapshotError: on a number that float16 does not hold.
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
    """The snapshots in a folder, which need not exist, by step and then width."""
    found = []
    for path in folder.glob("*.npz"):
        step, _, width = path.stem.partition("-")
        try:
            found.append(Snapshot(int(step), float(width), path))
        except ValueError:
            continue  # a file of someone else's
    return sorted(found)


def set_aside(folder: Path, after: int, target: Path) -> list[int]:
    """Moves snapshots newer than step `after` into `target`: they are of a trajectory that will be taken again.

    Returns:
        Their steps.
    """
    moved = [s for s in read_snapshots(folder) if s.step > after]
    for snapshot in moved:
        files.set_aside(snapshot.path, target)
    return sorted({s.step for s in moved})


def read_params(path: Path) -> Params:
    """The nested dictionary of a snapshot, in float16.

    Raises:
        SnapshotError: if it cannot be read.
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
    """The average of any width, at any step, from the snapshots in a folder.

    Args:
        folder: of `write_snapshot`.
        sigma_rel: the width asked for.
        step: the step at which the profile ends; None for that of the newest snapshot. Profiles end sharply, so that
            averages at this step itself are needed: snapshots, or those in `tracked`.
        tracked: the averages in the training state at `step`, by width. They are needed where training was stopped
            between two snapshots, so that the folder has no snapshot of that step.

    Returns:
        A nested dictionary of float32 arrays.

    Raises:
        SnapshotError: if there are no snapshots, or none of their combinations has nearly that profile.
        ValueError: on a width that no profile has.
    """
    snapshots = read_snapshots(folder)
    there = {s.sigma_rel for s in snapshots if s.step == step}
    held = {width: average for width, average in (tracked or {}).items() if width not in there}
    if not snapshots and not held:
        raise SnapshotError(f"{folder} holds no snapshots of averages: a width needs a run trained with ema.widths")
    end = snapshots[-1].step if step is None else step
    known = [(s.step, s.sigma_rel) for s in snapshots] + [(end, width) for width in held]
    profiles = [(s, gamma_of(width)) for s, width in known]
    target = (end, gamma_of(sigma_rel))
    coefficients = solve_weights(profiles, target)
    missed = misfit(profiles, target, coefficients)
    if not missed <= LARGEST_MISFIT:
        widths = ", ".join(f"{w:g}" for w in sorted({width for _, width in known}))
        steps = [s for s, _ in known]
        raise SnapshotError(
            f"the average of width {sigma_rel:g} at step {end} is out of reach of the {len(known)} snapshots "
            f"in {folder} (steps {min(steps)} to {max(steps)}, widths {widths}): its profile would be {missed:.0%} off"
        )
    return reconstruct(chain((read_params(s.path) for s in snapshots), held.values()), coefficients)
