"""Likelihoods of measurements, for `flowjax.guidance.Posterior`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp

from flowjax.typing import Array, Batched, Float

__all__ = ["LinearMeasurement", "linear_measurement"]


@dataclass(frozen=True, eq=False)
class LinearMeasurement:
    """The likelihood of a linear measurement with Gaussian noise, made by `linear_measurement`.

    Attributes:
        operator: the linear map A, applied to a batch.
        y: (B, *measured) or (1, *measured), the measured values.
        noise_std: the standard deviation of the noise.
        gain: the number g for which A A^T is close to g I.
    """

    operator: Callable[[Batched], Float[Array, "B *measured"]]
    y: Float[Array, "rows *measured"]
    noise_std: float
    gain: float = 1.0

    @property
    def rows(self) -> Array | None:
        """The array that a solver splits when it solves each sample separately (`flowjax.solvers.rows`)."""
        return None if self.y.shape[0] == 1 else self.y

    def with_rows(self, rows: Array) -> "LinearMeasurement":
        """The same measurement with other values of y."""
        return replace(self, y=rows)

    def __call__(self, x1: Batched, variance: Float[Array, "..."]) -> Float[Array, " B"]:
        """log p(y | x_t) up to a constant, (B,), for x1 | x_t ~ N(x1, variance I).

        Raises:
            ValueError: if y does not have the shape of the operator's output.
        """
        predicted = self.operator(x1)
        if self.y.shape[1:] != predicted.shape[1:] or self.y.shape[0] not in (1, predicted.shape[0]):
            raise ValueError(
                f"the operator returns {predicted.shape}, which y of shape {self.y.shape} does not match: give one row "
                "of y per sample, or a single row for all samples"
            )
        squares = (self.y - predicted) ** 2
        # The variance is one number, or one per sample with as many axes as x1, which may differ from those of y.
        total = jnp.reshape(self.noise_std**2 + self.gain * variance, (-1,) + (1,) * (squares.ndim - 1))
        return -0.5 * (squares / jnp.maximum(total, 1e-12)).reshape(squares.shape[0], -1).sum(-1)


def linear_measurement(
    operator: Callable[[Batched], Float[Array, "B *measured"]],
    y: Float[Array, "rows *measured"],
    noise_std: float,
    gain: float = 1.0,
) -> LinearMeasurement:
    """The likelihood of a measurement y = A x1 + noise_std n, where n is standard normal and A A^T is close to gain I.

    Args:
        operator: the linear map A. It takes a batch (B, *event) and returns (B, *measured).
        y: the measured values, with one row per sample, or a single row for all samples.
        noise_std: the standard deviation of the noise.
        gain: 1 for a mask or a matrix with orthonormal rows, for which the likelihood is exact. For a blur, an upper
            bound on A A^T keeps the guidance stable.

    Raises:
        ValueError: if noise_std is negative.
    """
    if not noise_std >= 0:
        raise ValueError(f"noise_std must not be negative, it is {noise_std}")
    return LinearMeasurement(operator, jnp.asarray(y), noise_std, gain)
