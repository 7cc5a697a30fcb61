"""Transitions between two times of a Gaussian path: the forward step and the posterior of DDPM.

Since t = 1 is the data, the noising direction is from s to t < s: x_t = a x_s + noise of variance b, with
a = alpha_t / alpha_s and

    (1)  b = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s)

    (2)  q(x_s | x_t, x1) = N(a sigma_s^2 / sigma_t^2 x_t + alpha_s b / sigma_t^2 x1,  b sigma_s^2 / sigma_t^2)

(Ho et al. 2020, arXiv:2006.11239, eq. 6-7; Kingma et al. 2021, arXiv:2107.00630, appendix A). The optimal variance of a
reverse step lies between the variance in (2), which is exact if the data are a single point, and b, which is exact if
the data are distributed as N(0, I) (Ho et al. 2020, sec. 3.2).
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.affine import AffinePath, expand
from flowjax.typing import Batched, Time

__all__ = ["Transition", "Variance", "step_variance", "transition"]


class Transition(NamedTuple):
    """The posterior q(x_s | x_t, x1) = N(from_x x_t + from_x1 x1, small I), with arrays that broadcast against a batch.

    Attributes:
        from_x, from_x1: the coefficients of the mean.
        small, large: the lower and upper bound on the variance of a reverse step.
    """

    from_x: Float[Array, "..."]
    from_x1: Float[Array, "..."]
    small: Float[Array, "..."]
    large: Float[Array, "..."]


def transition(path: AffinePath, t: Time, s: Time, like: Batched) -> Transition:
    """The reverse step from time t to time s > t: equations (1) and (2), without cancellation in b where t is near s.

    Args:
        path: the path.
        t, s: the start and the end of the step, scalars or (B,).
        like: an array (B, *event) against which the results broadcast.
    """
    at, to = path.rates(t, like), path.rates(s, like)
    drop = expand(path.schedule.log_snr(t), like) - expand(path.schedule.log_snr(s), like)
    kept = -jnp.expm1(drop)  # 1 - SNR_t / SNR_s
    a = at.alpha / to.alpha
    ratio = (to.sigma / at.sigma) ** 2
    large = at.sigma**2 * kept
    return Transition(a * ratio, to.alpha * kept, large * ratio, large)


Variance = Literal["small", "large", "learned"]
"""The variance of a reverse step: one of its bounds, or an interpolation between them that the network predicts."""


def step_variance(q: Transition, kind: Variance, variance_fraction: Batched | None) -> Float[Array, "..."]:
    """The variance of a reverse step.

    Args:
        q: the transition of the step.
        kind: "small" or "large" for a bound of the variance, "learned" for log-linear interpolation between them
            (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15).
        variance_fraction: the interpolation weight of log `large`, as predicted by the network; None if it predicts
            none.

    Raises:
        ValueError: if kind is "learned" and variance_fraction is None.
    """
    if kind == "learned":
        if variance_fraction is None:
            raise ValueError("a learned variance must be predicted by the network: use prediction 'noise_variance'")
        return jnp.exp(variance_fraction * jnp.log(q.large) + (1 - variance_fraction) * jnp.log(q.small))
    return q.small if kind == "small" else q.large
