"""What a space has to offer, so that paths, solvers and couplings need not know where samples live."""

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from flowjax.typing import Batched, PyTree

__all__ = ["Space", "leaf_spaces"]


@runtime_checkable
class Space(Protocol):
    """A space of samples, with the geometry that flows on it need.

    Points x, y and tangent vectors u, v at x are arrays (B, *shape), in the coordinates of an embedding where the space
    is curved. In Euclidean space all of it is addition.
    """

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one point; None for a space whose points may have any shape."""
        ...

    def exp(self, x: Batched, v: Batched) -> Batched:
        """The point that the geodesic from x with velocity v reaches after unit time."""
        ...

    def log(self, x: Batched, y: Batched) -> Batched:
        """The tangent vector at x with exp(x, log(x, y)) = y."""
        ...

    def project(self, x: Batched, v: Batched) -> Batched:
        """The tangent vector at x that is nearest to v."""
        ...

    def inner(self, x: Batched, u: Batched, v: Batched) -> Float[Array, " B"]:
        """The inner product of the tangent vectors u and v at x."""
        ...

    def norm(self, x: Batched, v: Batched) -> Float[Array, " B"]:
        """The length of the tangent vector v at x."""
        ...

    def distance_squared(self, x: Batched, y: Batched) -> Float[Array, " B"]:
        """The squared length of the shortest way from each x to its y."""
        ...

    def pairwise_distance_squared(
        self, x: Float[Array, "N *event"], y: Float[Array, "M *event"]
    ) -> Float[Array, "N M"]:
        """The squared distance of each x to each y, in float32: the cost of transport."""
        ...

    def error_norm(self, error: Float[Array, "..."]) -> Float[Array, ""]:
        """The size of one sample's error in units of its tolerance: below 1 an adaptive solver accepts a step."""
        ...

    def source(self, shape: tuple[int, ...] | None = None) -> Any:
        """The standard source (`flowjax.sources`) on points of that shape, by default the space's own."""
        ...

    def is_standard(self, source: Any) -> bool:
        """Whether a source is the standard source, by its own parameters."""
        ...


def leaf_spaces(space: Any, state: PyTree) -> list[Space]:
    """The space of each leaf of a state.

    Args:
        space: one for all leaves, or a tuple of spaces for a state that is a tuple.
        state: a pytree of arrays.
    """
    if isinstance(space, tuple):
        return [leaf for part, of in zip(space, state, strict=True) for leaf in leaf_spaces(part, of)]
    return [space] * len(jax.tree.leaves(state))
