"""What a simulator is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from flowjax.sources import Source
from flowjax.typing import Batched, PRNGKey

__all__ = ["Simulator"]


@dataclass(frozen=True)
class Simulator:
    """A prior over parameters and a stochastic program that maps parameters to observations.

    Both are pure functions of JAX, so that simulations can be drawn inside a compiled loop.

    Attributes:
        prior: the distribution of the parameters, with `shape` (D,), `sample` and `log_prob`.
        simulate: function (key, theta (n, D)) -> observations (n, *event). The rows are independent. A simulation that
            fails is a row of NaN.
        names: the names of the parameters; empty if they have only numbers.
        low, high: bounds of the support of the prior: one number for all parameters, or one for each of them. They are
            infinite where a parameter is not bounded.
    """

    prior: Source
    simulate: Callable[[PRNGKey, Float[Array, "n D"]], Batched]
    names: tuple[str, ...] = ()
    low: float | tuple[float, ...] = -math.inf
    high: float | tuple[float, ...] = math.inf

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        """The interval (low, high) of each parameter; () if none of them is bounded."""
        d = self.prior.shape[0]
        low, high = (one if isinstance(one, tuple) else (float(one),) * d for one in (self.low, self.high))
        pairs = tuple(zip(low, high, strict=True))
        return pairs if any(math.isfinite(bound) for pair in pairs for bound in pair) else ()

    def sample(self, key: PRNGKey, n: int) -> tuple[Float[Array, "n D"], Batched]:
        """Draws parameters from the prior, and an observation for each.

        Args:
            key: a key of JAX.
            n: number of simulations.

        Returns:
            Parameters (n, D) and observations (n, *event).
        """
        key_prior, key_simulate = jax.random.split(key)
        theta = self.prior.sample(key_prior, n)
        return theta, self.simulate(key_simulate, theta)
