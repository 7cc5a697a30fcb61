"""Distributions of the training times.

    uniform              U(interval)
    logit_normal(m, s)   logit(t) ~ N(m, s^2)                            Esser et al. 2024, arXiv:2403.03206
    log_normal(m, s)     log(sigma / alpha) ~ N(m, s^2)                  Karras et al. 2022, arXiv:2206.00364, table 1
    stratified           a regular grid with one random shift            Kingma et al. 2021, arXiv:2107.00630, app. I.1
    u_shaped(a)          exp(a (u - 1/2)) + exp(-a (u - 1/2))            Lee et al. 2024, arXiv:2405.20320, sec. 4.1
    levels(n)            n equally likely levels of a discrete chain     Ho et al. 2020, arXiv:2006.11239

Time runs from the noise at 0 to the data at 1; in Esser et al. it runs the other way. With `stratified=True`,
`log_normal` and `logit_normal` transform a stratified batch of uniform numbers instead of independent ones.

All of these change the expected loss. `flowjax.methods.weighted_times` has distributions with importance weights, which
change only its variance.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.errors import ConfigError
from flowjax.paths.affine import AffinePath
from flowjax.ranges import Range
from flowjax.schedules import clip_time
from flowjax.typing import PRNGKey

if TYPE_CHECKING:
    from flowjax.methods.components import Components

__all__ = [
    "UNIFORM",
    "Drawn",
    "Fixed",
    "Interval",
    "Levels",
    "LogNormal",
    "LogitNormal",
    "Profile",
    "Stratified",
    "Times",
    "UShaped",
    "Uniform",
    "has_weights",
    "needs_profile",
    "plain_times",
    "shifted_grid",
]

Profile = Float[Array, " K"]
"""The logarithm of the loss on K equal bins of the interval."""

Interval = tuple[float, float]
"""The smallest and the largest time."""


class Drawn(NamedTuple):
    """Training times and their weights.

    Attributes:
        t: times in the interval, (n,).
        weight: importance weights, (n,): the uniform density divided by that of the distribution, if it has the
            attribute `weighted`; 1 otherwise.
    """

    t: Float[Array, " n"]
    weight: Float[Array, " n"]


@runtime_checkable
class Times(Protocol):
    """A distribution of training times: `times(key, n, path, interval, profile)` draws n times.

    A distribution whose times have importance weights has the class attribute `weighted = True`.
    """

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn: ...


def _scaled(u: Array, interval: Interval) -> Drawn:
    """Maps numbers in (0, 1) to times in the interval, with weights of 1."""
    return Drawn(interval[0] + (interval[1] - interval[0]) * u, jnp.ones_like(u))


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution on the interval."""

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return Drawn(jax.random.uniform(key, (n,), minval=interval[0], maxval=interval[1]), jnp.ones(n))


UNIFORM = Uniform()
"""The default distribution of training times."""


@dataclass(frozen=True)
class Stratified:
    """A regular grid of n points with one random shift, in random order.

    Each time is uniform on the interval, and averages over a batch have less variance than with independent times
    (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).
    """

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return _scaled(shifted_grid(key, n), interval)


def shifted_grid(key: PRNGKey, n: int) -> Float[Array, " n"]:
    """(i + u) / n for i = 0 ... n - 1 in random order, with u ~ U(0, 1)."""
    key_shift, key_order = jax.random.split(key)
    return jax.random.permutation(key_order, (jnp.arange(n) + jax.random.uniform(key_shift)) / n)


_NEXT_TO_ONE = 1 - 2.0**-24  # the largest float32 below 1; rounding can bring the last point of the grid to 1


def _normal(key: PRNGKey, n: int, stratified: bool) -> Float[Array, " n"]:
    """Returns n normal numbers: independent, or the quantiles at the points of a shifted grid."""
    if not stratified:
        return jax.random.normal(key, (n,))
    return jax.scipy.special.ndtri(jnp.clip(shifted_grid(key, n), 1 - _NEXT_TO_ONE, _NEXT_TO_ONE))


def _check_normal(name: str, mean: float | int, std: float | int, stratified: bool) -> None:
    if isinstance(mean, str) or not std > 0:
        raise ValueError(f"{name}: mean must be a number and std positive, not {mean!r} and {std!r}")
    if not isinstance(stratified, bool):
        raise ValueError(f"{name}: stratified must be True or False, not {stratified!r}")


@dataclass(frozen=True)
class LogitNormal:
    """logit(u) ~ N(mean, std^2), where u in (0, 1) is the relative position of t in the interval.

    Times in the middle of the interval are more frequent (Esser et al. 2024, arXiv:2403.03206).

    Attributes:
        mean, std: mean and standard deviation of logit(u).
        stratified: whether to transform a stratified batch of uniform numbers instead of independent ones.
    """

    mean: float | int = 0.0
    std: float | int = 1.0
    stratified: bool = False

    def __post_init__(self):
        _check_normal("logit_normal", self.mean, self.std, self.stratified)

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return _scaled(jax.nn.sigmoid(self.mean + self.std * _normal(key, n, self.stratified)), interval)


@dataclass(frozen=True)
class UShaped:
    """Density proportional to exp(a (u - 1/2)) + exp(-a (u - 1/2)), where u is the relative position of t.

    Times at both ends are more frequent than in the middle. The distribution suits pairs from a trained flow, whose
    error is largest there (Lee et al. 2024, arXiv:2405.20320, sec. 4.1, with a = 4). Its distribution function is
    1/2 + sinh(a (u - 1/2)) / (2 sinh(a / 2)), which is inverted in closed form.

    Attributes:
        a: how strongly times at the ends are preferred.
    """

    a: Annotated[float | int, Range(1e-3, 80)] = 4.0

    def __post_init__(self) -> None:
        if not 1e-3 <= self.a <= 80:
            raise ValueError(f"u_shaped: a must be between 0.001 and 80, not {self.a}; for less, use 'uniform'")

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        q = jax.random.uniform(key, (n,), minval=-1.0, maxval=1.0)
        u = 0.5 + jnp.arcsinh(q * math.sinh(self.a / 2)) / self.a
        return _scaled(jnp.clip(u, 0.0, 1.0), interval)  # rounding can leave the interval


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), with times clipped to the interval.

    This is the training distribution of noise levels of EDM (Karras et al. 2022, arXiv:2206.00364, table 1).

    Attributes:
        mean, std: mean and standard deviation of log(sigma / alpha).
        stratified: whether to transform a stratified batch of uniform numbers instead of independent ones.
    """

    mean: float | int = -1.2
    std: float | int = 1.2
    stratified: bool = False

    def __post_init__(self):
        _check_normal("log_normal", self.mean, self.std, self.stratified)

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        level = self.mean + self.std * _normal(key, n, self.stratified)
        return Drawn(jnp.clip(clip_time(path.schedule, -2 * level), *interval), jnp.ones(n))


@dataclass(frozen=True)
class Levels:
    """The n equally spaced times of a discrete chain from the smallest to the largest time, with equal probabilities.

    On a discrete schedule of n levels, these are its levels.
    """

    n: int = 1000

    def __post_init__(self):
        if not isinstance(self.n, int) or self.n < 2:
            raise ValueError(f"levels: n must be a whole number of at least 2, not {self.n}")

    def grid(self, path: AffinePath, interval: Interval | None = None) -> Float[Array, " n"]:
        """The n times in increasing order; `interval` defaults to the times of the path."""
        low, high = interval or (path.t_min, path.t_max)
        return jnp.linspace(low, high, self.n)

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return Drawn(self.grid(path, interval)[jax.random.randint(key, (n,), 0, self.n)], jnp.ones(n))


@dataclass(frozen=True)
class Fixed:
    """Times that the caller provides.

    Attributes:
        t: one time for each row of the batch.
    """

    t: Float[Array, " n"]

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return Drawn(self.t, jnp.ones(n))


def needs_profile(times: Any) -> bool:
    """Whether a distribution of times, or its class, needs a learned profile of the loss."""
    return getattr(times, "needs_profile", False)


def has_weights(times: Any) -> bool:
    """Whether a distribution of times, or its class, has importance weights, which only flow matching uses."""
    return getattr(times, "weighted", False)


def plain_times(parts: "Components", text: str) -> Times:
    """Makes the distribution of times of a method that does not use importance weights of times.

    Args:
        parts: the parts of the config.
        text: the setting `times`.

    Raises:
        ConfigError: if the times have importance weights: without them the expected loss would be another one.
    """
    times = parts.times(text)
    if has_weights(times):
        raise ConfigError(
            f"method.times {text!r} has importance weights, which only the method 'flow_matching' uses: use 'uniform', "
            "'logit_normal' or 'log_normal'"
        )
    return times
