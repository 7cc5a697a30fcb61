"""The velocity that a loss follows: the conditional velocity of the path, or the velocity of a trained teacher.

For a velocity v, the point x_t and a condition, the guided velocity of scale w is

    (1)  v(t, x, none) + w (v(t, x, cond) - v(t, x, none))

(Ho & Salimans 2022, arXiv:2207.12598, in the form of the velocity). A network that learns from it gives guided samples
with one evaluation per step.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from flowjax.abilities import HasVelocity, interval_of
from flowjax.errors import ConfigError
from flowjax.methods.base import Context
from flowjax.methods.components import Components
from flowjax.paths.base import PathSample
from flowjax.typing import Batched, Cond, Time

__all__ = [
    "AbsentTeacher",
    "check_guidance",
    "guided_velocity",
    "path_velocity",
    "teacher_model",
    "teacher_velocity",
]


class AbsentTeacher:
    """Stands for the teacher of a method that was built without it, to be sampled. Its loss cannot be computed."""


def teacher_model(teacher: Any, context: Context) -> Any:
    """The teacher's model with its frozen variables.

    Args:
        teacher: `Method.teacher` of the method.
        context: which has the variables of the teacher.

    Raises:
        ValueError: if there is no teacher, or the context has no variables for it.
    """
    if teacher is None or isinstance(teacher, AbsentTeacher) or context.teacher is None:
        raise ValueError("this loss needs a teacher: train with method.teacher=WORKDIR")
    params, state = context.teacher
    return teacher.model(params, state)


def guided_velocity(model: HasVelocity, t: Time, x: Batched, cond: Cond, scale: float = 1.0) -> Batched:
    """Equation (1), with a single evaluation for a scale of 1 or without a condition."""
    with_cond = model.velocity(t, x, cond)
    if scale == 1.0 or not cond:
        return with_cond
    without = model.velocity(t, x, None)
    return without + scale * (with_cond - without)


def teacher_velocity(
    teacher: Any,
    context: Context,
    t: Array,
    x: Batched,
    cond: Cond = None,
    scale: float = 1.0,
    mask: Bool[Array, "B N"] | None = None,
) -> Batched:
    """The guided velocity of the teacher, with times clipped to the interval at which it can be evaluated.

    Args:
        teacher: `Method.teacher` of the method.
        context: which has the variables of the teacher.
        t, x, cond: the times (B,), the points and their condition.
        scale: the guidance.
        mask: the elements of sets that exist, (B, N), or None if all do.
    """
    if mask is not None and not isinstance(teacher, AbsentTeacher):
        network = teacher.network
        teacher = replace(teacher, network=replace(network, apply=partial(network.apply, mask=mask)))
    model = teacher_model(teacher, context)
    return guided_velocity(model, jnp.clip(t, *interval_of(model)), x, cond, scale)


def path_velocity(
    teacher: Any,
    context: Context,
    p: PathSample,
    cond: Cond = None,
    scale: float = 1.0,
    mask: Bool[Array, "B N"] | None = None,
) -> Batched:
    """The velocity at points of the path: that of the teacher, or the conditional velocity of the path without one.

    Args:
        teacher: `Method.teacher` of the method, or None.
        context: which has the variables of the teacher.
        p: points of the path.
        cond: their condition.
        scale: the guidance of the teacher.
        mask: the elements of sets that exist, (B, N), or None if all do.
    """
    return p.dx_t if teacher is None else teacher_velocity(teacher, context, p.t, p.x_t, cond, scale, mask)


def check_guidance(parts: Components, scale: float) -> None:
    """Checks that a network can be trained with guidance of this scale by itself, without a teacher.

    Args:
        parts: the parts of the config.
        scale: `method.guidance`.

    Raises:
        ConfigError: if the scale is not 1 and there are no conditions, or without a teacher a condition is never
            dropped.
    """
    given = [f for f in parts.fields if f.name != "augment"]
    if scale == 1.0:
        return
    if not given:
        raise ConfigError(f"method.guidance {scale:g} needs conditions: set data.cond, or method.guidance=1")
    kept = [f.name for f in given if not f.dropout]
    if kept and parts.teacher is None:
        raise ConfigError(
            f"method.guidance {scale:g} needs the velocity without conditions, and {kept[0]!r} is never dropped: set "
            "data.cond_dropout, for example to 0.1"
        )
