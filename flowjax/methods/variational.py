"""The variational bound of a discrete chain (Ho et al. 2020, arXiv:2006.11239, eq. 5; Nichol & Dhariwal 2021,
arXiv:2102.09672).

The levels t_1 < ... < t_n run from the noise to the data, and x_k is the sample at time t_k. In nats per example,

    -log p(x1) <= KL(q(x_{t_1} | x1) | prior) + sum_k KL(q(x_{k+1} | x_k, x1) | p(x_{k+1} | x_k)) - log p(x1 | x_n)

where q(x_{k+1} | x_k, x1) is the posterior of `flowjax.paths.transition`. The reverse step p(x_{k+1} | x_k) replaces
x1 by the network's E[x1 | x_k] and has a fixed or learned variance. The decoder is
p(x1 | x_n) = N(E[x1 | x_n], (sigma_n / alpha_n)^2 I). The first term has no parameters. The "simple" loss of DDPM is
`FlowMatching` with the prediction `noise` and the times `times.Levels`.
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
from flowjax.methods.base import Context, Loss, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import draw, row_mean_square
from flowjax.methods.times import Fixed, Interval, Levels
from flowjax.paths.affine import GaussianPath
from flowjax.paths.transition import Variance, step_variance, transition
from flowjax.predictions import Ends, Prediction
from flowjax.ranges import Range
from flowjax.sources import Source, sum_event
from flowjax.typing import Batched, Params, PRNGKey, PyTree

__all__ = ["HYBRID", "Variational", "bound_term"]

HYBRID = 1e-3
"""The weight of the bound relative to the simple loss (Nichol & Dhariwal 2021, eq. 16)."""


def bound_term(
    path: GaussianPath, t: Array, s: Array, last: Array, x: Batched, x1: Batched, ends: Ends, variance: Variance
) -> Float[Array, " B"]:
    """Returns one term of the bound for each row, in nats, (B,).

    Args:
        path: the path of the chain.
        t, s: the times before and after the reverse step, (B,).
        last: where t is the last level, (B,). The term of these rows is that of the decoder.
        x: samples at time t, (B, *event).
        x1: data, (B, *event).
        ends: the posterior means that the network predicts at (t, x).
        variance: the kind of variance of the reverse steps.
    """
    q = transition(path, jnp.where(last, t - 1e-2, t), s, x)  # at the last level s = t, and the variance would be 0
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
        variance: variance of the reverse steps.
        levels: number of noise levels of the chain.
        hybrid: whether to train the mean with the squared error of the noise and the learned variance with the bound.
    """

    variance: str = "small"
    levels: Annotated[int, Range(2, 1_000_000)] = 1000
    hybrid: bool = False


@dataclass(frozen=True)
class Variational(PathMethod):
    """The variational bound in nats per dimension, without its constant first term.

    The loss is an unbiased estimate of the bound from one random level per row.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source: a Gaussian path from N(0, I).
        prediction: a prediction that determines both ends; `noise_variance` if the variance is learned.
        levels: the times of the chain.
        variance: the kind of variance of the reverse steps: small, large or learned.
        hybrid: whether the loss is the squared error of the noise plus 1e-3 times the bound. No gradient of the bound
            then reaches the mean, so that the bound trains only the variance.

    Raises:
        ValueError: if there is no noise at the last level.
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
                    f"the bound needs noise at its last level, but {self.path.schedule} has none at t = {end:.4g}: use "
                    "a diffusion schedule such as ddpm_linear or vp"
                )

    @classmethod
    def from_config(cls, parts: Components) -> "Variational":
        settings, prediction, path = parts.settings, parts.prediction, parts.path
        if not isinstance(path, GaussianPath):
            raise ConfigError(
                "method.name 'variational' needs a Gaussian path: use source.name 'normal' and no path.noise"
            )
        if settings.variance not in get_args(Variance):
            raise ConfigError(f"method.variance: {unknown(settings.variance, get_args(Variance))}")
        learns = prediction.learns_variance
        if (settings.variance == "learned") != learns or settings.hybrid > learns:
            raise ConfigError(
                "method.variance 'learned' and prediction 'noise_variance' must be used together, and "
                "method.hybrid=true needs both"
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
    def bound(self) -> str:
        """The bound that `flowjax evaluate` computes of integers at the centres of their bins.

        It has the levels and the variance of the loss, and at its end the probability of the integers instead of a
        density.
        """
        return f"ddpm({self.levels.n}, 50, variance={self.variance!r})"

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
