"""Mean flow: a network learns the average velocity between two times, for sampling in one step (Geng et al. 2025,
arXiv:2505.13447).

Let X be the flow of the velocity field v. The average velocity from time s to time t is

    (1)  u(s, t, x) = (X(s, t, x) - x) / (t - s),   so that   X(s, t, x) = x + (t - s) u(s, t, x)

with x at time s, and u(t, t, x) = v(t, x). Multiplying by t - s and differentiating along the flow in s, at fixed t,

    (2)  u(s, t, x_s) = v(s, x_s) + (t - s) (du / ds + (du / dx) v)

The derivative in (2) is one Jacobian-vector product of the network with the tangent (1, 0, v). The training target is
(2) with the conditional velocity of the path in place of v, and no gradient flows through it (eq. 10 and 11 of the
paper, whose time runs from the data to the noise).

The loss of a row with squared error e is e / (e + 0.001)^p, without a gradient through the weight (eq. 22).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT, Coupling
from flowjax.errors import ConfigError
from flowjax.methods.average_velocity import AverageVelocityModel
from flowjax.methods.base import Context, Limit, Loss, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import MARGINAL_ERROR, draw, row_mean_square
from flowjax.methods.times import UNIFORM, Fixed, Times
from flowjax.paths.affine import AffinePath
from flowjax.ranges import Range
from flowjax.sources import Source
from flowjax.typing import Batched, Params, PRNGKey, PyTree

__all__ = ["MeanFlow"]

TARGET = "target"
"""Name of the moving average of the parameters with which the target is computed, if `target_half_life` is not 0."""


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the two times of a row, of which the smaller one is s.
        different: fraction of the rows with two different times. The other rows learn the velocity.
        power: exponent p of the adaptive weight; 0 for the plain squared error, which suits data of few numbers.
        target_half_life: half-life, in samples, of the moving average of the parameters with which the target is
            computed; 0 to compute the target with the parameters themselves.
    """

    times: str = "uniform"
    different: Annotated[float, Range(0, 1)] = 0.25
    power: Annotated[float, Range(0, 10)] = 1.0
    target_half_life: Annotated[float, Range(0, 1e15)] = 0.0


@dataclass(frozen=True)
class MeanFlow(PathMethod):
    """Mean flow on an affine path.

    Attributes:
        network: `network(t, x, cond, s=s) -> u(s, t, x)`, with x at time s.
        path, source, coupling: the path of x_s, the distribution of x0, and how x0 and x1 are paired.
        drawn: the distribution of each of the two times.
        different, power, target_half_life: as in `Settings`.
    """

    network: Network
    path: AffinePath
    source: Source
    coupling: Coupling = INDEPENDENT
    drawn: Times = UNIFORM
    different: float = 0.25
    power: float = 1.0
    target_half_life: float = 0.0

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "coupling", "model")
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "squared_error")
    limits: ClassVar[Mapping[str, Limit]] = {"marginal_error": MARGINAL_ERROR}
    sampler: ClassVar[str] = "flow_map"
    steps: ClassVar[int | None] = 1
    takes_mask: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True

    @classmethod
    def from_config(cls, parts: Components) -> "MeanFlow":
        settings = parts.settings
        times = parts.times(settings.times)
        if getattr(times, "needs_profile", False):
            raise ConfigError(
                f"method.times {settings.times!r} needs a learned profile of the loss, which method.name 'mean_flow' "
                "does not train: use 'uniform' or 'logit_normal'"
            )
        return cls(
            parts.network(two_times=True),
            parts.path,
            parts.source,
            parts.coupling,
            times,
            settings.different,
            settings.power,
            settings.target_half_life,
        )

    @property
    def targets(self) -> Mapping[str, float]:
        return {TARGET: self.target_half_life} if self.target_half_life else {}

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_draw, key_first, key_second, key_apart = jax.random.split(key, 4)
        n = batch.x1.shape[0]
        first, second = (self.drawn(k, n, self.path, self.interval).t for k in (key_first, key_second))
        apart = jax.random.bernoulli(key_apart, self.different, (n,))
        s, t = (jnp.where(apart, f(first, second), first) for f in (jnp.minimum, jnp.maximum))
        p, _, marginal_error = draw(key_draw, batch, self.path, self.source, self.coupling, self.interval, Fixed(s))
        inputs: dict[str, Any] = {"key": key, "mask": batch.mask}
        output, state = self.network(params, context, t, p.x_t, batch.cond, s=s, **inputs)
        fixed, network = context.targets.get(TARGET, params), self.network.with_forward_mode()

        def average(s: Array, x: Batched) -> Batched:
            return network(fixed, context, t, x, batch.cond, s=s, **inputs)[0]

        along = jax.jvp(average, (s, p.x_t), (jnp.ones_like(s), p.dx_t))[1]
        length = (t - s).reshape(-1, *(1,) * (p.x_t.ndim - 1))
        target = jax.lax.stop_gradient(p.dx_t + length * along)
        rows = row_mean_square(output - target, batch.mask)
        weight = jax.lax.stop_gradient((rows + 1e-3) ** -self.power)
        metrics = {"marginal_error": marginal_error, "squared_error": jnp.mean(rows)}
        return Loss(jnp.mean(weight * rows), metrics, state)

    def model(self, params: Params, state: PyTree) -> AverageVelocityModel:
        return AverageVelocityModel(self.network.bind(params, state), self.path)
