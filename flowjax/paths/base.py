"""What every probability path offers, whatever its geometry."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from flowjax.sources import Source
from flowjax.typing import Batched, PRNGKey, Time

__all__ = ["Path", "PathSample"]


class PathSample(NamedTuple):
    """A point on the path between two given ends, and everything a target can be made of.

    Attributes:
        x_t: the point at time t, (B, *event).
        dx_t: its velocity given the ends (and z), (B, *event): the conditional target of flow matching.
        t: (B,), at least float32.
        x0, x1: the ends.
        z: the path's own noise, N(0, I); None on a path without any.
    """

    x_t: Batched
    dx_t: Batched
    t: Float[Array, " B"]
    x0: Batched
    x1: Batched
    z: Batched | None = None


@runtime_checkable
class Path(Protocol):
    """A conditional probability path p_t(x | x0, x1)."""

    @property
    def t_min(self) -> float: ...

    @property
    def t_max(self) -> float: ...

    def sample(self, key: PRNGKey | None, t: Time, x0: Batched, x1: Batched) -> PathSample: ...

    def prior(self, source: Source) -> Source: ...
