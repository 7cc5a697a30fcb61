"""What a trained model can do: one small protocol for each ability.

    velocity    velocity(t, x, cond)        the velocity of a flow whose ODE carries the source to the data
    ends        ends(t, x, cond)            posterior means of both ends of the model's `path`
    score       score(t, x, cond)           the gradient of log p_t
    flow_map    flow_map(s, t, x, cond)     the flow's map from time s to time t, in one evaluation
    bijection   forward / inverse           an invertible map between source and data, with its log-determinant
    rates       rates(t, x, cond)           the jump rates of a process on tokens

Samplers, likelihoods and guides ask a model for abilities and for nothing else. `abilities_of` says which of them a
model offers. A class may have a method for an ability that one of its objects lacks (a score, on a path without one):
such an object lists it in `missing`, a dictionary from abilities to the reason, and `abilities_of` leaves it out.

All arrays lead with the batch axis. `t` and `s` are scalars or (B,); `cond` is a dictionary of named arrays
(`flowjax.conditions`), or None.
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
    "HasVelocity",
    "abilities_of",
    "in_forward_mode",
    "interval_of",
    "missing_from",
    "velocity_of",
]


class Ends(NamedTuple):
    """Posterior means at (t, x), each (B, *event).

    Attributes:
        x0, x1: E[x0 | x_t = x], E[x1 | x_t = x].
        z: E[z | x_t = x] of the path's own noise, if known.
        variance_fraction: of a network with learned variance: where in [0, 1], in logarithm, the variance of an
            ancestral step lies between its bounds (`flowjax.paths.transition`).
    """

    x0: Batched
    x1: Batched
    z: Batched | None = None
    variance_fraction: Batched | None = None


@runtime_checkable
class HasVelocity(Protocol):
    """A model with a velocity: dx/dt = velocity(t, x, cond) carries the source at t = 0 to the data at t = 1."""

    @property
    def velocity(self) -> Callable[..., Batched]:
        """A method or callable attribute `velocity(t, x, cond=None)`: the velocity at (t, x), (B, *event)."""
        ...


@runtime_checkable
class HasEnds(Protocol):
    """A model on a path: the posterior means of both ends of `path`."""

    @property
    def path(self) -> Any:
        """The path (`flowjax.paths`) whose ends they are."""
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
    """A model that jumps along the flow: consistency models, mean flows, flow maps."""

    def flow_map(self, s: Time, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The point at time t on the trajectory that is at x at time s, (B, *event)."""
        ...


@runtime_checkable
class Bijection(Protocol):
    """A model that is an invertible map from the source to the data: a normalizing flow."""

    def forward(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """(x, log |det dx/dz|): from the source to the data."""
        ...

    def inverse(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """(z, log |det dz/dx|): from the data to the source."""
        ...


@runtime_checkable
class HasRates(Protocol):
    """A model of a jump process on tokens."""

    def rates(self, t: Time, x: Any, cond: Cond = None) -> Array:
        """The rates of jumps from x to each other token, (B, L, vocabulary)."""
        ...


ABILITIES: dict[str, type] = {
    "velocity": HasVelocity,
    "ends": HasEnds,
    "score": HasScore,
    "flow_map": HasFlowMap,
    "bijection": Bijection,
    "rates": HasRates,
}
"""The protocols by the name of the ability."""


def missing_from(model: Any) -> Mapping[str, str]:
    """Abilities for which the model's class has a method and which this object lacks, with the reason."""
    return getattr(model, "missing", {})


def abilities_of(model: Any) -> tuple[str, ...]:
    """The names in `ABILITIES` of what the model offers."""
    missing = missing_from(model)
    return tuple(name for name, kind in ABILITIES.items() if name not in missing and isinstance(model, kind))


def interval_of(model: Any) -> tuple[float, float]:
    """The times at which a model can be asked: its `interval`, and (0, 1) for a model without one."""
    low, high = getattr(model, "interval", None) or (0.0, 1.0)
    return low, high


@dataclasses.dataclass(frozen=True)
class _Velocity:
    """The velocity of a model whose `velocity` is a plain method; equal for equal models."""

    model: HasVelocity

    @property
    def interval(self) -> tuple[float, float]:
        return interval_of(self.model)

    @property
    def space(self) -> Space:
        return getattr(self.model, "space", EUCLIDEAN)

    def __call__(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        return self.model.velocity(t, x, cond)


def velocity_of(model: HasVelocity) -> Any:
    """The model's velocity as a function (t, x, cond) with an `interval`: what `solve_ode` integrates."""
    return model.velocity if hasattr(model.velocity, "interval") else _Velocity(model)


def in_forward_mode(what: Any) -> Any:
    """The same object with every network in it made differentiable in forward mode.

    A network whose kernels bring their own reverse-mode rule cannot be differentiated by `jax.jvp`. An object that
    binds such a network has a method `with_forward_mode()`, which returns one that computes the same by plain
    operations. It is found wherever it is a field of a frozen dataclass, at any depth: readings, guides, velocity
    fields.
    """
    if hasattr(what, "with_forward_mode") and not isinstance(what, type):
        return what.with_forward_mode()
    if not dataclasses.is_dataclass(what) or isinstance(what, type):
        return what
    parts = {f.name: getattr(what, f.name) for f in dataclasses.fields(what) if f.init}
    changed = {name: new for name, part in parts.items() if (new := in_forward_mode(part)) is not part}
    return dataclasses.replace(what, **changed) if changed else what
