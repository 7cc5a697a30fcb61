"""The discrete noise levels of DDPM as schedules, with log-SNR interpolated linearly between the levels.

A chain of N steps with betas b_1 ... b_N has alpha_k^2 = prod_{i <= k} (1 - b_i) and sigma_k^2 = 1 - alpha_k^2. Level k
is at t = 1 - k / N. Sampling from level N to level 1 therefore runs from t = 0 to t_max = 1 - 1 / N, and a `uniform`
time grid of N steps visits exactly the levels of the chain.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowjax.ranges import Range
from flowjax.schedules.base import as_time

__all__ = ["Discrete", "Levels", "ddpm_linear", "nichol_cosine"]

Levels = Annotated[int, Range(2, 100_000)]
"""The number of noise levels of a chain; a schedule stores a table of them."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Discrete:
    """A variance-preserving schedule that interpolates the noise levels of a discrete chain.

    Attributes:
        name: the name in error messages.
        betas: b_1 ... b_N, from the data to the noise, each in (0, 1).

    Raises:
        ValueError: if there are fewer than two betas, or one is not in (0, 1).
    """

    name: str
    betas: tuple[float, ...]
    t_min = 0.0

    def __post_init__(self):
        if len(self.betas) < 2 or not all(0 < b < 1 for b in self.betas):
            raise ValueError(f"{self.name}: betas must be at least two numbers between 0 and 1")

    def __repr__(self) -> str:
        return f"{self.name}({len(self.betas)})"

    def __hash__(self) -> int:
        return hash((self.name, len(self.betas), self.betas[0], self.betas[-1]))

    @property
    def t_max(self) -> float:
        return 1 - 1 / len(self.betas)

    @property
    def times(self) -> Float[np.ndarray, " N"]:
        """The times of the levels N, ..., 1, increasing."""
        n = len(self.betas)
        return 1 - np.arange(n, 0, -1) / n

    @cached_property
    def _log_snrs(self) -> Float[np.ndarray, " N"]:
        """The log-SNR of the levels N, ..., 1, increasing; computed in float64."""
        log_signal = np.cumsum(np.log1p(-np.asarray(self.betas)))
        return (log_signal - np.log(-np.expm1(log_signal)))[::-1]

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        t = as_time(t)
        n = len(self.betas)
        position = jnp.clip(t * n, 0, n - 1)  # level N is at 0
        index = jnp.clip(jnp.floor(position), 0, n - 2).astype(int)
        table = jnp.asarray(self._log_snrs, t.dtype)
        return table[index] + (t * n - index) * (table[index + 1] - table[index])

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(self.log_snr(t)))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(0.5 * jax.nn.log_sigmoid(-self.log_snr(t)))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        log_snr = as_time(log_snr)
        n = len(self.betas)
        table = jnp.asarray(self._log_snrs, log_snr.dtype)
        index = jnp.clip(jnp.searchsorted(table, log_snr) - 1, 0, n - 2)
        return (index + (log_snr - table[index]) / (table[index + 1] - table[index])) / n


@lru_cache
def ddpm_linear(steps: Levels = 1000, first: float | int = 1e-4, last: float | int = 0.02) -> Discrete:
    """Betas that increase linearly from `first` to `last` (Ho et al. 2020, arXiv:2006.11239, sec. 4).

    Args:
        steps: the number of levels N.
        first, last: the betas of the first level at the data and of the last level at the noise.
    """
    return Discrete("ddpm_linear", tuple(np.linspace(first, last, steps).tolist()))


@lru_cache
def nichol_cosine(
    steps: Levels = 1000, s: Annotated[float | int, Range(0, 10)] = 0.008, largest: float | int = 0.999
) -> Discrete:
    """Betas for which alpha_k^2 is proportional to cos^2((k / N + s) / (1 + s) pi / 2).

    The cosine schedule of Nichol & Dhariwal 2021 (arXiv:2102.09672, eq. 17).

    Args:
        steps: the number of levels N.
        s: the offset, which keeps the betas near the data from being too small.
        largest: the upper bound to which the betas are clipped.
    """
    signal = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
    return Discrete("nichol_cosine", tuple(np.minimum(1 - signal[1:] / signal[:-1], largest).tolist()))
