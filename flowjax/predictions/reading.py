"""Models on paths: the velocity and the score that follow from the posterior means of both ends.

`PathModel` is the base class: it derives the velocity, the score and the time interval from a `path` and a method
`ends(t, x, cond)`. `read` turns a network into such a model, and `model` a function that returns `Ends`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flowjax.abilities import Ends, HasEnds, VelocityField
from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.precision import at_least_float32
from flowjax.predictions.kinds import Denoiser, Prediction, velocity
from flowjax.typing import Apply, Array, Batched, Cond, Time

__all__ = [
    "DenoiserModel",
    "PathModel",
    "Reading",
    "model",
    "no_score",
    "read",
    "score_of",
]


class PathModel:
    """Base class of models that derives the velocity, score and time interval from `path` and `ends(t, x, cond)`.

    A subclass is a frozen dataclass with a field or property `path` and a method `ends`. Solvers reuse the compiled
    program for equal models, so the fields must be hashable, or the class must compare by identity (`eq=False`).
    """

    @property
    def interval(self: HasEnds) -> tuple[float, float]:
        """The first and the last time at which the model can be evaluated: those of its path."""
        return self.path.t_min, self.path.t_max

    @property
    def velocity(self: HasEnds) -> VelocityField:
        """The marginal velocity as a function `velocity(t, x, cond)` that also has an `interval` of times."""
        return VelocityField(self)

    @property
    def velocity_is_direct(self) -> bool:
        """Whether the velocity is computed without going through the ends."""
        return False

    def compute_velocity(self: HasEnds, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The implementation of `velocity`: alpha' E[x1 | x] + sigma' E[x0 | x] + gamma' E[z | x].

        A subclass that can compute the velocity directly overrides this method and `velocity_is_direct`.
        """
        return velocity.from_ends(self.path, t, at_least_float32(x), self.ends(t, x, cond))

    def score(self: HasEnds, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The score grad log p_t(x), (B, *event), computed from the ends by `score_of`.

        Raises:
            ValueError: if the score does not follow from the ends.
        """
        return score_of(self.path, t, at_least_float32(x), self.ends(t, x, cond))

    @property
    def missing(self: HasEnds) -> Mapping[str, str]:
        """The abilities that this model lacks, with the reasons: the score, if the path has none."""
        return {} if self.path.has_score else {"score": no_score(self.path)}


@dataclass(frozen=True)
class Reading(PathModel):
    """A network as a model on its path, made by `read`.

    Attributes:
        apply: the network with its parameters bound, `apply(t, x, cond)`.
        path: the path on which it was trained.
        prediction: the meaning of its output; it restricts `interval` to the times at which it is well conditioned.
    """

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
        """The network's output at (t, x), in at least float32."""
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
    """Turns a network into a model with ends, a velocity and, if the path has one, a score.

    If the network predicts the velocity, the velocity is the network's output. Otherwise it is computed from the ends.

    Args:
        apply: the network with its parameters bound, `apply(t, x, cond)`, of any float dtype. It is a function, or an
            object with a method `with_forward_mode` if its kernels do not support forward-mode differentiation
            (`flowjax.abilities.with_forward_mode`).
        path: the path on which the network was trained.
        prediction: the meaning of the network's output.

    Returns:
        The model. Conversions are computed in at least float32.
    """
    return Reading(apply, path, prediction)


@dataclass(frozen=True)
class DenoiserModel(PathModel):
    """A function that returns the ends, as a model; made by `model`.

    Attributes:
        denoiser: the function `denoiser(t, x, cond) -> Ends`.
        path: the path that these ends belong to.
    """

    denoiser: Denoiser
    path: AffinePath

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        return self.denoiser(t, x, cond)


def model(denoiser: Denoiser, path: AffinePath) -> DenoiserModel:
    """Turns a function `denoiser(t, x, cond) -> Ends` into a model on `path`.

    Args:
        denoiser: returns the posterior means of both ends, and that of z if the path has noise and a score is needed.
        path: the path that these ends belong to.
    """
    return DenoiserModel(denoiser, path)


def score_of(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    """The score grad log p_t(x) from the ends, by Tweedie's formula.

    It is -E[z | x] / gamma on a path with noise and -E[x0 | x] / sigma on a Gaussian path.

    Args:
        path: the path.
        t: scalar or (B,).
        x: points at time t, (B, *event).
        ends: the posterior means at (t, x).

    Returns:
        The score, (B, *event).

    Raises:
        ValueError: if the path is of neither kind, or has noise and E[z | x] is not known.
    """
    if ends.z is not None:
        return -ends.z / path.noise_rates(t, x).gamma
    if isinstance(path, GaussianPath):
        return -ends.x0 / path.rates(t, x).sigma
    raise ValueError(no_score(path))


def no_score(path: AffinePath) -> str:
    """An error message that says why there is no score on `path` and what would give one."""
    if path.noise is not None:
        return (
            "the score does not follow from the velocity on a path with noise: train with prediction 'velocity_score'"
        )
    return (
        "this path has no score: a score needs a source N(0, I) independent of the data (path 'gaussian'), or noise on "
        "the path together with prediction 'velocity_score'"
    )
