"""The path energy of I-CFM's exact marginal velocity, in closed form at every (t, x): what a perfect network would
reach.

    python experiments/minibatch_ot/exact.py

prints, for each pair of `table.py`, the integral of E|v|^2 dt by 30 draws of 4,096 stratified times and its standard
error. A blurred curve stands as a mixture of normals along it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import oracles
from flowjax.data.densities import DENSITIES, eight_gaussians
from flowjax.paths import AffinePath, Constant
from flowjax.schedules import CondOT
from flowjax.sources import GaussianMixture

PAIRS = [("normal", "gaussians8"), ("moons", "gaussians8"), ("normal", "moons"), ("normal", "s_curve")]
POINTS, DRAWS = 4096, 30


def along(name: str, points: int) -> GaussianMixture:
    """A density on a curve as so many normals of its own blur."""
    density = DENSITIES[name]()
    return GaussianMixture(density.curve((jnp.arange(points) + 0.5) / points), density.std)


MIXTURES = {
    "normal": GaussianMixture(jnp.zeros((1, 2)), 1.0),
    "gaussians8": eight_gaussians(),
    "moons": along("moons", 96),
    "s_curve": along("s_curve", 400),
}


def main():
    path = AffinePath(CondOT(), Constant(0.1))
    for source, target in PAIRS:
        oracle = oracles.mixture(path, MIXTURES[target], MIXTURES[source])

        @jax.jit
        def energy(key, oracle=oracle, source=source, target=target):
            key_t, key_0, key_1, key_z = jax.random.split(key, 4)
            t = (jnp.arange(POINTS) + jax.random.uniform(key_t, (POINTS,))) / POINTS
            ends = (MIXTURES[source].sample(key_0, POINTS), MIXTURES[target].sample(key_1, POINTS))
            return (oracle.velocity(t, path.sample(key_z, t, *ends).x_t) ** 2).sum(-1).mean()

        values = np.array([float(energy(jax.random.key(i))) for i in range(DRAWS)])
        print(f"{source} -> {target}: {values.mean():.3f} +- {values.std() / DRAWS**0.5:.3f}")


if __name__ == "__main__":
    main()
