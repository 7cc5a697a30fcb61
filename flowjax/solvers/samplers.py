"""The protocol of samplers on a grid of times, and the loop that runs them.

Like an optimizer in optax, a sampler is a small frozen object with `init(x, t) -> state` and
`step(state, t, t_next, model, key) -> state`. The state has the sample `x` and the history of the sampler. The
attribute `needs` lists the abilities of a model that the sampler uses, and the other attributes its requirements on the
path. Guided and rescheduled models are models too, so they can be used with any sampler.

A sampler with `denoise = True` replaces the last step into the data, where coefficients are singular, by its limit as
sigma goes to 0: x = E[x1 | x].
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flowjax.abilities import Ends, space_of
from flowjax.keys import RowKeys, fold_rows
from flowjax.paths.affine import AffinePath
from flowjax.precision import at_least_float32
from flowjax.predictions import no_score, well_conditioned
from flowjax.solvers.fixed_grid import IN_ANY_SPACE
from flowjax.spaces import Space, check_euclidean
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
    """The state of a sampler between two steps.

    Attributes:
        x: (B, *event), the sample.
        history: a pytree with whatever else the sampler needs, such as earlier evaluations.
    """

    x: Batched
    history: PyTree = None


@dataclass(frozen=True)
class BoundModel:
    """A model with its condition bound, which is passed to `Sampler.step`.

    It has a method for every ability of sampling, but only the abilities that the model has can be called.

    Attributes:
        model: the model.
        cond: the condition, with leading axis B, or None.
    """

    model: Any
    cond: Cond = None

    @property
    def space(self) -> Space:
        """The space of the model's points."""
        return space_of(self.model)

    def velocity(self, t: Time, x: Batched) -> Batched:
        return self.model.velocity(t, x, self.cond)

    def ends(self, t: Time, x: Batched) -> Ends:
        return self.model.ends(t, x, self.cond)

    def score(self, t: Time, x: Batched) -> Batched:
        return self.model.score(t, x, self.cond)

    def flow_map(self, s: Time, t: Time, x: Batched) -> Batched:
        return self.model.flow_map(s, t, x, self.cond)

    def to_data(self, t: Time, x: Batched) -> Batched:
        return self.model.to_data(t, x, self.cond)


@runtime_checkable
class Sampler(Protocol):
    """A method that takes a step from one time of a grid to the next.

    Attributes:
        needs: the abilities of a model that it uses (`flowjax.abilities.ABILITIES`).
        path: the path of the model; None for a sampler that does not use one.
        evaluations: the number of evaluations of the model per step.
        grid: the name of its default grid in `flowjax.solvers.grids.GRIDS`.
        denoise: whether the last step is x = E[x1 | x].
        stochastic: whether it adds noise and therefore needs keys.
        needs_score: whether the path must have a score.
        needs_alpha, needs_sigma: whether its coefficients are singular where alpha or sigma is zero.
        needs_noiseless: whether the path must not have additional noise.
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

    def init(self, x: Batched, t: Float[Array, ""]) -> SamplerState:
        """The state at the first time t of the grid, for source samples x (B, *event)."""
        ...

    def step(
        self,
        state: SamplerState,
        t: Float[Array, ""],
        t_next: Float[Array, ""],
        model: Any,
        key: RowKeys | None,
    ) -> SamplerState:
        """The state at t_next.

        Args:
            state: the state at t.
            t, t_next: two consecutive times of the grid, t < t_next.
            model: the model with its condition bound (`BoundModel`).
            key: (B,) keys of this step for a stochastic sampler, otherwise None.
        """
        ...


class BaseSampler:
    """The defaults of `Sampler`: deterministic, one evaluation of the ends per step, no requirements on the path."""

    needs: ClassVar[tuple[str, ...]] = ("ends",)
    grid: ClassVar[str] = "uniform"
    denoise: ClassVar[bool] = False
    needs_sigma: ClassVar[bool] = False
    needs_noiseless: ClassVar[bool] = False
    needs_constant_alpha: ClassVar[bool] = False
    """Whether alpha must be 1 at all times, as in a variance-exploding schedule."""
    any_space: ClassVar[bool] = False
    """Whether it takes its steps in the space of the model. Otherwise it adds points as vectors, and other spaces than
    Euclidean space are refused."""

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
    """The defaults of an SDE sampler: it adds noise in every step and ends with the denoising.

    The velocity and the score of the SDE are computed from one evaluation of the ends.
    """

    needs: ClassVar[tuple[str, ...]] = ("ends", "score")
    denoise: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        return True


def standard_normal(key: RowKeys, x: Batched) -> Batched:
    """Standard normal noise with the shape of x. Sample i uses key i, so it does not depend on the other samples."""
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def check(sampler: Sampler) -> None:
    """Checks that a sampler can be used on its path.

    Raises:
        ValueError: if it cannot; the message names the requirement that the path does not meet.
    """
    name, path = type(sampler).__name__, sampler.path
    if path is None:
        return
    _check_space(sampler, space_of(path))
    if sampler.needs_score and not path.has_score:
        raise ValueError(f"{name} follows an SDE: {no_score(path)}; or use an ODE sampler, such as heun")
    if sampler.needs_noiseless and path.noise is not None:
        raise ValueError(
            f"{name} needs x_t = alpha x1 + sigma x0, and this path has noise of its own: use heun or ddim"
        )
    if getattr(sampler, "needs_constant_alpha", False):
        schedule = path.schedule
        with jax.ensure_compile_time_eval():
            alpha = schedule.alpha(jnp.linspace(schedule.t_min, schedule.t_max, 5))
            constant = bool((alpha == 1).all())
        if not constant:
            raise ValueError(f"{name} needs a path with alpha = 1 at all times: take the schedule 've', not {schedule}")


def _check_space(sampler: Sampler, space: Space) -> None:
    if not getattr(sampler, "any_space", False):
        check_euclidean(type(sampler).__name__, space, IN_ANY_SPACE)


def interval(sampler: Sampler) -> tuple[float, float]:
    """The interval of times at which the sampler's coefficients are not singular; (0, 1) without a path."""
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
    """Runs a sampler on a grid of times: one `lax.scan`.

    A grid of T times has T - 1 steps. With `sampler.denoise` they are followed by an evaluation of E[x1 | x] at
    times[-1], so the grid must end before the data.

    Args:
        sampler: the sampler. It must be hashable; pass the same object again to reuse its compilation.
        model: a hashable model with the abilities that the sampler needs.
        x: (B, *event) samples at times[0].
        times: (T,) strictly increasing times.
        keys: (B,) keys for a stochastic sampler.
        cond: the condition, with leading axis B, or None.
        save: whether to return the states at all times (and after the denoising) on a new leading axis.

    Returns:
        The last state, or with `save` all states, in the dtype of x but at least float32.

    Raises:
        ValueError: if the model's space is not Euclidean and the sampler adds points as vectors.
    """
    bound = BoundModel(model, cond)
    _check_space(sampler, bound.space)
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
    """The number of evaluations of the model per sample in a solve of `steps` steps, the denoising included."""
    full = steps - 1 if sampler.denoise else steps
    return sampler.evaluations * full + (1 if sampler.denoise else 0)


def blend(path: AffinePath, t: Array, like: Batched, ends: Ends) -> Batched:
    """The point alpha x1 + sigma x0 + gamma z of the path at time t; gamma z is left out if `ends` has no z."""
    r = path.rates(t, like)
    x = r.alpha * ends.x1 + r.sigma * ends.x0
    return x if ends.z is None else x + path.noise_rates(t, like).gamma * ends.z
