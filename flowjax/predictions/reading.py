"""Models on paths: what both ends of a path give, and a network read as such a model.

Anything with a `path` and `ends(t, x, cond)` gets its velocity, its score and its interval from `PathModel`. A network
becomes such a model by `read`, and a function that returns `Ends` by `model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowjax.abilities import Ends, HasEnds, interval_of
from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.precision import at_least_float32
from flowjax.predictions.kinds import Denoiser, Prediction, velocity
from flowjax.spaces import Space
from flowjax.typing import Apply, Array, Batched, Cond, Time

__all__ = [
    "DenoiserModel",
    "PathModel",
    "Reading",
    "VelocityField",
    "model",
    "no_score",
    "read",
    "score_of",
]


class PathModel:
    """What follows from a `path` and `ends(t, x, cond)`: velocity, score and interval. A base class for models.

    A subclass is a frozen dataclass with a field or property `path` and a method `ends`. Solvers compile once for equal
    models, so its fields must be hashable, or the class must compare by identity (`eq=False`).
    """

    @property
    def interval(self: HasEnds) -> tuple[float, float]:
        """The times at which the model can be asked: those of its path."""
        return self.path.t_min, self.path.t_max

    @property
    def velocity(self: HasEnds) -> "VelocityField":
        """The marginal velocity: called as `velocity(t, x, cond)`, with the times at which it is defined."""
        return VelocityField(self)

    @property
    def velocity_is_direct(self) -> bool:
        """Whether the velocity is computed without the ends."""
        return False

    def compute_velocity(self: HasEnds, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The velocity at (t, x), which `velocity` calls: alpha' E[x1 | x] + sigma' E[x0 | x] + gamma' E[z | x].

        A subclass that knows a shorter way overrides it, and says so by `velocity_is_direct`.
        """
        return velocity.from_ends(self.path, t, at_least_float32(x), self.ends(t, x, cond))

    def score(self: HasEnds, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """grad log p_t(x), from the ends: see `score_of`.

        Raises:
            ValueError: where there is no score.
        """
        return score_of(self.path, t, at_least_float32(x), self.ends(t, x, cond))

    @property
    def missing(self: HasEnds) -> Mapping[str, str]:
        """A path without a score leaves its models without one."""
        return {} if self.path.has_score else {"score": no_score(self.path)}


@dataclass(frozen=True)
class VelocityField:
    """The velocity of a model on a path, as a function `velocity(t, x, cond)` with its own interval.

    Equal for equal models, so that solvers compile it once.
    """

    model: Any

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which the velocity is defined, over which `solve_ode` integrates by default."""
        return interval_of(self.model)

    @property
    def space(self) -> Space:
        """The space in which it moves."""
        return self.model.path.space

    def __call__(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        return self.model.compute_velocity(t, x, cond)


@dataclass(frozen=True)
class Reading(PathModel):
    """A network read through its path; see `read`. Its interval is where that is well conditioned."""

    apply: Apply
    path: AffinePath
    prediction: Prediction

    @property
    def interval(self) -> tuple[float, float]:
        return self.prediction.interval(self.path)

    @property
    def velocity_is_direct(self) -> bool:
        return self.prediction.to_velocity is not None

    @property
    def missing(self) -> Mapping[str, str]:
        known = self.path.has_score and (self.path.noise is None or self.prediction.noise == "required")
        return {} if known else {"score": no_score(self.path)}

    def output(self, t: Time, x: Batched, cond: Cond = None) -> Array:
        """What the network returns at (t, x), in at least float32."""
        return at_least_float32(self.apply(t, self.prediction.inputs(self.path, t, x), cond))

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        x = at_least_float32(x)
        return self.prediction.to_ends(self.path, t, x, self.output(t, x, cond))

    def compute_velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        if self.prediction.to_velocity is None:
            return super().compute_velocity(t, x, cond)
        x = at_least_float32(x)
        return self.prediction.to_velocity(self.path, t, x, self.output(t, x, cond))


def read(apply: Apply, path: AffinePath, prediction: Prediction) -> Reading:
    """A network as a model: its output read as both ends of the path, and as a velocity.

    The velocity of a network that predicts it is the network's output; other predictions go through the ends.

    Args:
        apply: the network with its parameters bound, `apply(t, x, cond)`, of any float dtype: a function, or an
            object with a method `with_forward_mode` (`flowjax.abilities.in_forward_mode`) where its kernels need it.
        path: the path it was trained on.
        prediction: what it predicts.

    Returns:
        A model with ends, a velocity, and where the path has one a score; its conversions are done in at least float32.
    """
    return Reading(apply, path, prediction)


@dataclass(frozen=True)
class DenoiserModel(PathModel):
    """A function that returns the ends, as a model; see `model`."""

    denoiser: Denoiser
    path: AffinePath

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        return self.denoiser(t, x, cond)


def model(denoiser: Denoiser, path: AffinePath) -> DenoiserModel:
    """A plain function `denoiser(t, x, cond) -> Ends` as a model of `path`.

    Args:
        denoiser: returns the posterior means of both ends, and of z where the path has noise and the score is needed.
        path: whose ends they are.
    """
    return DenoiserModel(denoiser, path)


def score_of(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    """grad log p_t(x) from the ends: -E[z | x] / gamma on a path with noise, -E[x0 | x] / sigma on a Gaussian path.

    Raises:
        ValueError: where there is no score: on any other path, or if E[z | x] is not known.
    """
    if ends.z is not None:
        return -ends.z / path.noise_rates(t, x).gamma
    if isinstance(path, GaussianPath):
        return -ends.x0 / path.rates(t, x).sigma
    raise ValueError(no_score(path))


def no_score(path: AffinePath) -> str:
    """Why there is no score, and what to do."""
    if path.noise is not None:
        return "a velocity alone has no score on a path with noise: train prediction 'velocity_score'"
    return (
        "this path has no score: that takes a source N(0, I) independent of the data (path 'gaussian'), or noise on "
        "the path with prediction 'velocity_score'"
    )
