"""The interface of probability paths, in Euclidean space and elsewhere."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from flowjax.sources import Source
from flowjax.typing import Batched, PRNGKey, Time

__all__ = ["Path", "PathSample"]


class PathSample(NamedTuple):
    """A sample of a path given its two ends, with all quantities from which a regression target may be computed.

    Attributes:
        x_t: the point at time t, (B, *event).
        dx_t: its velocity given x0, x1 and z, (B, *event): the regression target of conditional flow matching.
        t: times, (B,), at least float32.
        x0, x1: the source and data samples, (B, *event).
        z: the N(0, I) noise on the path, (B, *event); None if the path has no noise.
    """

    x_t: Batched
    dx_t: Batched
    t: Float[Array, " B"]
    x0: Batched
    x1: Batched
    z: Batched | None = None


@runtime_checkable
class Path(Protocol):
    """A conditional probability path p_t(x | x0, x1) from x0 at t = 0 to x1 at t = 1."""

    @property
    def t_min(self) -> float:
        """The first time at which the path is well conditioned."""
        ...

    @property
    def t_max(self) -> float:
        """The last time at which the path is well conditioned."""
        ...

    def sample(self, key: PRNGKey | None, t: Time, x0: Batched, x1: Batched) -> PathSample:
        """Samples x_t and its velocity given x0 and x1, (B, *event) each; t is a scalar or (B,)."""
        ...

    def prior(self, source: Source) -> Source:
        """The distribution from which sampling starts if x0 is distributed as `source`."""
        ...
