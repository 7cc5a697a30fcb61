"""The compiled program that draws a block of samples, made once for each problem, solver, guidance and kind of labels.

Parameters, keys and the one class that is asked for are its arguments, so another seed or checkpoint compiles nothing.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from flowjax import solvers
from flowjax.data import DataSpec
from flowjax.inference.choose import Guide, Solver, grid_of, model_of, options_of
from flowjax.inference.row_sharding import over_rows
from flowjax.inference.run import Run
from flowjax.paths import AffinePath
from flowjax.solvers import Stats
from flowjax.typing import Batched, Params, PRNGKey

DrawnLabels = Literal["shares", "random", "balanced"]
"""How the class of sample i is chosen: drawn with the classes' shares of the training data (`shares`) or with equal
chances (`random`) from a key of i, or class i mod K of the K classes that the training data have (`balanced`)."""

Labels = Literal["shares", "random", "balanced", "one", "none"]
"""`DrawnLabels`, or one class for all samples, or no class for a network without labels."""

_PROGRAMS = 8
"""How many are kept: each holds its problem and its executable, but no parameters."""


class Inputs(NamedTuple):
    """What the program is told at each call beside its rows.

    Attributes:
        params, weak: of the network, and of the weaker one of autoguidance.
        noise, labels, solver: keys, each folded with the row.
        label: the class of `one`.
    """

    params: Params
    weak: Params
    noise: PRNGKey
    labels: PRNGKey
    solver: PRNGKey
    label: Array


def source_noise(run: Run, key: Array, rows: Array) -> Array:
    """x0 of these rows, (B, *event): each from its own key."""
    return jax.vmap(lambda i: run.prior.sample(jax.random.fold_in(key, i), 1)[0])(rows)


def labels_of(kind: Labels, spec: DataSpec, inputs: Inputs, rows: Array) -> Array | None:
    """The labels of these rows, each a function of its row alone; only of classes that the training data have.

    Args:
        kind: how classes are chosen.
        spec: of the data that the network was trained on.
        inputs: the key that every row folds its number into, and the class of `one`.
        rows: (B,) numbers of the samples.

    Returns:
        (B,) int32, or None for `none`.
    """
    if kind == "none":
        return None
    if kind == "one":
        return jnp.full(rows.shape, inputs.label)
    classes = jnp.asarray(spec.classes, jnp.int32)
    if kind == "balanced":
        return classes[rows % len(classes)]
    key_of = lambda i: jax.random.fold_in(inputs.labels, i)
    if kind == "random":
        return classes[jax.vmap(lambda i: jax.random.randint(key_of(i), (), 0, len(classes)))(rows)]
    below = jnp.asarray(np.cumsum([spec.shares[k] for k in spec.classes])[:-1], jnp.float32)
    uniform = jax.vmap(lambda i: jax.random.uniform(key_of(i)))(rows)
    return classes[jnp.searchsorted(below, uniform, side="right")]


@dataclass(frozen=True)
class Program:
    """How a block is drawn; equal, and so compiled once, where `same` is.

    Attributes:
        same: what it depends on. The problem is there as its id, which stays its own while `run` holds it.
        run, guide: without their parameters.
        path, interval, scale: from `choose.bind`.
        times: a learned grid, or None for the solver's.
    """

    same: tuple[Any, ...]
    run: Run = field(compare=False, repr=False)
    guide: Guide | None = field(compare=False, repr=False)
    solver: Solver = field(compare=False)
    path: AffinePath = field(compare=False)
    interval: tuple[float, float] = field(compare=False)
    scale: float = field(compare=False)
    labels: Labels = field(compare=False)
    times: tuple[float, ...] | None = field(compare=False)

    def draw(self, inputs: Inputs, rows: Array) -> tuple[Array, Array | None, Stats]:
        """Samples of these rows in model space, their labels, and what they cost."""
        guide = self.guide
        if guide is not None and guide.weak is not None:
            guide = dataclasses.replace(guide, weak=dataclasses.replace(guide.weak, params=inputs.weak))
        labels = labels_of(self.labels, self.run.spec, inputs, rows)
        x, stats = solvers.sample(
            model_of(self.run, inputs.params, self.path, guide),
            self.scale * source_noise(self.run, inputs.noise, rows),
            solver=self.solver.name,
            steps=self.solver.steps,
            grid=grid_of(self.solver) if self.times is None else self.times,
            key=jax.vmap(partial(jax.random.fold_in, inputs.solver))(rows),
            cond=labels,
            t0=self.interval[0],
            t1=self.interval[1],
            options=options_of(self.run, self.solver),
            rtol=self.solver.rtol,
            atol=self.solver.atol,
        )
        return x, labels, stats


def program(
    run: Run,
    solver: Solver,
    guide: Guide | None,
    bound: tuple[AffinePath, tuple[float, float], float],
    labels: Labels,
    times: tuple[float, ...] | None,
) -> Callable[[Inputs, Array | np.ndarray], tuple[Array, Array | None, Stats]]:
    """`Program.draw` compiled over all devices; the same function for the same arguments.

    `bound` is from `choose.bind`, its inputs are from `row_sharding.everywhere`.
    """
    guided, bare = None, guide
    if guide is not None:
        weak = guide.weak
        guided = (guide.name, guide.scale, guide.interval, guide.rescale, None if weak is None else id(weak.problem))
        bare = guide if weak is None else dataclasses.replace(guide, weak=dataclasses.replace(weak, params=None))
    same = (id(run.problem), solver, guided, labels, times)
    path, interval, scale = bound
    bare_run = dataclasses.replace(run, params=None)
    return _compiled(Program(same, bare_run, bare, solver, path, interval, scale, labels, times))


@lru_cache(_PROGRAMS)
def _compiled(what: Program) -> Callable[..., Any]:
    return over_rows(what.draw)


@jax.jit
def to_levels(thresholds: Array, x: Batched) -> UInt8[Array, "B *event"]:
    """`DataSpec.finish` of integer data, on the device: a quarter of the bytes are fetched.

    By comparisons with `thresholds`, not by its formula: there a compiler may fuse the product and the sum into one
    rounding, and a sample on the edge of a level would be another. NaN, as in NumPy, is 0.
    """
    levels = jnp.searchsorted(thresholds, x, side="right")
    return jnp.where(jnp.isnan(x), 0, levels).astype(jnp.uint8)


@lru_cache(_PROGRAMS)
def level_thresholds(spec: DataSpec) -> np.ndarray:
    """The smallest float32 that `spec.finish` takes to each level from 1 on: by bisection over all floats in order."""
    levels = np.arange(1, spec.levels)
    low, high = np.full(levels.shape, -0x7F7FFFFF), np.full(levels.shape, 0x7F7FFFFF)  # the finite ones
    with np.errstate(over="ignore"):
        while np.any(high - low > 1):
            middle = (low + high) // 2
            reached = spec.finish(_float_of_rank(middle)) >= levels
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return _float_of_rank(high)


def _float_of_rank(rank: np.ndarray) -> np.ndarray:
    """The float32 that is `rank` places above 0."""
    return np.where(rank >= 0, rank, -rank | 0x80000000).astype(np.uint32).view(np.float32)
