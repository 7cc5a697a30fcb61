"""Optimizers from a config: optax, bound by name in one table."""

from collections.abc import Callable

import optax

from flowjax.config import Config, lookup

OPTIMIZERS: dict[str, Callable[[optax.Schedule, Config], optax.GradientTransformation]] = {
    "adam": lambda lr, train: optax.adam(lr),
    "adamw": lambda lr, train: optax.adamw(lr, weight_decay=train.weight_decay),
}

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda lr, steps: optax.constant_schedule(lr),
    "cosine": lambda lr, steps: optax.cosine_decay_schedule(lr, max(steps, 1)),
    "polynomial": lambda lr, steps: optax.polynomial_schedule(lr, 0.0, 1, max(steps, 1)),
}
"""name -> (peak, steps after the warm-up) -> schedule. `polynomial` is linear, to zero."""


def learning_rate(train: Config) -> optax.Schedule:
    """Linear warm-up over `train.warmup` steps, then `train.schedule` over the rest of `train.steps`."""
    rest = lookup("train.schedule", train.schedule, SCHEDULES)(train.lr, train.steps - train.warmup)
    if not train.warmup:
        return rest
    return optax.join_schedules(
        [optax.linear_schedule(train.lr / train.warmup, train.lr, train.warmup), rest], [train.warmup]
    )


def optimizer(train: Config) -> optax.GradientTransformation:
    """The configured optimizer behind a clip of the gradient's global norm (0 for none)."""
    core = lookup("train.optimizer", train.optimizer, OPTIMIZERS)(learning_rate(train), train)
    return optax.chain(optax.clip_by_global_norm(train.clip), core) if train.clip else core
