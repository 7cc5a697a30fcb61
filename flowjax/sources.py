"""Source distributions: the distributions of x0 at t = 0, from which flows start.

A source has a `shape`, that of one example, and two pure functions: `sample(key, n)` returns samples (n, *shape), and
`log_prob(x)` maps x (n, *shape) to log-densities (n,) in nats.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float

from flowjax.typing import Batched, PRNGKey

__all__ = ["Empirical", "GaussianMixture", "Normal", "Source", "Uniform", "filled", "has_density", "sum_event"]

_LOG_2PI = math.log(2 * math.pi)


@runtime_checkable
class Source(Protocol):
    """A distribution over arrays of a fixed shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        ...

    def sample(self, key: PRNGKey, n: int) -> Batched:
        """n independent samples, (n, *shape)."""
        ...

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        """The log-density in nats of each row of x (B, *shape)."""
        ...


def _check_event(x: Batched, shape: tuple[int, ...]) -> None:
    if x.shape[1:] != tuple(shape):
        raise ValueError(f"expected rows of shape {tuple(shape)}, got an array of shape {x.shape}")


def sum_event(x: Batched) -> Float[Array, " B"]:
    """The sum over all axes but the first."""
    return x.reshape(x.shape[0], -1).sum(-1)


@partial(jax.tree_util.register_dataclass, data_fields=["loc", "scale"], meta_fields=["shape"])
@dataclass(frozen=True)
class Normal:
    """Independent normal distributions N(loc, scale^2) in all coordinates.

    Attributes:
        shape: the shape of one sample.
        loc, scale: means and standard deviations: scalars, or arrays that broadcast to `shape`.
    """

    shape: tuple[int, ...]
    loc: ArrayLike = 0.0
    scale: ArrayLike = 1.0

    def sample(self, key: PRNGKey, n: int) -> Batched:
        return jnp.asarray(self.loc + self.scale * jax.random.normal(key, (n, *self.shape)))

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        _check_event(x, self.shape)
        z = (x - self.loc) / self.scale
        return sum_event(
            -0.5 * (z**2 + _LOG_2PI) - jnp.log(jnp.broadcast_to(jnp.asarray(self.scale, z.dtype), z.shape))
        )


@partial(jax.tree_util.register_dataclass, data_fields=["low", "high"], meta_fields=["shape"])
@dataclass(frozen=True)
class Uniform:
    """The uniform distribution on the box [low, high); `log_prob` is -inf outside.

    Attributes:
        shape: the shape of one sample.
        low, high: the bounds: scalars, or arrays that broadcast to `shape`.
    """

    shape: tuple[int, ...]
    low: ArrayLike = 0.0
    high: ArrayLike = 1.0

    def sample(self, key: PRNGKey, n: int) -> Batched:
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        return low + (high - low) * jax.random.uniform(key, (n, *self.shape))

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        _check_event(x, self.shape)
        width = jnp.broadcast_to(jnp.asarray(self.high) - jnp.asarray(self.low), x.shape).astype(x.dtype)
        inside = (x >= self.low) & (x < self.high)
        return sum_event(jnp.where(inside, -jnp.log(width), -jnp.inf))


@partial(jax.tree_util.register_dataclass, data_fields=["means", "scales", "weights"], meta_fields=[])
@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic normal distributions.

    Attributes:
        means: (K, D).
        scales: the standard deviations, a scalar or (K,).
        weights: (K,), need not be normalised; None for equal weights.
    """

    means: Float[ArrayLike, "K D"]
    scales: ArrayLike = 1.0
    weights: ArrayLike | None = field(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        return (jnp.shape(self.means)[1],)

    @property
    def log_weights(self) -> Float[Array, " K"]:
        """The logarithms of the normalised weights."""
        k = jnp.shape(self.means)[0]
        weights = jnp.ones(k) if self.weights is None else jnp.asarray(self.weights)
        return jnp.log(weights / weights.sum())

    def sample(self, key: PRNGKey, n: int) -> Batched:
        key_k, key_z = jax.random.split(key)
        means = jnp.asarray(self.means)
        k = jax.random.categorical(key_k, self.log_weights, shape=(n,))
        scale = jnp.broadcast_to(jnp.asarray(self.scales), means.shape[:1])[k]
        return means[k] + scale[:, None] * jax.random.normal(key_z, (n, means.shape[1]))

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        _check_event(x, self.shape)
        means = jnp.asarray(self.means)
        scales = jnp.broadcast_to(jnp.asarray(self.scales), means.shape[:1])
        square = jnp.sum((x[:, None] - means) ** 2, -1) / scales**2
        return logsumexp(self.log_weights - 0.5 * square - means.shape[1] * (jnp.log(scales) + 0.5 * _LOG_2PI), axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=["points"], meta_fields=["dequantization_width"])
@dataclass(frozen=True)
class Empirical:
    """The empirical distribution of a finite set of points, sampled with replacement. It has no density.

    Use it to learn a flow from one data set to another.

    Attributes:
        points: (N, *event).
        dequantization_width: uniform noise in [0, dequantization_width) is added to each coordinate of a sample: one
            number, or one for each entry of the last axis.
    """

    points: Float[ArrayLike, "N *event"]
    dequantization_width: float | tuple[float, ...] = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(jnp.shape(self.points)[1:])

    def sample(self, key: PRNGKey, n: int) -> Batched:
        key_row, key_move = jax.random.split(key)
        points = jnp.asarray(self.points)
        rows = points[jax.random.randint(key_row, (n,), 0, points.shape[0])]
        return rows + jnp.asarray(self.dequantization_width) * jax.random.uniform(key_move, rows.shape)

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        raise ValueError("an Empirical source has no density, so a flow from it has no likelihood")


def filled(x0: Batched, drawn: Batched) -> Batched:
    """Returns given source samples, with those of `drawn` where they are NaN."""
    return jnp.where(jnp.isnan(x0), drawn.astype(x0.dtype), x0)


def has_density(source: Source) -> bool:
    """Whether the source has a density, so that `log_prob` can be called."""
    return not isinstance(source, Empirical)
