"""Affine paths: x_t = alpha(t) x1 + sigma(t) x0 + gamma(t) z.

    (1)  x_t  = alpha x1 + sigma x0 + gamma z           z ~ N(0, I), independent of both ends
    (2)  dx_t = alpha' x1 + sigma' x0 + gamma' z

Both equations are linear, so they hold for conditional expectations as well. With e0 = E[x0 | x_t], e1 = E[x1 | x_t]
and ez = E[z | x_t], x_t = alpha e1 + sigma e0 + gamma ez, and the marginal velocity is v = alpha' e1 + sigma' e0 +
gamma' ez. Without noise (gamma = 0), any two of (x_t, v, e0, e1) determine the other two (`flowjax.predictions`).

The score grad log p_t follows from these expectations in two cases, by Tweedie's formula:

    (3)  gamma > 0:                                             ez = -gamma grad log p_t
    (4)  x0 ~ N(0, I) independent of x1 (a `GaussianPath`):     e0 = -sigma grad log p_t
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import check_floating
from flowjax.paths.base import PathSample
from flowjax.paths.noise import Gamma
from flowjax.schedules import Rates, Schedule, rates
from flowjax.schedules.base import as_time
from flowjax.sources import Source
from flowjax.spaces import EUCLIDEAN, Space, check_euclidean
from flowjax.typing import Batched, PRNGKey, Time

__all__ = ["AffinePath", "GaussianPath", "NoiseRates", "check_batch", "expand", "is_standard_normal"]


class NoiseRates(NamedTuple):
    """gamma and its time derivative, with trailing axes of size one so that they broadcast against a batch.

    Attributes:
        gamma: the standard deviation of the path's noise.
        dgamma: d gamma / dt.
    """

    gamma: Float[Array, "..."]
    dgamma: Float[Array, "..."]


@partial(jax.tree_util.register_dataclass, data_fields=["schedule", "noise"], meta_fields=["space"])
@dataclass(frozen=True)
class AffinePath:
    """The affine path x_t = alpha x1 + sigma x0 + gamma z, for any source and any coupling.

    Without noise it is the affine conditional flow of Lipman et al. 2024 (arXiv:2412.06264, sec. 4.7), with noise a
    stochastic interpolant (Albergo et al. 2023, arXiv:2303.08797).

    Attributes:
        schedule: alpha and sigma; see `flowjax.schedules`.
        noise: gamma; see `flowjax.paths.noise`. None for gamma = 0.
        space: the space of the samples, which must be Euclidean.

    Raises:
        ValueError: if the space is not Euclidean.
    """

    schedule: Schedule
    noise: Gamma | None = None
    space: Space = field(default=EUCLIDEAN, repr=False, kw_only=True)

    def __post_init__(self):
        check_euclidean(type(self).__name__, self.space)

    @property
    def t_min(self) -> float:
        """The first time at which the velocity is finite and the path well conditioned."""
        return max(self.schedule.t_min, self.noise.t_min) if self.noise else self.schedule.t_min

    @property
    def t_max(self) -> float:
        """The last time at which the velocity is finite and the path well conditioned."""
        return min(self.schedule.t_max, self.noise.t_max) if self.noise else self.schedule.t_max

    @property
    def has_score(self) -> bool:
        """Whether the score of p_t follows from conditional expectations, which is the case if gamma > 0."""
        return self.noise is not None

    def rates(self, t: Time, like: Batched) -> Rates:
        """alpha, sigma and their derivatives at t, with trailing axes so that they broadcast against `like`.

        Args:
            t: scalar or (B,).
            like: an array (B, *event).
        """
        return Rates(*(expand(r, like) for r in rates(self.schedule, t)))

    def noise_rates(self, t: Time, like: Batched) -> NoiseRates:
        """gamma and its derivative at t, shaped as in `rates`; zeros if the path has no noise."""
        t = as_time(t)
        if self.noise is None:
            return NoiseRates(expand(jnp.zeros_like(t), like), expand(jnp.zeros_like(t), like))
        value, slope = jax.jvp(self.noise.gamma, (t,), (jnp.ones_like(t),))
        return NoiseRates(expand(value, like), expand(slope, like))

    def sample(self, key: PRNGKey | None, t: Time, x0: Batched, x1: Batched) -> PathSample:
        """Samples x_t given x0 and x1, together with its velocity: equations (1) and (2).

        Args:
            key: the PRNG key for z; may be None if the path has no noise.
            t: scalar or (B,) in [0, 1]. The velocity is finite on [t_min, t_max].
            x0, x1: source and data samples of equal shape (B, *event), B >= 1.

        Returns:
            A `PathSample`. x_t and dx_t have the dtype of the ends; they are computed in at least float32.

        Raises:
            ValueError: if x0 and x1 differ in shape, hold integers or are empty, if t is neither a scalar nor (B,), or
                if the path has noise and key is None.
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
                raise ValueError(f"a path with the noise {self.noise} needs a key: pass key=jax.random.key(seed)")
            z = jax.random.normal(key, x1.shape, wide)
            g, dg = self.noise_rates(t, x1)
            x_t, dx_t = x_t + g * z, dx_t + dg * z
        times = jnp.broadcast_to(as_time(t), x1.shape[:1])
        return PathSample(x_t.astype(dtype), dx_t.astype(dtype), times, x0, x1, z)

    def prior(self, source: Source) -> Source:
        """The distribution from which sampling starts, an approximation to p_0; likelihoods evaluate its density.

        If alpha(0) = 0 it is the source. Otherwise it is N(0, sigma(0)^2 I), which neglects alpha(0) x1: for VP with
        the usual betas alpha(0) = 0.0066, and for VE and EDM the data must be small compared to sigma_max. On a path
        with noise, gamma(t_min) z is neglected as well: 0.03 times the scale of a `Bridge`, and the full scale of
        `Constant` noise.

        Args:
            source: the distribution of x0.

        Raises:
            ValueError: if alpha(0) is not 0 and the source is not N(0, I).
        """
        with jax.ensure_compile_time_eval():
            alpha, sigma = float(self.schedule.alpha(0.0)), float(self.schedule.sigma(0.0))
        if alpha == 0.0:
            return source
        if not self.space.is_standard(source):
            raise ValueError(f"{self.schedule} needs the source N(0, I), because alpha(0) = {alpha:.2g} is not 0")
        return replace(self.space.source(source.shape), scale=sigma)


@partial(jax.tree_util.register_dataclass, data_fields=["schedule", "noise"], meta_fields=["space"])
@dataclass(frozen=True)
class GaussianPath(AffinePath):
    """The affine path whose source is N(0, I) and independent of the data, so that the score follows from the velocity.

    The caller must use the source N(0, I), which `prior` checks, and a coupling that leaves x0 independent of x1, which
    is not checked. The attributes are those of `AffinePath`; `noise` must be None.

    Raises:
        ValueError: if `noise` is given, or the space is not Euclidean.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.noise is not None:
            raise ValueError("a GaussianPath cannot have noise of its own: use AffinePath(schedule, noise)")

    @property
    def has_score(self) -> bool:
        return True

    def prior(self, source: Source) -> Source:
        """The distribution from which sampling starts; see `AffinePath.prior`.

        Raises:
            ValueError: if the source is not N(0, I).
        """
        if not self.space.is_standard(source):
            raise ValueError(f"a GaussianPath needs the source N(0, I), not {source}: use AffinePath for other sources")
        return super().prior(source)


def is_standard_normal(source: Source) -> bool:
    """Whether the source is N(0, I): a `Normal` with loc 0 and scale 1."""
    return EUCLIDEAN.is_standard(source)


def expand(t: jax.Array, like: Batched) -> jax.Array:
    """Appends axes of size one to t so that it broadcasts against `like` along the batch axis.

    Args:
        t: scalar or (B,).
        like: an array (B, *event).

    Returns:
        t with shape () or (B, 1, ..., 1).

    Raises:
        ValueError: if t is neither a scalar nor (B,).
    """
    t = jnp.asarray(t)
    if t.ndim == 0:
        return t
    if t.shape != like.shape[:1]:
        raise ValueError(f"t must be a scalar or have one time per row, shape ({like.shape[0]},), not {t.shape}")
    return t.reshape(t.shape + (1,) * (like.ndim - 1))


def check_batch(x0: Batched, x1: Batched) -> None:
    """Checks that x0 and x1 have the same shape and at least one row.

    Raises:
        ValueError: if they do not.
    """
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have the same shape, got {x0.shape} and {x1.shape}")
    if x1.ndim == 0 or x1.shape[0] == 0:
        raise ValueError("the batch is empty: at least one row is needed")
