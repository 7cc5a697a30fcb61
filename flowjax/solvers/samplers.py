"""Samplers on a grid of times: the protocol, and the one loop that runs them.

A sampler is a small frozen object with `init(x, t) -> state` and `step(state, t, t_next, model, key) -> state`, as an
optimizer in optax; its history lives in the state, whose `x` is the sample. Which abilities it asks of a model is said
in `needs`, and what it asks of a path in its other class attributes. Guidance and changes of schedule are models too,
so they go in front of any sampler.

A sampler with `denoise` ends with x = E[x1 | x] instead of a step into the data, where coefficients are singular: the
limit of its step as sigma goes to 0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flowjax.abilities import Ends
from flowjax.keys import RowKeys, fold_rows
from flowjax.paths.affine import AffinePath
from flowjax.precision import at_least_float32
from flowjax.predictions import no_score, well_conditioned
from flowjax.typing import Batched, Cond, PyTree, Time

__all__ = [
    "BaseSampler",
    "BoundModel",
    "Sampler",
    "SamplerState",
    "StochasticSampler",
    "blend",
    "check",
    "evaluations",
    "interval",
    "run",
    "standard_normal",
]


class SamplerState(NamedTuple):
    """What a sampler carries from step to step.

    Attributes:
        x: the sample, (B, *event).
        history: the sampler's own.
    """

    x: Batched
    history: PyTree = None


@dataclass(frozen=True)
class BoundModel:
    """A model with its condition bound: what a sampler's step asks. Only abilities of the model may be called."""

    model: Any
    cond: Cond = None

    def velocity(self, t: Time, x: Batched) -> Batched:
        return self.model.velocity(t, x, self.cond)

    def ends(self, t: Time, x: Batched) -> Ends:
        return self.model.ends(t, x, self.cond)

    def score(self, t: Time, x: Batched) -> Batched:
        return self.model.score(t, x, self.cond)

    def flow_map(self, s: Time, t: Time, x: Batched) -> Batched:
        return self.model.flow_map(s, t, x, self.cond)


@runtime_checkable
class Sampler(Protocol):
    """A method that walks from one time of a grid to the next.

    Attributes:
        needs: the abilities that it asks of a model (`flowjax.abilities.ABILITIES`).
        path: the path of the model; None for a sampler that needs none and was given none.
        evaluations: of the model in a step.
        grid: the name of the time grid that suits it, in `flowjax.solvers.grids`.
        denoise: whether the last step is E[x1 | x].
        stochastic: whether it draws noise, and so needs keys.
        needs_score: whether it needs a path with a score.
        needs_alpha, needs_sigma: whether its coefficients are singular where they vanish.
        needs_noiseless: whether it takes a path without noise of its own.
    """

    needs: ClassVar[tuple[str, ...]]
    grid: ClassVar[str]
    denoise: ClassVar[bool]
    needs_sigma: ClassVar[bool]
    needs_noiseless: ClassVar[bool]

    @property
    def path(self) -> AffinePath | None: ...

    @property
    def needs_alpha(self) -> bool: ...

    @property
    def evaluations(self) -> int: ...

    @property
    def stochastic(self) -> bool: ...

    @property
    def needs_score(self) -> bool: ...

    def init(self, x: Batched, t: Float[Array, ""]) -> SamplerState: ...

    def step(
        self,
        state: SamplerState,
        t: Float[Array, ""],
        t_next: Float[Array, ""],
        model: Any,
        key: RowKeys | None,
    ) -> SamplerState: ...


class BaseSampler:
    """What most samplers are: one evaluation of the ends a step, deterministic, for every path."""

    needs: ClassVar[tuple[str, ...]] = ("ends",)
    grid: ClassVar[str] = "uniform"
    denoise: ClassVar[bool] = False
    needs_sigma: ClassVar[bool] = False
    needs_noiseless: ClassVar[bool] = False
    needs_constant_alpha: ClassVar[bool] = False
    """Whether alpha must be 1 at all times, as in a variance-exploding schedule."""

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def needs_alpha(self) -> bool:
        return False

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def needs_score(self) -> bool:
        return self.stochastic

    def init(self, x: Batched, t: Float[Array, ""]) -> SamplerState:
        return SamplerState(x)


class StochasticSampler(BaseSampler):
    """One that draws noise, and ends without: what most SDE samplers are.

    They take the velocity and the score of the SDE from one evaluation of the ends.
    """

    needs: ClassVar[tuple[str, ...]] = ("ends", "score")
    denoise: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        return True


def standard_normal(key: RowKeys, x: Batched) -> Batched:
    """N(0, I) shaped as x, each row from its own key."""
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def check(sampler: Sampler) -> None:
    """Refuses a sampler whose path cannot give it what it needs.

    Raises:
        ValueError: saying what is missing.
    """
    name, path = type(sampler).__name__, sampler.path
    if path is None:
        return
    if sampler.needs_score and not path.has_score:
        raise ValueError(f"{name} follows an SDE: {no_score(path)}; or take an ODE sampler, such as heun")
    if sampler.needs_noiseless and path.noise is not None:
        raise ValueError(
            f"{name} takes x_t = alpha x1 + sigma x0, and this path has noise of its own: take heun or ddim"
        )
    if getattr(sampler, "needs_constant_alpha", False):
        schedule = path.schedule
        with jax.ensure_compile_time_eval():
            alpha = schedule.alpha(jnp.linspace(schedule.t_min, schedule.t_max, 5))
            constant = bool((alpha == 1).all())
        if not constant:
            raise ValueError(f"{name} needs a path with alpha = 1 at all times: take the schedule 've', not {schedule}")


def interval(sampler: Sampler) -> tuple[float, float]:
    """The path's times, without those at which the sampler's coefficients are singular; (0, 1) without a path."""
    if sampler.path is None:
        return 0.0, 1.0
    return well_conditioned(sampler.path, sampler.needs_alpha, sampler.needs_sigma)


@partial(jax.jit, static_argnames=("sampler", "model", "save"))
def run(
    sampler: Sampler,
    model: Any,
    x: Batched,
    times: Float[Array, " T"],
    *,
    keys: RowKeys | None = None,
    cond: Cond = None,
    save: bool = False,
) -> Float[Array, "..."]:
    """Walks x from times[0] through the grid: one `lax.scan`.

    A grid of T times is T - 1 steps. With `sampler.denoise` a last evaluation at times[-1] follows; give a grid that
    ends before the data.

    Args:
        sampler, model: hashable; the same objects reuse their compilation. The model has the abilities that the sampler
            needs.
        x: (B, *event) at times[0]. The state, and what is returned, have its dtype but at least float32.
        times: strictly increasing.
        keys: (B,) for a stochastic sampler.
        cond: condition of the model, leading axis B.
        save: return the states at all times (and after the denoising) on a new leading axis.
    """
    bound = BoundModel(model, cond)
    x = at_least_float32(x)

    def advance(state: SamplerState, edge: tuple[Array, Array, Array]) -> tuple[SamplerState, Batched | None]:
        t, t_next, i = edge
        key = None if keys is None else fold_rows(keys, i)
        state = sampler.step(state, t, t_next, bound, key)
        return state, state.x if save else None

    n = times.shape[0] - 1
    last, states = lax.scan(advance, sampler.init(x, times[0]), (times[:-1], times[1:], jnp.arange(n)))
    end = bound.ends(times[-1], last.x).x1.astype(x.dtype) if sampler.denoise else None
    if not save:
        return last.x if end is None else end
    parts = [x[None], states] + ([] if end is None else [end[None]])
    return jnp.concatenate(parts)


def evaluations(sampler: Sampler, steps: int) -> int:
    """Evaluations of the model for each sample in a run of `steps` steps, the denoising counted as one."""
    walked = steps - 1 if sampler.denoise else steps
    return sampler.evaluations * walked + (1 if sampler.denoise else 0)


def blend(path: AffinePath, t: Array, like: Batched, ends: Ends) -> Batched:
    """The point of the path at t with these ends: alpha x1 + sigma x0 + gamma z."""
    r = path.rates(t, like)
    x = r.alpha * ends.x1 + r.sigma * ends.x0
    return x if ends.z is None else x + path.noise_rates(t, like).gamma * ends.z
