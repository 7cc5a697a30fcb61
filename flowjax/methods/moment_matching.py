"""Inductive moment matching: a flow map for few steps, trained from data alone by comparing distributions.

(Zhou, Ermon & Song 2025, arXiv:2503.07565, sections 3 and 4.) In the paper time runs from the data at 0 to the noise at
1. Here a sample goes from time s over r to t, s <= r <= t, towards the data; these are the paper's t, r and s in this
order. The network is that of average velocities, as in mean flows,

    (1)  f(s, t, x) = x + (t - s) net(t, x; s)

which on straight paths is the parametrisation "Euler-FM" of the paper's DDIM step. For points x_s and x_r of the path
with the same ends, f(s, t, x_s) and f(r, t, x_r) must have the same distribution. M particles with the same three times
are compared by the squared maximum mean discrepancy between the two sets,

    (2)  MMD^2 = 1/M^2 sum_jk (k(y_j, y_k) + k(z_j, z_k) - 2 k(y_j, z_k)),   y_j = f(s, t, x_s^j),  z_j = f(r, t, x_r^j)

with a Laplace kernel, whose width is proportional to the length of the step, for D numbers in a sample:

    (3)  k(y, z) = exp(-max(|y - z|, 1e-8) / (b (t - s) D))

No gradient flows through z. The loss is the mean of w(s) MMD^2 over the groups of particles, where with l = log SNR

    (4)  r    = min(t, time at which sigma / alpha is smaller by `decrement` than at s)
    (5)  w(s) = 1/2 sigmoid(bias - l(s)) l'(s) alpha(s)^power / (alpha(s)^2 + sigma(s)^2)

The factor b of (3) is 1 in the paper. Because f(t, t, x) = x, the map of a short interval is compared with noised data,
and that of a long interval with that of a shorter one. The sums of (2) contain j = k, so that for exact maps the
expected MMD^2 is not 0 but 2/M (1 - E k(y_j, z_j)). With M = 1 it is the loss of a consistency model.

Each particle has the condition of its own row. With conditions c, the kernel between two particles is that of (3) where
their conditions are equal, and 0 elsewhere. This is a kernel on pairs (y, c), so that (2) compares joint distributions
of samples and conditions, and the maps of each condition are compared with each other. A dropped condition is equal to
other dropped ones. Only the terms j = k remain if no two conditions in a group are equal, as with continuous
conditions, and the loss is then 1/M times that of M = 1. With K classes, use a group of several times K.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT, Coupling
from flowjax.errors import ConfigError
from flowjax.methods.average_velocity import AverageVelocityModel
from flowjax.methods.base import Context, Limit, Loss, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import MARGINAL_ERROR, draw
from flowjax.methods.times import UNIFORM, Fixed, Interval, Times, plain_times
from flowjax.paths.affine import AffinePath, expand
from flowjax.precision import at_least_float32
from flowjax.predictions import well_conditioned
from flowjax.ranges import Range
from flowjax.schedules import clip_time
from flowjax.schedules.base import log_snr_slope
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["MomentMatching", "discrepancy", "equal_conditions", "laplace"]

_SMALLEST_DISTANCE = 1e-8


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the first time s. The last time t is uniform between s and the data.
        group: the number M of samples that are compared with each other, if their conditions are equal. It must divide
            `train.batch_size`. With K classes, several times K.
        decrement: how much smaller sigma / alpha is at the time r of the target than at s.
        bandwidth: the factor b of the width of the kernel. Data of few numbers need a wide kernel.
        bias: the bias of the weight. Larger values give times near the data more weight.
        power: the exponent of alpha in the weight.
    """

    times: str = "uniform"
    group: Annotated[int, Range(1, 4096)] = 4
    decrement: Annotated[float, Range(1e-6, 1e3)] = 0.04
    bandwidth: Annotated[float, Range(1e-6, 1e6)] = 1.0
    bias: Annotated[float, Range(-100, 100)] = 5.0
    power: Annotated[float, Range(0, 10)] = 1.0


@dataclass(frozen=True)
class MomentMatching(PathMethod):
    """Inductive moment matching on an affine path without noise.

    Attributes:
        network: `network(t, x, cond, s=s)` of equation (1), with x at time s.
        path, source, coupling: the path of x_s, the distribution of x0, and how x0 and x1 are paired.
        drawn: the distribution of s.
        group, decrement, bandwidth, bias, power: as in `Settings`.
    """

    network: Network
    path: AffinePath
    source: Source
    coupling: Coupling = INDEPENDENT
    drawn: Times = UNIFORM
    group: int = 4
    decrement: float = 0.04
    bandwidth: float = 1.0
    bias: float = 5.0
    power: float = 1.0

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "coupling", "model")
    comparable_loss: ClassVar[bool] = False  # it compares samples of the network with each other
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "discrepancy")
    limits: ClassVar[Mapping[str, Limit]] = {"marginal_error": MARGINAL_ERROR}
    sampler: ClassVar[str] = "flow_map"
    steps: ClassVar[int | None] = 1
    takes_pairs: ClassVar[bool] = True

    @classmethod
    def from_config(cls, parts: Components) -> "MomentMatching":
        settings, path = parts.settings, parts.path
        times = plain_times(parts, settings.times)
        if path.noise is not None:
            raise ConfigError("method.name 'moment_matching' needs a path without noise: leave path.noise empty")
        own = settings.group, settings.decrement, settings.bandwidth, settings.bias, settings.power
        return cls(parts.network(two_times=True), path, parts.source, parts.coupling, times, *own)

    @property
    def training_interval(self) -> Interval:
        """The times s, at which sigma / alpha and alpha / sigma are at most 1000."""
        return well_conditioned(self.path, alpha=True, sigma=True)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_draw, key_first, key_last = jax.random.split(key, 3)
        batch, m = self._whole_groups(batch, context.training)
        groups = batch.x1.shape[0] // m
        s = self.drawn(key_first, groups, self.path, self.training_interval).t
        t = s + (self.path.t_max - s) * jax.random.uniform(key_last, (groups,))
        r = self.between(s, t)
        rows = lambda times: jnp.repeat(times, m)
        drawn = draw(key_draw, batch, self.path, self.source, self.coupling, self.training_interval, Fixed(rows(s)))
        p = drawn.sample
        x_r = self.path.sample(None, rows(r), p.x0, p.x1).x_t

        def mapped(params: Params, start: Array, x: Batched) -> tuple[Float[Array, "G M D"], PyTree]:
            """f from the time `start` to t, equation (1), for the particles of each group."""
            first, last = rows(start), rows(t)
            output, state = self.network(params, context, last, x, batch.cond, s=first, key=key)
            y = at_least_float32(x) + expand(last - first, x) * at_least_float32(output)
            return y.reshape(groups, m, -1), state

        y, state = mapped(params, s, p.x_t)
        z = jax.lax.stop_gradient(mapped(params, r, x_r)[0])
        width = self.bandwidth * jnp.maximum(t - s, _SMALLEST_DISTANCE) * y.shape[-1]
        mmd = discrepancy(y, z, width, equal_conditions(batch.cond, groups, m))
        metrics = {"marginal_error": drawn.marginal_error, "discrepancy": jnp.mean(mmd)}
        return Loss(jnp.mean(self.weight(s) * mmd), metrics, state)

    def _whole_groups(self, batch: Batch, training: bool) -> tuple[Batch, int]:
        """The batch and the size of a group. In validation, rows that fill no group are left out."""
        n = batch.x1.shape[0]
        if training and n % self.group:
            raise ConfigError(
                f"method.group {self.group} must divide the {n} rows of a batch (train.batch_size, or a part of it if "
                "train.accumulate is above 1)"
            )
        m = min(self.group, n)
        return jax.tree.map(lambda a: a[: n // m * m], batch), m

    def between(self, s: Float[Array, " G"], t: Float[Array, " G"]) -> Float[Array, " G"]:
        """The time r of the target between s and t, equation (4)."""
        schedule = self.path.schedule
        ratio = jnp.exp(-schedule.log_snr(s) / 2) - self.decrement
        later = clip_time(schedule, -2 * jnp.log(jnp.where(ratio > 0, ratio, 1.0)))
        return jnp.where(ratio > 0, jnp.clip(later, s, t), t)

    def weight(self, s: Float[Array, " G"]) -> Float[Array, " G"]:
        """The weight of a group, equation (5)."""
        schedule = self.path.schedule
        alpha, sigma = schedule.alpha(s), schedule.sigma(s)
        scaled = alpha**self.power / (alpha**2 + sigma**2)
        return 0.5 * jax.nn.sigmoid(self.bias - schedule.log_snr(s)) * log_snr_slope(schedule, s) * scaled

    def model(self, params: Params, state: PyTree) -> "MomentMatchingModel":
        return MomentMatchingModel(self.network.bind(params, state), self.path)


@dataclass(frozen=True)
class MomentMatchingModel(AverageVelocityModel):
    """A flow map trained by moment matching, with the abilities `flow_map` and `to_data`.

    It has no velocity: distributions are compared, not trajectories, and an interval of length 0 is not trained.
    """

    @property
    def missing(self) -> Mapping[str, str]:
        """The abilities that this model lacks."""
        return {"velocity": "moment matching trains maps between different times"}


def laplace(y: Float[Array, "G M D"], z: Float[Array, "G N D"], width: Float[Array, " G"]) -> Float[Array, "G M N"]:
    """The Laplace kernel of equation (3) between all pairs of each group. Its gradient is 0 where two samples coincide.

    Args:
        y, z: M and N samples of each of G groups, (G, M, D) and (G, N, D).
        width: the width of the kernel in each group, (G,).

    Returns:
        The kernel between y_j and z_k of each group, (G, M, N).
    """
    square = jnp.sum((y[:, :, None] - z[:, None]) ** 2, -1)
    apart = square > _SMALLEST_DISTANCE**2
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), _SMALLEST_DISTANCE)
    return jnp.exp(-distance / width[:, None, None])


def equal_conditions(cond: Cond, groups: int, m: int) -> Bool[Array, "G M M"]:
    """Compares the conditions of the particles of each group. NaN, as in a dropped condition, is equal to NaN.

    Args:
        cond: the conditions of all rows, group by group, each (G * M, ...), or None.
        groups, m: the number of groups G, and the number of particles M in each of them.

    Returns:
        Whether all conditions of particles j and k of each group are equal; true for all if there are no conditions.
    """
    equal = jnp.ones((groups, m, m), bool)
    for value in jax.tree.leaves(cond):
        a = value.reshape(groups, m, 1, -1)
        b = a.swapaxes(1, 2)
        equal &= jnp.all((a == b) | (jnp.isnan(a) & jnp.isnan(b)), -1)
    return equal


def discrepancy(
    y: Float[Array, "G M D"], z: Float[Array, "G M D"], width: Float[Array, " G"], equal: Bool[Array, "G M M"]
) -> Float[Array, " G"]:
    """The squared maximum mean discrepancy of each group, equation (2), with the terms j = k.

    Args:
        y, z: the samples of each group, of which y_j and z_j have the same condition.
        width: the width of the kernel in each group.
        equal: whether the conditions of particles j and k are equal (`equal_conditions`).

    Returns:
        The squared discrepancy of each group, (G,).
    """
    mean = lambda a, b: jnp.mean(jnp.where(equal, laplace(a, b, width), 0.0), (1, 2))
    return mean(y, y) + mean(z, z) - 2 * mean(y, z)
