"""The loss of an example as a function of its squared error e, the mean square over the coordinates.

    squared            e
    pseudo_huber(c)    sqrt(e + c^2) - c

The pseudo-Huber loss is e / (2 c) for errors far below c and the root of e far above it, so that examples with large
errors count less (Song & Dhariwal 2023, arXiv:2310.14189, sec. 3.3; for rectified flows Lee et al. 2024,
arXiv:2405.20320, sec. 4.2). These papers write it with the sum of the D squares: their constant, divided by sqrt(D), is
c, and their loss is sqrt(D) times this one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.ranges import Range

__all__ = ["SQUARED", "PseudoHuber", "RowLoss", "squared"]

RowLoss = Callable[[Float[Array, " B"]], Float[Array, " B"]]
"""A function from the squared errors of the examples of a batch to their losses."""


def squared(error: Float[Array, " B"]) -> Float[Array, " B"]:
    """The squared error itself."""
    return error


SQUARED: RowLoss = squared
"""The default loss."""


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(e + c^2) - c, computed as e / (sqrt(e + c^2) + c), which does not cancel.

    Attributes:
        c: the root mean square error at which the loss changes from quadratic to linear.
    """

    c: Annotated[float | int, Range(1e-12, 1e6)] = 0.00054

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ValueError(f"pseudo_huber: c must be positive, not {self.c}")

    def __call__(self, error: Float[Array, " B"]) -> Float[Array, " B"]:
        return error / (jnp.sqrt(error + self.c**2) + self.c)
