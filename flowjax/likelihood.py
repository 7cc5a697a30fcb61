"""Exact log-likelihoods of flows by the instantaneous change of variables.

(Chen et al. 2018, arXiv 1806.07366; Grathwohl et al. 2019, arXiv 1810.01367; Song et al. 2021, arXiv 2011.13456.)

Along the flow dx/dt = v(t, x), the log-density changes by d log p_t(x_t) / dt = -div v(t, x_t). Solving backwards from
the data at t1 to the source at t0 gives

    log p(x) = log p_source(x_0) - integral from t0 to t1 of div v dt .

The divergence is the trace of the Jacobian. It is either computed exactly, with D forward-mode derivatives per
evaluation, or estimated without bias by Hutchinson's estimator, the mean of e . (dv/dx) e over random signs e. The
signs are the same for the whole solve, so that the integrand is smooth.

For a bijection, log p(x) = log p_source(z) + log |det dz/dx| with z = inverse(x).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from flowjax.abilities import Bijection, HasVelocity, abilities_of, space_of, velocity_of, with_forward_mode
from flowjax.keys import row_keys
from flowjax.precision import at_least_float32
from flowjax.solvers import Stats, solve_ode
from flowjax.solvers.ode import times_within
from flowjax.sources import Source
from flowjax.spaces import check_euclidean
from flowjax.typing import Batched, Cond, Field, PRNGKey, Time

__all__ = ["Divergence", "exact_divergence", "hutchinson_divergence", "log_prob"]

_DIRECTIONS_AT_ONCE = 64

Divergence = Literal["exact", "hutchinson"]
"""How the divergence is computed."""


def exact_divergence(v: Callable[[Batched], Batched], x: Batched) -> tuple[Batched, Float[Array, " B"]]:
    """v(x) and its divergence, with one forward-mode derivative per coordinate.

    The derivatives are computed in blocks of 64 directions, so that the memory does not grow with D.

    Args:
        v: the velocity at one time, a function of x that `jax.jvp` can differentiate.
        x: (B, *event).

    Returns:
        v(x), (B, *event), and the trace of the Jacobian of v for each sample, (B,).
    """
    shape = x.shape[1:]
    d = x[0].size
    y, push = jax.linearize(v, x)

    def along(i: Array) -> Float[Array, " B"]:
        e = jax.nn.one_hot(i, d, dtype=x.dtype).reshape(shape)
        return jnp.sum(push(jnp.broadcast_to(e, x.shape)).reshape(x.shape[0], d) * e.reshape(d), -1)

    if d <= _DIRECTIONS_AT_ONCE:
        return y, jax.vmap(along)(jnp.arange(d)).sum(0)
    return y, jax.lax.map(along, jnp.arange(d), batch_size=_DIRECTIONS_AT_ONCE).sum(0)


def hutchinson_divergence(
    v: Callable[[Batched], Batched], x: Batched, probes: Float[Array, "B P *event"]
) -> tuple[Batched, Float[Array, " B"]]:
    """v(x) and Hutchinson's estimate of its divergence, with one forward-mode derivative per probe.

    Args:
        v: the velocity at one time, a function of x that `jax.jvp` can differentiate.
        x: (B, *event).
        probes: (B, P, *event) random vectors e with E[e e^T] = I.

    Returns:
        v(x), (B, *event), and the mean of e . J e over the probes for each sample, (B,), where J is the Jacobian of v.
    """
    y, push = jax.linearize(v, x)
    terms = jax.vmap(lambda e: jnp.sum((push(e) * e).reshape(x.shape[0], -1), -1), in_axes=1)(probes)
    return y, terms.mean(0)


@dataclass(frozen=True)
class _Augmented:
    """The velocity of (x, integral of div v) with the condition (cond, probes).

    Two of them are equal if their fields are equal, so that each field is compiled once.
    """

    field: Field
    divergence: Divergence

    @property
    def interval(self) -> tuple[float, float] | None:
        return getattr(self.field, "interval", None)

    def __call__(
        self, t: Time, state: tuple[Batched, Array], context: tuple[Cond, Array | None]
    ) -> tuple[Batched, Array]:
        cond, probes = context
        v = lambda x: self.field(t, x, cond)
        if probes is None:
            return exact_divergence(v, state[0])
        return hutchinson_divergence(v, state[0], probes)


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
    probes: int = 1,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
) -> tuple[Float[Array, " B"], Stats]:
    """log p(x) in nats, under the flow of the model from `source`; differentiable in reverse mode.

    Args:
        model: a model with a velocity, a bijection, or a velocity field v(t, x, cond). Pass the same object again to
            reuse its compilation.
        x: (B, *event) data at t1, in the space in which the model was trained. Half precision is converted to float32.
        source: the distribution at t0, in general `path.prior(source)`.
        cond: the condition, with leading axis B, or None.
        t0, t1: the times of the source and of the data; by default as in `solve_ode`.
        divergence: "exact" needs D forward-mode derivatives per evaluation, "hutchinson" needs `probes` of them.
        key: for "hutchinson": one key, of which sample i uses `fold_in(key, i)`, or (B,) keys.
        probes: the number of random vectors per sample.
        solver, rtol, atol, steps: see `solve_ode`.

    Returns:
        (B,) log-densities in the dtype of x but at least float32, and the `Stats` of the solve. A bijection has one
        evaluation and no solve.

    Raises:
        ValueError: if "hutchinson" has no key or probes < 1, the divergence is unknown, or the model has neither a
            velocity nor an inverse, or the space is not Euclidean; and for the same reasons as `solve_ode`.
        RuntimeError: if an adaptive solve does not reach t0.
    """
    if isinstance(model, Bijection):
        x = at_least_float32(x)
        z, log_det = _inverse(model, x, cond)
        return source.log_prob(z) + log_det, Stats(jnp.ones(x.shape[0], int), jnp.ones(x.shape[0], bool))
    if isinstance(model, HasVelocity):
        field = velocity_of(model)
    elif callable(model):
        field = model
    else:
        raise ValueError(
            f"log_prob needs a model with a velocity or an inverse, or a velocity field, and this model offers "
            f"{', '.join(abilities_of(model)) or 'nothing'}"
        )
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence must be 'exact' or 'hutchinson', not {divergence!r}")
    check_euclidean("log_prob", space_of(field))
    start, end = times_within(field, t0, t1)
    x, signs = at_least_float32(x), None
    if divergence == "hutchinson":
        if key is None:
            raise ValueError("divergence='hutchinson' needs random vectors: pass key=jax.random.key(seed)")
        if probes < 1:
            raise ValueError(f"probes must be at least 1, not {probes}")
        signs = jax.vmap(lambda k: jax.random.rademacher(k, (probes, *x.shape[1:]), x.dtype))(row_keys(key, x.shape[0]))
    state = (x, jnp.zeros(x.shape[:1], x.dtype))
    (x0, integral), stats = solve_ode(
        _Augmented(with_forward_mode(field), divergence),
        state,
        cond=(cond, signs),
        t0=end,
        t1=start,
        solver=solver,
        rtol=rtol,
        atol=atol,
        steps=steps,
    )
    return source.log_prob(x0) + integral, stats


@partial(jax.jit, static_argnames="model")
def _inverse(model: Bijection, x: Batched, cond: Cond) -> tuple[Batched, Float[Array, " B"]]:
    return model.inverse(x, cond)
