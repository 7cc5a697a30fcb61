"""The straightness of the trajectories of a flow, and how far they turn.

`deviation` is the straightness of Liu et al. 2022 (arXiv:2209.03003, sec. 3), which Lee et al. 2023 (arXiv:2301.12003)
call the curvature of trajectories. `turning` is the total curvature of differential geometry, the integral of the
curvature over the length of the curve. It does not depend on the speed: it is 0 for a straight line at any speed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.solvers import solve_ode
from flowjax.solvers.ode import times_within
from flowjax.sources import sum_event
from flowjax.typing import Batched, Cond, Field

__all__ = ["Straightness", "straightness"]


class Straightness(NamedTuple):
    """The result of `straightness`, for each sample.

    Attributes:
        deviation: the mean over t of |v(t, x_t) - (x_1 - x_0) / T|^2, where T is the time from x_0 to x_1; 0 for a
            straight line at constant speed.
        transport_cost: |x_1 - x_0|^2.
        turning: the sum of the angles by which the velocity turns, in radians.
    """

    deviation: Float[Array, " B"]
    transport_cost: Float[Array, " B"]
    turning: Float[Array, " B"]


def straightness(
    field: Field, x0: Batched, *, cond: Cond = None, t0: float | None = None, t1: float | None = None, steps: int = 50
) -> Straightness:
    """How much the velocity along the trajectories from x0 differs from their mean velocity.

    The trajectories are solved by RK4 with two steps between neighbouring times of Simpson's rule, by which the mean
    over t is computed. Both have order 4. Angles are those between the velocities at neighbouring times.

    Args:
        field: the velocity `v(t, x, cond)`.
        x0: the initial points, (B, *event).
        cond: the conditions, or None.
        t0, t1: the first and the last time; by default the ends of the interval of the field, as in `solve_ode`.
        steps: the number of intervals of Simpson's rule, which is even.
    """
    start, end = times_within(field, t0, t1)
    times = np.linspace(float(start), float(end), steps + 1)
    xs, _ = solve_ode(field, x0, cond=cond, t0=start, t1=end, solver="rk4", steps=2 * steps, save_at=times)
    whole = xs[-1] - xs[0]
    mean = whole / (float(end) - float(start))
    v = jax.lax.map(lambda at: field(at[0], at[1], cond), (jnp.asarray(times, float), xs))
    squares = jax.vmap(lambda v: sum_event((v - mean) ** 2))(v)
    weights = np.full(steps + 1, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    deviation = jnp.tensordot(jnp.asarray(weights / (3 * steps), squares.dtype), squares, 1)
    return Straightness(deviation, sum_event(whole**2), _turning(v))


def _turning(v: Float[Array, "times B *event"]) -> Float[Array, " B"]:
    """The sum of the angles between neighbouring vectors, in radians. Vectors of length 0 are passed over."""
    rows = v.reshape(*v.shape[:2], -1)
    length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    units = rows / jnp.where(length > 0, length, 1.0)

    def turn(before: Array, unit: Array) -> tuple[Array, Array]:
        known = (unit != 0).any(-1), (before != 0).any(-1)
        chord = jnp.linalg.norm(unit - before, axis=-1)  # accurate for small angles, where the cosine is not
        angle = jnp.where(known[0] & known[1], 2 * jnp.arcsin(jnp.minimum(chord / 2, 1.0)), 0.0)
        return jnp.where(known[0][:, None], unit, before), angle

    return jax.lax.scan(turn, units[0], units[1:])[1].sum(0)
