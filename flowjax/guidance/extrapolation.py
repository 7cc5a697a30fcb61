"""Guides that extrapolate between two predictions: classifier-free guidance and autoguidance.

Both are linear in the predictions. Where both models compute their velocity directly, without the ends, the velocities
are combined directly too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from flowjax.abilities import Ends, HasEnds, interval_of, missing_from
from flowjax.conditions import Field, without
from flowjax.guidance.guide import Guide
from flowjax.typing import Array, Batched, Cond, Time

__all__ = ["Auto", "ClassifierFree"]

T = TypeVar("T")


def _mix(base: Ends, to: Ends, scale: Array | float) -> Ends:
    """base + scale (to - base) for the ends and z; the learned variance is taken from `to`."""
    return Ends(
        *(_line(a, b, scale) for a, b in zip(base[:3], to[:3], strict=True)), variance_fraction=to.variance_fraction
    )


def _line(a: Any, b: Any, scale: Array | float) -> Any:
    return None if a is None or b is None else a + scale * (b - a)


def _is_direct(model: Any) -> bool:
    return getattr(model, "velocity_is_direct", False)


@dataclass(frozen=True)
class ClassifierFree(Guide):
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): uncond + scale (cond - uncond).

    The conditional and the unconditional prediction are computed in one batch of twice the size.

    Args:
        model: a model that was trained with its condition dropped at random (the `dropout` of its fields).
        scale: 0 is unconditional, 1 conditional.
        fields: the fields of the condition; the unconditional prediction uses the null value of each.
        guidance_interval: two times of the model's path in [0, 1]; outside of them the scale is 1 (Kynkaanniemi et al.
            2024, arXiv 2404.07724).
        rescale: between 0 and 1: how far the standard deviation of E[x1 | x_t] is moved back to that of the conditional
            prediction (Lin et al. 2024, arXiv 2305.08891, eq. 15-16, where it is applied to the network's output).
        names: the conditions that the unconditional prediction lacks; () for all fields. With one of several, the
            guidance moves samples towards this condition only, and keeps the others.
        uncond: a function from a condition to the condition of the unconditional prediction; it replaces `fields`.

    Raises:
        ValueError: if rescale or guidance_interval is out of range, and at evaluation without a condition or with a
            condition that is not in `fields`.
    """

    model: HasEnds
    scale: float
    fields: tuple[Field, ...] = ()
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    names: tuple[str, ...] = ()
    uncond: Callable[[Cond], Cond] | None = None

    def __post_init__(self):
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be between 0 and 1, not {self.rescale}")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"the guidance interval must be two times in order in [0, 1], not {low} and {high}")

    @property
    def velocity_is_direct(self) -> bool:
        return _is_direct(self.model) and not self.rescale

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        conditional, unconditional = self._both(self.model.ends, t, x, cond)
        mixed = _mix(unconditional, conditional, self._scale(t, x))
        return self._rescaled(t, x, mixed, conditional) if self.rescale else mixed

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        if not self.velocity_is_direct:
            return super().compute_velocity(t, x, cond)
        model: Any = self.model  # it has a velocity, because that is direct
        conditional, unconditional = self._both(model.velocity, t, x, cond)
        return _line(unconditional, conditional, self._scale(t, x))

    def _both(self, predict: Callable[[Time, Batched, Cond], T], t: Time, x: Batched, cond: Cond) -> tuple[T, T]:
        """The predictions with and without the condition."""
        if not jax.tree.leaves(cond):
            raise ValueError("classifier-free guidance needs a condition: pass cond={'label': labels}")
        twice = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, self._unconditional(cond))
        times = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        both = predict(times, jnp.concatenate([x, x]), twice)
        n = x.shape[0]
        half = lambda part: jax.tree.map(lambda a: a[part], both)
        return half(slice(0, n)), half(slice(n, None))

    def _unconditional(self, cond: Any) -> Cond:
        if self.uncond is not None:
            return self.uncond(cond)
        unknown = [name for name in cond if name not in {f.name for f in self.fields}]
        if unknown:
            raise ValueError(
                f"there is no null value for the condition {', '.join(unknown)}: pass fields=(its "
                "flowjax.conditions.Field, ...), or uncond=(a function from cond to the unconditional condition)"
            )
        return without(cond, self.fields, self.names or None)

    def _scale(self, t: Time, x: Batched) -> Array:
        """The scale at t, with trailing axes so that it multiplies x."""
        low, high = self.guidance_interval
        scale = jnp.where((jnp.asarray(t) >= low) & (jnp.asarray(t) <= high), self.scale, 1.0)
        return scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) if scale.ndim else scale

    def _rescaled(self, t: Time, x: Batched, mixed: Ends, with_cond: Ends) -> Ends:
        axes = tuple(range(1, x.ndim))
        ratio = with_cond.x1.std(axes, keepdims=True) / jnp.maximum(mixed.x1.std(axes, keepdims=True), 1e-12)
        x1 = mixed.x1 * (self.rescale * ratio + 1 - self.rescale)
        r = self.path.rates(t, x)
        at_data = r.sigma == 0
        x0 = mixed.x0 - jnp.where(at_data, 0.0, r.alpha / jnp.where(at_data, 1.0, r.sigma)) * (x1 - mixed.x1)
        return mixed._replace(x0=x0, x1=x1)


@dataclass(frozen=True)
class Auto(Guide):
    """Autoguidance (Karras et al. 2024, arXiv 2406.02507): weak + scale (strong - weak).

    Args:
        model: the strong network.
        weak: a smaller or less trained network on the same path.
        scale: 1 is the strong network without guidance; larger values move away from the weak network's prediction.
    """

    model: HasEnds
    weak: HasEnds
    scale: float

    @property
    def interval(self) -> tuple[float, float]:
        strong, weak = interval_of(self.model), interval_of(self.weak)
        return max(strong[0], weak[0]), min(strong[1], weak[1])

    @property
    def velocity_is_direct(self) -> bool:
        return _is_direct(self.model) and _is_direct(self.weak)

    @property
    def missing(self) -> Mapping[str, str]:
        return {**missing_from(self.weak), **missing_from(self.model)}

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        return _mix(self.weak.ends(t, x, cond), self.model.ends(t, x, cond), self.scale)

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        if not self.velocity_is_direct:
            return super().compute_velocity(t, x, cond)
        models: tuple[Any, Any] = self.weak, self.model
        weak, strong = (model.velocity(t, x, cond) for model in models)
        return _line(weak, strong, self.scale)
