"""Affine paths: x_t = alpha(t) x1 + sigma(t) x0 + gamma(t) z.

    (1)  x_t  = alpha x1 + sigma x0 + gamma z           z ~ N(0, I), independent of both ends
    (2)  dx_t = alpha' x1 + sigma' x0 + gamma' z

Since (1) and (2) are linear, conditional expectations pass through them: with e0 = E[x0 | x_t], e1 = E[x1 | x_t] and
ez = E[z | x_t], x_t = alpha e1 + sigma e0 + gamma ez and the marginal velocity is v = alpha' e1 + sigma' e0 + gamma'
ez. Without noise (gamma = 0), two of the four quantities (x_t, v, e0, e1) give the other two (`flowjax.predictions`).

A score exists in two cases, both by Tweedie's formula:

    (3)  gamma > 0:                                             ez = -gamma grad log p_t
    (4)  x0 ~ N(0, I) independent of x1 (a `GaussianPath`):     e0 = -sigma grad log p_t
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.base import PathSample
from flowjax.paths.noise import Gamma
from flowjax.schedules import Rates, Schedule, rates
from flowjax.schedules.base import as_time
from flowjax.sources import Source
from flowjax.spaces import EUCLIDEAN, Space
from flowjax.typing import Batched, PRNGKey, Time

__all__ = ["AffinePath", "GaussianPath", "NoiseRates", "check_batch", "check_floating", "expand", "is_standard_normal"]


class NoiseRates(NamedTuple):
    """gamma and its time derivative, each of the shape of t."""

    gamma: Float[Array, "..."]
    dgamma: Float[Array, "..."]


@partial(jax.tree_util.register_dataclass, data_fields=["schedule", "noise"], meta_fields=["space"])
@dataclass(frozen=True)
class AffinePath:
    """The affine path with any source and any coupling (Lipman et al. 2024, sec. 4.7), with noise of its own or without
    (stochastic interpolants; Albergo et al. 2023).

    Args:
        schedule: alpha and sigma; see `flowjax.schedules`.
        noise: gamma; see `flowjax.paths.noise`. None for gamma = 0.
        space: where samples live: Euclidean space, in which points may be added.
    """

    schedule: Schedule
    noise: Gamma | None = None
    space: Space = field(default=EUCLIDEAN, repr=False)

    @property
    def t_min(self) -> float:
        return max(self.schedule.t_min, self.noise.t_min) if self.noise else self.schedule.t_min

    @property
    def t_max(self) -> float:
        return min(self.schedule.t_max, self.noise.t_max) if self.noise else self.schedule.t_max

    @property
    def has_score(self) -> bool:
        """Whether the score of p_t follows from conditional expectations: it does where gamma > 0."""
        return self.noise is not None

    def rates(self, t: Time, like: Batched) -> Rates:
        """The schedule at t with axes appended, so that it multiplies a batch shaped as `like` row by row."""
        return Rates(*(expand(r, like) for r in rates(self.schedule, t)))

    def noise_rates(self, t: Time, like: Batched) -> NoiseRates:
        """gamma and gamma' at t, as `rates`; zeros without noise."""
        t = as_time(t)
        if self.noise is None:
            return NoiseRates(expand(jnp.zeros_like(t), like), expand(jnp.zeros_like(t), like))
        value, slope = jax.jvp(self.noise.gamma, (t,), (jnp.ones_like(t),))
        return NoiseRates(expand(value, like), expand(slope, like))

    def sample(self, key: PRNGKey | None, t: Time, x0: Batched, x1: Batched) -> PathSample:
        """The point at time t between x0 and x1, and its velocity: equations (1) and (2).

        Args:
            key: for z; may be None on a path without noise.
            t: () or (B,) in [0, 1]. The velocity is finite on [t_min, t_max].
            x0, x1: source and data samples of one shape (B, *event), B >= 1.

        Returns:
            A `PathSample`; points and velocities have the dtype of the ends, the arithmetic is at least float32.

        Raises:
            ValueError: if the ends differ in shape or hold integers, the batch is empty, t does not fit the batch, or
                noise has no key.
        """
        check_batch(x0, x1)
        check_floating(x1=x1, x0=x0)
        dtype = jnp.result_type(x0, x1)
        wide = jnp.promote_types(dtype, jnp.float32)
        a, s, da, ds = self.rates(t, x1)
        w0, w1 = x0.astype(wide), x1.astype(wide)
        x_t, dx_t, z = a * w1 + s * w0, da * w1 + ds * w0, None
        if self.noise is not None:
            if key is None:
                raise ValueError(f"{self.noise} draws noise: pass key=jax.random.key(seed)")
            z = jax.random.normal(key, x1.shape, wide)
            g, dg = self.noise_rates(t, x1)
            x_t, dx_t = x_t + g * z, dx_t + dg * z
        times = jnp.broadcast_to(as_time(t), x1.shape[:1])
        return PathSample(x_t.astype(dtype), dx_t.astype(dtype), times, x0, x1, z)

    def prior(self, source: Source) -> Source:
        """Where sampling starts and likelihood ends: the source itself where alpha(0) = 0.

        Otherwise N(0, sigma(0)^2 I), which ignores what is left of the data at t = 0: an approximation (for VP with the
        usual betas alpha(0) = 0.0066, so data of norm r shift it by 0.0066 r; for VE and EDM, r against sigma_max).
        Only N(0, I) has this form when scaled. On a path with noise, gamma(t_min) z is left out too: 0.03 of
        its scale for a bridge; for constant noise the source is blurred by it.

        Raises:
            ValueError: for another source where alpha(0) != 0.
        """
        with jax.ensure_compile_time_eval():
            alpha, sigma = float(self.schedule.alpha(0.0)), float(self.schedule.sigma(0.0))
        if alpha == 0.0:
            return source
        if not self.space.is_standard(source):
            raise ValueError(f"{self.schedule} starts at alpha(0) = {alpha:.2g}, not 0: it needs the source N(0, I)")
        return replace(self.space.source(source.shape), scale=sigma)


@partial(jax.tree_util.register_dataclass, data_fields=["schedule", "noise"], meta_fields=["space"])
@dataclass(frozen=True)
class GaussianPath(AffinePath):
    """The affine path from N(0, I), independent of the data: its score is known without noise of its own.

    The caller keeps the promise: a source N(0, I) (checked by `prior`) and a coupling that leaves x0 independent of x1.
    """

    def __post_init__(self):
        if self.noise is not None:
            raise ValueError("a GaussianPath has no noise of its own: use AffinePath(schedule, noise)")

    @property
    def has_score(self) -> bool:
        return True

    def prior(self, source: Source) -> Source:
        """As `AffinePath.prior`; a source that is not the standard normal is a ValueError."""
        if not self.space.is_standard(source):
            raise ValueError(
                f"a GaussianPath starts from N(0, I), not from {source}; use AffinePath for another source"
            )
        return super().prior(source)


def is_standard_normal(source: Source) -> bool:
    """Whether the source is N(0, I), by its own parameters."""
    return EUCLIDEAN.is_standard(source)


def expand(t: jax.Array, like: Batched) -> jax.Array:
    """A scalar or (B,) array with trailing axes of size one, to multiply `like` (B, *event) row by row.

    Raises:
        ValueError: if t is neither a scalar nor one value a row.
    """
    t = jnp.asarray(t)
    if t.ndim == 0:
        return t
    if t.shape != like.shape[:1]:
        raise ValueError(f"t must be a scalar or one time a row ({like.shape[0]},), not {t.shape}")
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def check_batch(x0: Batched, x1: Batched) -> None:
    """Refuses ends of different shapes and an empty batch, in one line each."""
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {x0.shape} and {x1.shape}")
    if x1.ndim == 0 or x1.shape[0] == 0:
        raise ValueError("the batch is empty: at least one row is needed")


def check_floating(**ends: Batched) -> None:
    """Refuses integers, given by the names of the arrays: noise that is converted to their type would be truncated.

    Raises:
        ValueError: if an array does not hold floating-point numbers.
    """
    for name, x in ends.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} holds integers ({x.dtype}): convert them to floats, for example by {name}.astype(jnp.float32)"
            )
