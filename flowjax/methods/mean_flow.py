"""Mean flow: a network learns the average velocity between two times, for sampling in one step (Geng et al. 2025,
arXiv:2505.13447).

Let X be the flow of the velocity field v. The average velocity from time s to time t is

    (1)  u(s, t, x) = (X(s, t, x) - x) / (t - s),   so that   X(s, t, x) = x + (t - s) u(s, t, x)

with x at time s, and u(t, t, x) = v(t, x). Multiplying by t - s and differentiating along the flow in s, at fixed t,

    (2)  u(s, t, x_s) = v(s, x_s) + (t - s) (du / ds + (du / dx) v)

The derivative in (2) is one Jacobian-vector product of the network with the tangent (1, 0, v). The training target is
(2) with the conditional velocity v_c of the path in place of v, and no gradient flows through it (eq. 10 and 11 of the
paper, whose time runs from the data to the noise).

The improved form (Geng et al. 2025, arXiv:2512.02012) reads (2) as a statement about v: the compound network

    (3)  V(s, t, x) = u(s, t, x) - (t - s) (du / ds + (du / dx) u(s, s, x))

learns the velocity by regression on v_c, with no gradient through the derivative. (In the paper time runs from the data
to the noise, and x is at its later time t. Its t - r is the length t - s of the interval here, and its derivative in
time has the opposite sign, so that the plus of the paper is a minus in (3).) The difference V - v_c equals that of u
and (2), except that the tangent is the network's own velocity u(s, s, x), a function of x alone, where (2) has v_c. The
derivative of a row then depends on x0 and x1 only through x, and the target has less variance.

The mean of the target given x is (2) in the first form, as it is linear in v_c. The improved form has the same
minimiser: for s = t it is plain flow matching, and with u(s, s, x) = v its target has the mean (2) as well. With a
teacher, v is the teacher's velocity in the target and in the tangent of both forms, which are then the same. Guidance
replaces v_c in the target by equation (2) of `methods.average_velocity`; the tangent of the first form is the same.

The loss of a row with squared error e is e / (e + 0.001)^p, without a gradient through the weight (eq. 22). For p > 0
its minimiser is not the mean of the target: it is closer to the median, as large errors count less.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.batch import Batch
from flowjax.errors import ConfigError
from flowjax.methods.average_velocity import (
    AverageVelocityMethod,
    AverageVelocitySettings,
    mean_where,
)
from flowjax.methods.base import Context, Loss
from flowjax.methods.components import Components
from flowjax.methods.draw import row_mean_square
from flowjax.ranges import Range
from flowjax.typing import Batched, Params, PRNGKey

__all__ = ["MeanFlow"]


@dataclass(frozen=True)
class Settings(AverageVelocitySettings):
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the two times of a row, of which the smaller one is s.
        different: fraction of the rows with two different times. The other rows learn the velocity.
        power: exponent p of the adaptive weight; 0 for the plain squared error, which suits data of few numbers.
        improved: whether the derivative in the target follows the network's own velocity, which has less variance, and
            not the conditional velocity of the path.
    """

    different: Annotated[float, Range(0, 1)] = 0.25
    power: Annotated[float, Range(0, 10)] = 1.0
    improved: bool = False


@dataclass(frozen=True)
class MeanFlow(AverageVelocityMethod):
    """Mean flow on an affine path.

    Attributes:
        different, power, improved: as in `Settings`.
    """

    different: float = 0.25
    power: float = 1.0
    improved: bool = False

    Settings: ClassVar[type] = Settings
    comparable_loss: ClassVar[bool] = False  # the adaptive weight makes it nearly constant
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "squared_error", "velocity_error", "target_square")

    @classmethod
    def from_config(cls, parts: Components) -> Any:
        if parts.settings.improved and parts.teacher is not None:
            raise ConfigError(
                "method.improved=true has no effect with method.teacher, whose velocity both forms follow: set "
                "method.improved=false"
            )
        return super().from_config(parts)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        s, t, apart, p, marginal_error = rows = self.draw_rows(key, batch, self.different)
        output, state = self.network(params, context, t, p.x_t, batch.cond, s=s, key=key, mask=batch.mask)
        fixed = self.fixed_average(params, context, key, batch, forward_mode=True)
        velocity = self.velocity(context, p, batch, fixed)
        own = self.improved and self.teacher is None
        tangent = fixed(s, s, p.x_t).astype(p.x_t.dtype) if own else velocity

        def average(s: Array, x: Batched) -> Batched:
            return fixed(s, t, x)

        along = jax.jvp(average, (s, p.x_t), (jnp.ones_like(s), tangent))[1]
        target = jax.lax.stop_gradient(velocity + rows.length * along)
        errors = row_mean_square(output - target, batch.mask)
        weight = jax.lax.stop_gradient((errors + 1e-3) ** -self.power)
        metrics = {
            "marginal_error": marginal_error,
            "squared_error": jnp.mean(errors),
            "velocity_error": mean_where(errors, ~apart),
            "target_square": mean_where(row_mean_square(target, batch.mask), apart),
        }
        return Loss(jnp.mean(weight * errors), metrics, state)
