"""A network read through its path: as a denoiser, and from the ends as a velocity and a score."""

from dataclasses import dataclass

from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.precision import at_least_float32
from flowjax.predictions.kinds import Denoiser, Ends, Prediction, velocity
from flowjax.typing import Apply, Batched, Cond, Field, Time


@dataclass(frozen=True)
class Reading:
    """A network read as a denoiser; `defined_on` are the times at which that is well conditioned."""

    apply: Apply
    path: AffinePath
    prediction: Prediction

    @property
    def defined_on(self) -> tuple[float, float]:
        return self.prediction.interval(self.path)

    def __call__(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        x = at_least_float32(x)
        output = at_least_float32(self.apply(t, self.prediction.inputs(self.path, t, x), cond))
        return self.prediction.to_ends(self.path, t, x, output)


def read(apply: Apply, path: AffinePath, prediction: Prediction) -> Reading:
    """What the network's output means: its reading as both ends of the path.

    Args:
        apply: the network with its parameters bound, `apply(t, x, cond)`; of any float dtype.
        path: the path it was trained on.
        prediction: what it predicts.

    Returns:
        A denoiser; its conversions are done in at least float32.
    """
    return Reading(apply, path, prediction)


def defined_on(denoiser: Denoiser) -> tuple[float, float]:
    """The times at which a denoiser can be asked: a network's own, through any guidance; all of them for another."""
    return getattr(denoiser, "defined_on", (0.0, 1.0))


@dataclass(frozen=True)
class VelocityField:
    """See `field`. Equal for an equal denoiser and path, so that solvers compile it once."""

    denoiser: Denoiser
    path: AffinePath

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which the velocity is defined: those of the path at which the denoiser is defined too."""
        low, high = defined_on(self.denoiser)
        return max(self.path.t_min, low), min(self.path.t_max, high)

    def __call__(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        return velocity.from_ends(self.path, t, at_least_float32(x), self.denoiser(t, x, cond))


def field(denoiser: Denoiser, path: AffinePath) -> VelocityField:
    """The marginal velocity v(t, x, cond) = alpha' E[x1 | x] + sigma' E[x0 | x] + gamma' E[z | x] of a denoiser.

    Its `interval` is what `solve_ode` and `log_prob` integrate over by default.
    """
    return VelocityField(denoiser, path)


def score_of(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    """grad log p_t(x) from the ends: -E[z | x] / gamma on a path with noise, -E[x0 | x] / sigma on a Gaussian path.

    Raises:
        ValueError: where there is no score: on any other path, or if the denoiser does not know E[z | x].
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


def score_field(denoiser: Denoiser, path: AffinePath) -> Field:
    """The score grad log p_t(x) of a denoiser: (t, x, cond) -> (B, *event); see `score_of`."""

    def s(t: Time, x: Batched, cond: Cond = None) -> Batched:
        return score_of(path, t, at_least_float32(x), denoiser(t, x, cond))

    return s
