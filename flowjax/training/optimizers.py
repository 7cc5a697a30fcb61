"""Optimizers and learning rate schedules from a config, and the gradient transformations around the optimizers.

Learning rates are functions of the number of samples seen. The optimizer is a chain of a guard that skips steps with an
unusually large gradient norm, gradient clipping by global norm, the optimizer of the config, and the normalisation of
weights whose layers normalise them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, muon

from flowjax.arguments import make
from flowjax.config import TrainKeys
from flowjax.errors import ConfigError, lookup
from flowjax.methods.base import Group, Method
from flowjax.models.magnitude import is_weight, unit
from flowjax.ranges import Range
from flowjax.training.parameters import Stacks
from flowjax.typing import Params, PyTree

__all__ = [
    "ELEMENTWISE",
    "OPTIMIZERS",
    "SCHEDULES",
    "Mask",
    "Shape",
    "SpikeState",
    "clip",
    "global_norm",
    "groups_of",
    "learning_rate",
    "normalise_weights",
    "optimizer",
    "skip_spikes",
    "skipped",
    "stacked",
]

_SMALLEST_SIDE = 16
"""Matrices with a smaller side, such as the first and last layers of image networks, are updated by Adam with Nesterov
momentum instead of Muon, like all parameters that are not matrices."""


def _muon(lr: optax.Schedule, train: TrainKeys) -> optax.GradientTransformation:
    """Muon with updates of the same size as Adam's, for one learning rate (Liu et al. 2025, arXiv 2502.16982, eq. 4).

    Matrices of the same shape are orthogonalised in one batch: a network has hundreds of matrices but few shapes.
    """
    return stacked(
        muon(
            lr,
            beta=train.momentum,
            adam_b2=train.beta2,
            weight_decay=train.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_matrices,
        )
    )


def _matrices(stacks: PyTree) -> PyTree:
    """The axes of stacks (K, ..., in, out) that form the matrix; the first axis is a batch."""
    # optax also passes the nodes that it has masked, which have no shape
    return {name: _axes(getattr(a, "shape", ())) for name, a in stacks.items()}


def _axes(shape: tuple[int, ...]) -> MuonDimensionNumbers | None:
    if len(shape) < 3 or min(math.prod(shape[1:-1]), shape[-1]) < _SMALLEST_SIDE:
        return None
    return MuonDimensionNumbers(tuple(range(1, len(shape) - 1)), (len(shape) - 1,))


OPTIMIZERS: dict[str, Callable[[optax.Schedule, TrainKeys], optax.GradientTransformation]] = {
    "adam": lambda lr, train: optax.adam(lr, b2=train.beta2),
    "adamw": lambda lr, train: optax.adamw(lr, b2=train.beta2, weight_decay=train.weight_decay),
    "muon": _muon,
}
"""Optimizers by name, as functions of the learning rate and the `train` section of a config."""

ELEMENTWISE = ("adam", "adamw")
"""The optimizers that treat every number alike, so that parameters may be stacked or reshaped."""

Shape = Callable[[Array, float], Array]
"""(samples seen since the warm-up, all samples after the warm-up) -> learning rate divided by its peak."""


def _decay(curve: Callable[[Array], Array], constant: float | int = 0.0) -> Shape:
    """The peak for the fraction `constant` of the run, then `curve`, which falls from 1 at 0 to 0 at 1."""
    if not 0 <= constant < 1:
        raise ValueError(f"the fraction of the run at the peak must be in [0, 1), not {constant}")
    return lambda seen, total: curve(jnp.clip((seen / total - constant) / (1 - constant), 0.0, 1.0))


def _inverse_sqrt(samples: Annotated[float | int, Range(0, 1e15)]) -> Shape:
    """1 / sqrt(max(seen / samples, 1)) (Karras et al. 2024, arXiv 2312.02696, eq. 67), seen since the warm-up."""
    if not samples > 0:
        raise ValueError(f"the number of samples must be positive, not {samples}")
    return lambda seen, total: 1 / jnp.sqrt(jnp.maximum(seen / samples, 1.0))


SCHEDULES: dict[str, Callable[..., Shape]] = {
    "constant": lambda: lambda seen, total: jnp.ones_like(seen),
    "cosine": lambda constant=0.0: _decay(lambda u: 0.5 * (1 + jnp.cos(jnp.pi * u)), constant),
    "linear": lambda constant=0.0: _decay(lambda u: 1 - u, constant),
    "inverse_sqrt": _inverse_sqrt,
}
"""Learning rate schedules by name. For example, `cosine(0.5)` keeps the peak for the first half of the run and then
falls to 0 like half a period of a cosine."""


def learning_rate(train: TrainKeys) -> optax.Schedule:
    """The learning rate as a function of the step: linear warm-up over `train.warmup` samples, then `train.schedule`.

    Raises:
        ConfigError: if the schedule is unknown or does not take its arguments.
    """
    shape = make("train.schedule", train.schedule, SCHEDULES)
    total = max(float(train.steps) * train.batch_size - train.warmup, 1.0)
    warmup = max(train.warmup, 1.0)

    def rate(step: Any) -> Array:
        seen = jnp.asarray(step, jnp.float32) * train.batch_size
        rising = jnp.minimum((seen + train.batch_size) / warmup, 1.0)  # positive at the first step
        return train.lr * rising * shape(jnp.maximum(seen - train.warmup, 0.0), total)

    return rate


def groups_of(method: Method) -> Mapping[str, Group]:
    """The groups of the method's parameters that have optimizers of their own; empty if it has none."""
    return getattr(method, "groups", {})


def optimizer(train: TrainKeys, groups: Mapping[str, Group] | None = None) -> optax.GradientTransformation:
    """The optimizer of the config, after gradient clipping and `skip_spikes` where the config has them.

    Weights that their layers normalise (`models.magnitude`) are kept at unit magnitude.

    Args:
        train: the section `train` of a config.
        groups: the groups of parameters that have optimizers of their own, by the first key of their parameters. The
            gradient of each group is clipped separately.

    Raises:
        ConfigError: if the optimizer is unknown or a value is out of range.
    """
    if groups:
        tx = optax.multi_transform({name: _of_group(train, group) for name, group in groups.items()}, _first_keys)
    else:
        tx = _of_group(train, Group())
    if train.spike and train.spike <= 1:
        raise ConfigError(
            f"train.spike must be above 1 (a multiple of the mean gradient norm) or 0 for no guard, not {train.spike}"
        )
    return skip_spikes(tx, train.spike) if train.spike else tx


def _first_keys(params: Params) -> PyTree:
    """The first key of each parameter, in a tree of the same structure."""
    return {name: jax.tree.map(lambda _, name=name: name, part) for name, part in params.items()}


def _of_group(train: TrainKeys, group: Group) -> optax.GradientTransformation:
    """The optimizer of the config for one group of parameters, with clipping and without `skip_spikes`."""
    rate = learning_rate(train)
    scaled = lambda updates: group.rate * rate(updates * group.every)  # as a function of the updates of the group
    lr = rate if group == Group() else scaled
    tx = lookup("train.optimizer", train.optimizer, OPTIMIZERS)(lr, train)
    tx = optax.chain(tx, normalise_weights())
    if train.clip:
        tx = optax.chain(clip(train.clip), tx)
    if group.every > 1:
        is_due = lambda step, **_: jnp.equal(jnp.asarray(step) % group.every, 0)
        tx = optax.conditionally_mask(tx, is_due)
    return tx


_SMALL = 2**14
"""Leaves with at most this many numbers are concatenated and summed together."""


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The square root of the sum of squares of all numbers in a tree, computed in float32.

    Small leaves are concatenated and summed in one reduction. On a GPU a reduction per leaf would be a kernel per leaf,
    which takes longer to start than to run: 241 of the 2,068 kernels per step of torchcfm's CIFAR-10 network.
    """
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    small = [leaf.ravel() for leaf in leaves if leaf.size <= _SMALL]
    large = [leaf for leaf in leaves if leaf.size > _SMALL]
    if len(small) > 1:
        small = [lax.optimization_barrier(jnp.concatenate(small))]  # keeps XLA from splitting the sum
    return jnp.sqrt(sum((jnp.sum(leaf * leaf) for leaf in [*large, *small]), jnp.zeros(())))


def clip(largest: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm(largest)` computed with `global_norm`."""

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        norm = global_norm(updates)
        scale = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


_DECAY = 0.99
"""Decay of the running mean of the gradient norm, which covers about the last hundred steps."""

_UNGUARDED = 100
"""Number of initial steps that are always taken, while the running mean is not yet reliable."""


class SpikeState(NamedTuple):
    """The state of `skip_spikes`.

    Attributes:
        inner: the state of the guarded optimizer.
        norm: running mean of the gradient norm, () float32.
        seen: number of steps so far, () int32.
        skipped: number of steps that were skipped, () int32.
    """

    inner: Any
    norm: Float[Array, ""]
    seen: Int[Array, ""]
    skipped: Int[Array, ""]


def skip_spikes(tx: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """Skips the steps whose gradient norm exceeds `factor` times its running mean.

    A skipped step changes neither the parameters nor the state of the optimizer. A norm that is not finite is not
    handled here, because the training loop stops at it.

    Args:
        tx: the optimizer to guard.
        factor: greater than 1.
    """

    def init(params: PyTree) -> SpikeState:
        return SpikeState(tx.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, SpikeState]:
        norm = global_norm(updates)
        spike = (norm > factor * state.norm) & (state.seen >= _UNGUARDED)
        new, inner = tx.update(updates, state.inner, params)
        pick = lambda old, new: jax.tree.map(lambda a, b: jnp.where(spike, a, b), old, new)
        mean = jnp.where(state.seen == 0, norm, _DECAY * state.norm + (1 - _DECAY) * norm)
        # a spike enters the mean as `factor` times the mean, so that the mean follows a lasting change of scale
        mean = jnp.where(spike, state.norm * (_DECAY + (1 - _DECAY) * factor), mean)
        return (
            pick(jax.tree.map(jnp.zeros_like, new), new),
            SpikeState(pick(state.inner, inner), mean, state.seen + 1, state.skipped + spike.astype(jnp.int32)),
        )

    return optax.GradientTransformation(init, update)


def skipped(state: Any) -> Int[Array, ""]:
    """The number of steps skipped so far, given the state of the optimizer; 0 without `skip_spikes`."""
    return state.skipped if isinstance(state, SpikeState) else jnp.zeros((), jnp.int32)


Mask = PyTree[bool] | Callable[[Params], PyTree[bool]]
"""A tree of booleans with the structure of the parameters, or a function from parameters to such a tree."""


def normalise_weights(mask: Mask = is_weight) -> optax.GradientTransformation:
    """Normalises the selected weights after each step to mean square 1 in every output channel, the last axis.

    The gradient of a layer that normalises its weight is orthogonal to that weight. Plain steps therefore only lengthen
    the weight, and a longer weight turns less in each step, which is an unintended decay of the effective learning
    rate. With the normalisation, the schedule alone determines the rate (Karras et al. 2024, arXiv 2312.02696, section
    2.3 and eq. 66).

    It must be the last transformation of a chain: it turns the final update u of a weight w into unit(w + u) - w. The
    magnitude of the new weight is 1 up to the rounding of the addition, about 1e-7.

    Args:
        mask: the weights to normalise, by default the parameters that `models.magnitude` names `weight`.

    Returns:
        A transformation without state, whose `update` needs the parameters.
    """

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Any, optax.OptState]:
        if params is None:
            raise ValueError("normalise_weights needs the parameters: pass them as the third argument of update")
        chosen = mask(params) if callable(mask) else mask
        project = lambda m, u, w: unit(w + u) - w if m else u
        return jax.tree.map(project, chosen, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def stacked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to parameters and gradients stacked by shape (`parameters.Stacks`).

    The result is the same for an optimizer that treats every number alike (Adam), and for one that takes the first axis
    as a batch (Muon).
    """

    def init(params: PyTree) -> Any:
        return tx.init(Stacks(params).stack(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        stacks = Stacks(updates)
        new: Any
        new, state = tx.update(stacks.stack(updates), state, None if params is None else stacks.stack(params))
        return stacks.unstack(new), state

    return optax.GradientTransformation(init, update)
