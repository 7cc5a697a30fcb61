"""What the likelihood needs of a way to compute the divergence of a velocity, the trace of its Jacobian.

An estimator draws the random vectors ("probes") of a row from its key once. At each evaluation of the velocity it then
gives K estimates of the divergence from the same probes. Each of the K estimates is unbiased, and they are independent
(given what they share), so that their spread tells the standard error of their mean.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.typing import Batched, PRNGKey

__all__ = ["DivergenceEstimator", "dot", "standard_error"]


@runtime_checkable
class DivergenceEstimator(Protocol):
    """A way to compute the divergence. The estimators of flowjax are frozen dataclasses, as equal ones compile once."""

    @property
    def estimates(self) -> int:
        """K, the number of estimates for each row."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether the divergence is exact, so that there are no probes and no standard error."""
        ...

    @property
    def needs_forward_mode(self) -> bool:
        """Whether the velocity is differentiated by `jax.jvp`."""
        ...

    def draw(self, key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Array | None:
        """The probes of one row: (P, *shape) for a row of this shape, or None if the divergence is exact."""
        ...

    def __call__(
        self, v: Callable[[Batched], Batched], x: Batched, probes: Array | None, rows: int | None = None
    ) -> tuple[Batched, Float[Array, "B K"]]:
        """v(x) and K estimates of its divergence.

        Args:
            v: the velocity at one time, a function of x (B, *event) that acts on each row separately.
            x: (B, *event).
            probes: (B, P, *event), those of each row, or None.
            rows: how many rows are computed at the same time, if that is not B: a solve that takes each row separately
                passes one row under `jax.vmap`. The memory for all of them limits how many derivatives are taken at
                once.

        Returns:
            v(x), (B, *event), and the estimates, (B, K).
        """
        ...


def dot(a: Array, b: Array) -> Float[Array, " B"]:
    """The sum over all axes but the first of a * b."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), -1)


def standard_error(estimates: Float[Array, "B K"]) -> Float[Array, " B"] | None:
    """The standard error of the mean of K independent estimates, s / sqrt(K); None if K is 1, as it is then unknown."""
    k = estimates.shape[1]
    return None if k == 1 else jnp.std(estimates, 1, ddof=1) / jnp.sqrt(k)
