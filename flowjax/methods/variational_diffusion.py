"""Variational diffusion models: the bound in continuous time, with a learned schedule (Kingma et al. 2021,
arXiv:2107.00630).

The loss is the middle term of the bound of `flowjax.bits.continuous`, in nats per dimension,

    (1)  L = E [ |e - e_hat(z)|^2 / (2 D rho(l)) ],   l ~ rho,   z = alpha c + sigma e at the log-SNR l

The other two terms have no parameters: the path is fixed, and the log-SNR runs between two fixed ends. At the last one
half of a bin is four standard deviations of the noise, so that z determines the integers. The integral does not depend
on how the log-SNR is drawn: a schedule l(s) with s ~ U(0, 1) has the density rho = 1 / l'(s). The schedule is learned
so that one draw per example has little variance, as in section 5.1 of the paper, which descends the expected square of
the loss. Here the schedule is piecewise linear (`LogSnrDensity`). With the loss w of one example,

    (2)  d/d rho  E w^2 = -E [ w^2 d log rho(l) ]

since E w^2 is an integral of m(l) / rho(l), where m does not depend on rho. So the gradient of -w^2 log rho(l), with
w^2 held fixed, descends the variance and needs no derivative of the network. The best density is proportional to
sqrt(m).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch, check_floating
from flowjax.bits import Bins, LogSnrDensity, time_of_truncated_normal
from flowjax.errors import ConfigError
from flowjax.methods.base import Context, Loss, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import row_mean_square
from flowjax.methods.times import Interval
from flowjax.models.functional import Variables
from flowjax.paths.affine import GaussianPath
from flowjax.predictions import Prediction, Reading, well_conditioned
from flowjax.ranges import Range
from flowjax.schedules import clip_time
from flowjax.sources import Source
from flowjax.typing import Params, PRNGKey, PyTree

__all__ = ["VariationalDiffusion", "VariationalDiffusionModel"]


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        bins: number of pieces of the learned schedule, of equal lengths in log-SNR; 1 for a log-SNR that is linear.
    """

    bins: Annotated[int, Range(1, 4096)] = 32


@dataclass(frozen=True)
class VariationalDiffusion(PathMethod):
    """The bound of variational diffusion models for integers, without its two terms that have no parameters.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source: a Gaussian path from N(0, I).
        prediction: a prediction with one head that determines both ends.
        integers: the bins of the integers in model space.
        bins: number of pieces of the learned schedule.
    """

    network: Network
    path: GaussianPath
    source: Source
    prediction: Prediction
    integers: Bins
    bins: int = 32

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "prediction", "model")
    metrics: ClassVar[tuple[str, ...]] = ("loss_std",)
    bound: ClassVar[str] = "vdm(20)"

    @classmethod
    def from_config(cls, parts: Components) -> "VariationalDiffusion":
        prediction, path, integers = parts.prediction, parts.path, parts.spec.bins
        if not isinstance(path, GaussianPath):
            raise ConfigError(
                "method.name 'variational_diffusion' needs a Gaussian path: use source.name 'normal' and no path.noise"
            )
        if prediction.heads > 1:
            raise ConfigError(
                f"method.name 'variational_diffusion' needs a prediction with one head, not {prediction.name!r}: use "
                "'noise' or 'v'"
            )
        if integers is None or not integers.complete or parts.spec.dequantisation != "none":
            raise ConfigError(
                "method.name 'variational_diffusion' bounds the probabilities of integers, whose noise is that of the "
                "path: use images or other data that are all integers, with data.dequantisation 'none'"
            )
        return cls(parts.network(), path, parts.source, prediction, integers, parts.settings.bins)

    @property
    def interval(self) -> Interval:
        low, high = self.prediction.interval(self.path)
        low = max(low, well_conditioned(self.path, alpha=True)[0])
        return low, min(high, time_of_truncated_normal(self.path, self.integers, (low, high)))

    def density(self, logits: Float[Array, " K"]) -> LogSnrDensity:
        """The density of the log-SNR, between those at both ends of the interval."""
        with jax.ensure_compile_time_eval():
            low, high = (float(self.path.schedule.log_snr(t)) for t in self.interval)
        return LogSnrDensity(low, high, logits)

    def init(self, key: PRNGKey) -> Variables:
        params, state = self.network.init(key)
        return Variables({"network": params, "log_snr": jnp.zeros(self.bins)}, state)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_s, key_e = jax.random.split(key)
        x1, n = batch.x1, batch.x1.shape[0]
        check_floating(x1=x1)
        density, fixed = (self.density(f(params["log_snr"])) for f in (lambda a: a, jax.lax.stop_gradient))
        log_snr = fixed.schedule((jnp.arange(n) / n + jax.random.uniform(key_s)) % 1)  # stratified over the batch
        t = jnp.clip(clip_time(self.path.schedule, log_snr), *self.interval)
        p = self.path.sample(None, t, self.source.sample(key_e, n), x1)
        inputs = self.prediction.inputs(self.path, t, p.x_t)
        output, state = self.network(params["network"], context, t, inputs, batch.cond, key=key)
        ends = self.prediction.to_ends(self.path, t, p.x_t, output)
        rows = 0.5 * row_mean_square(ends.x0 - p.x0) * jnp.exp(-fixed.log_density(log_snr))
        square = jax.lax.stop_gradient(rows**2)
        spread = -jnp.mean(square * density.log_density(log_snr)) / jnp.mean(square)
        value = jnp.mean(rows) + spread - jax.lax.stop_gradient(spread)  # adds gradients of the schedule, value 0
        return Loss(value, {"loss_std": jnp.std(rows)}, state)

    def model(self, params: Params, state: PyTree) -> "VariationalDiffusionModel":
        network = self.network.bind(params["network"], state)
        return VariationalDiffusionModel(network, self.path, self.prediction, self.interval, params["log_snr"])


@dataclass(frozen=True, eq=False)
class VariationalDiffusionModel(Reading):
    """A trained network as a model on its path, with the learned schedule.

    Attributes:
        trained: the times for which the network was trained.
        logits: of the density of the log-SNR.
    """

    trained: Interval
    logits: Float[Array, " K"]

    @property
    def interval(self) -> Interval:
        return self.trained

    def log_snr_density(self, low: float, high: float) -> LogSnrDensity:
        """The learned density of the log-SNR on an interval."""
        return LogSnrDensity(low, high, self.logits)
