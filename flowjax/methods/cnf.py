"""Continuous normalizing flows trained by maximum likelihood.

The network is the velocity v of an ODE from the source at t = 0 to the data at t = 1. Each training step solves it
backwards from the data, together with the integrals of the divergence and of two regularisers:

    (1)  log p(x) = log p_source(x_0) - int_0^1 div v(t, x_t) dt
    (2)  K(x) = int_0^1 |v(t, x_t)|^2 dt                 the kinetic energy
    (3)  J(x) = int_0^1 |dv/dx (t, x_t)|_F^2 dt          the squared Frobenius norm of the Jacobian
    (4)  L = E [-log p(x) + kinetic K(x) + jacobian J(x)] / D

(1) is the instantaneous change of variables (Chen et al. 2018, arXiv:1806.07366; FFJORD, Grathwohl et al. 2019,
arXiv:1810.01367), and (2) to (4) are the regularisation of Finlay et al. 2020, 'How to train your neural ODE',
arXiv:2002.02798. Among the flows with the same ends, K prefers straight trajectories of constant speed, which take few
steps, and J keeps neighbouring trajectories parallel.

With random signs e, e . J_v e estimates the divergence and |J_v e|^2 the squared norm, both without bias. One vector e
per example is used along the whole trajectory, so that the integrands are smooth. The exact forms take the D unit
vectors instead.

The gradient is that of the numerical solution: by diffrax's `RecursiveCheckpointAdjoint` for adaptive steps, whose
sizes are those of each example, and through a `lax.scan` for fixed steps.

With fixed steps the network can learn a velocity that changes faster than the steps resolve. The estimate of (1) is
then too large, without a bound, and training maximises it. The validation loss shows this, because outside of training
it is computed with four times as many steps: it stays above the training loss. Regularisation prevents it, and
adaptive steps exclude it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.abilities import VelocityField
from flowjax.batch import Batch, check_floating
from flowjax.errors import ConfigError, check_name
from flowjax.methods.base import BoundNetwork, Context, Limit, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.methods.normalizing_flow import check_source
from flowjax.precision import at_least_float32
from flowjax.ranges import Range
from flowjax.solvers import adaptive, fixed_grid
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS, check_solver
from flowjax.sources import Source, sum_event
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree, Time

__all__ = ["CNF", "DIVERGENCES", "CNFModel", "Trajectory"]

DIVERGENCES = ("exact", "hutchinson")
"""How the divergence and the norm of the Jacobian are computed."""

_MAX_STEPS = 1000
"""The largest number of attempted adaptive steps of an example. The memory of the gradient grows with its root."""

_FINER = 4
"""The factor of the number of steps outside of training."""

_UNFINISHED = Limit(
    0.0,
    "at step {step} the ODE of a share {value:.2g} of the examples takes more than "
    f"{_MAX_STEPS:,} steps: use a larger method.rtol and method.atol, a regularisation (method.kinetic, "
    "method.jacobian), a smaller learning rate, or fixed steps (method.steps)",
)


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        divergence: how the divergence is computed: `exact`, with a derivative for each of the D coordinates, or
            `hutchinson`, with `probes` derivatives.
        probes: the number of random vectors of each example with `hutchinson`.
        kinetic: the weight of the kinetic energy in the loss; 0 for none. Finlay et al. use 0.01.
        jacobian: the weight of the squared norm of the Jacobian in the loss; 0 for none. Finlay et al. use 0.01.
        solver: the Runge-Kutta method of the ODE in training.
        steps: the number of its steps; 0 for adaptive steps, which need a solver with an error estimate, such as
            `dopri5`. If the steps are too few, the validation loss is above the training loss.
        rtol, atol: the tolerances of adaptive steps.
    """

    divergence: str = "hutchinson"
    probes: Annotated[int, Range(1, 65_536)] = 1
    kinetic: Annotated[float, Range(0, 1e6)] = 0.0
    jacobian: Annotated[float, Range(0, 1e6)] = 0.0
    solver: str = "dopri5"
    steps: Annotated[int, Range(0, 10_000)] = 0
    rtol: Annotated[float, Range(0, 1, "(]", least=1e-9)] = 1e-4
    atol: Annotated[float, Range(0, 1, "(]", least=1e-9)] = 1e-4


class Trajectory(NamedTuple):
    """The state of the ODE: points, and integrals along their trajectories. Its time derivative has the same form.

    Attributes:
        x: points, (B, *event).
        divergence: the integral of the divergence of the velocity, (B,).
        kinetic: the integral of the squared norm of the velocity, (B,).
        jacobian: the integral of the squared Frobenius norm of the Jacobian, (B,).
    """

    x: Batched
    divergence: Float[Array, " B"]
    kinetic: Float[Array, " B"]
    jacobian: Float[Array, " B"]


@dataclass(frozen=True)
class CNF(MethodDefaults):
    """Maximum likelihood with a continuous normalizing flow.

    Attributes:
        network: `network(t, x, cond) -> v`, the velocity. Its variables that are not parameters are not updated.
        source: the distribution at t = 0; its density is positive everywhere.
        settings: the divergence, the regularisation and the solver.

    Raises:
        ConfigError: if the settings name no solver that can take such steps, or no divergence.
    """

    network: Network
    source: Source
    settings: Settings

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "model")
    metrics: ClassVar[tuple[str, ...]] = ("nll", "nfe", "kinetic", "jacobian", "unfinished")
    limits: ClassVar[Mapping[str, Limit]] = {"unfinished": _UNFINISHED}

    def __post_init__(self) -> None:
        settings = self.settings
        try:
            check_name("method.divergence", settings.divergence, DIVERGENCES)
            check_name("method.solver", settings.solver, SOLVERS)
            check_solver(settings.solver, settings.steps or None)
        except ValueError as error:
            raise ConfigError(f"method.name 'cnf': {error}") from None

    @classmethod
    def from_config(cls, parts: Components) -> "CNF":
        check_source("cnf", parts.source)
        return cls(parts.network(), parts.source, parts.settings)

    @property
    def prior(self) -> Source:
        return self.source

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        check_floating(x1=batch.x1)
        end, nfe, finished = self.solve(params, context, key, batch.x1, batch.cond)
        d = batch.x1[0].size
        nll = -(self.source.log_prob(end.x) - end.divergence)
        rows = nll + self.settings.kinetic * end.kinetic + self.settings.jacobian * end.jacobian
        metrics = {
            "nll": jnp.mean(nll) / d,
            "nfe": jnp.mean(nfe.astype(nll.dtype)),
            "kinetic": jnp.mean(end.kinetic) / d,
            "jacobian": jnp.mean(end.jacobian) / d,
            "unfinished": 1 - jnp.mean(finished.astype(nll.dtype)),
        }
        return Loss(jnp.mean(rows) / d, metrics, context.state)

    def solve(
        self, params: Params, context: Context, key: PRNGKey, x: Batched, cond: Cond = None
    ) -> tuple[Trajectory, Int[Array, " B"], Array]:
        """Solves the ODE from the data at t = 1 to the source at t = 0.

        Args:
            params, context: as for `loss`.
            key: of the random vectors, and of the dropout, which is the same along a trajectory.
            x: data, (B, *event).
            cond: conditions with leading axis B, or None.

        Returns:
            The points at t = 0 with the integrals from 0 to 1 along their trajectories, the number of evaluations of
            the network for each example, (B,), and whether its solve has reached t = 0, (B,).
        """
        settings, x = self.settings, at_least_float32(x)
        network, rows, shape = self.network.with_forward_mode(), x.shape[0], x.shape[1:]
        probes = None
        if settings.divergence == "hutchinson":
            probes = jax.random.rademacher(key, (rows, settings.probes, *shape), x.dtype)

        def field(t: Time, state: Trajectory, given: tuple[Cond, Array | None]) -> Trajectory:
            cond, probes = given
            velocity = lambda x: network(params, context, t, x, cond, key=key)[0].astype(x.dtype)
            return _rates(velocity, state.x, probes)

        zeros = jnp.zeros(rows, x.dtype)
        start, given = Trajectory(x, zeros, zeros, zeros), (cond, probes)
        if settings.steps:
            tableau, steps = SOLVERS[settings.solver], settings.steps * (1 if context.training else _FINER)
            end = fixed_grid.integrate(field, start, given, jnp.linspace(1.0, 0.0, steps + 1, dtype=x.dtype), tableau)
            nfe, finished = jnp.full(rows, steps * tableau.stages), jnp.ones(rows, bool)
        else:
            solver, tolerances = ADAPTIVE_SOLVERS[settings.solver](), (settings.rtol, settings.atol)
            end, nfe, finished = adaptive.integrate(
                field, start, given, 1.0, 0.0, solver, *tolerances, _MAX_STEPS, save_at=None
            )
        return Trajectory(end.x, -end.divergence, -end.kinetic, -end.jacobian), nfe, finished

    def model(self, params: Params, state: PyTree) -> "CNFModel":
        return CNFModel(self.network.bind(params, state))


def _rates(velocity: Any, x: Batched, probes: Float[Array, "B P *event"] | None) -> Trajectory:
    """The derivatives of the state. Without probes, the Jacobian is multiplied by all unit vectors."""
    rows, d = x.shape[0], x[0].size
    v, push = jax.linearize(velocity, x)
    if probes is None:
        units = jnp.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:])
        directions, share = jnp.broadcast_to(units, (d, *x.shape)), 1.0
    else:
        directions, share = jnp.moveaxis(probes, 1, 0), 1 / probes.shape[1]
    images = jax.vmap(push)(directions)
    total = lambda a: share * a.reshape(len(directions), rows, d).sum((0, 2))
    return Trajectory(v, total(directions * images), sum_event(v**2), total(images**2))


@dataclass(frozen=True)
class CNFModel:
    """A trained continuous normalizing flow, a model with the ability `velocity`.

    Attributes:
        network: `network(t, x, cond) -> v`.
    """

    network: BoundNetwork

    @property
    def interval(self) -> tuple[float, float]:
        """The times of the source and of the data."""
        return 0.0, 1.0

    @property
    def velocity(self) -> VelocityField:
        """The velocity as a function `velocity(t, x, cond)`."""
        return VelocityField(self)

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The implementation of `velocity`."""
        return at_least_float32(self.network(t, at_least_float32(x), cond))
