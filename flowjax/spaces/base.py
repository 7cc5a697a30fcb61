"""The interface of spaces: the geometry of the samples."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from flowjax.typing import Batched

__all__ = ["Space"]


@runtime_checkable
class Space(Protocol):
    """A space of samples with its geometry.

    Points x, y and tangent vectors u, v at x are arrays (B, *shape). For a curved space they are coordinates in a
    Euclidean space in which it is embedded.

    Explicit Runge-Kutta methods with a fixed number of steps use `exp` and `project`, couplings use
    `pairwise_distance_squared`, and affine paths use `source` and `is_standard`. `log`, `inner` and `distance_squared`
    are meant for paths along geodesics; so far only the tests use them.

    Affine paths, all other solvers except `flow_map` and `push_forward`, and likelihoods add points as vectors. They
    refuse every space but `Euclidean` (`check_euclidean`).
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

    def distance_squared(self, x: Batched, y: Batched) -> Float[Array, " B"]:
        """The squared geodesic distance between x[i] and y[i]."""
        ...

    def pairwise_distance_squared(
        self, x: Float[Array, "N *event"], y: Float[Array, "M *event"]
    ) -> Float[Array, "N M"]:
        """The squared geodesic distances between all x[i] and y[j] in float32, the cost of optimal transport."""
        ...

    def source(self, shape: tuple[int, ...] | None = None) -> Any:
        """The standard source (`flowjax.sources`) for points of the given shape, by default `self.shape`."""
        ...

    def is_standard(self, source: Any) -> bool:
        """Whether the source equals the standard source."""
        ...
