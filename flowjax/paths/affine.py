"""Affine paths: x_t = alpha(t) x1 + sigma(t) x0.

    (1)  x_t  = alpha x1 + sigma x0
    (2)  dx_t = alpha' x1 + sigma' x0

Since (1) and (2) are linear in the ends, conditional expectations pass through them: with e0 = E[x0 | x_t] and
e1 = E[x1 | x_t], x_t = alpha e1 + sigma e0 and the marginal velocity is v = alpha' e1 + sigma' e0. Whatever a network
predicts, two of the four quantities (x_t, v, e0, e1) give the other two (`flowjax.predictions`).

A `GaussianPath` adds the promise that the source is N(0, I) and independent of the data. Then, and only then, does
the score follow from the ends:  e0 = -sigma grad log p_t  (Tweedie's formula).
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from flowjax.paths.base import PathSample
from flowjax.schedules import Rates, Schedule, rates
from flowjax.sources import Normal, Source
from flowjax.typing import Batched, PRNGKey, Time


@partial(jax.tree_util.register_dataclass, data_fields=["schedule"], meta_fields=[])
@dataclass(frozen=True)
class AffinePath:
    """The affine path with any source and any coupling (Lipman et al. 2024, sec. 4.7; `path.AffineProbPath` there).

    Args:
        schedule: alpha and sigma; see `flowjax.schedules`.
    """

    schedule: Schedule

    @property
    def t_min(self) -> float:
        return self.schedule.t_min

    @property
    def t_max(self) -> float:
        return self.schedule.t_max

    def rates(self, t: Time, like: Batched) -> Rates:
        """The schedule at t with axes appended, so that it multiplies a batch shaped as `like` row by row."""
        return Rates(*(expand(r, like) for r in rates(self.schedule, t)))

    def sample(self, key: PRNGKey | None, t: Time, x0: Batched, x1: Batched) -> PathSample:
        """The point at time t between x0 and x1, and its velocity: equations (1) and (2).

        Args:
            key: unused, as an affine path adds no noise of its own; part of the protocol.
            t: () or (B,) in [0, 1]. The velocity is finite on [t_min, t_max].
            x0, x1: source and data samples of one shape (B, *event), B >= 1.

        Returns:
            A `PathSample`; points and velocities have the dtype of the ends, the arithmetic is at least float32.

        Raises:
            ValueError: if the ends differ in shape, the batch is empty, or t does not fit the batch.
        """
        del key
        check_batch(x0, x1)
        dtype = jnp.result_type(x0, x1)
        wide = jnp.promote_types(dtype, jnp.float32)
        a, s, da, ds = self.rates(t, x1)
        w0, w1 = x0.astype(wide), x1.astype(wide)
        times = jnp.broadcast_to(jnp.asarray(t, jnp.promote_types(jnp.asarray(t).dtype, jnp.float32)), x1.shape[:1])
        return PathSample((a * w1 + s * w0).astype(dtype), (da * w1 + ds * w0).astype(dtype), times, x0, x1)

    def prior(self, source: Source) -> Source:
        """Where sampling starts and likelihood ends: the source itself where alpha(0) = 0.

        Otherwise N(0, sigma(0)^2 I), which ignores what is left of the data at t = 0: an approximation (for VP with the
        usual betas alpha(0) = 0.0066, so data of norm r shift it by 0.0066 r). Only N(0, I) has this form when scaled:

        Raises:
            ValueError: for another source where alpha(0) != 0.
        """
        with jax.ensure_compile_time_eval():
            alpha, sigma = float(self.schedule.alpha(0.0)), float(self.schedule.sigma(0.0))
        if alpha == 0.0:
            return source
        if not is_standard_normal(source):
            raise ValueError(f"{self.schedule} starts at alpha(0) = {alpha:.2g}, not 0: it needs the source N(0, I)")
        return Normal(source.shape, 0.0, sigma)


@partial(jax.tree_util.register_dataclass, data_fields=["schedule"], meta_fields=[])
@dataclass(frozen=True)
class GaussianPath(AffinePath):
    """The affine path from N(0, I), independent of the data: the only kind here whose score is known.

    The caller keeps the promise: a source N(0, I) (checked by `prior`) and a coupling that leaves x0 independent of x1.
    """

    def prior(self, source: Source) -> Source:
        """As `AffinePath.prior`; a source that is not the standard normal is a ValueError."""
        if not is_standard_normal(source):
            raise ValueError(
                f"a GaussianPath starts from N(0, I), not from {source}; use AffinePath for another source"
            )
        return super().prior(source)


def is_standard_normal(source: Source) -> bool:
    """Whether the source is N(0, I), by its own parameters."""
    if not isinstance(source, Normal):
        return False
    with jax.ensure_compile_time_eval():
        return bool(jnp.all(jnp.asarray(source.loc) == 0) & jnp.all(jnp.asarray(source.scale) == 1))


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
