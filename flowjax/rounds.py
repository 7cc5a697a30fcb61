"""Truncated sequential rounds: simulations where the posterior of one observation is, not everywhere in the prior.

Each round draws new simulations from the prior restricted to a box around the posterior that the round before has
learned, and trains a new network on them and on all earlier simulations inside the box. Boxes are nested, so that all
simulations of a round are from the prior restricted to its box. In a box that holds the posterior, the posterior under
the restricted prior is the same, so that no correction is needed (Deistler et al. 2022, arXiv:2210.04815, who restrict
by density; Miller et al. 2021, arXiv:2107.01214, by boxes). The networks are for this observation only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowjax import archives
from flowjax.config import Config, own_plugins
from flowjax.config_keys import method_of
from flowjax.data.sets import make_simulator
from flowjax.data.simulated import OBSERVATION, keep_simulations, kept_simulations, simulate_at
from flowjax.errors import ConfigError
from flowjax.inference import Run, SolverSettings, load, sample_each
from flowjax.inference.choose import DEFAULT_SOLVER
from flowjax.methods.base import has_comparable_loss
from flowjax.runs import train
from flowjax.simulators import Simulator
from flowjax.training.writers import say

__all__ = ["Box", "box_of", "sample_in_box", "truncated_rounds"]

_SAMPLES = 10_000
"""Number of posterior samples whose range is the box, without a share of `_LEFT_OUT` at each end."""

_LEFT_OUT, _MARGIN = 1e-3, 0.1
"""The box is wider than the range by this share of it at each end."""

_DRAWN = 100_000
"""Number of points that are drawn in the box at a time."""


@dataclass(frozen=True)
class Box:
    """A box of parameters.

    Attributes:
        low, high: (D,) its corners, within the support of the prior.
    """

    low: Float[np.ndarray, " D"]
    high: Float[np.ndarray, " D"]

    def contains(self, theta: np.ndarray) -> np.ndarray:
        """Which rows of theta (N, D) are in the box, (N,) bool."""
        return np.all((theta >= self.low) & (theta <= self.high), axis=1)


def truncated_rounds(
    config: Config,
    workdir: str | Path,
    obs: np.ndarray,
    rounds: int = 5,
    num: int = 1000,
    solver: SolverSettings = DEFAULT_SOLVER,
) -> Run:
    """Estimates the posterior of one observation in several rounds.

    The workdir receives `round_1`, `round_2`, ..., each the workdir of a run, and the simulations of each. Rounds that
    are finished are not repeated.

    Args:
        config: with the data set `simulator`; the number of simulations in `data.name` is replaced by `num`.
        workdir: the folder of the rounds.
        obs: the observation, in the shape in which the simulator returns one.
        rounds: number of rounds, at least 1.
        num: number of new simulations in each round.
        solver: how posterior samples are drawn between rounds.

    Returns:
        The run of the last round, at the step with the lowest validation loss, from which boxes are computed as well.

    Raises:
        ConfigError: if the data set is not `simulator`, the observation has another shape, the folder holds rounds for
            another observation or number, or the prior is hardly ever in the box.
    """
    if not config.data.simulator or not any(text.partition("(")[0] == OBSERVATION for text in config.data.cond):
        raise ConfigError(
            "rounds need data.simulator, a task such as two_moons or my_module:my_simulator, and data.cond=obs"
        )
    plugins = own_plugins(config)
    simulator = make_simulator(config.data.simulator, plugins)
    event = jax.eval_shape(lambda key: simulator.sample(key, 1), jax.random.key(0))[1].shape[1:]
    obs = np.asarray(obs, np.float32)
    obs = obs[0] if obs.shape == (1, *event) else obs
    if obs.shape != event:
        raise ConfigError(
            f"the observation must have the shape {event}, in which the simulator returns one, not {obs.shape}"
        )
    _check_same(Path(workdir), {OBSERVATION: obs, "num": np.asarray(num)})
    run: Run | None = None
    checkpoint = "best" if has_comparable_loss(method_of(config.method.name, plugins)) else "last"
    box = Box(np.full(simulator.prior.shape, -np.inf), np.full(simulator.prior.shape, np.inf))
    theta, seen = np.zeros((0, *simulator.prior.shape), np.float32), np.zeros((0, *event), np.float32)
    for k in range(1, rounds + 1):
        folder = Path(workdir) / f"simulations_{k}"
        if not (folder / "simulations.npz").exists():
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0x70D5), k)
            key_theta, key_simulate = jax.random.split(key)
            if run is not None:
                box = box_of(run, simulator, obs, box, solver)
            new = sample_in_box(simulator, None if run is None else box, num, key_theta)
            inside = box.contains(theta)
            if run is not None:
                say(f"rounds: round {k}: {_shares(box, simulator)}; {inside.sum()} earlier simulations are in it")
            theta = np.concatenate([theta[inside], new])
            seen = np.concatenate([seen[inside], simulate_at(simulator, new, key_simulate)])
            archives.write_npz(folder / "box.npz", {"low": box.low, "high": box.high})
            keep_simulations(folder, theta, seen)
        else:
            theta, seen = kept_simulations(folder)
            box = Box(**archives.read_npz(folder / "box.npz"))
        changes: Mapping[str, Any] = {"data.name": f"simulator(num={len(theta)})", "data.path": str(folder)}
        train(config, Path(workdir) / f"round_{k}", changes, plots=False)
        run = load(Path(workdir) / f"round_{k}", checkpoint=checkpoint, plugins=plugins)
    assert run is not None
    return run


def _check_same(workdir: Path, request: Mapping[str, np.ndarray]) -> None:
    """Keeps what the rounds are for in their folder, or raises ConfigError if it holds rounds for something else."""
    path = workdir / "rounds.npz"
    if not path.exists():
        archives.write_npz(path, dict(request))
        return
    kept = archives.read_npz(path)
    if other := [name for name, a in request.items() if name not in kept or not np.array_equal(kept[name], a)]:
        raise ConfigError(f"{workdir} holds rounds for another {other[0]}: give another folder")


def box_of(
    run: Run, simulator: Simulator, obs: np.ndarray, within: Box, solver: SolverSettings = DEFAULT_SOLVER
) -> Box:
    """The box around posterior samples, within the support of the prior and within another box."""
    x = sample_each(run, _SAMPLES, {OBSERVATION: obs[None]}, solver=solver).samples[0]
    low, high = np.quantile(np.asarray(x, np.float64), [_LEFT_OUT, 1 - _LEFT_OUT], axis=0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    if simulator.bounds:
        least, most = np.asarray(simulator.bounds).T
        low, high = np.maximum(low, least), np.minimum(high, most)
    return Box(np.maximum(low, within.low), np.minimum(high, within.high))


def sample_in_box(simulator: Simulator, box: Box | None, num: int, key: Any) -> np.ndarray:
    """Draws parameters from the prior, restricted to a box.

    Points are drawn uniformly in the box, and each is accepted with the probability p / max p, where p is the density
    of the prior and its maximum is taken over 100,000 points.

    Args:
        simulator: whose prior has a density.
        box: the box; None for the whole prior.
        num: number of parameters.
        key: a key of JAX.

    Returns:
        (num, D) float32.

    Raises:
        ConfigError: if fewer than one point in 100,000 is accepted.
    """
    if box is None:
        return np.asarray(simulator.prior.sample(key, num), np.float32)
    low, high = jnp.asarray(box.low, jnp.float32), jnp.asarray(box.high, jnp.float32)
    parts, drawn, largest = [], 0, None
    while sum(map(len, parts)) < num:
        key, key_x, key_u = jax.random.split(key, 3)
        x = low + (high - low) * jax.random.uniform(key_x, (_DRAWN, len(box.low)))
        density = simulator.prior.log_prob(x)
        largest = density.max() if largest is None else largest
        accepted = np.asarray(jnp.log(jax.random.uniform(key_u, (_DRAWN,))) <= density - largest)
        parts.append(np.asarray(x)[accepted])
        drawn += _DRAWN
        if sum(map(len, parts)) * 1e5 < drawn:
            raise ConfigError("the prior has almost no mass in the box around the posterior: the last round has failed")
    return np.concatenate(parts)[:num]


def _shares(box: Box, simulator: Simulator) -> str:
    """The share of the prior that a box has, in words, estimated from 10,000 draws."""
    inside = box.contains(np.asarray(simulator.prior.sample(jax.random.key(0), 10_000))).mean()
    return f"the box has {inside:.2%} of the prior" if inside else "the box has less than 0.01% of the prior"
