"""Optimizers and learning rates from a config, and the gradient transformations around the optimizers.

Learning rates are functions of samples. An optimizer is a chain: a guard against spikes of the gradient's norm, a clip
of that norm, the named optimizer, and the normalisation of the weights that their layers normalise.
"""

import math
from collections.abc import Callable
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
    "learning_rate",
    "normalise_weights",
    "optimizer",
    "skip_spikes",
    "skipped",
    "stacked",
]

_SMALLEST_SIDE = 16
"""Muon is for matrices; those with a side under this (to and from the channels of an image, say) are left to Adam,
in optax's form with Nesterov's momentum."""


def _muon(lr: optax.Schedule, train: TrainKeys) -> optax.GradientTransformation:
    """Muon with updates of Adam's size, so that one learning rate serves both (Liu et al. 2025, eq. 4).

    Equal shapes are orthogonalised together: a network has hundreds of small matrices and few shapes.
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
    """Of stacks (K, ..., in, out): which axes are the matrix; the rest is a batch."""
    # optax also asks about what it has masked out, which has no shape
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

ELEMENTWISE = ("adam", "adamw")
"""Those to which a parameter is so many numbers, wherever they lie."""

Shape = Callable[[Array, float], Array]
"""(samples since the warm-up, samples in all after it) -> the share of the peak rate."""


def _decay(curve: Callable[[Array], Array], constant: float | int = 0.0) -> Shape:
    """The peak for a share of the run, then `curve` from 1 at 0 to 0 at 1."""
    if not 0 <= constant < 1:
        raise ValueError(f"the constant share must be in [0, 1), not {constant}")
    return lambda seen, total: curve(jnp.clip((seen / total - constant) / (1 - constant), 0.0, 1.0))


def _inverse_sqrt(samples: Annotated[float | int, Range(0, 1e15)]) -> Shape:
    """1 / sqrt(max(samples seen / samples, 1)): Karras et al. 2024 (EDM2), eq. 67.

    Seen since the warm-up, here.
    """
    if not samples > 0:
        raise ValueError(f"a positive number of samples is needed, not {samples}")
    return lambda seen, total: 1 / jnp.sqrt(jnp.maximum(seen / samples, 1.0))


SCHEDULES: dict[str, Callable[..., Shape]] = {
    "constant": lambda: lambda seen, total: jnp.ones_like(seen),
    "cosine": lambda constant=0.0: _decay(lambda u: 0.5 * (1 + jnp.cos(jnp.pi * u)), constant),
    "linear": lambda constant=0.0: _decay(lambda u: 1 - u, constant),
    "inverse_sqrt": _inverse_sqrt,
}
"""`cosine(0.5)`: the first half of the run at the peak, then half a cosine to 0."""


def learning_rate(train: TrainKeys) -> optax.Schedule:
    """Linear warm-up over `train.warmup` samples, then `train.schedule` over the rest of the run.

    Raises:
        ConfigError: on an unknown schedule, or arguments it does not take.
    """
    shape = make("train.schedule", train.schedule, SCHEDULES)
    total = max(float(train.steps) * train.batch_size - train.warmup, 1.0)
    warmup = max(train.warmup, 1.0)

    def rate(step: Any) -> Array:
        seen = jnp.asarray(step, jnp.float32) * train.batch_size
        rising = jnp.minimum((seen + train.batch_size) / warmup, 1.0)  # the first step is not lost on a rate of zero
        return train.lr * rising * shape(jnp.maximum(seen - train.warmup, 0.0), total)

    return rate


def optimizer(train: TrainKeys) -> optax.GradientTransformation:
    """The configured optimizer behind a clip of the gradient's global norm and a guard against spikes (0 for none).

    Weights that their layers normalise (`models.magnitude`) are kept at unit magnitude.
    """
    tx = lookup("train.optimizer", train.optimizer, OPTIMIZERS)(learning_rate(train), train)
    tx = optax.chain(tx, normalise_weights())
    if train.clip:
        tx = optax.chain(clip(train.clip), tx)
    if train.spike and train.spike <= 1:
        raise ConfigError(
            f"train.spike is a multiple of the usual gradient norm: above 1, or 0 for none, not {train.spike}"
        )
    return skip_spikes(tx, train.spike) if train.spike else tx


_SMALL = 2**14
"""Numbers: leaves up to this size are put end to end and summed together."""


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The square root of the sum of all squares; leaves with few numbers are summed in one reduction.

    On a GPU a reduction for each small leaf is a kernel of its own, which takes longer to start than to run: of
    torchcfm's CIFAR-10 network 241 of 2,068 in a step.
    """
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    small = [leaf.ravel() for leaf in leaves if leaf.size <= _SMALL]
    large = [leaf for leaf in leaves if leaf.size > _SMALL]
    if len(small) > 1:
        small = [lax.optimization_barrier(jnp.concatenate(small))]  # or XLA takes the sum apart again
    return jnp.sqrt(sum((jnp.sum(leaf * leaf) for leaf in [*large, *small]), jnp.zeros(())))


def clip(largest: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, by this norm."""

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        norm = global_norm(updates)
        scale = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


_MEMORY = 0.99
"""Of the running mean of the gradient's norm: the last hundred steps or so."""

_FIRST = 100
"""Steps that are always taken: at the start the running mean says nothing."""


class SpikeState(NamedTuple):
    """The guarded optimizer's state, the running mean of the gradient's norm, steps seen and steps left out."""

    inner: Any
    norm: Float[Array, ""]
    seen: Int[Array, ""]
    skipped: Int[Array, ""]


def skip_spikes(tx: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """`tx`, but a gradient whose global norm is over `factor` times its running mean changes nothing.

    Neither parameters nor the optimizer's moments see it. A norm that is not finite is left to the training loop, which
    stops there.
    """

    def init(params: PyTree) -> SpikeState:
        return SpikeState(tx.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, SpikeState]:
        norm = global_norm(updates)
        spike = (norm > factor * state.norm) & (state.seen >= _FIRST)
        new, inner = tx.update(updates, state.inner, params)
        pick = lambda old, new: jax.tree.map(lambda a, b: jnp.where(spike, a, b), old, new)
        mean = jnp.where(state.seen == 0, norm, _MEMORY * state.norm + (1 - _MEMORY) * norm)
        # a spike enters the mean as large as it may be: after a lasting change of scale the mean follows
        mean = jnp.where(spike, state.norm * (_MEMORY + (1 - _MEMORY) * factor), mean)
        return (
            pick(jax.tree.map(jnp.zeros_like, new), new),
            SpikeState(pick(state.inner, inner), mean, state.seen + 1, state.skipped + spike.astype(jnp.int32)),
        )

    return optax.GradientTransformation(init, update)


def skipped(state: Any) -> Int[Array, ""]:
    """Steps left out so far, 0 for an optimizer without the guard."""
    return state.skipped if isinstance(state, SpikeState) else jnp.zeros((), jnp.int32)


Mask = PyTree[bool] | Callable[[Params], PyTree[bool]]


def normalise_weights(mask: Mask = is_weight) -> optax.GradientTransformation:
    """Replaces each selected weight by `unit` of it: mean square 1 in every output channel, the last axis.

    A layer that normalises its weight before use has a gradient orthogonal to that weight, so plain steps only ever
    lengthen it, and a longer weight turns less in each step: the effective learning rate decays in a way that nobody
    chose. Bringing the length back after each step leaves the schedule in charge (Karras et al. 2024, section 2.3 and
    eq. 66).

    It is the last of a chain, for it has to see the update that is applied: it turns the update u of a weight w into
    unit(w + u) - w. Weights end as exact as the addition rounds, to about 1e-7.

    Args:
        mask: a tree of booleans like the parameters, or a function from parameters to one. By default the parameters
            that `models.magnitude` names `weight`.

    Returns:
        A transformation without state, whose update needs the parameters.
    """

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Any, optax.OptState]:
        if params is None:
            raise ValueError("normalise_weights needs the parameters: pass them to update")
        chosen = mask(params) if callable(mask) else mask
        project = lambda m, u, w: unit(w + u) - w if m else u
        return jax.tree.map(project, chosen, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def stacked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation applied to parameters and gradients in stacks of equal shape (`parameters.Stacks`).

    The result is exact for an optimizer that treats each number alike (Adam), and for one that knows that the first
    axis is a batch (Muon).
    """

    def init(params: PyTree) -> Any:
        return tx.init(Stacks(params).stack(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        stacks = Stacks(updates)
        new: Any
        new, state = tx.update(stacks.stack(updates), state, None if params is None else stacks.stack(params))
        return stacks.unstack(new), state

    return optax.GradientTransformation(init, update)
