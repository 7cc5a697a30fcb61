"""Consistency trajectory models: a flow map learned by soft consistency and flow matching (CTM; Kim et al. 2023,
arXiv:2310.02279), without the discriminator of the paper.

The network is an average velocity u of the flow X (`methods.average_velocity`), X(s, t, x) = x + (t - s) u(s, t, x)
with x at time s, the time with more noise. On `condot` this is the paper's parametrisation
X(s, t, x) = (1 - t) / (1 - s) x + (t - s) / (1 - s) g with g = x + (1 - s) u (sec. 3.1; its times run from the data).
For three times s < m <= t, an ODE solver goes from x_s to y, the point of the trajectory at time m. Then

    (1)  X(s, t, x_s) = X(m, t, y)

and the loss compares both sides after their map to the data ("soft consistency", sec. 3.2):

    (2)  | X'(t, 1, X(s, t, x_s)) - sg[X'(t, 1, X'(m, t, y))] |^2

where sg[] is a value without a gradient, X' is made of a moving average of the parameters, and 1 stands for the last
time of the path. For t = m the network learns the step of the solver, and for t = 1 (2) is the loss of a consistency
model. The solver takes one step of Heun's method along the velocity of the teacher or, without one, along u(s, s, x) of
the moving average. Flow matching at the same points takes the place of the paper's denoising loss,

    (3)  L = (2) + flow_weight | u(s, s, x_s) - v |^2

with the velocity v of `methods.average_velocity`, which is that of the teacher if there is one.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.batch import Batch
from flowjax.methods.average_velocity import AverageVelocityMethod, AverageVelocitySettings
from flowjax.methods.base import Context, Loss
from flowjax.methods.draw import row_mean_square
from flowjax.paths.affine import expand
from flowjax.ranges import Range
from flowjax.solvers import fixed_grid
from flowjax.solvers.ode import SOLVERS
from flowjax.typing import Batched, Cond, Params, PRNGKey

__all__ = ["ConsistencyTrajectory"]


@dataclass(frozen=True)
class Settings(AverageVelocitySettings):
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the two times s and t, of which the smaller one is s.
        longest: the largest length of a step of the ODE solver, m - s; it is uniform up to this and up to t - s.
        flow_weight: the weight of the loss of flow matching.
        target_half_life: half-life, in samples, of the moving average of the parameters with which targets are
            computed; 0 to compute them with the parameters themselves.
    """

    longest: Annotated[float, Range(0, 1, "(]")] = 0.1
    flow_weight: Annotated[float, Range(0, 1e6)] = 1.0
    target_half_life: Annotated[float, Range(0, 1e15)] = 50_000.0


@dataclass(frozen=True)
class ConsistencyTrajectory(AverageVelocityMethod):
    """Consistency trajectory models on an affine path.

    Attributes:
        longest, flow_weight: as in `Settings`.
    """

    longest: float = 0.1
    flow_weight: float = 1.0

    Settings: ClassVar[type] = Settings
    comparable_loss: ClassVar[bool] = False  # its targets are those of the network itself
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "consistency_error", "velocity_error")

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_rows, key_middle = jax.random.split(key)
        s, t, _, p, marginal_error = self.draw_rows(key_rows, batch, 1.0)
        step = jnp.minimum(t - s, self.longest) * jax.random.uniform(key_middle, s.shape, s.dtype)
        middle, last = s + step, jnp.full_like(t, self.interval[1])
        fixed = self.fixed_average(params, context, key, batch)

        def to(start: Array, end: Array, x: Batched) -> Batched:
            return x + expand(end - start, x) * fixed(start, end, x)

        def field(time: Array, x: Batched, cond: Cond) -> Batched:
            return self.velocity_at(context, time.reshape(-1), x, batch, fixed)

        y = fixed_grid.step(field, p.x_t, batch.cond, expand(s, p.x_t), expand(middle, p.x_t), SOLVERS["heun"])
        inputs = {"key": key, "mask": batch.mask}
        u, _ = self.network(params, context, t, p.x_t, batch.cond, s=s, **inputs)
        v, state = self.network(params, context, s, p.x_t, batch.cond, s=s, **inputs)
        target = jax.lax.stop_gradient(to(t, last, to(middle, t, y)))
        value = to(t, last, p.x_t + expand(t - s, p.x_t) * u)
        consistency = jnp.mean(row_mean_square(value - target, batch.mask))
        flow = jnp.mean(row_mean_square(v - self.velocity(context, p, batch, fixed), batch.mask))
        metrics = {"marginal_error": marginal_error, "consistency_error": consistency, "velocity_error": flow}
        return Loss(consistency + self.flow_weight * flow, metrics, state)
