"""The parts that the losses of several methods share: points on the path for a batch, and squared errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.batch import Batch, check_floating
from flowjax.couplings import LARGEST_MARGINAL_ERROR, Coupling, Pairs, pair
from flowjax.methods.base import Limit
from flowjax.methods.times import UNIFORM, Interval, Profile, Times
from flowjax.paths.affine import AffinePath
from flowjax.paths.base import PathSample
from flowjax.sources import Source, filled
from flowjax.typing import Output, PRNGKey

__all__ = ["MARGINAL_ERROR", "Draw", "draw", "row_mean_square"]

MARGINAL_ERROR = Limit(
    LARGEST_MARGINAL_ERROR,
    "the coupling has not converged: at step {step} the marginal error of its plan is {value:.2g}, above the limit "
    f"{LARGEST_MARGINAL_ERROR}; use a larger eps in coupling.name, or the exact coupling 'ot'",
)
"""The limit of the marginal error of a coupling's transport plan."""


class Draw(NamedTuple):
    """One point on the path for each row of a batch.

    Attributes:
        sample: the points, their times and their velocities.
        weight: importance weights of the times, (B,).
        marginal_error: marginal error of the coupling's transport plan, (); 0 for an exact coupling.
    """

    sample: PathSample
    weight: Float[Array, " B"]
    marginal_error: Float[Array, ""]


def draw(
    key: PRNGKey,
    batch: Batch,
    path: AffinePath,
    source: Source,
    coupling: Coupling,
    interval: Interval,
    times: Times | None = None,
    profile: Profile | None = None,
) -> Draw:
    """Draws one point on the path for each row of the batch.

    Args:
        key: key for the source, the coupling, the times and the noise of the path.
        batch: the data. If it contains x0, its pairs (x0, x1) are used without the coupling, and the source only gives
            the numbers of x0 that are NaN.
        path, source, coupling: the path of x_t, the distribution of x0, and how x0 and x1 are paired.
        interval: the smallest and the largest training time.
        times: the distribution of training times; None for the uniform distribution.
        profile: the learned profile of the loss, for distributions of times that need it.

    Raises:
        ValueError: if x1 or x0 holds integers.
    """
    key_source, key_coupling, key_time, key_path = jax.random.split(key, 4)
    x1 = batch.x1
    check_floating(x1=x1)
    n = x1.shape[0]
    if batch.x0 is None:
        x0 = source.sample(key_source, n).astype(x1.dtype)
        pairs: Pairs = pair(coupling, key_coupling, x0, x1, batch.cond)
        x0 = x0[pairs.rows]
    else:
        check_floating(x0=batch.x0)
        x0, pairs = filled(batch.x0, source.sample(key_source, n)), Pairs(jnp.arange(n), jnp.zeros(()))
    drawn = (times or UNIFORM)(key_time, n, path, interval, profile)
    return Draw(path.sample(key_path, drawn.t, x0, x1), drawn.weight, pairs.marginal_error)


def row_mean_square(error: Output, mask: Bool[Array, "B N"] | None = None) -> Float[Array, " B"]:
    """Returns the mean square over the coordinates of each example, excluding elements where `mask` is False."""
    if mask is None:
        return jnp.mean(error.reshape(error.shape[0], -1) ** 2, -1)
    exists = mask[..., None].astype(error.dtype)
    return jnp.sum(error**2 * exists, (1, 2)) / (error.shape[2] * jnp.maximum(jnp.sum(exists, (1, 2)), 1))
