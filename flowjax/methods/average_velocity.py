"""What the methods that learn average velocities share: their model, their guided velocity, and the draw of two times.

The average velocity from time s to time t of the flow X of the velocity v is

    (1)  u(s, t, x) = (X(s, t, x) - x) / (t - s),   so that   X(s, t, x) = x + (t - s) u(s, t, x)

with x at time s, and u(t, t, x) = v(t, x). The methods differ in the loss of the rows with s < t. In the rows with
s = t all of them learn v by regression on the velocity of a teacher or, without one, on

    (2)  a v_c + kappa u(s, s, x, cond) + (1 - kappa - a) u(s, s, x, none),        a = w (1 - kappa)

with the conditional velocity v_c of the path, the guidance w, and no gradient through u. For w = 1 and kappa = 0 this
is v_c. Otherwise u(s, s, x, cond) = v(none) + w (v(cond) - v(none)) is its fixed point: with it, the mean of (2) given
x is a v(cond) + kappa v(none) + kappa w (v(cond) - v(none)) + (1 - kappa - a) v(none), and a + kappa w = w (Geng et al.
2025, arXiv:2505.13447, eq. 19 to 21, where a is omega and w is omega'). A kappa above 0 reduces the variance that a
large w gives to v_c. For rows without a condition (2) is
a v_c + (1 - a) u(s, s, x, none), whose fixed point is v(none).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.abilities import VelocityField
from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT, Coupling
from flowjax.errors import ConfigError
from flowjax.methods.base import BoundNetwork, Context, Limit, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import MARGINAL_ERROR, draw
from flowjax.methods.teacher import check_guidance, path_velocity, teacher_velocity
from flowjax.methods.times import UNIFORM, Fixed, Times, plain_times
from flowjax.paths.affine import AffinePath, expand
from flowjax.paths.base import PathSample
from flowjax.precision import at_least_float32
from flowjax.ranges import Range
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree, Time

__all__ = ["AverageVelocityMethod", "AverageVelocityModel", "AverageVelocitySettings", "Rows", "mean_where"]

TARGET = "target"
"""Name of the moving average of the parameters with which targets are computed, if `target_half_life` is not 0."""

Average = Callable[..., Batched]
"""A network of average velocities without a gradient to its parameters: `average(s, t, x, cond) -> u`."""


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
        """X(s, t, x), the point at time t of the trajectory that is at x at time s, by equation (1).

        The exact flow is invertible, so s > t is a valid question; but training only draws s <= t, and the answer for
        s > t is an extrapolation of the network.
        """
        x = at_least_float32(x)
        length = expand(jnp.asarray(t - s, x.dtype), x)
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


class Rows(NamedTuple):
    """Two times and a point for each row of a batch.

    Attributes:
        s, t: the times, (B,), with s <= t.
        apart: whether s < t, (B,); the other rows learn the velocity.
        p: the points of the path at the times s.
        marginal_error: of the coupling, ().
    """

    s: Float[Array, " B"]
    t: Float[Array, " B"]
    apart: Bool[Array, " B"]
    p: PathSample
    marginal_error: Float[Array, ""]

    @property
    def length(self) -> Array:
        """t - s, with trailing axes so that it broadcasts against the points."""
        return expand(self.t - self.s, self.p.x_t)


@dataclass(frozen=True)
class AverageVelocitySettings:
    """The keys that all methods of average velocities have.

    Attributes:
        times: the distribution of the training times.
        teacher: the workdir of a trained run, whose velocity is learned in place of the conditional velocity of the
            path; empty for none.
        guidance: scale of the classifier-free guidance with which the network learns to sample, in one evaluation per
            step; 1 for none. Without a teacher it needs data.cond_dropout.
        kappa: share of the network's own guided velocity in the target of guidance without a teacher, which reduces
            the variance of a large scale.
        target_half_life: half-life, in samples, of the moving average of the parameters with which targets are
            computed; 0 to compute them with the parameters themselves.
    """

    times: str = "uniform"
    teacher: str = ""
    guidance: Annotated[float, Range(0, 1000)] = 1.0
    kappa: Annotated[float, Range(0, 1, "[)")] = 0.0
    target_half_life: Annotated[float, Range(0, 1e15)] = 0.0


@dataclass(frozen=True)
class AverageVelocityMethod(PathMethod):
    """Base class of methods whose network learns average velocities on an affine path.

    Attributes:
        network: `network(t, x, cond, s=s) -> u(s, t, x)`, with x at time s.
        path, source, coupling: the path of x_s, the distribution of x0, and how x0 and x1 are paired.
        drawn: the distribution of training times.
        teacher: the method of the run that `Settings.teacher` names, or None.
        guidance, kappa, target_half_life: as in `AverageVelocitySettings`.
    """

    network: Network
    path: AffinePath
    source: Source
    coupling: Coupling = INDEPENDENT
    drawn: Times = UNIFORM
    teacher: Any = None
    guidance: float = 1.0
    kappa: float = 0.0
    target_half_life: float = 0.0

    Settings: ClassVar[type] = AverageVelocitySettings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "coupling", "model")
    limits: ClassVar[Mapping[str, Limit]] = {"marginal_error": MARGINAL_ERROR}
    sampler: ClassVar[str] = "flow_map"
    steps: ClassVar[int | None] = 1
    takes_mask: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True

    @classmethod
    def from_config(cls, parts: Components) -> Any:
        settings = dict(vars(parts.settings))
        times = plain_times(parts, settings.pop("times"))
        check_guidance(parts, settings["guidance"])
        if settings["kappa"] and parts.teacher is not None:
            raise ConfigError("method.kappa has no effect with method.teacher: set method.kappa=0")
        settings |= {"teacher": parts.teacher, "drawn": times, "coupling": parts.coupling}
        return cls(parts.network(two_times=True), parts.path, parts.source, **settings)

    @property
    def targets(self) -> Mapping[str, float]:
        return {TARGET: self.target_half_life} if self.target_half_life else {}

    def draw_at(self, key: PRNGKey, batch: Batch, s: Array, t: Array) -> Rows:
        """Draws the points of the path at the given times s, (B,)."""
        p, _, marginal_error = draw(key, batch, self.path, self.source, self.coupling, self.interval, Fixed(s))
        return Rows(s, t, s < t, p, marginal_error)

    def draw_rows(self, key: PRNGKey, batch: Batch, different: float) -> Rows:
        """Draws two times for each row, which are equal with the probability 1 - `different`, and the points at s."""
        key_draw, key_first, key_second, key_apart = jax.random.split(key, 4)
        n = batch.x1.shape[0]
        first, second = (self.drawn(k, n, self.path, self.interval).t for k in (key_first, key_second))
        apart = jax.random.bernoulli(key_apart, different, (n,))
        s, t = (jnp.where(apart, f(first, second), first) for f in (jnp.minimum, jnp.maximum))
        return self.draw_at(key_draw, batch, s, t)

    def fixed_average(
        self, params: Params, context: Context, key: PRNGKey, batch: Batch, forward_mode: bool = False
    ) -> Average:
        """The network as a function without a gradient to the parameters, of which targets are computed.

        Its parameters are their moving average, if `target_half_life` is not 0.

        Args:
            params, context, key: as for the loss.
            batch: which has the condition and the mask.
            forward_mode: whether `jax.jvp` differentiates it with respect to its arguments.
        """
        network = self.network.with_forward_mode() if forward_mode else self.network
        fixed = jax.lax.stop_gradient(context.targets.get(TARGET, params))

        def average(s: Array, t: Array, x: Batched, cond: Cond = batch.cond) -> Batched:
            return network(fixed, context, t, x, cond, s=s, key=key, mask=batch.mask)[0]

        return average

    def velocity(self, context: Context, p: PathSample, batch: Batch, average: Average) -> Batched:
        """The velocity that the network learns for s = t: that of the teacher, or equation (2).

        Args:
            context: which has the variables of the teacher.
            p: points of the path.
            batch: which has their condition and mask.
            average: the network without gradients, from `fixed_average`.
        """
        if self.teacher is not None or (self.guidance == 1.0 and self.kappa == 0.0):
            v = path_velocity(self.teacher, context, p, batch.cond, self.guidance, batch.mask)
            return jax.lax.stop_gradient(v.astype(p.x_t.dtype))
        a = self.guidance * (1 - self.kappa)
        v = a * p.dx_t + (1 - self.kappa - a) * average(p.t, p.t, p.x_t, None)
        if self.kappa:
            v = v + self.kappa * average(p.t, p.t, p.x_t)
        return jax.lax.stop_gradient(v.astype(p.x_t.dtype))

    def velocity_at(self, context: Context, t: Array, x: Batched, batch: Batch, average: Average) -> Batched:
        """The velocity of the flow at any points, without a gradient: that of the teacher, or the network's own.

        Args:
            context: which has the variables of the teacher.
            t, x: times (B,) and points.
            batch: which has their condition and mask.
            average: the network without gradients, from `fixed_average`.
        """
        if self.teacher is None:
            return jax.lax.stop_gradient(average(t, t, x))
        v = teacher_velocity(self.teacher, context, t, x, batch.cond, self.guidance, batch.mask)
        return jax.lax.stop_gradient(v.astype(x.dtype))

    def model(self, params: Params, state: PyTree) -> AverageVelocityModel:
        return AverageVelocityModel(self.network.bind(params, state), self.path)


def mean_where(rows: Float[Array, " B"], chosen: Bool[Array, " B"]) -> Float[Array, ""]:
    """The mean over the chosen rows; 0 if there are none."""
    return jnp.sum(jnp.where(chosen, rows, 0)) / jnp.maximum(jnp.sum(chosen), 1)
