"""The velocity that a loss follows: the conditional velocity of the path, or the velocity of a trained teacher.

For a velocity v, the point x_t and a condition, the guided velocity of scale w is

    (1)  v(t, x, none) + w (v(t, x, cond) - v(t, x, none))

(Ho & Salimans 2022, arXiv:2207.12598, in the form of the velocity). A network that learns from it gives guided samples
with one evaluation per step.
"""

from typing import Any

from flowjax.abilities import HasVelocity, with_forward_mode
from flowjax.methods.base import Context
from flowjax.paths.base import PathSample
from flowjax.typing import Batched, Cond, Time

__all__ = ["AbsentTeacher", "guided_velocity", "path_velocity", "teacher_model"]


class AbsentTeacher:
    """Stands for the teacher of a method that was built without it, to be sampled. Its loss cannot be computed."""


def teacher_model(teacher: Any, context: Context) -> Any:
    """The teacher's model with its frozen variables, made of operations that JAX differentiates in forward mode.

    Args:
        teacher: `Method.teacher` of the method.
        context: which has the variables of the teacher.

    Raises:
        ValueError: if there is no teacher, or the context has no variables for it.
    """
    if teacher is None or isinstance(teacher, AbsentTeacher) or context.teacher is None:
        raise ValueError("this loss needs a teacher: train with method.teacher=WORKDIR")
    params, state = context.teacher
    return with_forward_mode(teacher.model(params, state))


def guided_velocity(model: HasVelocity, t: Time, x: Batched, cond: Cond, scale: float = 1.0) -> Batched:
    """Equation (1), with a single evaluation for a scale of 1 or without a condition."""
    with_cond = model.velocity(t, x, cond)
    if scale == 1.0 or cond is None:
        return with_cond
    without = model.velocity(t, x, None)
    return without + scale * (with_cond - without)


def path_velocity(teacher: Any, context: Context, p: PathSample, cond: Cond = None, scale: float = 1.0) -> Batched:
    """The velocity at points of the path: that of the teacher, or the conditional velocity of the path without one.

    Args:
        teacher: `Method.teacher` of the method, or None.
        context: which has the variables of the teacher.
        p: points of the path.
        cond: their condition.
        scale: the guidance of the teacher.
    """
    return p.dx_t if teacher is None else guided_velocity(teacher_model(teacher, context), p.t, p.x_t, cond, scale)
