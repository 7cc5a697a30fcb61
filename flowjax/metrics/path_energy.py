"""The path energy of a flow, compared with that of optimal transport (Tong et al. 2024, arXiv:2302.00482)."""

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
    """The path energy of each sample, the integral of |v(t, x_t)|^2 dt along the flow from x0.

    It is integrated together with the flow by RK4 (order 4), with four evaluations of the field per step.

    Args:
        field: the velocity `v(t, x, cond)`.
        x0: the initial points, (B, *event).
        cond: the conditions, or None.
        t0, t1: the first and the last time; by default the ends of the interval of the field, as in `solve_ode`.
        steps: the number of steps.

    Returns:
        (B,).
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
    """The normalised path energy |energy - W2^2| / W2^2, which is 0 for the optimal transport flow.

    Args:
        energy: the mean of `path_energy` over samples.
        w2_squared: the squared Wasserstein-2 distance between source and data.
    """
    return abs(energy - w2_squared) / w2_squared
