"""Flow maps by self-distillation: a network learns the flow map of its own velocity (Boffi et al. 2025, "How to build a
consistency model: learning flow maps via self-distillation", arXiv:2505.18825, whose time also runs from the noise to
the data).

The network is the average velocity u of the flow map X(s, t, x) = x + (t - s) u(s, t, x), so that X(s, s, x) = x and
the derivative of X in t at t = s is u(s, s, x). Rows with s = t learn the velocity by flow matching or from a teacher.
The rows with s < t minimise the squared residual of one of three properties that the flow map of the velocity v has,
with v(s, x) = u(s, s, x) or that of the teacher, at points x of the path at time s:

    lagrangian     (1)  d/dt X(s, t, x) = v(t, X(s, t, x))
    eulerian       (2)  d/ds X(s, t, x) + (dX/dx) v(s, x) = 0
    progressive    (3)  X(s, t, x) = X(r, t, X(s, r, x)),    r = (s + t) / 2

Written in u, (1) is  u + (t - s) du/dt = v(t, x + (t - s) u),  (2) is  u = v + (t - s) (du/ds + (du/dx) v),  and (3),
divided by t - s, is that u(s, t, x) is the mean of u(s, r, x) and u(r, t, X(s, r, x)).

As the paper recommends, the gradient does not flow through the part of a residual that stands for the teacher of a
distillation, so that the map learns from the velocity and not the velocity from the map: v(t, X) with its argument X in
(1), (dX/dx) v in (2), and the right side in (3). The gradient flows through the derivatives in time, du/dt and du/ds,
in (1) and (2). Without a gradient through du/ds, (2) would be the improved form of `methods.mean_flow`.

The paper finds the Lagrangian form to be the most stable, and the Eulerian form to be the least, because of the
derivative dX/dx. The progressive form needs no derivatives, and passes the errors of short steps on to longer ones.
All three are exactly zero at the flow map, whatever x is, so that they add no variance to flow matching.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.batch import Batch
from flowjax.errors import lookup
from flowjax.methods.average_velocity import (
    AverageVelocityMethod,
    AverageVelocitySettings,
    Rows,
    mean_where,
)
from flowjax.methods.base import Context, Loss
from flowjax.methods.components import Components
from flowjax.methods.draw import row_mean_square
from flowjax.paths.affine import expand
from flowjax.ranges import Range
from flowjax.typing import Batched, Params, PRNGKey, PyTree

__all__ = ["FORMS", "FlowMap", "Learned", "Residual", "eulerian", "lagrangian", "progressive"]


class Learned(NamedTuple):
    """What a residual is made of.

    Attributes:
        u: `u(s, t, x) -> (u, state)`, the average velocity with a gradient to the parameters, and the variables of the
            network that are not parameters, after the call.
        fixed: `fixed(s, t, x) -> u`, the same without a gradient, of the moving average of the parameters if there is
            one.
        v: `v(t, x)`, the velocity that the map follows, without a gradient.
    """

    u: Callable[..., tuple[Batched, PyTree]]
    fixed: Callable[..., Batched]
    v: Callable[..., Batched]


class Residual(NamedTuple):
    """A residual of each row.

    Attributes:
        u: u(s, t, x), (B, *event).
        error: the residual, (B, *event).
        state: the variables of the network that are not parameters, after the call.
    """

    u: Batched
    error: Batched
    state: PyTree


Form = Callable[[Learned, Rows], Residual]
"""`form(of, rows) -> Residual`: the residual for the networks and the velocity `of`, at the times s and t of the rows
and the points of the path at s."""


def lagrangian(of: Learned, rows: Rows) -> Residual:
    """The residual of equation (1)."""
    s, t, x = rows.s, rows.t, rows.p.x_t
    u, by_t, state = jax.jvp(lambda t: of.u(s, t, x), (t,), (jnp.ones_like(t),), has_aux=True)
    moved = jax.lax.stop_gradient((x + rows.length * u).astype(x.dtype))
    return Residual(u, u + rows.length * by_t - of.v(t, moved), state)


def eulerian(of: Learned, rows: Rows) -> Residual:
    """The residual of equation (2)."""
    s, t, x = rows.s, rows.t, rows.p.x_t
    v = of.v(s, x)
    u, by_s, state = jax.jvp(lambda s: of.u(s, t, x), (s,), (jnp.ones_like(s),), has_aux=True)
    along = jax.jvp(lambda x: of.fixed(s, t, x), (x,), (v,))[1]
    return Residual(u, u - rows.length * by_s - jax.lax.stop_gradient(v + rows.length * along), state)


def progressive(of: Learned, rows: Rows) -> Residual:
    """The residual of equation (3), divided by t - s."""
    s, t, x = rows.s, rows.t, rows.p.x_t
    middle = (s + t) / 2
    first = of.fixed(s, middle, x)
    second = of.fixed(middle, t, (x + rows.length / 2 * first).astype(x.dtype))
    u, state = of.u(s, t, x)
    return Residual(u, u - jax.lax.stop_gradient((first + second) / 2), state)


FORMS: dict[str, Form] = {"lagrangian": lagrangian, "eulerian": eulerian, "progressive": progressive}
"""The residual of each value of `method.form`."""


@dataclass(frozen=True)
class Settings(AverageVelocitySettings):
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the two times of a row, of which the smaller one is s.
        form: the property of a flow map that is learned: `lagrangian`, `eulerian` or `progressive`.
        different: fraction of the rows with two different times. The other rows learn the velocity.
    """

    form: str = "lagrangian"
    different: Annotated[float, Range(0, 1)] = 0.25


@dataclass(frozen=True)
class FlowMap(AverageVelocityMethod):
    """Flow maps by self-distillation on an affine path.

    Attributes:
        form, different: as in `Settings`.
    """

    form: str = "lagrangian"
    different: float = 0.25

    Settings: ClassVar[type] = Settings
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "squared_error", "velocity_error", "map_error")

    @classmethod
    def from_config(cls, parts: Components) -> Any:
        lookup("method.form", parts.settings.form, FORMS)
        return super().from_config(parts)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        rows = self.draw_rows(key, batch, self.different)
        network = self.network.with_forward_mode()
        fixed = self.fixed_average(params, context, key, batch, forward_mode=True)

        def average(s: Array, t: Array, x: Batched) -> tuple[Batched, PyTree]:
            return network(params, context, t, x, batch.cond, s=s, key=key, mask=batch.mask)

        def velocity(t: Array, x: Batched) -> Batched:
            return self.velocity_at(context, t, x, batch, fixed)

        u, residual, state = FORMS[self.form](Learned(average, fixed, velocity), rows)
        difference = u - self.velocity(context, rows.p, batch, fixed)
        error = jnp.where(expand(rows.apart, u), residual, difference)
        errors = row_mean_square(error, batch.mask)
        metrics = {
            "marginal_error": rows.marginal_error,
            "squared_error": jnp.mean(errors),
            "velocity_error": mean_where(errors, ~rows.apart),
            "map_error": mean_where(errors, rows.apart),
        }
        return Loss(jnp.mean(errors), metrics, state)
