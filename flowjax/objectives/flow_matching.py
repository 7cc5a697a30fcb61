"""Flow matching: regress the conditional target, learn the marginal field (Lipman et al. 2023, theorem 2).

    conditional   L_c(w) = E_{t, x0, x1} |net_w(t, x_t) - target(x_t | x0, x1)|^2
    marginal      L_m(w) = E_{t, x_t}    |net_w(t, x_t) - E[target | x_t]|^2

The two have the same gradient in w and differ by a constant, E |target - E[target | x_t]|^2: what cannot be known
from x_t. The marginal loss needs the conditional expectation, which only an oracle has; the method rests on not
needing it. Norms are means over the coordinates of an example, weighted by the prediction's own weight(t) (1, but for
the score).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.couplings import Coupling, Independent
from flowjax.paths.affine import AffinePath, expand
from flowjax.paths.base import PathSample
from flowjax.predictions import Denoiser, Prediction, velocity
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Params, PRNGKey


class Batch(NamedTuple):
    """Data samples (B, *event) and their conditions (leading axis B), or None."""

    x1: Batched
    cond: Cond = None


ParametricApply = Callable[[Params, Float[Array, " B"], Batched, Cond], Batched]
"""A network with free parameters: `apply(params, t, x, cond) -> output` shaped like x."""


Loss = Callable[[Params, PRNGKey, Batch], Float[Array, ""]]
"""`loss(params, key, batch)`: a scalar to minimise, a pure function of its arguments."""


def draw(
    key: PRNGKey, batch: Batch, path: AffinePath, source: Source, coupling: Coupling, interval: tuple[float, float]
) -> PathSample:
    """One point on the path for each row of the batch, at a uniform time of the interval."""
    key_source, key_coupling, key_time, key_path = jax.random.split(key, 4)
    n = batch.x1.shape[0]
    x0 = source.sample(key_source, n).astype(batch.x1.dtype)
    x0 = x0[coupling(key_coupling, x0, batch.x1, batch.cond)]
    t = jax.random.uniform(key_time, (n,), minval=interval[0], maxval=interval[1])
    return path.sample(key_path, t, x0, batch.x1)


def _mean_square(error: Batched, prediction: Prediction, path: AffinePath, t: Float[Array, " B"]) -> Float[Array, ""]:
    return jnp.mean(expand(prediction.weight(path, t), error) * error**2)


def conditional(
    apply: ParametricApply,
    path: AffinePath,
    source: Source,
    coupling: Coupling | None = None,
    prediction: Prediction = velocity,
) -> Loss:
    """The conditional flow matching loss: what is trained.

    Args:
        apply: the network, `apply(params, t, x, cond)`.
        path, source: where x_t comes from.
        coupling: pairs x0 with x1; independent where None.
        prediction: what the network regresses.

    Returns:
        `loss(params, key, batch)`, uniform in time over `prediction.interval(path)`.
    """
    coupling = Independent() if coupling is None else coupling
    interval = prediction.interval(path)

    def loss(params: Params, key: PRNGKey, batch: Batch) -> Float[Array, ""]:
        p = draw(key, batch, path, source, coupling, interval)
        return _mean_square(apply(params, p.t, p.x_t, batch.cond) - prediction.target(path, p), prediction, path, p.t)

    return loss


def marginal(
    apply: ParametricApply, path: AffinePath, source: Source, denoiser: Denoiser, prediction: Prediction = velocity
) -> Loss:
    """The marginal flow matching loss against an oracle's denoiser (`flowjax.oracles`), with independent pairs.

    It draws the same points as `conditional` does with the same key, so the two can be compared draw by draw.
    """
    interval = prediction.interval(path)

    def loss(params: Params, key: PRNGKey, batch: Batch) -> Float[Array, ""]:
        p = draw(key, batch, path, source, Independent(), interval)
        target = prediction.from_ends(path, p.t, p.x_t, denoiser(p.t, p.x_t, batch.cond))
        return _mean_square(apply(params, p.t, p.x_t, batch.cond) - target, prediction, path, p.t)

    return loss
