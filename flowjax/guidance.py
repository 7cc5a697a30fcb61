"""Guidance: from a model to a model, in front of any sampler, ODE or SDE.

Every guide moves the ends along the one direction in which the data can move at fixed x_t, (x0, x1) += (-alpha,
sigma) k, so that alpha x1 + sigma x0 = x_t still holds and all predictions stay consistent:

    classifier-free   uncond + scale (cond - uncond)                                     Ho & Salimans 2022
    autoguidance      weak + scale (strong - weak)                                       Karras et al. 2024b
    classifier        score + scale grad log p(y | x_t):  x0 -= scale sigma grad         Dhariwal & Nichol 2021
    posterior         the same with log p(y | E[x1 | x_t])                               Chung et al. 2023; Song et
    al. 2023

scale 0 is unconditional (the weak network), 1 the plain conditional one; beyond 1 it is sharper than the data. The
first two are linear in the model's answers, so that velocities are mixed as they are where the model computes its
velocity without the ends.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from flowjax.abilities import Ends, HasEnds, interval_of, missing_from
from flowjax.conditions import Field, without
from flowjax.paths.affine import AffinePath
from flowjax.predictions import PathModel
from flowjax.typing import Array, Batched, Cond, Float, Time

__all__ = [
    "Auto",
    "Classifier",
    "ClassifierFree",
    "LinearMeasurement",
    "LogLikelihood",
    "Measurement",
    "Posterior",
    "linear_measurement",
]

T = TypeVar("T")


def _mix(base: Ends, to: Ends, scale: Array | float) -> Ends:
    """base + scale (to - base), each part; a learned variance is that of `to`."""
    return Ends(
        *(_line(a, b, scale) for a, b in zip(base[:3], to[:3], strict=True)), variance_fraction=to.variance_fraction
    )


def _line(a: Any, b: Any, scale: Array | float) -> Any:
    return None if a is None or b is None else a + scale * (b - a)


def _is_direct(model: Any) -> bool:
    return getattr(model, "velocity_is_direct", False)


def _velocity_of(model: Any) -> Callable[[Time, Batched, Cond], Batched]:
    return model.velocity


class _Guide(PathModel):
    """A guide is a model of the path of the model that it guides, and can be asked at the same times."""

    model: HasEnds

    @property
    def path(self) -> AffinePath:
        return self.model.path

    @property
    def interval(self) -> tuple[float, float]:
        return interval_of(self.model)

    @property
    def missing(self) -> Mapping[str, str]:
        return missing_from(self.model)


@dataclass(frozen=True)
class ClassifierFree(_Guide):
    """Classifier-free guidance in one batch of twice the size.

    Args:
        model: trained with its condition dropped now and then (the `dropout` of its fields).
        scale: 0 unconditional, 1 conditional.
        fields: what the conditions are; the unconditional model gets the null value of each.
        guidance_interval: times of the trained path outside which scale is 1 (Kynkaanniemi et al. 2024).
        rescale: how far, between 0 and 1, E[x1] is brought back to the standard deviation of the conditional one
            (Lin et al. 2024, eq. 15-16, there for the network's output).
        uncond: function from a condition to the condition that stands for "not given"; it replaces `fields`.
    """

    model: HasEnds
    scale: float
    fields: tuple[Field, ...] = ()
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    uncond: Callable[[Cond], Cond] | None = None

    def __post_init__(self):
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale lies between 0 and 1, and is {self.rescale}")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the guidance interval must be two times in order in [0, 1], not {low} and {high}")

    @property
    def velocity_is_direct(self) -> bool:
        return _is_direct(self.model) and not self.rescale

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        conditional, unconditional = self._both(self.model.ends, t, x, cond)
        mixed = _mix(unconditional, conditional, self._scale(t, x))
        return self._rescaled(t, x, mixed, conditional) if self.rescale else mixed

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        if not self.velocity_is_direct:
            return super().compute_velocity(t, x, cond)
        conditional, unconditional = self._both(_velocity_of(self.model), t, x, cond)
        return _line(unconditional, conditional, self._scale(t, x))

    def _both(self, ask: Callable[[Time, Batched, Cond], T], t: Time, x: Batched, cond: Cond) -> tuple[T, T]:
        """The answers with and without the condition."""
        if not jax.tree.leaves(cond):
            raise ValueError("classifier-free guidance needs a condition: pass cond={'label': labels}")
        twice = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, self._unconditional(cond))
        times = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        both = ask(times, jnp.concatenate([x, x]), twice)
        n = x.shape[0]
        half = lambda part: jax.tree.map(lambda a: a[part], both)
        return half(slice(0, n)), half(slice(n, None))

    def _unconditional(self, cond: Any) -> Cond:
        if self.uncond is not None:
            return self.uncond(cond)
        unknown = [name for name in cond if name not in {f.name for f in self.fields}]
        if unknown:
            raise ValueError(
                f"no null value is known for the condition {', '.join(unknown)}: pass fields=(its "
                "flowjax.conditions.Field, ...), or uncond=(cond -> the condition that means none)"
            )
        return without(cond, self.fields)

    def _scale(self, t: Time, x: Batched) -> Array:
        """The scale at t, shaped to multiply x."""
        low, high = self.guidance_interval
        scale = jnp.where((jnp.asarray(t) >= low) & (jnp.asarray(t) <= high), self.scale, 1.0)
        return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale

    def _rescaled(self, t: Time, x: Batched, mixed: Ends, with_cond: Ends) -> Ends:
        axes = tuple(range(1, x.ndim))
        ratio = with_cond.x1.std(axes, keepdims=True) / jnp.maximum(mixed.x1.std(axes, keepdims=True), 1e-12)
        x1 = mixed.x1 * (self.rescale * ratio + 1 - self.rescale)
        r = self.path.rates(t, x)
        at_data = r.sigma == 0
        x0 = mixed.x0 - jnp.where(at_data, 0.0, r.alpha / jnp.where(at_data, 1.0, r.sigma)) * (x1 - mixed.x1)
        return mixed._replace(x0=x0, x1=x1)


@dataclass(frozen=True)
class Auto(_Guide):
    """Autoguidance: away from what a weaker network believes, weak + scale (strong - weak).

    Args:
        model: the strong network.
        weak: smaller, or trained less; of the same path.
        scale: 1 leaves the strong network alone.
    """

    model: HasEnds
    weak: HasEnds
    scale: float

    @property
    def interval(self) -> tuple[float, float]:
        strong, weak = interval_of(self.model), interval_of(self.weak)
        return max(strong[0], weak[0]), min(strong[1], weak[1])

    @property
    def velocity_is_direct(self) -> bool:
        return _is_direct(self.model) and _is_direct(self.weak)

    @property
    def missing(self) -> Mapping[str, str]:
        return {**missing_from(self.weak), **missing_from(self.model)}

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        return _mix(self.weak.ends(t, x, cond), self.model.ends(t, x, cond), self.scale)

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        if not self.velocity_is_direct:
            return super().compute_velocity(t, x, cond)
        weak, strong = (_velocity_of(m)(t, x, cond) for m in (self.weak, self.model))
        return _line(weak, strong, self.scale)


LogLikelihood = Callable[[Time, Batched, Cond], Float[Array, " B"]]
"""`log_prob(t, x, cond)`: log p(y | x_t = x) for each row."""


@dataclass(frozen=True)
class Classifier(_Guide):
    """Classifier guidance: the score moved by scale grad log p(y | x_t), on a Gaussian path.

    Args:
        model: on a Gaussian path, without or with the condition.
        log_prob: log p(y | x_t), differentiable in x.
        scale: 1 for Bayes' rule.
    """

    model: HasEnds
    log_prob: LogLikelihood
    scale: float = 1.0

    def __post_init__(self):
        _needs_gaussian(self.path)

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        slope = jax.grad(lambda x: self.log_prob(t, x, cond).sum())(x)
        return _moved(self.path, t, x, self.model.ends(t, x, cond), self.scale * slope)


Measurement = Callable[[Batched, Float[Array, "..."]], Float[Array, " B"]]
"""`log_likelihood(x1, variance)`: log p(y | x_t) for each row, where x1 | x_t has this mean and about this variance a
coordinate; the variance is one number, or has one a row with the axes of x1. Solvers that solve each sample on its own
(adaptive ones, and diffrax's SDE solvers) call it with one row; a measurement of your own that holds data with one row
a sample then needs `rows` and `with_rows` (`flowjax.solvers.rows`)."""


@dataclass(frozen=True)
class Posterior(_Guide):
    """Samples of p(x1 | y) from the likelihood of a measurement y, without training (Chung et al. 2023; Song et al.
    2023).

    p(y | x_t) is taken for the measurement's likelihood at E[x1 | x_t], widened by the variance of x1 given x_t of
    data with standard deviation `data_std`: exact for normal data of that variance and a linear measurement.
    On other data it is an approximation that follows y too loosely, and an SDE sampler corrects part of it: on digits
    the misfit is 1.2 times the noise by Euler-Maruyama and 1.9 by Heun (`experiments/posterior_digits`). A `data_std`
    well below the truth makes the guidance stiff, and too few steps diverge. Little noise in the measurement makes it
    stiff near the data: a fixed number of steps of `unipc` or `euler_maruyama` then takes far fewer evaluations than
    an adaptive solver.

    Args:
        model: on a Gaussian path, unconditional or conditional.
        measurement: see `linear_measurement`.
        data_std: of the data, a coordinate.
        scale: 1 for Bayes' rule.
    """

    model: HasEnds
    measurement: Measurement
    data_std: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        _needs_gaussian(self.path)
        if not self.data_std > 0:
            raise ValueError(f"data_std must be positive, not {self.data_std}")

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        r = self.path.rates(t, x)
        # of x1 | x_t for normal data, equation (3) of the oracles
        variance = self.data_std**2 * r.sigma**2 / (r.sigma**2 + (self.data_std * r.alpha) ** 2)

        def mean(x: Batched) -> tuple[Batched, Ends]:
            ends = self.model.ends(t, x, cond)
            return ends.x1, ends

        x1, pull_back, ends = jax.vjp(mean, x, has_aux=True)
        toward = self.scale * jax.grad(lambda x1: self.measurement(x1, variance).sum())(x1)
        return _moved(self.path, t, x, ends, pull_back(toward)[0], self.data_std**2 * toward)


@dataclass(frozen=True, eq=False)
class LinearMeasurement:
    """See `linear_measurement`."""

    operator: Callable[[Batched], Float[Array, "B *measured"]]
    y: Float[Array, "rows *measured"]
    noise_std: float
    gain: float = 1.0

    @property
    def rows(self) -> Array | None:
        """What a solver that solves each sample on its own has to split (`flowjax.solvers.rows`)."""
        return None if self.y.shape[0] == 1 else self.y

    def with_rows(self, rows: Array) -> "LinearMeasurement":
        return replace(self, y=rows)

    def __call__(self, x1: Batched, variance: Float[Array, "..."]) -> Float[Array, " B"]:
        seen = self.operator(x1)
        if self.y.shape[1:] != seen.shape[1:] or self.y.shape[0] not in (1, seen.shape[0]):
            raise ValueError(
                f"the operator gives {seen.shape} and y is {self.y.shape}: give one row of y a sample, or a single row "
                "for all, each of the operator's shape"
            )
        miss = (self.y - seen) ** 2
        # One variance for all samples, or one a sample, with as many axes as x1 has and not as the measurement has.
        wide = jnp.reshape(self.noise_std**2 + self.gain * variance, (-1,) + (1,) * (miss.ndim - 1))
        return -0.5 * (miss / jnp.maximum(wide, 1e-12)).reshape(miss.shape[0], -1).sum(-1)


def linear_measurement(
    operator: Callable[[Batched], Float[Array, "B *measured"]],
    y: Float[Array, "rows *measured"],
    noise_std: float,
    gain: float = 1.0,
) -> LinearMeasurement:
    """y = A x1 + noise_std n, for A A^T close to gain I (a mask: 1): its likelihood under a normal x1 | x_t.

    Args:
        operator: A, on a batch.
        y: what was measured: one row a sample, or a single row for all samples.
        noise_std: of the measurement.
        gain: the size of A A^T, exact for masks and orthonormal rows; a bound on it keeps a blur stable.
    """
    if not noise_std >= 0:
        raise ValueError(f"noise_std must not be negative, it is {noise_std}")
    return LinearMeasurement(operator, jnp.asarray(y), noise_std, gain)


def _needs_gaussian(path: AffinePath) -> None:
    if not path.has_score or path.noise is not None:
        raise ValueError(
            "guidance by a likelihood moves the score: it needs path 'gaussian', from N(0, I) independently"
        )


def _moved(path: AffinePath, t: Time, x: Batched, ends: Ends, slope: Batched, at_start: Batched | float = 0.0) -> Ends:
    """The ends when the score moves by `slope`: x0 by -sigma slope, x1 by sigma^2 / alpha slope.

    At alpha = 0 x_t does not depend on the data, and the slope of a true likelihood is zero. Its ratio to alpha has a
    limit all the same, and `at_start` is what x1 moves by there. For a likelihood of E[x1 | x_t] that is the variance
    of the data times the likelihood's slope in x1, since d E[x1 | x_t] / dx = alpha / sigma^2 Cov(x1 | x_t).
    """
    r = path.rates(t, x)
    no_data = r.alpha == 0
    x0 = ends.x0 - jnp.where(no_data, 0.0, r.sigma * slope)
    moved = jnp.where(no_data, at_start, r.sigma**2 / jnp.where(no_data, 1.0, r.alpha) * slope)
    return ends._replace(x0=x0, x1=ends.x1 + moved)
