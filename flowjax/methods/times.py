"""Where training draws its times, apart from how much an error counts there.

    uniform              U(interval)
    logit_normal(m, s)   logit(t) ~ N(m, s^2)                            Esser et al. 2024 (their t is 1 - ours)
    log_normal(m, s)     log(sigma / alpha) ~ N(m, s^2)                  Karras et al. 2022, table 1
    stratified           one uniform shift of an even grid, shuffled     Kingma et al. 2021, appendix I.1
    levels(n)            the n levels of a discrete chain, evenly        Ho et al. 2020
    importance           a learned density, divided out of the loss      Nichol & Dhariwal 2021, sec. 3.3

`log_normal` and `logit_normal` take `stratified=True`: the same law for each, from a stratified batch of its quantiles.

All but the last change what is minimised; `importance` only its variance (and, as the profile is a parameter like the
others, what a clip of the global gradient norm sees). Its density is learned with the network: a profile u of the
logarithm of the loss on even bins of the interval, whose own loss  L / e^u + u  is least at u = log E[L | t].
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.paths.affine import AffinePath
from flowjax.schedules import clip_time
from flowjax.typing import PRNGKey

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
    "Uniform",
    "at",
]

BINS = 32
"""Of a learned profile of the loss."""

Profile = Float[Array, " K"]
Interval = tuple[float, float]


class Drawn(NamedTuple):
    """Times (n,) of the interval, and the weight of each: the density of U(interval) over the one drawn from, or 1."""

    t: Float[Array, " n"]
    weight: Float[Array, " n"]


@runtime_checkable
class Times(Protocol):
    """`times(key, n, path, interval, profile) -> Drawn`."""

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn: ...


def _spread(u: Array, interval: Interval) -> Drawn:
    return Drawn(interval[0] + (interval[1] - interval[0]) * u, jnp.ones_like(u))


@dataclass(frozen=True)
class Uniform:
    """Uniform on the interval."""

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return Drawn(jax.random.uniform(key, (n,), minval=interval[0], maxval=interval[1]), jnp.ones(n))


UNIFORM = Uniform()
"""Where times are drawn by default."""


@dataclass(frozen=True)
class Stratified:
    """An even grid of n points under one uniform shift, shuffled: uniform each, with less variance of their mean."""

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return _spread(_even(key, n), interval)


def _even(key: PRNGKey, n: int) -> Float[Array, " n"]:
    """One number of each (i / n, (i + 1) / n), all equally far from its left end, in random order."""
    key_shift, key_order = jax.random.split(key)
    return jax.random.permutation(key_order, (jnp.arange(n) + jax.random.uniform(key_shift)) / n)


_NEXT_TO_ONE = 1 - 2.0**-24  # in float32, which rounds the last of an even grid up to 1 now and then


def _normal(key: PRNGKey, n: int, stratified: bool) -> Float[Array, " n"]:
    """n numbers of the law N(0, 1): independent, or the quantiles of an even grid."""
    if not stratified:
        return jax.random.normal(key, (n,))
    return jax.scipy.special.ndtri(jnp.clip(_even(key, n), 1 - _NEXT_TO_ONE, _NEXT_TO_ONE))


def _check_normal(name: str, mean: float | int, std: float | int, stratified: bool) -> None:
    if isinstance(mean, str) or not std > 0:
        raise ValueError(f"{name}: a mean and a positive std are needed, not {mean!r} and {std!r}")
    if not isinstance(stratified, bool):
        raise ValueError(f"{name}: stratified is True or False, not {stratified!r}")


@dataclass(frozen=True)
class LogitNormal:
    """logit of the place in the interval ~ N(mean, std^2): more weight in the middle; `stratified` over the batch."""

    mean: float | int = 0.0
    std: float | int = 1.0
    stratified: bool = False

    def __post_init__(self):
        _check_normal("logit_normal", self.mean, self.std, self.stratified)

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return _spread(jax.nn.sigmoid(self.mean + self.std * _normal(key, n, self.stratified)), interval)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), kept in the interval: EDM's training distribution of noise levels.

    `stratified` over the batch, or each on its own.
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
    """The n even times t_min, ..., t_max of a chain, each equally often; on a discrete schedule of n levels, its
    levels."""

    n: int = 1000

    def __post_init__(self):
        if not isinstance(self.n, int) or self.n < 2:
            raise ValueError(f"levels: a whole number of at least 2 is needed, not {self.n}")

    def grid(self, path: AffinePath, interval: Interval | None = None) -> Float[Array, " n"]:
        low, high = interval or (path.t_min, path.t_max)
        return jnp.linspace(low, high, self.n)

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return Drawn(self.grid(path, interval)[jax.random.randint(key, (n,), 0, self.n)], jnp.ones(n))


@dataclass(frozen=True)
class Importance:
    """Bins of the interval in proportion to the loss that the profile has learned there, and a share evenly.

    For an L of constant relative spread at each t, E[L | t] is the density of least variance.
    """

    even: float | int = 0.1
    needs_profile: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.even <= 1:
            raise ValueError(f"importance: the even share must be in (0, 1], not {self.even}")

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        if profile is None:
            raise ValueError("importance needs a learned profile of the loss")
        key_bin, key_place = jax.random.split(key)
        density = (1 - self.even) * jax.nn.softmax(jax.lax.stop_gradient(profile)) + self.even / profile.size
        k = jax.random.categorical(key_bin, jnp.log(density), shape=(n,))
        t = _spread((k + jax.random.uniform(key_place, (n,))) / profile.size, interval).t
        return Drawn(t, 1 / (profile.size * density[k]))


@dataclass(frozen=True)
class Fixed:
    """Times that the caller has drawn, one for each row of the batch."""

    t: Float[Array, " n"]

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        return Drawn(self.t, jnp.ones(n))


def at(profile: Profile, t: Float[Array, " B"], interval: Interval) -> Float[Array, " B"]:
    """The profile's value at t: that of its bin."""
    place = (t - interval[0]) / (interval[1] - interval[0]) * profile.size
    return profile[jnp.clip(place.astype(int), 0, profile.size - 1)]
