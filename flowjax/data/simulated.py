"""Data sets of simulations: x are parameters from a prior, and the condition `obs` is what a simulator makes of them.

A network that learns x given `obs` estimates the posterior distribution (Wildberger et al. 2023, arXiv:2305.17161, for
flow matching). Simulations are drawn inside the compiled training step, new ones in each step, or once, before
training: then their number is limited, they can be kept in a folder, and an interrupted simulation continues there.

Rows whose simulation failed, which is NaN or infinity in the observation, are left out. A network then learns the
posterior distribution given that the simulation succeeds.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from flowjax import archives
from flowjax.batch import Batch
from flowjax.data.affine import DataError
from flowjax.data.arrays import open_arrays
from flowjax.data.bounds import Bounds
from flowjax.data.dataset import Dataset
from flowjax.data.requests import DataRequest
from flowjax.data.spec import DataSpec
from flowjax.ranges import Range
from flowjax.simulators import Simulator
from flowjax.typing import Batched, PRNGKey

__all__ = ["OBSERVATION", "keep_simulations", "kept_simulations", "open_simulator", "simulate", "simulate_at"]

OBSERVATION = "obs"
"""The name of the condition that holds observations."""

_BLOCK = 1000
"""Number of simulations that are drawn at a time, and kept in one file."""

_STATISTICS, _TEST = 10_000, 2000
"""Number of simulations from which mean and scale are estimated if training draws new ones, and of test points then."""

_SEED_OF_SIMULATIONS = 0x51B0


def open_simulator(
    request: DataRequest,
    num: Annotated[int, Range(0, 10**9)] = 0,
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
    missing: bool = False,
) -> Dataset:
    """Opens simulations as a data set.

    Args:
        request: its simulator draws x and the condition `obs`; its path is a folder in which simulations are kept, or
            "" to keep none: then each command draws the same simulations again. Remove the folder if the simulator has
            changed.
        num: number of simulations, of which a tenth is held out; 0 to draw new ones in each training step.
        seed: of the simulations.
        missing: whether NaN in an observation is a missing value, so that only rows of NaN alone have failed.

    Raises:
        DataError: if there is no simulator, the folder holds other simulations, or almost all simulations fail.
    """
    simulator = request.simulator
    if simulator is None:
        raise DataError(
            "data.name is simulator, so data.simulator must be one: a task such as two_moons, or my_module:my_simulator"
        )
    if request.path and not num:
        raise DataError(
            "simulations are kept in data.path only if their number is given: data.name=simulator(num=10000)"
        )
    if others := [field.name for field in request.cond if field.name != OBSERVATION]:
        raise DataError(f"data.cond names {others[0]!r}, but simulations have only the condition {OBSERVATION!r}")
    if request.pairs:
        raise DataError(f"data.pairs is {request.pairs!r}, but simulations have no pairs")
    if num:
        folder = Path(request.path) if request.path else None
        whole = folder is not None and (folder / _WHOLE).exists()
        theta, obs = kept_simulations(Path(request.path)) if whole else simulate(simulator, num, seed, folder)
        if len(theta) < num:
            raise DataError(f"data.path: {folder} holds {len(theta)} simulations, and data.name asks for {num}")
        theta, obs, parts = theta[:num], obs[:num], {"": slice(None)}
    else:
        theta, obs = simulate(simulator, _STATISTICS + _TEST, seed)
        parts = {"": slice(_TEST, None), "_test": slice(_TEST)}
    succeeded = np.asarray(_succeeded(obs, missing))
    failed = int(np.sum(~succeeded))
    if min(succeeded[part].sum() for part in parts.values()) < 2:
        raise DataError(f"{failed} of {len(theta)} simulations failed: their observations are not finite numbers")
    notes = (_note_on_failures(theta, succeeded, simulator),) if failed else ()
    bounds = Bounds(simulator.bounds)
    if bounds:  # a uniform distribution on [low, high) can give `low` itself
        theta = bounds.rounded(theta.astype(np.float64), theta.dtype)
    named = {"x": theta, OBSERVATION: obs}
    arrays = {name + end: a[part][succeeded[part]] for end, part in parts.items() for name, a in named.items()}
    where = f"data.simulator ({request.path})" if request.path else "data.simulator"
    opened = open_arrays(
        "simulator",
        replace(request, path=where, normalise=request.normalise or "feature"),
        arrays,
        notes,
        bounds=bounds,
    )
    opened = replace(opened, simulator=simulator)
    return opened if num else replace(opened, sample=_sampler(simulator, opened.spec, missing), arrays=tuple)


def simulate(
    simulator: Simulator, num: int, seed: int = 0, folder: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws simulations in blocks, with progress on a terminal.

    The first rows are the same for each `num`.

    Args:
        simulator: the simulator.
        num: number of simulations.
        seed: of the simulations.
        folder: keeps each block as a file, from which the same call continues after an interruption; None to keep none.

    Returns:
        Parameters (num, D) and observations (num, *event), float32.

    Raises:
        DataError: if the folder holds blocks from another prior or seed, or a block cannot be read.
    """
    draw = jax.jit(partial(simulator.sample, n=_BLOCK))
    blocks, key = -(-num // _BLOCK), jax.random.fold_in(jax.random.key(seed), _SEED_OF_SIMULATIONS)
    if folder is not None:
        _check_same(folder, simulator, key)
    shown = None if blocks > 1 and jax.process_index() == 0 else True  # None shows the bar on terminals only
    parts = []
    with tqdm(total=num, desc="simulate", unit="simulation", disable=shown) as bar:
        for k in range(blocks):
            file = None if folder is None else _file(folder, k)
            if file is None or not file.exists():
                parts.append(tuple(np.asarray(a, np.float32) for a in draw(jax.random.fold_in(key, k))))
                if file is not None:
                    archives.write_npz(file, {"x": parts[-1][0], OBSERVATION: parts[-1][1]})
            else:
                parts.append(_read(file))
            bar.update(min(_BLOCK, num - k * _BLOCK))
    theta, obs = (np.concatenate(a)[:num] for a in zip(*parts, strict=True))
    return theta, obs


def simulate_at(simulator: Simulator, theta: np.ndarray, key: PRNGKey) -> np.ndarray:
    """Simulates observations (N, *event) for given parameters (N, D), in blocks, with progress on a terminal."""
    draw, blocks = jax.jit(simulator.simulate), -(-len(theta) // _BLOCK)
    padded = np.concatenate([theta, np.repeat(theta[-1:], blocks * _BLOCK - len(theta), 0)]).reshape(blocks, _BLOCK, -1)
    shown = tqdm(padded, desc="simulate", unit="block", disable=None if blocks > 1 else True)
    parts = [
        np.asarray(draw(jax.random.fold_in(key, k), jnp.asarray(rows)), np.float32) for k, rows in enumerate(shown)
    ]
    return np.concatenate(parts)[: len(theta)]


def keep_simulations(folder: Path, theta: np.ndarray, obs: np.ndarray) -> None:
    """Writes simulations that were drawn elsewhere, for example from a truncated prior, into a folder for `data.path`.

    Args:
        folder: the folder, which is created.
        theta: (N, D) parameters.
        obs: (N, *event) observations.
    """
    archives.write_npz(folder / _WHOLE, {"x": np.asarray(theta, np.float32), OBSERVATION: np.asarray(obs, np.float32)})


def kept_simulations(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads what `keep_simulations` wrote: parameters (N, D) and observations (N, *event).

    Raises:
        DataError: if there is no such file, or it cannot be read.
    """
    return _read(folder / _WHOLE)


_WHOLE = "simulations.npz"


def _file(folder: Path, block: int) -> Path:
    return folder / f"block_{block:06d}.npz"


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        found = archives.read_npz(file)
    except archives.ArchiveError as error:
        raise DataError(f"{error}: remove it to simulate it again") from None
    if not {"x", OBSERVATION} <= set(found):
        raise DataError(f"{file} holds no simulations, which are arrays x and {OBSERVATION}")
    return found["x"], found[OBSERVATION]


def _check_same(folder: Path, simulator: Simulator, key: PRNGKey) -> None:
    """Compares the parameters of the first block in a folder with those that this prior and seed draw.

    The observations are not compared, because simulations can be expensive.
    """
    if not _file(folder, 0).exists():
        return
    theta, _ = _read(_file(folder, 0))
    key_prior, _ = jax.random.split(jax.random.fold_in(key, 0))
    drawn = np.asarray(simulator.prior.sample(key_prior, _BLOCK))
    if theta.shape != drawn.shape or not np.allclose(theta, drawn, 1e-3, 1e-6):
        raise DataError(
            f"data.path: {folder} holds simulations from another prior or seed: give another folder, or remove it"
        )


def _succeeded(obs: Any, missing: bool) -> Bool[Array | np.ndarray, " N"]:
    """Which simulations succeeded."""
    xp: Any = np if isinstance(obs, np.ndarray) else jnp
    rows = obs.reshape(len(obs), -1)
    return (xp.isfinite(rows).any(1) & ~xp.isinf(rows).any(1)) if missing else xp.isfinite(rows).all(1)


def _note_on_failures(theta: np.ndarray, succeeded: np.ndarray, simulator: Simulator) -> str:
    """A note on how many simulations failed, and in which parameter they differ most from the others."""
    good, bad = theta[succeeded], theta[~succeeded]
    gap = np.abs(np.median(bad, 0) - np.median(good, 0)) / np.maximum(good.std(0), 1e-30)
    c = int(gap.argmax())
    name = simulator.names[c] if simulator.names else f"parameter {c}"
    return (
        f"{len(bad)} of {len(theta)} simulations failed and are left out: their observations are not finite. The "
        f"median of {name} is {np.median(bad[:, c]):.4g} for these, and {np.median(good[:, c]):.4g} for the others"
    )


def _sampler(simulator: Simulator, spec: DataSpec, missing: bool) -> Callable[[Any, PRNGKey, int], Batch]:
    """The function that draws encoded simulations inside the compiled step."""
    bounds, maps = Bounds(spec.bounds), dict(zip(spec.conditions, spec.condition_maps, strict=True))

    def sample(arrays: Any, key: PRNGKey, n: int) -> Batch:
        theta, obs = simulator.sample(key, n)
        theta, obs = _successful(theta, jnp.asarray(obs, jnp.float32), missing)
        x = spec.normalise.to_model(bounds.to_unbounded(theta) if bounds else theta)
        cond = {field.name: affine.to_model(obs.reshape(n, *field.shape)) for field, affine in maps.items()}
        return Batch(x, cond)

    return sample


def _successful(theta: Float[Array, "B D"], obs: Batched, missing: bool) -> tuple[Float[Array, "B D"], Batched]:
    """Replaces rows that failed by rows of the batch that succeeded; how often each occurs differs by at most one."""
    succeeded = _succeeded(obs, missing)
    order = jnp.argsort(~succeeded, stable=True)
    rows = order[jnp.arange(len(theta)) % jnp.maximum(succeeded.sum(), 1)]
    return theta[rows], obs[rows]
