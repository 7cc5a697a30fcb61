"""The variational bound of a discrete chain (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021).

Levels t_1 < ... < t_n run from the noise to the data. In nats an example,

    -log p(x1) <= KL(q(x_1st | x1) | prior) + sum_k KL(q(x_{k+1} | x_k, x1) | p(x_{k+1} | x_k)) - log p(x1 | x_n)

with q(x_{k+1} | x_k, x1) the posterior of `flowjax.paths.transition`, p the same with the network's E[x1 | x_k] for
x1 and a fixed or learned variance, and p(x1 | x_n) = N(E[x1 | x_n], (sigma_n / alpha_n)^2 I). The first term has no
parameters. DDPM's "simple" loss is flow matching with the noise as target and `times.Levels`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax import predictions
from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT
from flowjax.errors import ConfigError, unknown
from flowjax.methods.base import Components, Context, Loss, Network, PathMethod
from flowjax.methods.flow_matching import draw, row_mean_square
from flowjax.methods.times import Fixed, Interval, Levels
from flowjax.paths.affine import GaussianPath
from flowjax.paths.transition import Variance, step_variance, transition
from flowjax.predictions import Ends, Prediction
from flowjax.ranges import Range
from flowjax.sources import Source, sum_event
from flowjax.typing import Batched, Params, PRNGKey, PyTree

__all__ = ["HYBRID", "Variational", "bound_term"]

HYBRID = 1e-3
"""Weight of the bound beside the simple loss (Nichol & Dhariwal 2021, eq. 16)."""


def bound_term(
    path: GaussianPath, t: Array, s: Array, last: Array, x: Batched, x1: Batched, ends: Ends, variance: Variance
) -> Float[Array, " B"]:
    """One term of the bound for each row, nats: that of the step from t to s, or of the decoder where `last`."""
    q = transition(path, jnp.where(last, t - 1e-2, t), s, x)  # a step from the last level to itself has no variance
    var = step_variance(q, variance, ends.variance_fraction)
    miss = (q.from_x1 * (x1 - ends.x1)) ** 2
    kl = 0.5 * sum_event(jnp.broadcast_to(q.small / var - 1 - jnp.log(q.small / var), x.shape) + miss / var)
    r = path.rates(t, x)
    decoder = (r.sigma / r.alpha) ** 2
    nll = 0.5 * sum_event((x1 - ends.x1) ** 2 / decoder + jnp.log(2 * jnp.pi * jnp.broadcast_to(decoder, x.shape)))
    return jnp.where(last, nll, kl)


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        variance: of the reverse steps: small, large or learned.
        levels: number of noise levels of the chain.
        hybrid: train the mean by the squared error of the noise, and a learned variance by the bound.
    """

    variance: str = "small"
    levels: Annotated[int, Range(2, 1_000_000)] = 1000
    hybrid: bool = False


@dataclass(frozen=True)
class Variational(PathMethod):
    """The bound in nats a dimension, by one random level for each row; without its first, constant term.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source: a Gaussian path from N(0, I).
        prediction: one that determines both ends; `noise_variance` where the variance is learned.
        levels: of the chain.
        variance: of the reverse steps.
        hybrid: the squared error of the noise plus 1e-3 times the bound, which then teaches the variance alone.

    Raises:
        ValueError: if there is no noise at the last level, or a learned variance without a prediction of it.
    """

    network: Network
    path: GaussianPath
    source: Source
    prediction: Prediction
    levels: Levels
    variance: Variance = "small"
    hybrid: bool = False

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "prediction", "model")

    def __post_init__(self) -> None:
        end = self.interval[1]
        with jax.ensure_compile_time_eval():
            if float(self.path.schedule.sigma(end)) == 0:
                raise ValueError(
                    f"the bound needs noise at its last level, and {self.path.schedule} has none at t = {end:.4g}: "
                    "take a diffusion's schedule, such as ddpm_linear or vp"
                )

    @classmethod
    def from_config(cls, parts: Components) -> "Variational":
        settings, prediction, path = parts.settings, parts.prediction, parts.path
        if not isinstance(path, GaussianPath):
            raise ConfigError(
                "method.name 'variational' is the bound of a Gaussian chain: it needs source.name 'normal' and no "
                "path.noise"
            )
        if settings.variance not in get_args(Variance):
            raise ConfigError(f"method.variance: {unknown(settings.variance, get_args(Variance))}")
        learns = prediction.name == "noise_variance"
        if (settings.variance == "learned") != learns or settings.hybrid > learns:
            raise ConfigError(
                "method.variance 'learned', and method.hybrid=true, go with prediction 'noise_variance', and that with "
                "method.variance 'learned'"
            )
        try:
            network = parts.network(prediction.heads)
            levels = Levels(settings.levels)
            return cls(network, path, parts.source, prediction, levels, settings.variance, settings.hybrid)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"method.name 'variational': {error}") from None

    @property
    def interval(self) -> Interval:
        return self.prediction.interval(self.path)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        path, prediction, levels, interval = self.path, self.prediction, self.levels, self.interval
        key_level, key_draw = jax.random.split(key)
        n = batch.x1.shape[0]
        grid = levels.grid(path, interval)
        k = jax.random.randint(key_level, (n,), 0, levels.n)

        p = draw(key_draw, batch, path, self.source, INDEPENDENT, interval, Fixed(grid[k])).sample
        inputs = prediction.inputs(path, p.t, p.x_t)
        output, state = self.network(params, context, p.t, inputs, batch.cond, key=key)
        ends = prediction.to_ends(path, p.t, p.x_t, output)
        simple = row_mean_square(ends.x0 - p.x0)
        if self.hybrid:
            ends = ends._replace(x0=jax.lax.stop_gradient(ends.x0), x1=jax.lax.stop_gradient(ends.x1))
        s = grid[jnp.minimum(k + 1, levels.n - 1)]
        last = k == levels.n - 1
        term = bound_term(path, p.t, s, last, p.x_t, batch.x1, ends, self.variance)
        bound = levels.n * term / batch.x1[0].size
        return Loss(jnp.mean(simple + HYBRID * bound if self.hybrid else bound), {}, state)

    def model(self, params: Params, state: PyTree) -> Any:
        return predictions.read(self.network.bind(params, state), self.path, self.prediction)
