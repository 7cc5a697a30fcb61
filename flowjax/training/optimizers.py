"""Optimizers and learning rates from a config: optax, bound by name in two tables. Rates are functions of samples."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers, muon

from flowjax.arguments import make
from flowjax.config import Config
from flowjax.errors import ConfigError, lookup
from flowjax.ranges import Range
from flowjax.training.guard import skip_spikes
from flowjax.training.norms import clip
from flowjax.training.projection import normalise_weights
from flowjax.training.stacked import stacked
from flowjax.typing import PyTree

_SMALLEST_SIDE = 16
"""Muon is for matrices; those with a side under this (to and from the channels of an image, say) are left to Adam,
in optax's form with Nesterov's momentum."""


def _muon(lr: optax.Schedule, train: Config) -> optax.GradientTransformation:
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


OPTIMIZERS: dict[str, Callable[[optax.Schedule, Config], optax.GradientTransformation]] = {
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


def learning_rate(train: Config) -> optax.Schedule:
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


def optimizer(train: Config) -> optax.GradientTransformation:
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
