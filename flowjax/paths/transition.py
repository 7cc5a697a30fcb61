"""From one time to another on a Gaussian path: what DDPM calls its forward step and its posterior.

For t < s, s nearer the data, x_t = a x_s + noise of variance b, with a = alpha_t / alpha_s and

    (1)  b = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - SNR_t / SNR_s)

    (2)  q(x_s | x_t, x1) = N(a sigma_s^2 / sigma_t^2 x_t + alpha_s b / sigma_t^2 x1,  b sigma_s^2 / sigma_t^2)

(Ho et al. 2020, eq. 6-7; Kingma et al. 2021, appendix A). The variance of a reverse step lies between that of (2),
right for data at one point, and b, right for data N(0, I) (Ho et al. 2020, sec. 3.2).
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.affine import AffinePath, expand
from flowjax.typing import Batched, Time

__all__ = ["Transition", "Variance", "step_variance", "transition"]


class Transition(NamedTuple):
    """q(x_s | x_t, x1) = N(from_x x_t + from_x1 x1, small); each with trailing axes to multiply a batch.

    Attributes:
        from_x, from_x1: coefficients of the mean.
        small, large: the bounds of a reverse step's variance.
    """

    from_x: Float[Array, "..."]
    from_x1: Float[Array, "..."]
    small: Float[Array, "..."]
    large: Float[Array, "..."]


def transition(path: AffinePath, t: Time, s: Time, like: Batched) -> Transition:
    """From time t to s > t, with the digits of b kept where the two are close: equations (1) and (2)."""
    at, to = path.rates(t, like), path.rates(s, like)
    drop = expand(path.schedule.log_snr(t), like) - expand(path.schedule.log_snr(s), like)
    kept = -jnp.expm1(drop)  # 1 - SNR_t / SNR_s
    a = at.alpha / to.alpha
    ratio = (to.sigma / at.sigma) ** 2
    large = at.sigma**2 * kept
    return Transition(a * ratio, to.alpha * kept, large * ratio, large)


Variance = Literal["small", "large", "learned"]


def step_variance(q: Transition, kind: Variance, variance_fraction: Batched | None) -> Float[Array, "..."]:
    """The variance of a reverse step: one of its bounds, or learned between them, in logarithm (Nichol & Dhariwal 2021,
    eq. 15).

    Raises:
        ValueError: if it should be learned and the network does not predict it.
    """
    if kind == "learned":
        if variance_fraction is None:
            raise ValueError("a learned variance needs a network that predicts it: prediction 'noise_variance'")
        return jnp.exp(variance_fraction * jnp.log(q.large) + (1 - variance_fraction) * jnp.log(q.small))
    return q.small if kind == "small" else q.large
