"""The compiled program that draws a block of samples, made once for each choice of solver, guidance and label rule.

Parameters, keys and the label of `--label` are arguments of the program, so another seed or checkpoint does not compile
it again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import solvers
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.inference.choose import Arrays, Choice
from flowjax.inference.levels import level_thresholds, to_levels
from flowjax.inference.row_sharding import everywhere, over_rows
from flowjax.inference.run import Run
from flowjax.solvers import Stats, grids, make_sampler
from flowjax.training.writers import say
from flowjax.typing import PRNGKey

__all__ = ["DrawBlock", "Inputs", "LabelRule", "compile_draw", "key_of_seed", "labels_of", "source_noise"]

LabelRule = Literal["shares", "random", "balanced"]
"""How the class of sample i is chosen: drawn with the classes' shares of the training data (`shares`) or with equal
chances (`random`) from a key of i, or class i mod K of the K classes that the training data have (`balanced`)."""

Labels = Literal["shares", "random", "balanced", "one", "none"]
"""`LabelRule`, or one class for all samples, or none: for a network without labels, and where the labels are given."""

DrawBlock = Callable[[np.ndarray, dict[str, np.ndarray]], tuple[dict[str, Array], Stats]]
"""From the numbers of samples (B,) and their given conditions to their `samples`, to `label` if they were drawn, and to
what they cost."""

_PROGRAMS = 8
"""How many are kept: each holds its run and its executable, but no parameters."""

_LEARNED_ON = 256
"""Samples on which a time grid is learned."""


class Inputs(NamedTuple):
    """What the program is given at each call beside its rows.

    Attributes:
        network, weak: parameters and variables of the network, and of the weaker one of autoguidance.
        noise, labels, solver: keys, each folded with the row.
        label: the class of `one`.
    """

    network: Arrays
    weak: Arrays
    noise: PRNGKey
    labels: PRNGKey
    solver: PRNGKey
    label: Array


def key_of_seed(seed: int) -> PRNGKey:
    """The key of a seed. JAX would take a seed modulo 2^32, so that two seeds could mean the same samples.

    Raises:
        ConfigError: if the seed is not in [0, 2^32).
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be in [0, {2**32 - 1}], not {seed}")
    return jax.random.key(seed)


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
    """How a block is drawn; equal, and so compiled once, where `identity` is.

    Attributes:
        identity: all that it depends on.
        choice: without parameters.
        labels: how labels are chosen.
        times: a learned grid, or None for the choice's.
    """

    identity: tuple[Any, ...]
    choice: Choice = field(compare=False, repr=False)
    labels: Labels = field(compare=False)
    times: tuple[float, ...] | None = field(compare=False)

    def draw(self, inputs: Inputs, rows: Array, given: dict[str, Array]) -> tuple[Array, Array | None, Stats]:
        """Samples of these rows in model space, the labels that were drawn for them, and what they cost."""
        choice, solver = self.choice, self.choice.solver
        labels, cond = _conditions(self.labels, choice.run, inputs, rows, given)
        x, stats = solvers.sample(
            choice.model(inputs.network, inputs.weak),
            choice.source_scale * source_noise(choice.run, inputs.noise, rows),
            solver=solver.name,
            steps=solver.steps if self.times is None else None,
            grid=choice.grid if self.times is None else self.times,
            key=jax.vmap(partial(jax.random.fold_in, inputs.solver))(rows),
            cond=cond,
            t0=None if choice.interval is None else choice.interval[0],
            t1=None if choice.interval is None else choice.interval[1],
            options=choice.options,
            rtol=solver.rtol,
            atol=solver.atol,
        )
        return x, labels, stats


def _conditions(
    kind: Labels, run: Run, inputs: Inputs, rows: Array, given: Mapping[str, Array]
) -> tuple[Array | None, dict[str, Array]]:
    """The labels that are drawn for these rows, and all of their conditions."""
    labels = labels_of(kind, run.spec, inputs, rows)
    return labels, dict(given) if labels is None else {**given, "label": labels}


def compile_draw(
    choice: Choice, seed: int, labels: Labels, label: int = 0, given: Mapping[str, np.ndarray] | None = None
) -> DrawBlock:
    """The draw of a block of samples, compiled over all devices; the same choice and label rule compile nothing new.

    Args:
        choice: what is sampled, and how.
        seed: of the noise, the labels and the solver's noise.
        labels: how labels are chosen.
        label: the class of `one`.
        given: (1, ...) or (N, ...) conditions as the network takes them; a learned time grid is learned with them.

    Returns:
        The function. Samples of integer data are levels, others are in model space.

    Raises:
        ConfigError: on a bad seed, or a time grid that cannot be learned.
    """
    noise, classes, steps = jax.random.split(key_of_seed(seed), 3)
    inputs = Inputs(*choice.arrays, noise, classes, steps, jnp.asarray(label))
    times = _learned_times(choice, labels, inputs, given or {}) if choice.solver.grid == "learned" else None
    draw = _compiled(Program((choice.identity, labels, times), choice.without_arrays(), labels, times))
    inputs, spec = everywhere(inputs), choice.run.spec
    thresholds = jnp.asarray(level_thresholds(spec)) if spec.levels else None

    def block(rows: np.ndarray, given: dict[str, np.ndarray]) -> tuple[dict[str, Array], Stats]:
        x, drawn, stats = draw(inputs, rows, given)
        x = x if thresholds is None else to_levels(thresholds, x)
        return {"samples": x} | ({} if drawn is None else {"label": drawn}), stats

    return block


@lru_cache(_PROGRAMS)
def _compiled(program: Program) -> Callable[..., Any]:
    return over_rows(program.draw)


def _learned_times(choice: Choice, kind: Labels, inputs: Inputs, given: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Times learned on 256 samples, none of them among those that are drawn."""
    if several := [name for name, a in given.items() if len(a) > 1]:
        raise ConfigError(
            f"grid 'learned' needs one condition for all samples, and each sample has its own {several[0]}: give one "
            "row, or take another grid"
        )
    sampler = make_sampler(choice.solver.name, choice.path, choice.options)
    assert sampler is not None  # `choose` has checked these
    assert choice.solver.steps is not None
    assert choice.interval is not None
    say(f"sample: learning the time grid on {_LEARNED_ON} samples")
    rows = jnp.arange(2**31 - _LEARNED_ON, 2**31)
    x0 = choice.source_scale * source_noise(choice.run, inputs.noise, rows)
    known = {name: jnp.repeat(jnp.asarray(a), _LEARNED_ON, 0) for name, a in given.items()}
    _, cond = _conditions(kind, choice.run, inputs, rows, known)
    low, high = choice.interval
    try:
        model = choice.model(inputs.network, inputs.weak)
        grid = grids.learn(sampler, model, x0, choice.solver.steps, cond=cond, t0=low, t1=high)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return tuple(np.asarray(grid).tolist())
