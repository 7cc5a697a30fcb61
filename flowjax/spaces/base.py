"""The interface of spaces, through which paths, solvers and couplings use the geometry of the samples."""

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from flowjax.typing import Batched, PyTree

__all__ = ["Space", "leaf_spaces"]


@runtime_checkable
class Space(Protocol):
    """A space of samples with its geometry.

    Points x, y and tangent vectors u, v at x are arrays (B, *shape). For a curved space they are coordinates in a
    Euclidean space in which it is embedded.
    """

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one point; None for a space whose points may have any shape."""
        ...

    def exp(self, x: Batched, v: Batched) -> Batched:
        """The point reached at time 1 by the geodesic that starts at x with velocity v."""
        ...

    def log(self, x: Batched, y: Batched) -> Batched:
        """The tangent vector at x with exp(x, log(x, y)) = y."""
        ...

    def project(self, x: Batched, v: Batched) -> Batched:
        """The orthogonal projection of v onto the tangent space at x."""
        ...

    def inner(self, x: Batched, u: Batched, v: Batched) -> Float[Array, " B"]:
        """The inner product of the tangent vectors u and v at x."""
        ...

    def norm(self, x: Batched, v: Batched) -> Float[Array, " B"]:
        """The length of the tangent vector v at x."""
        ...

    def distance_squared(self, x: Batched, y: Batched) -> Float[Array, " B"]:
        """The squared geodesic distance between x[i] and y[i]."""
        ...

    def pairwise_distance_squared(
        self, x: Float[Array, "N *event"], y: Float[Array, "M *event"]
    ) -> Float[Array, "N M"]:
        """The squared geodesic distances between all x[i] and y[j] in float32, the cost of optimal transport."""
        ...

    def error_norm(self, error: Float[Array, "..."]) -> Float[Array, ""]:
        """The norm of the error of one sample, scaled by its tolerance. Adaptive solvers accept steps with norm < 1."""
        ...

    def source(self, shape: tuple[int, ...] | None = None) -> Any:
        """The standard source (`flowjax.sources`) for points of the given shape, by default `self.shape`."""
        ...

    def is_standard(self, source: Any) -> bool:
        """Whether the source equals the standard source."""
        ...


def leaf_spaces(space: Any, state: PyTree) -> list[Space]:
    """The space of each leaf of a state, in the order of `jax.tree.leaves`.

    Args:
        space: one space for all leaves or, if the state is a tuple, a tuple with one space per element.
        state: a pytree of arrays.
    """
    if isinstance(space, tuple):
        return [leaf for part, of in zip(space, state, strict=True) for leaf in leaf_spaces(part, of)]
    return [space] * len(jax.tree.leaves(state))
