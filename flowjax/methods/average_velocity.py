"""The model of a network of average velocities, which several methods of few steps train.

The average velocity from time s to time t of the flow X of the velocity v is

    (1)  u(s, t, x) = (X(s, t, x) - x) / (t - s),   so that   X(s, t, x) = x + (t - s) u(s, t, x)

with x at time s, and u(t, t, x) = v(t, x).
"""

from dataclasses import dataclass

import jax.numpy as jnp

from flowjax.abilities import VelocityField
from flowjax.methods.base import BoundNetwork
from flowjax.paths.affine import AffinePath
from flowjax.precision import at_least_float32
from flowjax.typing import Batched, Cond, Time

__all__ = ["AverageVelocityModel"]


@dataclass(frozen=True)
class AverageVelocityModel:
    """A model of average velocities, with the abilities `flow_map`, `to_data` and `velocity`.

    Attributes:
        network: `network(t, x, cond, s=s) -> u(s, t, x)`.
        path: the path on which it was trained, which gives the interval of times and the time grids.
    """

    network: BoundNetwork
    path: AffinePath

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and the largest time."""
        return self.path.t_min, self.path.t_max

    def flow_map(self, s: Time, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """X(s, t, x), the point at time t of the trajectory that is at x at time s, by equation (1)."""
        x = at_least_float32(x)
        length = jnp.broadcast_to(jnp.asarray(t - s, x.dtype), x.shape[:1]).reshape(-1, *(1,) * (x.ndim - 1))
        return x + length * at_least_float32(self.network(t, x, cond, s=s))

    def to_data(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The point at the last time of the trajectory that is at x at time t."""
        return self.flow_map(t, self.path.t_max, x, cond)

    @property
    def velocity(self) -> VelocityField:
        """The velocity v(t, x, cond) = u(t, t, x)."""
        return VelocityField(self)

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The implementation of `velocity`."""
        x = at_least_float32(x)
        return at_least_float32(self.network(t, x, cond, s=t))
