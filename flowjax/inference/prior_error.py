"""How far the distribution from which a run's samples start is from the path's distribution at the first time.

Where alpha(0) is not 0, as for variance preserving schedules, p_0 is the law of alpha x1 + sigma z with data x1, and
sampling starts from N(0, sigma^2 I) instead (`flowjax.paths.AffinePath.prior`). The divergence is convex, so that

    (1)  KL(p_0 || N(0, sigma^2 I)) <= E KL(N(alpha x1, sigma^2 I) || N(0, sigma^2 I)) = alpha^2 E|x1|^2 / (2 sigma^2)

which needs only second moments of the data. It bounds the mean loss of log-likelihood that comes from the start of
sampling, for a perfect network.
"""

import numpy as np

from flowjax.inference.run import Run

__all__ = ["prior_kl_bound"]

_ROWS = 10_000
"""The largest number of points from which the second moments are estimated."""


def prior_kl_bound(run: Run, x: np.ndarray) -> float:
    """The bound (1) in nats; 0 if samples start from p_0 itself.

    Args:
        run: opened with `flowjax.load`.
        x: points of the data, (N, *event) in data space, of which at most 10,000 are used.
    """
    path = run.path
    if path is None or not (alpha := float(path.schedule.alpha(0.0))):
        return 0.0
    rows = run.spec.to_model(x[:_ROWS]).reshape(min(len(x), _ROWS), -1)
    square = float(np.mean(np.sum(np.square(rows, dtype=np.float64), 1)))
    return (alpha / float(path.schedule.sigma(0.0))) ** 2 * square / 2
