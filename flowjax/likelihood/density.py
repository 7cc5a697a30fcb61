"""Log-likelihoods of flows by the instantaneous change of variables.

(Chen et al. 2018, arXiv 1806.07366; Grathwohl et al. 2019, arXiv 1810.01367; Song et al. 2021, arXiv 2011.13456.)

Along the flow dx/dt = v(t, x), the log-density changes by d log p_t(x_t) / dt = -div v(t, x_t). Solving backwards from
the data at t1 to the source at t0 gives

    log p(x) = log p_source(x_0) - integral from t0 to t1 of div v dt .

The divergence is the trace of the Jacobian, exact or estimated (`flowjax.likelihood.estimator`). An estimator has the
same probes for the whole solve, so that the integrand is smooth. Its K estimates are integrated separately, and the
spread of the K integrals gives the standard error of log p.

For a bijection, log p(x) = log p_source(z) + log |det dz/dx| with z = inverse(x).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax.abilities import Bijection, HasVelocity, abilities_of, space_of, velocity_of, with_forward_mode
from flowjax.errors import check_name
from flowjax.keys import row_keys
from flowjax.likelihood.estimator import DivergenceEstimator, standard_error
from flowjax.likelihood.exact import Exact
from flowjax.likelihood.hutch_plus_plus import HutchPlusPlus
from flowjax.likelihood.hutchinson import Hutchinson, ProbeKind
from flowjax.likelihood.limits import check_no_nan, check_tolerances
from flowjax.precision import at_least_float32
from flowjax.solvers import Stats, solve_ode
from flowjax.solvers.ode import times_within
from flowjax.sources import Source, has_density
from flowjax.spaces import check_euclidean
from flowjax.typing import Batched, Cond, Field, PRNGKey, Time

__all__ = ["Adjoint", "Divergence", "LogDensity", "divergence_of", "log_prob", "push_forward"]

Divergence = Literal["exact", "hutchinson", "hutch++"] | DivergenceEstimator
"""How the divergence is computed: an estimator, or the name of one."""

Adjoint = Literal["recursive", "backsolve", "forward", "direct"]
"""How the solve is differentiated."""

_ADJOINTS = {"recursive": None, "backsolve": diffrax.BacksolveAdjoint, "forward": diffrax.ForwardMode}


class LogDensity(NamedTuple):
    """The result of `log_prob`.

    Attributes:
        log_prob: log p in nats, (B,).
        standard_error: of the estimate of log p by random probes, (B,): 0 if the divergence is exact, and None if it
            has a single estimate, whose error is unknown. The error of the solver is not part of it.
        stats: of the solve. A bijection has one evaluation and no solve.
    """

    log_prob: Float[Array, " B"]
    standard_error: Float[Array, " B"] | None
    stats: Stats


def divergence_of(
    divergence: Divergence, probes: int | None = None, kind: ProbeKind | None = None
) -> DivergenceEstimator:
    """The estimator of that name, or the estimator itself.

    Args:
        divergence: "exact", "hutchinson" or "hutch++", or an estimator.
        probes: the number of probes of an estimator by name; by default 1 for "hutchinson" and 6 for "hutch++".
        kind: the distribution of the probes of "hutchinson", by default "rademacher".

    Raises:
        ValueError: if the name is unknown, or the probes do not fit it.
    """
    if not isinstance(divergence, str):
        if probes is not None or kind is not None:
            raise ValueError(f"the probes are those of {divergence}: leave out probes and their kind")
        return divergence
    if divergence not in ("exact", "hutchinson", "hutch++"):
        raise ValueError(f"divergence must be 'exact', 'hutchinson' or 'hutch++', not {divergence!r}")
    if divergence == "hutchinson":
        return Hutchinson(1 if probes is None else probes, kind or "rademacher")
    if kind is not None:
        raise ValueError(f"the kind of probes {kind!r} is for divergence='hutchinson', not {divergence!r}")
    if divergence == "exact" and probes is not None:
        raise ValueError("divergence='exact' takes no probes: leave them out, or take 'hutchinson' or 'hutch++'")
    return Exact() if divergence == "exact" else HutchPlusPlus(6 if probes is None else probes)


@dataclass(frozen=True)
class _Augmented:
    """The velocity of (x, integrals of K estimates of div v) with the condition (cond, probes).

    Two of them are equal if their fields are equal, so that each field is compiled once.
    """

    field: Field
    divergence: DivergenceEstimator
    rows: int

    @property
    def interval(self) -> tuple[float, float] | None:
        return getattr(self.field, "interval", None)

    def __call__(
        self, t: Time, state: tuple[Batched, Array], context: tuple[Cond, Array | None]
    ) -> tuple[Batched, Array]:
        cond, probes = context
        return self.divergence(lambda x: self.field(t, x, cond), state[0], probes, self.rows)


def log_prob(
    model: HasVelocity | Bijection | Field,
    x: Batched,
    source: Source,
    *,
    cond: Cond = None,
    t0: float | None = None,
    t1: float | None = None,
    divergence: Divergence = "exact",
    key: PRNGKey | Key[Array, " B"] | None = None,
    probes: int | None = None,
    solver: str = "dopri5",
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    steps: int | None = None,
    adjoint: Adjoint | None = None,
) -> LogDensity:
    """log p(x) in nats, under the flow of the model from `source`; differentiable by parameters, points and conditions.

    Args:
        model: a model with a velocity, a bijection, or a velocity field v(t, x, cond). Pass the same object again to
            reuse its compilation.
        x: (B, *event) data at t1, in the space in which the model was trained. Half precision is converted to float32.
        source: the distribution at t0, in general `path.prior(source)`.
        cond: the condition, with leading axis B, or None.
        t0, t1: the times of the source and of the data; by default as in `solve_ode`.
        divergence: an estimator, or its name (`divergence_of`). "exact" needs D forward-mode derivatives per
            evaluation, "hutchinson" and "hutch++" need `probes` of them.
        key: for random probes: one key, of which sample i uses `fold_in(key, i)`, or (B,) keys.
        probes: the number of random vectors per sample, if the divergence is a name.
        solver, rtol, atol, steps: see `solve_ode`.
        adjoint: how the solve is differentiated. "recursive" and "backsolve" are for reverse mode and adaptive steps,
            "forward" is for forward mode and adaptive steps. With `steps` it is "direct": the steps are differentiated
            directly, in both modes. By default "recursive" or "direct". See `solve_ode`.

    Returns:
        The log-densities with their standard errors, in the dtype of x but at least float32, and the `Stats`.

    Raises:
        ValueError: if random probes have no key or do not fit the estimator, the divergence is unknown, the source has
            no density, a point has NaN, the tolerances are below the rounding errors, the adjoint does not fit the
            steps, the model has neither a velocity nor an inverse, or the space is not Euclidean; and for the same
            reasons as `solve_ode`.
        TooLarge: if the derivatives of the divergence do not fit the memory.
        RuntimeError: if an adaptive solve does not reach t0.
    """
    _check_density(source)
    check_no_nan(x)
    if isinstance(model, Bijection):
        x = at_least_float32(x)
        z, log_det = _apply(model, False, x, cond)
        return _of_bijection(source.log_prob(z) + log_det)
    solve = _Solve(model, cond, t0, t1, divergence, key, probes, solver, rtol, atol, steps, adjoint)
    x0, log_det, errors, stats = solve(x, to_data=False)
    return LogDensity(source.log_prob(x0) - log_det, errors, stats)


def push_forward(
    model: HasVelocity | Bijection | Field,
    z: Batched,
    source: Source,
    *,
    cond: Cond = None,
    t0: float | None = None,
    t1: float | None = None,
    divergence: Divergence = "exact",
    key: PRNGKey | Key[Array, " B"] | None = None,
    probes: int | None = None,
    solver: str = "dopri5",
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    steps: int | None = None,
) -> tuple[Batched, LogDensity]:
    """Maps source samples to samples of the model, with their log-densities in nats, in one solve.

    The samples are those of the same ODE without densities, up to the tolerances. `log_prob` of them is the same number
    from a solve in the other direction.

    Args:
        z: (B, *event) samples of `source`, at t0.
        model, source, cond, t0, t1, divergence, key, probes, solver, rtol, atol, steps: as for `log_prob`.

    Returns:
        The samples at t1, (B, *event), and their log-densities.

    Raises:
        ValueError, TooLarge, RuntimeError: as for `log_prob`.
    """
    _check_density(source)
    check_no_nan(z)
    if isinstance(model, Bijection):
        z = at_least_float32(z)
        x, log_det = _apply(model, True, z, cond)
        return x, _of_bijection(source.log_prob(z) - log_det)
    solve = _Solve(model, cond, t0, t1, divergence, key, probes, solver, rtol, atol, steps, None)
    x, log_det, errors, stats = solve(z, to_data=True)
    return x, LogDensity(source.log_prob(at_least_float32(z)) - log_det, errors, stats)


def _check_density(source: Source) -> None:
    if not has_density(source):
        raise ValueError(
            f"the source {type(source).__name__} has no density, so points have no log-density: take a source with a "
            "density, such as Normal, or compare samples instead (flowjax.metrics)"
        )


def _of_bijection(log_p: Float[Array, " B"]) -> LogDensity:
    rows = log_p.shape[0]
    return LogDensity(log_p, jnp.zeros_like(log_p), Stats(jnp.ones(rows, int), jnp.ones(rows, bool)))


@dataclass(frozen=True)
class _Solve:
    """The solve of points with the integral of the divergence; the attributes are the arguments of `log_prob`."""

    model: HasVelocity | Field
    cond: Cond
    t0: float | None
    t1: float | None
    divergence: Divergence
    key: PRNGKey | Key[Array, " B"] | None
    probes: int | None
    solver: str
    rtol: float | Float[Array, ""]
    atol: float | Float[Array, ""]
    steps: int | None
    adjoint: Adjoint | None

    def __call__(
        self, x: Batched, to_data: bool
    ) -> tuple[Batched, Float[Array, " B"], Float[Array, " B"] | None, Stats]:
        """The points at the other end, log |det| of the map from source to data there, its standard error, `Stats`."""
        field = _field_of(self.model)
        estimator = divergence_of(self.divergence, self.probes)
        adjoint = _adjoint_of(self.adjoint, self.steps)
        check_euclidean("log_prob", space_of(field))
        times = times_within(field, self.t0, self.t1)
        x, drawn = at_least_float32(x), None
        if self.steps is None:
            check_tolerances(self.rtol, self.atol, x.dtype)
        if not estimator.is_exact:
            if self.key is None:
                raise ValueError(f"{self.divergence} needs random vectors: pass key=jax.random.key(seed)")
            drawn = jax.vmap(lambda k: estimator.draw(k, x.shape[1:], x.dtype))(row_keys(self.key, x.shape[0]))
        (end, integrals), stats = solve_ode(
            _Augmented(with_forward_mode(field) if estimator.needs_forward_mode else field, estimator, x.shape[0]),
            (x, jnp.zeros((x.shape[0], estimator.estimates), x.dtype)),
            cond=(self.cond, drawn),
            t0=times[0 if to_data else 1],
            t1=times[1 if to_data else 0],
            solver=self.solver,
            rtol=self.rtol,
            atol=self.atol,
            steps=self.steps,
            adjoint=adjoint,
        )
        log_det = integrals.mean(1) if to_data else -integrals.mean(1)
        errors = jnp.zeros_like(log_det) if estimator.is_exact else standard_error(integrals)
        return end, log_det, errors, stats


def _field_of(model: HasVelocity | Field) -> Field:
    if isinstance(model, HasVelocity):
        return velocity_of(model)
    if callable(model):
        return model
    raise ValueError(
        f"log_prob needs a model with a velocity or an inverse, or a velocity field, and this model offers "
        f"{', '.join(abilities_of(model)) or 'nothing'}"
    )


def _adjoint_of(name: Adjoint | None, steps: int | None) -> diffrax.AbstractAdjoint | None:
    """The adjoint of `solve_ode` that a name stands for."""
    if name is None:
        return None
    check_name("adjoint", name, get_args(Adjoint))
    if (name == "direct") != (steps is not None):
        fits = "fixed steps (steps=N)" if name == "direct" else "adaptive steps (steps=None)"
        raise ValueError(f"adjoint={name!r} is for {fits}")
    made = _ADJOINTS.get(name)
    return None if made is None else made()


@partial(jax.jit, static_argnums=(0, 1))
def _apply(model: Bijection, to_data: bool, x: Batched, cond: Cond) -> tuple[Batched, Float[Array, " B"]]:
    return model.forward(x, cond) if to_data else model.inverse(x, cond)
