"""Path energy: how much further a flow carries its samples than optimal transport would (Tong et al. 2024)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.solvers import solve_ode
from flowjax.solvers.ode import times_within
from flowjax.sources import sum_event
from flowjax.typing import Batched, Cond, Field, Time

__all__ = ["normalised_path_energy", "path_energy"]


def path_energy(
    field: Field, x0: Batched, *, cond: Cond = None, t0: float | None = None, t1: float | None = None, steps: int = 100
) -> Float[Array, " B"]:
    """The integral of |v(t, x_t)|^2 dt along the flow from each x0: (B,). RK4 with `steps` steps.

    t0 and t1 are by default the ends of the field's interval, as in `solve_ode`.
    """
    start, end = times_within(field, t0, t1)

    def rate(t: Time, state: tuple[Batched, Array], cond: Cond) -> tuple[Batched, Array]:
        v = field(t, state[0], cond)
        return v, sum_event(v**2)

    (_, energy), _ = solve_ode(
        rate, (x0, jnp.zeros(x0.shape[:1], x0.dtype)), cond=cond, t0=start, t1=end, solver="rk4", steps=steps
    )
    return energy


def normalised_path_energy(energy: float, w2_squared: float) -> float:
    """NPE = |energy - W2^2| / W2^2, with W2^2 between source and data: 0 for the optimal transport flow."""
    return abs(energy - w2_squared) / w2_squared
