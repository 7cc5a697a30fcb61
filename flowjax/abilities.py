"""The abilities of trained models, each with a small protocol.

    velocity    velocity(t, x, cond)        the velocity of a flow whose ODE maps the source to the data
    ends        ends(t, x, cond)            the posterior means of both ends of the model's `path`
    score       score(t, x, cond)           the gradient of log p_t
    flow_map    flow_map(s, t, x, cond)     the map of the flow from time s to time t, in one evaluation
    to_data     to_data(t, x, cond)         the map of the flow from time t to its last time, as in consistency models
    bijection   forward / inverse           an invertible map between source and data, with its log-determinant
    rates       rates(t, x, cond)           the jump rates of a process on tokens

Samplers, likelihoods and guides use a model only through these abilities. `abilities_of` returns the abilities of a
model. If a class has a method for an ability that one of its objects lacks, such as a score on a path without one, the
object has an attribute `missing`, a dictionary from such abilities to the reason.

The first axis of all arrays is the batch. `t` and `s` are scalars or (B,), with the source at time 0 and the data at
time 1. `cond` is a dictionary of named arrays (`flowjax.conditions`), or None.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from flowjax.spaces import EUCLIDEAN, Space
from flowjax.typing import Batched, Cond, Time

__all__ = [
    "ABILITIES",
    "Bijection",
    "Ends",
    "HasEnds",
    "HasFlowMap",
    "HasRates",
    "HasScore",
    "HasToData",
    "HasVelocity",
    "VelocityField",
    "abilities_of",
    "interval_of",
    "missing_from",
    "space_of",
    "velocity_of",
    "with_forward_mode",
]


class Ends(NamedTuple):
    """The posterior means at (t, x), each (B, *event).

    Attributes:
        x0, x1: E[x0 | x_t = x] and E[x1 | x_t = x].
        z: E[z | x_t = x] for the noise of the path, or None.
        variance_fraction: for a network with learned variance: the variance of an ancestral step on a logarithmic scale
            from its lower bound, 0, to its upper bound, 1 (`flowjax.paths.transition`); otherwise None.
    """

    x0: Batched
    x1: Batched
    z: Batched | None = None
    variance_fraction: Batched | None = None


@runtime_checkable
class HasVelocity(Protocol):
    """A model with a velocity: dx/dt = velocity(t, x, cond) maps the source at t = 0 to the data at t = 1."""

    @property
    def velocity(self) -> Callable[..., Batched]:
        """A method or callable attribute `velocity(t, x, cond=None)`: the velocity at (t, x), (B, *event)."""
        ...


@runtime_checkable
class HasEnds(Protocol):
    """A model of the posterior means of both ends of a path."""

    @property
    def path(self) -> Any:
        """The path of the model (`flowjax.paths`)."""
        ...

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        """The posterior means at (t, x)."""
        ...


@runtime_checkable
class HasScore(Protocol):
    """A model with a score."""

    def score(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """grad_x log p_t(x), (B, *event)."""
        ...


@runtime_checkable
class HasFlowMap(Protocol):
    """A model of the map of a flow between two times, such as a mean flow or a flow map."""

    def flow_map(self, s: Time, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The point at time t of the trajectory that passes through x at time s, (B, *event)."""
        ...


@runtime_checkable
class HasToData(Protocol):
    """A model of the map of a flow to its last time, such as a consistency model."""

    def to_data(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The point at the last time of the trajectory that passes through x at time t, (B, *event)."""
        ...


@runtime_checkable
class Bijection(Protocol):
    """An invertible map from the source to the data, such as a normalizing flow."""

    def forward(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the source to the data: (x, log |det dx/dz|)."""
        ...

    def inverse(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the data to the source: (z, log |det dz/dx|)."""
        ...


@runtime_checkable
class HasRates(Protocol):
    """A model of a jump process on tokens."""

    def rates(self, t: Time, x: Any, cond: Cond = None) -> Array:
        """The rates of jumps from each token of x, (B, L), to every other token, (B, L, vocabulary)."""
        ...


ABILITIES: dict[str, type] = {
    "velocity": HasVelocity,
    "ends": HasEnds,
    "score": HasScore,
    "flow_map": HasFlowMap,
    "to_data": HasToData,
    "bijection": Bijection,
    "rates": HasRates,
}
"""The protocol of each ability, by name."""


def missing_from(model: Any) -> Mapping[str, str]:
    """The abilities that this object lacks although its class has a method for them, each with the reason."""
    return getattr(model, "missing", {})


def abilities_of(model: Any) -> tuple[str, ...]:
    """The names of the model's abilities, in the order of `ABILITIES`."""
    missing = missing_from(model)
    return tuple(name for name, kind in ABILITIES.items() if name not in missing and isinstance(model, kind))


def interval_of(model: Any) -> tuple[float, float]:
    """The interval of times at which a model can be evaluated: its `interval`, or (0, 1) if it has none."""
    low, high = getattr(model, "interval", None) or (0.0, 1.0)
    return low, high


def space_of(what: Any) -> Space:
    """The space of the points of a model or a velocity: its `space`, or the space of its path, or Euclidean space."""
    known = (getattr(owner, "space", None) for owner in (what, getattr(what, "path", None)))
    return next((space for space in known if space is not None), EUCLIDEAN)


@dataclasses.dataclass(frozen=True)
class VelocityField:
    """The velocity of a model, as a function `velocity(t, x, cond)` with an interval of times and a space.

    Fields of equal models are equal, so that solvers compile them once.

    Attributes:
        model: a model with a method `velocity(t, x, cond)`. A model whose `velocity` is a `VelocityField` has a method
            `compute_velocity(t, x, cond)` instead.
    """

    model: Any

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which the velocity is defined, over which `solve_ode` integrates by default."""
        return interval_of(self.model)

    @property
    def space(self) -> Space:
        """The space in which the points x lie."""
        return space_of(self.model)

    def __call__(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        compute = getattr(self.model, "compute_velocity", None) or self.model.velocity
        return compute(t, x, cond)


def velocity_of(model: HasVelocity) -> Any:
    """The velocity of a model as a function (t, x, cond) with an attribute `interval`, for `solve_ode`."""
    return model.velocity if hasattr(model.velocity, "interval") else VelocityField(model)


def with_forward_mode(what: Any) -> Any:
    """The same object with every network in it changed so that `jax.jvp` can differentiate it.

    A network whose kernels have a custom reverse-mode derivative cannot be differentiated by `jax.jvp`. An object that
    contains such a network has a method `with_forward_mode()`, which returns an object that computes the same values
    without these kernels. It is found if it is a field of a frozen dataclass, at any depth, as in guides.
    """
    if hasattr(what, "with_forward_mode") and not isinstance(what, type):
        return what.with_forward_mode()
    if not dataclasses.is_dataclass(what) or isinstance(what, type):
        return what
    parts = {f.name: getattr(what, f.name) for f in dataclasses.fields(what) if f.init}
    changed = {name: new for name, part in parts.items() if (new := with_forward_mode(part)) is not part}
    return dataclasses.replace(what, **changed) if changed else what
