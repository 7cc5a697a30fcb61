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
vectors instead. K and J are part of the ODE only if their weight is positive, so that otherwise they neither shorten
the steps nor cost anything.

The published code of Finlay et al. (https://github.com/cfinlay/ffjord-rnode) has K / 2 in place of K, and the
likelihood in bits per dimension. Its weights of 0.01 for both terms are therefore kinetic = 0.005 log 2 = 0.0035 and
jacobian = 0.01 log 2 = 0.0069 in (4).

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
from flowjax.keys import RowKeys, row_keys
from flowjax.likelihood.estimator import dot
from flowjax.likelihood.memory import directions_at_once, mapped
from flowjax.methods.base import BoundNetwork, Context, Limit, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.methods.normalizing_flow import check_dequantised, check_source
from flowjax.precision import at_least_float32
from flowjax.ranges import Range
from flowjax.solvers import adaptive, fixed_grid
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS, check_solver
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree, Time

__all__ = ["CNF", "DIVERGENCES", "AugmentedState", "CNFModel"]

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
        kinetic: the weight of the kinetic energy in the loss; 0 for none. The value of Finlay et al., in these units,
            is 0.0035.
        jacobian: the weight of the squared norm of the Jacobian in the loss; 0 for none. The value of Finlay et al., in
            these units, is 0.0069.
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


class AugmentedState(NamedTuple):
    """The state of the ODE: points, and integrals along their trajectories. Its time derivative has the same form.

    Attributes:
        x: points, (B, *event).
        divergence: the integral of the divergence of the velocity, (B,).
        kinetic: the integral of the squared norm of the velocity, (B,); None if its weight in the loss is 0.
        jacobian: the integral of the squared Frobenius norm of the Jacobian, (B,); None if its weight is 0.
    """

    x: Batched
    divergence: Float[Array, " B"]
    kinetic: Float[Array, " B"] | None
    jacobian: Float[Array, " B"] | None


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
        check_dequantised("cnf", parts.spec.dequantisation)
        return cls(parts.network(), parts.source, parts.settings)

    @property
    def metrics(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The names of the metrics. Those of a regulariser are there if its weight is positive."""
        return ("nll", "nfe", "unfinished", *self._regularisers)

    @property
    def _regularisers(self) -> dict[str, float]:
        """The positive weights of the regularisers in the loss, by the fields of `AugmentedState`."""
        weights = {"kinetic": self.settings.kinetic, "jacobian": self.settings.jacobian}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def prior(self) -> Source:
        return self.source

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        check_floating(x1=batch.x1)
        end, nfe, finished = self.solve(params, context, key, batch.x1, batch.cond)
        d = batch.x1[0].size
        nll = -(self.source.log_prob(end.x) - end.divergence)
        metrics = {
            "nll": jnp.mean(nll) / d,
            "nfe": jnp.mean(nfe.astype(nll.dtype)),
            "unfinished": 1 - jnp.mean(finished.astype(nll.dtype)),
            **{name: jnp.mean(getattr(end, name)) / d for name in self._regularisers},
        }
        penalty = sum(weight * metrics[name] for name, weight in self._regularisers.items())
        return Loss(metrics["nll"] + penalty, metrics, context.state)

    def solve(
        self, params: Params, context: Context, key: PRNGKey, x: Batched, cond: Cond = None
    ) -> tuple[AugmentedState, Int[Array, " B"], Array]:
        """Solves the ODE from the data at t = 1 to the source at t = 0.

        Args:
            params, context: as for `loss`.
            key: of the random vectors, and of the dropout, which is the same along a trajectory and differs from row to
                row.
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

        # each row of an adaptive solve is a batch of one, in which all rows would have the same dropout with one key
        keys = None if settings.steps or not network.takes_key else row_keys(key, rows)

        def field(t: Time, state: AugmentedState, given: tuple[Cond, Array | None, RowKeys | None]) -> AugmentedState:
            cond, probes, keys = given
            own = key if keys is None else keys[0]
            velocity = lambda x: network(params, context, t, x, cond, key=own)[0].astype(x.dtype)
            return _rates(velocity, state, probes, rows)

        zeros = jnp.zeros(rows, x.dtype)
        start = AugmentedState(x, zeros, *(zeros if w else None for w in (settings.kinetic, settings.jacobian)))
        given = (cond, probes, keys)
        if settings.steps:
            tableau, steps = SOLVERS[settings.solver], settings.steps * (1 if context.training else _FINER)
            end = fixed_grid.integrate(field, start, given, jnp.linspace(1.0, 0.0, steps + 1, dtype=x.dtype), tableau)
            nfe, finished = jnp.full(rows, steps * tableau.stages), jnp.ones(rows, bool)
        else:
            solver, tolerances = ADAPTIVE_SOLVERS[settings.solver](), (settings.rtol, settings.atol)
            end, nfe, finished = adaptive.integrate(
                field, start, given, 1.0, 0.0, solver, *tolerances, _MAX_STEPS, save_at=None
            )
        return AugmentedState(end.x, *jax.tree.map(jnp.negative, end[1:])), nfe, finished

    def model(self, params: Params, state: PyTree) -> "CNFModel":
        return CNFModel(self.network.bind(params, state))


def _rates(velocity: Any, state: AugmentedState, probes: Array | None, rows: int) -> AugmentedState:
    """The derivatives of the state, of which `rows` are computed at the same time.

    Without probes, (B, P, *event), the Jacobian is multiplied by all unit vectors. As many directions as fit the memory
    are taken at once. If these are not all, their derivatives are computed again for the gradient.
    """
    x, d = state.x, state.x[0].size
    v, push = jax.linearize(velocity, x)
    if probes is None:
        over, share = jnp.arange(d), 1.0
        direction = lambda i: jnp.broadcast_to(jax.nn.one_hot(i, d, dtype=x.dtype).reshape(x.shape[1:]), x.shape)
    else:
        over, share = jnp.moveaxis(probes, 1, 0), 1 / probes.shape[1]
        direction = lambda e: e

    def along(i: Array) -> Float[Array, "2 B"]:
        e = direction(i)
        image = push(e)
        return jnp.stack([dot(image, e), jnp.zeros(len(x), x.dtype) if state.jacobian is None else dot(image, image)])

    at_once = directions_at_once(push, x, rows) if len(over) > 1 else 1
    each = along if at_once >= len(over) else jax.checkpoint(along)
    divergence, square = share * mapped(each, over, at_once).sum(0)
    kinetic = None if state.kinetic is None else dot(v, v)
    return AugmentedState(v, divergence, kinetic, None if state.jacobian is None else square)


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
