"""The compiled program that draws a block of samples, made once for each choice of solver, guidance and label rule.

Parameters, keys and the class of `--label` are arguments of the program, so another seed, or the same `Run` with other
parameters, does not compile it again. A run that is opened a second time does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, UInt8

from flowjax import likelihood, solvers
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.inference.batches import everywhere, over_rows
from flowjax.inference.choose import Arrays, Choice
from flowjax.inference.given_conditions import SOURCE_SAMPLES
from flowjax.inference.run import Run
from flowjax.solvers import Stats, grids
from flowjax.solvers.names import PUSH_FORWARD
from flowjax.sources import filled
from flowjax.training.writers import say
from flowjax.typing import Batched, PRNGKey

__all__ = [
    "DrawBlock",
    "Inputs",
    "LabelRule",
    "compile_draw",
    "compile_pairs",
    "compile_scored",
    "keys_of_seed",
    "labels_of",
    "level_thresholds",
    "other_seed",
    "solve",
    "source_noise",
    "to_levels",
]

LabelRule = Literal["shares", "random", "balanced"]
"""How the class of sample i is chosen: with the classes' shares of the training data (`shares`) or with equal chances
(`random`), by a key that depends on i, or as class i mod K of the K classes of the training data (`balanced`)."""

Labels = Literal["shares", "random", "balanced", "one", "none"]
"""`LabelRule`, or one class for all samples, or none, for a network without labels and where the caller gives them."""

DrawBlock = Callable[[np.ndarray, dict[str, np.ndarray]], tuple[dict[str, Array], Stats]]
"""From the numbers of samples (B,) and the conditions that the caller gives to their `samples`, to their `label` if the
program chooses it, and to the cost of the solve."""

_DEQUANTISE, _PATH = 1, 2  # folded into the key of a sample, so that these draws differ from that of the source

_KEPT = 8
"""Number of programs, and of data sets' thresholds, that are kept. A program holds its run and its executable, but no
parameters."""

_LEARNED_ON = 256
"""Number of samples on which a time grid is learned."""


class Inputs(NamedTuple):
    """The arguments of the program that are the same for all rows.

    Attributes:
        network, weak: parameters and variables of the network, and of the weaker one of autoguidance.
        noise, labels, solver: keys; each row folds its number into them.
        label: the class of the rule `one`.
    """

    network: Arrays
    weak: Arrays
    noise: PRNGKey
    labels: PRNGKey
    solver: PRNGKey
    label: ArrayLike


def keys_of_seed(seed: int, num: int) -> tuple[PRNGKey, ...]:
    """The keys into which the key of a seed is split.

    JAX would take a seed modulo 2^32, so that two seeds could give the same samples.

    Raises:
        ConfigError: if the seed is not in [0, 2^32).
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be in [0, {2**32 - 1}], not {seed}")
    return _split(np.uint32(seed), num)


def other_seed(seed: int) -> int:
    """A seed for another purpose, whose samples are independent of those of `seed`."""
    return (seed + 2**31) % 2**32


@partial(jax.jit, static_argnums=1)
def _split(seed: Any, num: int) -> tuple[PRNGKey, ...]:
    return tuple(jax.random.split(jax.random.key(seed), num))


def source_noise(run: Run, key: Array, rows: Array) -> Array:
    """Samples of the prior (B, *event), each from `key` folded with the number of its row."""
    return jax.vmap(lambda i: run.prior.sample(jax.random.fold_in(key, i), 1)[0])(rows)


def labels_of(kind: Labels, spec: DataSpec, inputs: Inputs, rows: Array) -> Array | None:
    """The classes of samples, among those of which the training data have examples. A label depends on its row only.

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
    """How a block is drawn. Programs with equal `identity` are equal, and so are compiled once.

    Attributes:
        identity: everything that the compiled program depends on.
        choice: without arrays.
        labels: how labels are chosen.
        times: a learned grid; None for the grid of the choice.
    """

    identity: tuple[Any, ...]
    choice: Choice = field(compare=False, repr=False)
    labels: Labels = field(compare=False)
    times: tuple[float, ...] | None = field(compare=False)

    def draw(self, inputs: Inputs, rows: Array, given: dict[str, Array]) -> tuple[Array, Array | None, Stats]:
        """Samples of these rows in model space, their labels if the program chooses them, and the cost of the solve."""
        labels, x0, cond = _start(self.choice, self.labels, inputs, rows, given)
        model = self.choice.model(inputs.network, inputs.weak)
        x, stats = solve(self.choice, model, x0, inputs.solver, rows, cond, self.times)
        return x, labels, stats

    def draw_pair(self, inputs: Inputs, rows: Array, given: dict[str, Array]) -> tuple[dict[str, Array], Stats]:
        """The source samples `x0` and the samples `x1` of these rows in model space, with their `label` if chosen."""
        labels, x0, cond = _start(self.choice, self.labels, inputs, rows, given)
        model = self.choice.model(inputs.network, inputs.weak)
        x, stats = solve(self.choice, model, x0, inputs.solver, rows, cond, self.times)
        return {"x0": x0 / self.choice.start_scale, "x1": x} | ({} if labels is None else {"label": labels}), stats

    def draw_scored(self, inputs: Inputs, rows: Array, given: dict[str, Array]) -> tuple[dict[str, Array], Stats]:
        """The `samples` of these rows in model space with their `log_prob` there, and their `label` if chosen."""
        labels, x0, cond = _start(self.choice, self.labels, inputs, rows, given)
        t0, t1 = (None, None) if self.choice.interval is None else self.choice.interval
        prior: Any = self.choice.run.prior
        if self.choice.source_scale != 1:  # the noise of the first time, if that is not 0
            prior = replace(prior, scale=prior.scale * self.choice.source_scale)
        x, found = likelihood.push_forward(
            self.choice.model(inputs.network, inputs.weak),
            x0,
            prior,
            cond=cond,
            t0=t0,
            t1=t1,
            **self.choice.solver.tolerances,
        )
        values = {"samples": x, "log_prob": found.log_prob}
        return values | ({} if labels is None else {"label": labels}), found.stats


def solve(
    choice: Choice,
    model: Any,
    x0: Batched,
    key: PRNGKey,
    rows: Array,
    cond: dict[str, Array] | None = None,
    times: tuple[float, ...] | None = None,
) -> tuple[Batched, Stats]:
    """Solves from the source to the data with the solver, the time grid and the options of a choice.

    Args:
        choice: how to solve.
        model: what is solved.
        x0: (B, *event) states at the start.
        key: of the noise of the solver; each row folds its number into it.
        rows: (B,) numbers of the samples.
        cond: conditions for the model.
        times: a learned grid in place of that of the choice.

    Returns:
        Samples in model space (B, *event), and the cost of the solve.
    """
    solver = choice.solver
    t0, t1 = (None, None) if solver.name == PUSH_FORWARD or choice.interval is None else choice.interval
    return solvers.sample(
        model,
        x0,
        solver=solver.name,
        steps=solver.steps if times is None else None,
        grid=choice.grid if times is None else times,
        key=jax.vmap(partial(jax.random.fold_in, key))(rows),
        cond=cond,
        t0=t0,
        t1=t1,
        options=choice.options,
        rtol=solver.rtol,
        atol=solver.atol,
    )


def _start(
    choice: Choice, kind: Labels, inputs: Inputs, rows: Array, given: Mapping[str, Array]
) -> tuple[Array | None, Array, dict[str, Array]]:
    """The labels that are chosen for these rows, their states at the start of the solve, and all their conditions."""
    labels = labels_of(kind, choice.run.spec, inputs, rows)
    x0 = choice.source_scale * source_noise(choice.run, inputs.noise, rows)
    cond = {name: a for name, a in given.items() if name != SOURCE_SAMPLES}
    if SOURCE_SAMPLES in given:
        x0 = _from_given(choice, inputs, rows, given[SOURCE_SAMPLES], x0)
    return labels, x0, cond if labels is None else {**cond, "label": labels}


def _from_given(choice: Choice, inputs: Inputs, rows: Array, given: Array, drawn: Array) -> Array:
    """The states at the start of the solve for encoded source samples, whose numbers that are NaN are `drawn`."""
    key_of = lambda i, use: jax.random.fold_in(jax.random.fold_in(inputs.noise, i), use)
    prepared = jax.vmap(lambda i, x: choice.run.spec.prepare(key_of(i, _DEQUANTISE), x))(rows, given)
    x0, path = filled(prepared, drawn), choice.path
    if path is None or path.noise is None or choice.interval is None:
        return x0
    noise = jax.vmap(lambda i: jax.random.normal(key_of(i, _PATH), x0.shape[1:]))(rows)
    return x0 + path.noise_rates(choice.interval[0], x0).gamma * noise


def compile_draw(
    choice: Choice, seed: int, labels: Labels, label: int = 0, given: Mapping[str, np.ndarray] | None = None
) -> DrawBlock:
    """Compiles the draw of a block of samples over all devices. The same choice and label rule compile nothing new.

    Args:
        choice: what is sampled, and how.
        seed: of the noise, the labels and the solver's noise.
        labels: how labels are chosen.
        label: the class of the rule `one`.
        given: (1, ...) or (N, ...) conditions as the network takes them, with which a time grid is learned.

    Returns:
        The function. Samples of integer data are levels, others are in model space.

    Raises:
        ConfigError: on a bad seed, or a time grid that cannot be learned.
    """
    program, inputs = _program(choice, seed, labels, label, given)
    draw, spec = _compiled(program), choice.run.spec
    thresholds = jnp.asarray(level_thresholds(spec)) if spec.levels else None

    def block(rows: np.ndarray, given: dict[str, np.ndarray]) -> tuple[dict[str, Array], Stats]:
        x, chosen, stats = draw(inputs, rows, given)
        x = x if thresholds is None else to_levels(thresholds, x)
        return {"samples": x} | ({} if chosen is None else {"label": chosen}), stats

    return block


def compile_pairs(
    choice: Choice, seed: int, labels: Labels, given: Mapping[str, np.ndarray] | None = None
) -> DrawBlock:
    """Compiles the draw of a block of pairs. The arguments are those of `compile_draw`.

    Returns:
        The function. Its values are `x0`, samples of the source, and `x1`, the samples to which they are mapped, in
        model space, and `label` if it is chosen.
    """
    program, inputs = _program(choice, seed, labels, 0, given)
    return partial(_compiled(program, "draw_pair"), inputs)


def compile_scored(
    choice: Choice, seed: int, labels: Labels, label: int = 0, given: Mapping[str, np.ndarray] | None = None
) -> DrawBlock:
    """Compiles the draw of a block of samples with their log-densities. The arguments are those of `compile_draw`.

    Returns:
        The function. Its values are `samples` and `log_prob` in model space, and `label` if it is chosen.
    """
    program, inputs = _program(choice, seed, labels, label, given)
    return partial(_compiled(program, "draw_scored"), inputs)


def _program(
    choice: Choice, seed: int, labels: Labels, label: int, given: Mapping[str, np.ndarray] | None
) -> tuple[Program, Inputs]:
    """The program of a draw, and its arguments on all devices; the arguments are those of `compile_draw`."""
    assert choice.arrays is not None
    noise, classes, steps = keys_of_seed(seed, 3)
    inputs = Inputs(*choice.arrays, noise, classes, steps, np.int32(label))
    times = _learned_times(choice, labels, inputs, given or {}) if choice.solver.learns_grid else None
    program = Program((choice.identity, labels, times), replace(choice, arrays=None), labels, times)
    return program, everywhere(inputs)


@lru_cache(_KEPT)
def _compiled(program: Program, draw: str = "draw") -> Callable[..., Any]:
    return over_rows(getattr(program, draw))


def _learned_times(choice: Choice, kind: Labels, inputs: Inputs, given: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """Times that are learned on 256 samples, none of which is among those that are drawn."""
    if several := [name for name, a in given.items() if len(a) > 1]:
        raise ConfigError(
            f"grid 'learned' needs one condition for all samples, and each sample has its own {several[0]}: give one "
            "row, or take another grid"
        )
    assert choice.sampler is not None  # `choose` has checked these
    assert choice.solver.steps is not None
    assert choice.interval is not None
    say(f"sample: learning the time grid on {_LEARNED_ON} samples")
    rows = jnp.arange(2**31 - _LEARNED_ON, 2**31)
    repeated = {name: jnp.repeat(jnp.asarray(a), _LEARNED_ON, 0) for name, a in given.items()}
    _, x0, cond = _start(choice, kind, inputs, rows, repeated)
    low, high = choice.interval
    try:
        model = choice.model(inputs.network, inputs.weak)
        steps = choice.solver.steps
        grid = grids.learn(choice.sampler, model, x0, steps, cond=cond, t0=low, t1=high, start=choice.grid)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return tuple(np.asarray(grid).tolist())


@jax.jit
def to_levels(thresholds: Array, x: Batched) -> UInt8[Array, "B *event"]:
    """`DataSpec.finish` for integer data, computed on the device so that a quarter of the bytes are copied to the host.

    It compares with thresholds instead of using the formula: a compiler may round the product and the sum of the
    formula once instead of twice, which would change samples at the edge of a level. NaN becomes 0, as in NumPy.

    Args:
        thresholds: from `level_thresholds`: (K,) for all numbers, or (K, C) for C channels.
        x: in model space.
    """
    search = lambda thresholds, x: jnp.searchsorted(thresholds, x, side="right")
    levels = search(thresholds, x) if thresholds.ndim == 1 else jax.vmap(search, (-1, -1), -1)(thresholds, x)
    return jnp.where(jnp.isnan(x), 0, levels).astype(jnp.uint8)


@lru_cache(_KEPT)
def level_thresholds(spec: DataSpec) -> np.ndarray:
    """The smallest float32 that `spec.finish` maps to each level from 1 on, by bisection over all ordered floats.

    Returns:
        (K,) for K + 1 levels, or (K, C) where each of C channels has its own scale.
    """
    levels = np.arange(1, spec.levels)
    if spec.normalise.features is not None:
        levels = np.repeat(levels[:, None], spec.normalise.features, 1)
    low, high = np.full(levels.shape, -0x7F7FFFFF), np.full(levels.shape, 0x7F7FFFFF)  # the finite floats
    with np.errstate(over="ignore"):
        while np.any(high - low > 1):
            middle = (low + high) // 2
            reached = spec.finish(_float_of_rank(middle)) >= levels
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return _float_of_rank(high)


def _float_of_rank(rank: np.ndarray) -> np.ndarray:
    """The float32 that is `rank` floats above 0."""
    return np.where(rank >= 0, rank, -rank | 0x80000000).astype(np.uint32).view(np.float32)
