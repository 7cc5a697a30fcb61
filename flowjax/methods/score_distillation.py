"""Score distillation: a trained teacher becomes a generator in one evaluation, by matching distributions at all noise
levels (DMD: Yin et al. 2023, arXiv:2311.18828; DMD2: Yin et al. 2024, arXiv:2405.14867; SiD: Zhou et al. 2024,
arXiv:2404.04057). The loss uses no data, only their conditions.

The generator is the network read as the posterior mean of the data at one time tau, for x0 of the prior:

    (1)  G(x0) = E[x1 | x_tau = sigma(tau) / sigma(t_min) x0],    for straight paths and tau = 0:  x0 + net(0, x0)

Samples x = G(x0) are noised to x_t = alpha x + sigma z. A second network, the fake one, is trained on them with the
squared error of the prediction, so that its posterior mean f(x_t) becomes that of the generator's distribution. With
the posterior mean h(x_t) of the teacher, the two scores differ by alpha (f - h) / sigma^2. `dmd` follows the gradient
of the Kullback-Leibler divergence between the two distributions at time t (DMD, eq. 7, with the weight of eq. 8):

    (2)  grad L = E[alpha (f - h) / c  dG/dw],    c = the mean of |x - h| over the coordinates

`sid` minimises a Fisher divergence, with gradients through x_t in both means and the factor a = `sid_alpha` of SiD:

    (3)  L = E[((1 - a) |h - f|^2 + (h - f) (f - x)) / c]

In both, the sums over coordinates are means. No gradient reaches the fake network from (2) and (3), and none reaches
the generator from the loss of the fake network. The loss is the sum of both. The time of the papers runs from the data
to the noise. The regression and the adversarial loss of DMD and DMD2 are left out. The fake network is updated more
often, as in DMD2. Both networks should start from the teacher, with `train.start_from`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch
from flowjax.errors import ConfigError, lookup
from flowjax.methods.base import BoundNetwork, Context, Group, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.methods.draw import row_mean_square
from flowjax.methods.generator import GeneratorModel, context_of, init_networks
from flowjax.methods.teacher import check_guidance, teacher_velocity
from flowjax.methods.times import UNIFORM, Times, plain_times
from flowjax.models.functional import Variables
from flowjax.paths.affine import GaussianPath, expand
from flowjax.precision import at_least_float32
from flowjax.predictions import Prediction, velocity
from flowjax.ranges import Range
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["LOSSES", "ScoreDistillation"]

Rows = Float[Array, " B"]
_freeze = jax.lax.stop_gradient


def _dmd(x: Batched, real: Batched, fake: Batched, alpha: Array, sid_alpha: float) -> Rows:
    """Equation (2), as the square of a difference whose gradient it is."""
    scale = _scale(x, real)
    target = _freeze(x - alpha * (fake - real) / scale)
    return 0.5 * row_mean_square(x - target)


def _sid(x: Batched, real: Batched, fake: Batched, alpha: Array, sid_alpha: float) -> Rows:
    """Equation (3), divided by the number of coordinates."""
    apart = real - fake
    return _row_mean(((1 - sid_alpha) * apart**2 + apart * (fake - x)) / _scale(x, real))


def _row_mean(x: Batched) -> Rows:
    return jnp.mean(x.reshape(x.shape[0], -1), -1)


def _scale(x: Batched, real: Batched) -> Array:
    """The number c of equations (2) and (3) for each row."""
    return _freeze(expand(jnp.maximum(_row_mean(jnp.abs(x - real)), 1e-6), x))


LOSSES: dict[str, Callable[[Batched, Batched, Batched, Array, float], Rows]] = {"dmd": _dmd, "sid": _sid}
"""The values of the setting `loss`: functions of the samples, the posterior means of the teacher and of the fake
network, alpha, and `sid_alpha`."""


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        teacher: the workdir of the trained run that is distilled.
        guidance: the scale of the teacher's classifier-free guidance; 1 for none.
        loss: how the generator is trained: `dmd` or `sid`.
        sid_alpha: the number a of the loss `sid`.
        times: the distribution of the times to which generated samples are noised.
        time: the time tau at which the generator's network is evaluated. At 0 the teacher predicts the mean of the data
            from every x0, so a later time is a better start.
        fake_rate: the learning rate of the fake network divided by that of the generator.
        generator_every: the number of updates of the fake network for one update of the generator.
    """

    teacher: str = ""
    guidance: Annotated[float, Range(0, 1000)] = 1.0
    loss: str = "dmd"
    sid_alpha: Annotated[float, Range(-10, 10)] = 1.2
    times: str = "uniform"
    time: Annotated[float, Range(0, 0.99)] = 0.25
    fake_rate: Annotated[float, Range(1e-3, 1e3)] = 1.0
    generator_every: Annotated[int, Range(1, 1000)] = 5


@dataclass(frozen=True)
class ScoreDistillation(MethodDefaults):
    """Distillation of a teacher into a generator.

    Attributes:
        network: the network of the generator, `network(t, x, cond)`.
        fake: the fake network, `fake(t, x, cond)`.
        noising: the path of the teacher. The model of the generator has no path, as it is defined at one time only.
        source: the distribution of z.
        prediction: the quantity that both networks predict.
        teacher: the method of the run that is distilled.
        drawn: the distribution of the times t.
        row_loss: the loss of the generator.
        guidance, sid_alpha, time, fake_rate, generator_every: as in `Settings`.
    """

    network: Network
    fake: Network
    noising: GaussianPath
    source: Source
    prediction: Prediction = velocity
    teacher: Any = None
    drawn: Times = UNIFORM
    row_loss: Callable[..., Rows] = _dmd
    guidance: float = 1.0
    sid_alpha: float = 1.2
    time: float = 0.25
    fake_rate: float = 1.0
    generator_every: int = 5

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "prediction", "model")
    comparable_loss: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("generator_loss", "fake_loss", "difference")
    sampler: ClassVar[str] = "push_forward"

    @classmethod
    def from_config(cls, parts: Components) -> "ScoreDistillation":
        settings, path, prediction = parts.settings, parts.path, parts.prediction
        what = "method.name 'score_distillation'"
        if not isinstance(path, GaussianPath):
            raise ConfigError(f"{what} needs a Gaussian path: use source.name 'normal' and no path.noise")
        if prediction.heads > 1:
            raise ConfigError(f"{what} needs a prediction of one array, such as 'velocity'")
        drawn = plain_times(parts, settings.times)
        if parts.teacher is None:
            raise ConfigError(f"{what} distils a trained run: set method.teacher to its workdir")
        check_guidance(parts, settings.guidance)
        loss = lookup("method.loss", settings.loss, LOSSES)
        own = settings.guidance, settings.sid_alpha, settings.time, settings.fake_rate, settings.generator_every
        networks = parts.network(), parts.network()
        return cls(*networks, path, parts.source, prediction, parts.teacher, drawn, loss, *own)

    @property
    def prior(self) -> Source:
        return self.noising.prior(self.source)

    @property
    def groups(self) -> Mapping[str, Group]:
        return {"network": Group(every=self.generator_every), "fake": Group(rate=self.fake_rate)}

    def init(self, key: PRNGKey) -> Variables:
        return init_networks(key, {"network": self.network, "fake": self.fake})

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_prior, key_noise, key_time, key_generator, key_fake = jax.random.split(key, 5)
        path, prediction, cond, n = self.noising, self.prediction, batch.cond, batch.x1.shape[0]
        interval = prediction.interval(path)
        x0 = self.prior.sample(key_prior, n).astype(batch.x1.dtype)
        of_generator, of_fake = context_of(context, "network"), context_of(context, "fake")

        def generator(t: Array, x: Batched, cond: Cond) -> tuple[Array, PyTree]:
            return self.network(params["network"], of_generator, t, x, cond, key=key_generator)

        x, state = generate(generator, path, prediction, self.time, x0, cond)
        t = self.drawn(key_time, n, path, interval).t
        p = path.sample(None, t, self.source.sample(key_noise, n).astype(x.dtype), x)

        fixed = _freeze(p)
        inputs = prediction.inputs(path, t, fixed.x_t)
        output, fake_state = self.fake(params["fake"], of_fake, t, inputs, cond, key=key_fake)
        error = row_mean_square(output - prediction.target(path, fixed))
        fake_loss = jnp.mean(prediction.weight(path, t) * error)

        frozen = self.fake(_freeze(params["fake"]), of_fake, t, prediction.inputs(path, t, p.x_t), cond, key=key_fake)
        fake = prediction.to_ends(path, t, p.x_t, frozen[0]).x1
        taught = teacher_velocity(self.teacher, context, t, p.x_t, cond, self.guidance)
        real = velocity.to_ends(path, t, p.x_t, taught).x1
        generator_loss = jnp.mean(self.row_loss(x, real, fake, path.rates(t, x).alpha, self.sid_alpha))
        difference = jnp.sqrt(jnp.mean((fake - real) ** 2))
        metrics = {"generator_loss": generator_loss, "fake_loss": fake_loss, "difference": difference}
        return Loss(generator_loss + fake_loss, metrics, {"network": state, "fake": fake_state})

    def model(self, params: Params, state: PyTree) -> GeneratorModel:
        network = self.network.bind(params["network"], state.get("network", {}))
        return GeneratorModel(_Generate(network, self.noising, self.prediction, self.time))


def generate(
    network: Callable[..., tuple[Array, PyTree]],
    path: GaussianPath,
    prediction: Prediction,
    time: float,
    x0: Batched,
    cond: Cond,
) -> tuple[Batched, PyTree]:
    """Equation (1).

    Args:
        network: `network(t, x, cond) -> (output, state)`.
        path, prediction: the path, and the meaning of the output.
        time: the time tau; it is moved into the interval on which the prediction is well conditioned.
        x0: samples of the prior, (B, *event).
        cond: the condition.

    Returns:
        The samples, and the state that the network has returned.
    """
    low, high = prediction.interval(path)
    t = jnp.full(x0.shape[0], min(max(time, low), high))
    x0 = at_least_float32(x0)
    x = x0 * path.rates(t, x0).sigma / path.rates(path.t_min, x0).sigma
    output, state = network(t, prediction.inputs(path, t, x), cond)
    return prediction.to_ends(path, t, x, at_least_float32(output)).x1, state


@dataclass(frozen=True)
class _Generate:
    """Equation (1) for trained parameters."""

    network: BoundNetwork
    path: GaussianPath
    prediction: Prediction
    time: float

    def __call__(self, x0: Batched, cond: Cond = None) -> Batched:
        network = lambda t, x, cond: (self.network(t, x, cond), None)
        return generate(network, self.path, self.prediction, self.time, x0, cond)[0]
