"""The energy distance between two samples, and scores of forecasts by ensembles that belong to it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.metrics.pair_means import pair_means

__all__ = ["crps", "energy_distance", "energy_score"]


@partial(jax.jit, static_argnames="block")
def energy_distance(
    x: Float[Array | np.ndarray, "N *event"], y: Float[Array | np.ndarray, "M *other"], *, block: int = 512
) -> Float[Array, ""]:
    """The unbiased energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013, eq. 2.1).

    X' and Y' are independent copies, and |.| is the Euclidean norm. It is zero for equal distributions only. The
    means over pairs of points leave out pairs of a point with itself, so the estimate has mean zero for equal
    distributions and may be negative. It has the unit of the data. In one dimension, `scipy.stats.energy_distance` is
    the square root of the same without leaving out these pairs.

    Args:
        x, y: the samples, (N, *event) and (M, *event).
        block: the number of rows for which distances are kept at a time; the memory is O(block (N + M)).

    Raises:
        ValueError: if a sample has fewer than two points, or the samples differ in dimension.
    """
    means = pair_means(jnp.sqrt, x, y, block=block)
    return 2 * means.xy - means.xx - means.yy


def crps(
    ensemble: Float[Array | np.ndarray, "M *members"], observed: Float[Array | np.ndarray, "*shape"]
) -> Float[Array, "*shape"]:
    """The continuous ranked probability score of an ensemble for each observed number; smaller is better.

    It is E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21). The second mean leaves out pairs of a member
    with itself, which makes the score fair (Ferro 2014): its expectation over ensembles is the score of the
    distribution that they are drawn from, for any M. It may be negative. Sorting takes O(M log M): the sum of |x_i -
    x_j| over all ordered pairs is 2 sum_i (2 i - M - 1) x_(i) for i = 1, ..., M.

    Args:
        ensemble: M members, at least 2, along the first axis.
        observed: the observed numbers.

    Returns:
        One score for each observed number, in its unit.

    Raises:
        ValueError: if there are fewer than two members, or the shapes do not fit.
    """
    m = _members(ensemble, observed)
    errors = jnp.asarray(ensemble - observed)  # sorted as well, so that rounding is relative to them
    weights = (2 * jnp.arange(1, m + 1) - m - 1).reshape(m, *([1] * observed.ndim))
    return jnp.abs(errors).mean(0) - (weights * jnp.sort(errors, axis=0)).sum(0) / (m * (m - 1))


def energy_score(
    ensemble: Float[Array | np.ndarray, "M *members"], observed: Float[Array | np.ndarray, "N *event"]
) -> Float[Array, " N"]:
    """The energy score of an ensemble for each observed vector; smaller is better.

    It is E|X - y| - E|X - X'| / 2 with the Euclidean norm (Gneiting and Raftery 2007, eq. 22), which in one dimension
    is `crps`. The second mean leaves out pairs of a member with itself, so the score is fair, as for `crps`. Computed
    in O(M^2).

    Args:
        ensemble: M members, at least 2, along the first axis.
        observed: the observed vectors.

    Returns:
        One score for each observed vector, in the unit of the data.

    Raises:
        ValueError: if there are fewer than two members, or the shapes do not fit.
    """
    m = _members(ensemble, observed)
    errors = jnp.asarray(ensemble - observed).reshape(m, len(observed), -1)

    def score(errors: Float[Array, "M D"]) -> Float[Array, ""]:
        between = _norm(errors[:, None] - errors).sum() / (m * (m - 1))
        return _norm(errors).mean() - between / 2

    return jax.lax.map(score, jnp.moveaxis(errors, 1, 0))


def _members(ensemble: Array | np.ndarray, observed: Array | np.ndarray) -> int:
    """The number of members, at least two."""
    if ensemble.shape[1:] != observed.shape:
        raise ValueError(
            f"an ensemble for observations of shape {observed.shape} must have the shape (members, "
            f"{', '.join(map(str, observed.shape))}), not {ensemble.shape}"
        )
    if len(ensemble) < 2:
        raise ValueError("a fair score needs an ensemble of at least two members, got one")
    return len(ensemble)


def _norm(x: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """The Euclidean norm of the last axis, with derivative 0 at 0."""
    squared = (x**2).sum(-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
