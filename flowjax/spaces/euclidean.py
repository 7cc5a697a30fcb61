"""Euclidean space, in which exp is addition and log is subtraction."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.sources import Normal, Source
from flowjax.spaces.base import Space
from flowjax.typing import Batched

__all__ = ["EUCLIDEAN", "Euclidean", "check_euclidean"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Euclidean:
    """R^n, with points of any array shape.

    Attributes:
        shape: the shape of one point, or None for points of any shape.
    """

    shape: tuple[int, ...] | None = None

    def exp(self, x: Batched, v: Batched) -> Batched:
        return x + v

    def log(self, x: Batched, y: Batched) -> Batched:
        return y - x

    def project(self, x: Batched, v: Batched) -> Batched:
        return v

    def inner(self, x: Batched, u: Batched, v: Batched) -> Float[Array, " B"]:
        return (u * v).reshape(u.shape[0], -1).sum(-1)

    def distance_squared(self, x: Batched, y: Batched) -> Float[Array, " B"]:
        v = self.log(x, y)
        return self.inner(x, v, v)

    def pairwise_distance_squared(
        self, x: Float[Array, "N *event"], y: Float[Array, "M *event"]
    ) -> Float[Array, "N M"]:
        """|x_i - y_j|^2 in float32.

        In up to four dimensions the differences are computed. In more dimensions |x|^2 + |y|^2 - 2 x.y is used, which
        needs less memory but has a rounding error relative to the squared norms. The mean of all points is therefore
        subtracted first, in the dtype of the input.
        """
        a, b = (points.reshape(points.shape[0], -1) for points in (x, y))
        a, b = (points.astype(jnp.promote_types(points.dtype, jnp.float32)) for points in (a, b))
        if a.shape[1] <= 4:
            return ((a[:, None] - b) ** 2).sum(-1).astype(jnp.float32)
        centre = (a.mean(0) + b.mean(0)) / 2
        centre = jnp.where(jnp.isfinite(centre), centre, 0.0)  # a point with NaN must not affect other rows
        a, b = ((points - centre).astype(jnp.float32) for points in (a, b))
        # By default a GPU may multiply with 10 bits of mantissa and a TPU with 7.
        cross = jnp.matmul(a, b.T, precision="highest")
        return jnp.maximum((a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * cross, 0.0)

    def source(self, shape: tuple[int, ...] | None = None) -> Normal:
        """N(0, I) on points of the given shape, by default `self.shape`.

        Raises:
            ValueError: if both shapes are None.
        """
        shape = self.shape if shape is None else shape
        if shape is None:
            raise ValueError("the shape of a point is unknown: pass Euclidean(shape) or source(shape)")
        return Normal(shape)

    def is_standard(self, source: Source) -> bool:
        if not isinstance(source, Normal):
            return False
        return bool(np.all(np.asarray(source.loc) == 0) and np.all(np.asarray(source.scale) == 1))


EUCLIDEAN = Euclidean()
"""The default space of paths, solvers and couplings."""


def check_euclidean(what: str, space: Space, instead: str = "") -> None:
    """Checks that a space is Euclidean.

    Args:
        what: what adds points of the space as vectors, for the message.
        space: the space of the points.
        instead: advice for points of another space, for the message.

    Raises:
        ValueError: if it is another space.
    """
    if type(space) is not Euclidean:
        advice = f": {instead}" if instead else ""
        raise ValueError(f"{what} adds points as vectors, so it needs Euclidean space, not {space}{advice}")
