"""Variational diffusion models: the bound in continuous time, with a learned schedule (Kingma et al. 2021,
arXiv:2107.00630).

The loss is the middle term of the bound of `flowjax.bits.continuous`, in nats per dimension,

    (1)  L = E [ |e - e_hat(z)|^2 / (2 D rho(l)) ],   l ~ rho,   z = alpha c + sigma e at the log-SNR l

By default the other two terms have no parameters: the path is fixed, and the log-SNR runs between two fixed ends. At
the last one half of a bin is four standard deviations of the noise, so that z determines the integers. With learned
ends (`learn_ends`, section 5.1 of the paper) the loss is the whole bound, whose terms all depend on them: an earlier
last level leaves to the decoder what the network cannot resolve. The integral does not depend
on how the log-SNR is drawn: a schedule l(s) with s ~ U(0, 1) has the density rho = 1 / l'(s). The schedule is learned
so that one draw per example has little variance, as in section 5.3 of the paper, which descends the expected square of
the loss. Here the schedule is piecewise linear (`LogSnrDensity`). With the loss w of one example,

    (2)  d/d rho  E w^2 = -E [ w^2 d log rho(l) ]

since E w^2 is an integral of m(l) / rho(l), where m does not depend on rho. So the gradient of -w^2 log rho(l), with
w^2 held fixed, descends the variance and needs no derivative of the network. The best density is proportional to
sqrt(m).
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from flowjax.batch import Batch, check_floating
from flowjax.bits import Bins, LogSnrDensity, log_posterior_of_bin, time_of_truncated_normal
from flowjax.bits.chain import prior_divergence
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
from flowjax.schedules.base import log_snr_slope
from flowjax.sources import Normal, Source
from flowjax.typing import Batched, Params, PRNGKey, PyTree

__all__ = ["VariationalDiffusion", "VariationalDiffusionModel"]


LogSnrEnds = tuple[float, float] | tuple[Float[Array, ""], Float[Array, ""]]
"""The first and the last log-SNR: numbers if they are fixed, arrays if they are learned."""

_SPEED = 8.0
"""A learned end is at sigmoid(8 p) of its window, where p is its parameter. Adam moves p by up to about one learning
rate a step: with 8 an end crosses half of its window in 500 steps of 1e-3, since sigmoid(4) is 0.98. The 8 is a choice
and was not tuned."""

_FIRST_WINDOW = 0.25
"""The part of the interval of the log-SNR in which a learned first end lies. It starts in the middle."""

_LAST_WINDOW = 2 * math.log(16)
"""The length in log-SNR of the window of a learned last end: from 4 to 1/4 standard deviations to half of a bin."""


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        bins: number of pieces of the learned schedule, of equal lengths in log-SNR; 1 for a log-SNR that is linear.
        learn_ends: whether to learn the first and the last log-SNR, with the whole bound as the loss. Then samples keep
            the noise of the learned last one.
    """

    bins: Annotated[int, Range(1, 4096)] = 32
    learn_ends: bool = False


@dataclass(frozen=True)
class VariationalDiffusion(PathMethod):
    """The bound of variational diffusion models for integers.

    With fixed ends it is without its other two terms, which then have no parameters.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source: a Gaussian path from N(0, I).
        prediction: a prediction with one head that determines both ends.
        integers: the bins of the integers in model space.
        bins: number of pieces of the learned schedule.
        learn_ends: whether to learn both ends of the log-SNR.
    """

    network: Network
    path: GaussianPath
    source: Source
    prediction: Prediction
    integers: Bins
    bins: int = 32
    learn_ends: bool = False

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
        if parts.settings.learn_ends and not isinstance(path.prior(parts.source), Normal):
            raise ConfigError("method.learn_ends needs a source that is normal: use source.name 'normal'")
        settings = parts.settings
        return cls(parts.network(), path, parts.source, prediction, integers, settings.bins, settings.learn_ends)

    @property
    def learns_interval(self) -> bool:
        return self.learn_ends

    @property
    def interval(self) -> Interval:
        """The times of the fixed ends, between which those of learned ends lie."""
        low, high = self.prediction.interval(self.path)
        low = max(low, well_conditioned(self.path, alpha=True)[0])
        return low, min(high, time_of_truncated_normal(self.path, self.integers, (low, high)))

    def fixed_ends(self) -> tuple[float, float]:
        """The log-SNR at both ends of the interval."""
        with jax.ensure_compile_time_eval():
            low, high = (float(self.path.schedule.log_snr(t)) for t in self.interval)
        return low, high

    def ends(self, params: Params) -> LogSnrEnds:
        """The first and the last log-SNR: learned ones are in windows that start at the fixed ends.

        Args:
            params: of which learned ends take `ends`, (2,): one number for each end.

        Returns:
            Two numbers for fixed ends, two arrays () for learned ones.
        """
        low, high = self.fixed_ends()
        if not self.learn_ends:
            return low, high
        first, last = jax.nn.sigmoid(_SPEED * params["ends"])
        return low + first * _FIRST_WINDOW * (high - low), high - last * min(_LAST_WINDOW, (high - low) / 2)

    def interval_of(self, params: Params) -> Interval:
        """The times of the ends.

        Raises:
            ValueError: if the ends are learned and their values are not known, because the parameters are arguments of
                a function that is compiled.
        """
        if not self.learn_ends:
            return self.interval
        if isinstance(params["ends"], Tracer):
            raise ValueError(
                "the times of learned ends are not known under jax.jit or jax.grad: use run.model(params), which has "
                "the times of the run, or pass interval=method.interval_of(params) of parameters outside"
            )
        with jax.ensure_compile_time_eval():
            first, last = (float(clip_time(self.path.schedule, end)) for end in self.ends(params))
        return first, last

    def init(self, key: PRNGKey) -> Variables:
        params, state = self.network.init(key)
        learned = {"ends": jnp.zeros(2)} if self.learn_ends else {}
        return Variables({"network": params, "log_snr": jnp.zeros(self.bins)} | learned, state)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_s, key_e = jax.random.split(key)
        x1, n = batch.x1, batch.x1.shape[0]
        check_floating(x1=x1)
        ends_of_log_snr, stop = self.ends(params), jax.lax.stop_gradient
        density = LogSnrDensity(*stop(ends_of_log_snr), params["log_snr"])
        fixed = LogSnrDensity(*ends_of_log_snr, stop(params["log_snr"]))
        log_snr = fixed.schedule((jnp.arange(n) / n + jax.random.uniform(key_s)) % 1)  # stratified over the batch
        t = self._times(log_snr)
        p = self.path.sample(None, t, self.source.sample(key_e, n), x1)
        inputs = self.prediction.inputs(self.path, t, p.x_t)
        output, state = self.network(params["network"], context, t, inputs, batch.cond, key=key)
        ends = self.prediction.to_ends(self.path, t, p.x_t, output)
        rows = 0.5 * row_mean_square(ends.x0 - p.x0) * jnp.exp(-fixed.log_density(log_snr))
        square = jax.lax.stop_gradient(rows**2)
        spread = -jnp.mean(square * density.log_density(log_snr)) / jnp.mean(square)
        value = jnp.mean(rows) + spread - jax.lax.stop_gradient(spread)  # adds gradients of the schedule, value 0
        if self.learn_ends:
            low, high = map(jnp.asarray, ends_of_log_snr)
            value += jnp.mean(self._end_terms(low, high, x1, jax.random.fold_in(key, 1))) / x1[0].size
        return Loss(value, {"loss_std": jnp.std(rows)}, state)

    def _times(self, log_snr: Float[Array, " B"]) -> Float[Array, " B"]:
        """The times of log-SNRs; with learned ends also their derivatives, which an inverse by bisection lacks.

        Args:
            log_snr: (B,), clipped to those of the fixed ends.

        Returns:
            (B,).
        """
        t = jnp.clip(clip_time(self.path.schedule, jax.lax.stop_gradient(log_snr)), *self.interval)
        if not self.learn_ends:
            return t
        return t + (log_snr - jax.lax.stop_gradient(log_snr)) / log_snr_slope(self.path.schedule, t)

    def _end_terms(
        self, low: Float[Array, ""], high: Float[Array, ""], centres: Batched, key: PRNGKey
    ) -> Float[Array, " B"]:
        """The divergence from the prior plus the reconstruction, with one draw, as in `bits.continuous_bound`.

        Args:
            low: the first log-SNR.
            high: the last one, at the earliest at the beginning of its window.
            centres: of the bins of the integers, (B, *event).
            key: of the noise at the last log-SNR.

        Returns:
            (B,), in nats.
        """
        prior = self.prior
        assert isinstance(prior, Normal)  # `from_config`
        std = jnp.exp(-high / 2)
        z = centres + std * jax.random.normal(key, centres.shape)
        largest = math.exp((_LAST_WINDOW - self.fixed_ends()[1]) / 2)
        edges = centres - 0.5 * self.integers.width
        decoded = log_posterior_of_bin(z, std, edges, self.integers, largest)
        return prior_divergence(self.path, self._times(low[None])[0], centres, prior) - decoded

    def model(self, params: Params, state: PyTree, interval: Interval | None = None) -> "VariationalDiffusionModel":
        """The model of trained parameters.

        Args:
            params: the parameters.
            state: the other variables of the network.
            interval: the times of the ends; None for `interval_of(params)`.

        Raises:
            ValueError: as `interval_of`.
        """
        network = self.network.bind(params["network"], state)
        interval = self.interval_of(params) if interval is None else interval
        return VariationalDiffusionModel(network, self.path, self.prediction, interval, params["log_snr"])


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
