"""Distributions of the training times.

    uniform              U(interval)
    logit_normal(m, s)   logit(t) ~ N(m, s^2)                            Esser et al. 2024, arXiv:2403.03206
    log_normal(m, s)     log(sigma / alpha) ~ N(m, s^2)                  Karras et al. 2022, arXiv:2206.00364, table 1
    stratified           a regular grid with one random shift            Kingma et al. 2021, arXiv:2107.00630, app. I.1
    u_shaped(a)          exp(a (u - 1/2)) + exp(-a (u - 1/2))            Lee et al. 2024, arXiv:2405.20320, sec. 4.1
    levels(n)            n equally likely levels of a discrete chain     Ho et al. 2020, arXiv:2006.11239
    importance           a learned density, with importance weights      Nichol & Dhariwal 2021, arXiv:2102.09672, 3.3
    uniform_log_snr      log SNR uniform, with importance weights        Song et al. 2021, arXiv:2101.09258

Time runs from the noise at 0 to the data at 1; in Esser et al. it runs the other way. With `stratified=True`,
`log_normal` and `logit_normal` transform a stratified batch of uniform numbers instead of independent ones.

All distributions but `importance` and `uniform_log_snr` change the expected loss. These two change only its variance,
because the weights correct for the density; methods other than flow matching do not use the weights. `importance` uses
a profile u, the logarithm of the loss on equal bins of the interval. The profile is
trained together with the network by the loss  L / e^u + u, which has its minimum at u = log E[L | t]. The profile is a
parameter, so it also contributes to the global norm by which gradients are clipped.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.errors import ConfigError
from flowjax.paths.affine import AffinePath
from flowjax.predictions import well_conditioned
from flowjax.ranges import Range
from flowjax.schedules import clip_time
from flowjax.schedules.base import log_snr_slope
from flowjax.typing import PRNGKey

if TYPE_CHECKING:
    from flowjax.methods.components import Components

__all__ = [
    "BINS",
    "UNIFORM",
    "Drawn",
    "Fixed",
    "Importance",
    "Interval",
    "Levels",
    "LogNormal",
    "LogitNormal",
    "Profile",
    "Stratified",
    "Times",
    "UShaped",
    "Uniform",
    "UniformLogSNR",
    "at",
    "needs_profile",
    "plain_times",
]

BINS = 32
"""The number of bins of a learned profile of the loss."""

Profile = Float[Array, " K"]
"""The logarithm of the loss on K equal bins of the interval."""

Interval = tuple[float, float]
"""The smallest and the largest time."""


class Drawn(NamedTuple):
    """Training times and their weights.

    Attributes:
        t: times in the interval, (n,).
        weight: importance weights, (n,): the uniform density divided by the density of `Importance` or
            `UniformLogSNR`; 1 for all other distributions.
    """

    t: Float[Array, " n"]
    weight: Float[Array, " n"]


@runtime_checkable
class Times(Protocol):
    """A distribution of training times: `times(key, n, path, interval, profile)` draws n times."""

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
        return _scaled(_shifted_grid(key, n), interval)


def _shifted_grid(key: PRNGKey, n: int) -> Float[Array, " n"]:
    """Returns (i + u) / n for i = 0 ... n - 1 in random order, with u ~ U(0, 1)."""
    key_shift, key_order = jax.random.split(key)
    return jax.random.permutation(key_order, (jnp.arange(n) + jax.random.uniform(key_shift)) / n)


_NEXT_TO_ONE = 1 - 2.0**-24  # the largest float32 below 1; rounding can bring the last point of the grid to 1


def _normal(key: PRNGKey, n: int, stratified: bool) -> Float[Array, " n"]:
    """Returns n normal numbers: independent, or the quantiles at the points of a shifted grid."""
    if not stratified:
        return jax.random.normal(key, (n,))
    return jax.scipy.special.ndtri(jnp.clip(_shifted_grid(key, n), 1 - _NEXT_TO_ONE, _NEXT_TO_ONE))


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
class Importance:
    """A density proportional to the learned profile of the loss, mixed with the uniform density.

    The times have importance weights, so that the expected loss does not change. If the relative standard deviation of
    the loss L is the same at all t, then the density proportional to E[L | t] gives the least variance.

    Attributes:
        even: weight of the uniform density in the mixture, in (0, 1].
    """

    even: float | int = 0.1
    needs_profile: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.even <= 1:
            raise ValueError(f"importance: even must be in (0, 1], not {self.even}")

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        if profile is None:
            raise ValueError("importance needs a learned profile of the loss")
        key_bin, key_position = jax.random.split(key)
        density = (1 - self.even) * jax.nn.softmax(jax.lax.stop_gradient(profile)) + self.even / profile.size
        k = jax.random.categorical(key_bin, jnp.log(density), shape=(n,))
        t = _scaled((k + jax.random.uniform(key_position, (n,))) / profile.size, interval).t
        return Drawn(t, 1 / (profile.size * density[k]))


@dataclass(frozen=True)
class UniformLogSNR:
    """Times whose log-SNR is uniform, with importance weights.

    Their density is proportional to d(log SNR)/dt, and so to the weight `likelihood` of the squared error of the noise.
    With this weight, the weighted error of every time is then the plain error of the noise times one constant, which
    has much less variance: the importance sampling of Song et al. 2021 (arXiv:2101.09258) for likelihood weighting.
    Times at which alpha or sigma is less than a thousandth of the other are left out.

    Attributes:
        stratified: whether to transform a stratified batch of uniform numbers instead of independent ones.
    """

    stratified: bool = False

    def __post_init__(self):
        if not isinstance(self.stratified, bool):
            raise ValueError(f"uniform_log_snr: stratified must be True or False, not {self.stratified!r}")

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        allowed = well_conditioned(path, alpha=True, sigma=True)
        low, high = max(interval[0], allowed[0]), min(interval[1], allowed[1])
        first, last = path.schedule.log_snr(low), path.schedule.log_snr(high)
        u = _shifted_grid(key, n) if self.stratified else jax.random.uniform(key, (n,))
        t = jnp.clip(clip_time(path.schedule, first + (last - first) * u), low, high)
        return Drawn(t, (last - first) / ((high - low) * log_snr_slope(path.schedule, t)))


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
    """Whether a distribution of times, or its class, needs a learned profile of the loss, as `Importance` does."""
    return getattr(times, "needs_profile", False)


def plain_times(parts: "Components", text: str) -> Times:
    """Makes the distribution of times of a method that learns no profile of the loss.

    Args:
        parts: the parts of the config.
        text: the setting `times`.

    Raises:
        ConfigError: if the distribution needs a learned profile.
    """
    times = parts.times(text)
    if needs_profile(times):
        raise ConfigError(
            f"method.times {text!r} needs a learned profile of the loss, which this method does not train: use "
            "'uniform', 'logit_normal' or 'log_normal'"
        )
    return times


def at(profile: Profile, t: Float[Array, " B"], interval: Interval) -> Float[Array, " B"]:
    """Returns the value of the profile in the bin of each time, (B,)."""
    position = (t - interval[0]) / (interval[1] - interval[0]) * profile.size
    return profile[jnp.clip(position.astype(int), 0, profile.size - 1)]
