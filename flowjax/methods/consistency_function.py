"""The consistency function of a network with one time, which the consistency methods train.

Let X(t, u, x) be the point at time u of the trajectory of the flow that is at x at time t. A consistency model learns
f(t, x) = X(t, t_max, x), where t_max is the last time of the path. A network whose output determines the posterior
means x1 and x0 of both ends of the path (`flowjax.predictions`), with x = alpha x1 + sigma x0, gives

    (1)  f(t, x) = x + (alpha(t_max) - alpha(t)) x1(t, x) + (sigma(t_max) - sigma(t)) x0(t, x)

which is x at t = t_max whatever the network returns. Where alpha(t_max) = 1 and sigma(t_max) = 0, f is x1 itself, so
that a trained flow matching or diffusion network starts as f(t, x) = E[x1 | x_t = x]. For the prediction `velocity` on
the schedule `condot`, (1) is x + (1 - t) network(t, x); for `edm` on a schedule with alpha = 1, it is the
parametrisation c_skip x + c_out F of Song et al. 2023 (arXiv:2303.01469, eq. 5 and appendix C) up to their shift of the
noise level by its smallest value.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.errors import ConfigError
from flowjax.methods.base import BoundNetwork, Context, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.teacher import check_guidance
from flowjax.methods.times import UNIFORM, Times, plain_times
from flowjax.paths.affine import AffinePath
from flowjax.precision import at_least_float32
from flowjax.predictions import Prediction, velocity
from flowjax.ranges import Range
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Output, Params, PRNGKey, PyTree, Time

__all__ = ["ConsistencyMethod", "ConsistencyModel", "ConsistencySettings", "consistency_function", "consistency_parts"]


def consistency_function(path: AffinePath, prediction: Prediction, t: Time, x: Batched, output: Output) -> Batched:
    """f(t, x) of equation (1).

    Args:
        path: the path, without noise.
        prediction: the meaning of the network's output.
        t: scalar or (B,).
        x: points at time t, (B, *event).
        output: the network's output at (t, x).
    """
    ends = prediction.to_ends(path, t, x, output)
    now, last = path.rates(t, x), path.rates(jnp.full_like(jnp.asarray(t, x.dtype), path.t_max), x)
    return x + (last.alpha - now.alpha) * ends.x1 + (last.sigma - now.sigma) * ends.x0


@dataclass(frozen=True)
class ConsistencyModel:
    """A model of the map of the flow to the last time of its path, with the ability `to_data`.

    Attributes:
        network: the network with its parameters bound, `network(t, x, cond) -> output`.
        path: the path on which it was trained.
        prediction: the meaning of its output.
    """

    network: BoundNetwork
    path: AffinePath
    prediction: Prediction

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and the largest time."""
        return self.prediction.interval(self.path)

    def to_data(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """f(t, x), the point at the last time of the trajectory that is at x at time t."""
        x = at_least_float32(x)
        output = at_least_float32(self.network(t, self.prediction.inputs(self.path, t, x), cond))
        return consistency_function(self.path, self.prediction, t, x, output)


@dataclass(frozen=True)
class ConsistencySettings:
    """The keys that all methods with a consistency function have.

    Attributes:
        teacher: the workdir of a trained run whose velocity is distilled; "" to train without a teacher.
        guidance: the scale of the teacher's classifier-free guidance; 1 for none.
    """

    teacher: str = ""
    guidance: Annotated[float, Range(0, 1000)] = 1.0


@dataclass(frozen=True)
class ConsistencyMethod(PathMethod):
    """Base class of the methods that train a consistency function: the model, and how it is evaluated in a loss.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source: the Gaussian path of x_t and the distribution of x0.
        prediction: the meaning of the network's output.
        drawn: the distribution of the drawn times.
        teacher: the method of the run whose velocity is distilled, or None.
        guidance: as in `ConsistencySettings`.
    """

    network: Network
    path: AffinePath
    source: Source
    prediction: Prediction = velocity
    drawn: Times = UNIFORM
    teacher: Any = None
    guidance: float = 1.0

    sections: ClassVar[tuple[str, ...]] = ("source", "path", "prediction", "model")
    sampler: ClassVar[str] = "consistency"
    steps: ClassVar[int | None] = 1

    @property
    def interval(self) -> tuple[float, float]:
        return self.prediction.interval(self.path)

    def output(
        self, params: Params, context: Context, t: Float[Array, " B"], x: Batched, cond: Cond, key: PRNGKey
    ) -> tuple[Output, PyTree]:
        """The network's output at (t, x) in at least float32, and the state after the call.

        Evaluations with the same key have the same dropout.
        """
        inputs = self.prediction.inputs(self.path, t, x)
        output, state = self.network(params, context, t, inputs, cond, key=key)
        return at_least_float32(output), state

    def model(self, params: Params, state: PyTree) -> ConsistencyModel:
        return ConsistencyModel(self.network.bind(params, state), self.path, self.prediction)


def consistency_parts(parts: Components, name: str) -> dict[str, Any]:
    """The parts of a config that all methods with a consistency function have, by the names of their attributes.

    Args:
        parts: the parts of the config, whose settings have `times`, `teacher` and `guidance`.
        name: `method.name`.

    Raises:
        ConfigError: if the path or the prediction determines no consistency function, if the distribution of times
            needs a learned profile, or if there is guidance without a teacher or without conditions.
    """
    settings, path, prediction, what = parts.settings, parts.path, parts.prediction, f"method.name {name!r}"
    if path.noise is not None or not path.has_score:
        raise ConfigError(
            f"{what} adds new noise N(0, I) between the steps of its sampler: use source.name 'normal' and leave "
            "path.noise empty"
        )
    if prediction.heads > 1:
        raise ConfigError(f"{what} needs a prediction with one head, not {prediction.name!r}: use 'velocity'")
    if prediction.interval(path)[1] < path.t_max:
        raise ConfigError(
            f"{what} needs a network that is defined at the last time of the path, and prediction "
            f"{prediction.name!r} is singular where sigma is 0: use 'velocity', 'v' or 'edm'"
        )
    times = plain_times(parts, settings.times)
    if settings.guidance != 1.0 and parts.teacher is None:
        raise ConfigError(
            f"method.guidance {settings.guidance:g} is the guidance of a teacher: set method.teacher, or use 1"
        )
    check_guidance(parts, settings.guidance)
    network, source = parts.network(prediction.heads), parts.source
    return {"network": network, "path": path, "source": source, "prediction": prediction, "drawn": times} | {
        "teacher": parts.teacher,
        "guidance": float(settings.guidance),
    }
