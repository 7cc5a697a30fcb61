"""Two-dimensional densities, sampled inside the compiled step, with exact log-densities where they exist.

Shapes and constants follow torchcfm's `utils.py` (8 Gaussians: radius 5, covariance sqrt(0.1) I; moons: scikit-learn's
with noise 0.2, times 3, minus 1) and the checkerboard of flow_matching, so that results are comparable. A curve with
Gaussian noise is a mixture with a continuum of centres; its density is a sum over centres that are much closer than the
standard deviation of the noise, and is exact to float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.batch import Batch
from flowjax.data.dataset import Dataset
from flowjax.data.spec import DataSpec
from flowjax.sources import GaussianMixture
from flowjax.typing import PRNGKey

__all__ = [
    "DENSITIES",
    "EIGHT_MODES",
    "EIGHT_STD",
    "TEST_POINTS",
    "BlurredCurve",
    "Checkerboard",
    "eight_gaussians",
    "open_density",
    "pinwheel",
]

TEST_POINTS = 10_000
_TEST_SEED = 20_240_101
_CENTRES = 2048


def _angles(n: int) -> Float[np.ndarray, "n 2"]:
    angle = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], -1)


EIGHT_MODES = 5.0 * _angles(8)
EIGHT_STD = 0.1**0.25
"""0.5623, the square root of torchcfm's variance sqrt(0.1)."""


def eight_gaussians() -> GaussianMixture:
    """Eight equal Gaussians on a circle of radius 5; the entropy is 3.766 nats if their overlap is neglected."""
    return GaussianMixture(jnp.asarray(EIGHT_MODES, jnp.float32), EIGHT_STD)


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the 8 dark squares of a 4 x 4 board [-4, 4]^2, where the log-density is -log 32."""

    shape = (2,)

    def sample(self, key: PRNGKey, n: int) -> Float[Array, "n 2"]:
        square, inside = jax.random.split(key)
        k = jax.random.randint(square, (n,), 0, 8)
        row, pair = k // 2, k % 2
        corner = jnp.stack([2 * pair + row % 2, row], -1)
        return 2.0 * (corner + jax.random.uniform(inside, (n, 2))) - 4.0

    def log_prob(self, x: Float[Array, "B 2"]) -> Float[Array, " B"]:
        cell = jnp.floor((x + 4.0) / 2.0)
        on_board = jnp.all((cell >= 0) & (cell < 4), -1)
        return jnp.where(on_board & (cell.sum(-1) % 2 == 0), -jnp.log(32.0), -jnp.inf)


@dataclass(frozen=True)
class BlurredCurve:
    """The density of curve(u) + std * z, with u uniform on [0, 1) and z standard normal.

    Args:
        curve: function (n,) in [0, 1) -> (n, 2), which may be discontinuous.
        std: standard deviation of the noise.
    """

    curve: Callable[[Array], Float[Array, "n 2"]]
    std: float
    shape = (2,)

    def sample(self, key: PRNGKey, n: int) -> Float[Array, "n 2"]:
        key_u, key_z = jax.random.split(key)
        return self.curve(jax.random.uniform(key_u, (n,))) + self.std * jax.random.normal(key_z, (n, 2))

    def log_prob(self, x: Float[Array, "B 2"]) -> Float[Array, " B"]:
        centres = self.curve((jnp.arange(_CENTRES) + 0.5) / _CENTRES)
        blurred = GaussianMixture(centres, self.std)
        return jax.lax.map(lambda row: blurred.log_prob(row[None])[0], x, batch_size=512)


def _moons(u: Array) -> Float[Array, "n 2"]:
    upper, angle = u < 0.5, jnp.pi * (2 * u % 1)
    x = jnp.where(upper, jnp.cos(angle), 1 - jnp.cos(angle))
    y = jnp.where(upper, jnp.sin(angle), 0.5 - jnp.sin(angle))
    return 3.0 * jnp.stack([x, y], -1) - 1.0


def _s_curve(u: Array) -> Float[Array, "n 2"]:
    angle = 3 * jnp.pi * (u - 0.5)
    return 2.0 * jnp.stack([jnp.sin(angle), jnp.sign(angle) * (jnp.cos(angle) - 1)], -1)


def _two_spirals(u: Array) -> Float[Array, "n 2"]:
    arm = jnp.where(u < 0.5, 1.0, -1.0)
    angle = 3 * jnp.pi * jnp.sqrt(2 * u % 1)
    return (arm * angle / 2.5)[:, None] * jnp.stack([-jnp.cos(angle), jnp.sin(angle)], -1)


def _swiss_roll(u: Array) -> Float[Array, "n 2"]:
    angle = 1.5 * jnp.pi * (1 + 2 * u)
    return (angle / 3.5)[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


def pinwheel(key: PRNGKey, n: int) -> Float[Array, "n 2"]:
    """Draws n points of five Gaussians, rotated by an angle that grows with the radius (Johnson et al. 2016)."""
    key_k, key_z = jax.random.split(key)
    z = jax.random.normal(key_z, (n, 2)) * jnp.array([0.3, 0.1]) + jnp.array([1.0, 0.0])
    angle = 2 * jnp.pi / 5 * jax.random.randint(key_k, (n,), 0, 5) + 0.25 * jnp.exp(z[:, 0])
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return 2.0 * jnp.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], -1)


DENSITIES = {
    "gaussians8": eight_gaussians,
    "moons": partial(BlurredCurve, _moons, 0.6),
    "checkerboard": Checkerboard,
    "s_curve": partial(BlurredCurve, _s_curve, 0.1),
    "two_spirals": partial(BlurredCurve, _two_spirals, 0.1),
    "swiss_roll": partial(BlurredCurve, _swiss_roll, 0.1),
}


def open_density(name: str) -> Dataset:
    """Opens a 2D density as a data set, with unlimited training samples and `TEST_POINTS` fixed test points."""
    if name == "pinwheel":
        sample, log_prob = pinwheel, None
    else:
        density = DENSITIES[name]()
        sample, log_prob = density.sample, jax.jit(lambda x: density.log_prob(x))
    draw = jax.jit(lambda key, n: sample(key, n), static_argnums=1)
    return Dataset(
        spec=DataSpec(name, (2,)),
        test=np.asarray(draw(jax.random.key(_TEST_SEED), TEST_POINTS)),
        sample=lambda arrays, key, n: Batch(sample(key, n)),
        log_prob=log_prob,
        draw=draw,
        modes=EIGHT_MODES if name == "gaussians8" else None,
    )
