"""How far the distribution from which a run's samples start is from the path's distribution at that time.

Sampling starts at the first time t of the run from N(0, s^2 I) (`Run.prior`), while the path has the law p_t of
alpha x1 + sigma z with data x1. The two differ where alpha(t) is not 0, as for variance preserving schedules. The
divergence is convex, so that in D dimensions

    (1)  KL(p_t || N(0, s^2 I)) <= E KL(N(alpha x1, sigma^2 I) || N(0, s^2 I))
                                 = alpha^2 E|x1|^2 / (2 s^2) + (D / 2) (sigma^2 / s^2 - 1 - log(sigma^2 / s^2))

which needs only second moments of the data. It bounds the mean loss of log-likelihood that comes from the start of
sampling, for a perfect network.
"""

import math

import jax.numpy as jnp
import numpy as np

from flowjax.inference.run import Run
from flowjax.paths.affine import is_standard_normal

__all__ = ["prior_kl_bound"]

_ROWS = 10_000
"""The largest number of points from which the second moments are estimated."""


def prior_kl_bound(run: Run, x: np.ndarray) -> float | None:
    """The bound (1) in nats: 0 if samples start from p_t itself, and None where the bound does not hold.

    It does not hold for paths with noise of their own, and for other sources than N(0, I) on a path that does not start
    from the source.

    Args:
        run: opened with `flowjax.load`.
        x: points of the data, (N, *event) in data space, of which at most 10,000 are used.
    """
    path = run.path
    if path is None:
        return 0.0
    if path.noise is not None:
        return None
    first = run.interval[0]
    alpha, sigma = float(path.schedule.alpha(first)), float(path.schedule.sigma(first))
    scale = float(path.schedule.sigma(0.0)) if float(path.schedule.alpha(0.0)) else 1.0
    if alpha == 0 and sigma == scale:
        return 0.0
    if not is_standard_normal(run.source):
        return None
    points = run.spec.to_model(x[:_ROWS])
    bins = run.spec.bins
    if bins is not None and run.spec.dequantises(x[:_ROWS]):
        points = np.asarray(bins.centres(jnp.asarray(points)))
    square = float(np.mean(np.sum(np.square(points.reshape(len(points), -1), dtype=np.float64), 1)))
    ratio = (sigma / scale) ** 2
    return (alpha / scale) ** 2 * square / 2 + run.spec.d / 2 * (ratio - 1 - math.log(ratio))
