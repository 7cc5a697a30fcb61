"""The error of exact log-densities against closed forms, in float64: the table of docs/howto/likelihood.md.

    JAX_ENABLE_X64=1 python scripts/benchmarks/likelihood_accuracy.py

Normal distributions with full covariances in 1 to 3,072 dimensions, and mixtures, on four schedules. The velocity is
the exact one, from the distribution at the first time of the schedule to the one at its last time. The error of a point
is |log p - true| / max(1, |true|), where the true density comes from SciPy.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import logsumexp

from flowjax import likelihood
from flowjax.paths import GaussianPath
from flowjax.schedules import VP, CondOT, Cosine, SubVP, rates

SCHEDULES = {"condot": CondOT(), "cosine": Cosine(), "vp": VP(), "subvp": SubVP()}
DIMENSIONS = (1, 2, 16, 256, 3072)
DENSE = 256
"""The largest dimension with a dense matrix of eigenvectors; above it, it is a reflection, whose product is O(D)."""


@dataclass(frozen=True, eq=False)
class FullNormals:
    """A mixture of N(m_c, U diag(s_c^2) U^T) as the data of a path from N(0, I), with the velocity in closed form.

    Component c of p_t is N(alpha m_c, U diag(alpha^2 s_c^2 + sigma^2) U^T). Its velocity is, with the derivatives
    alpha' and sigma' and in the basis of the eigenvectors,

        alpha' m_c + (alpha alpha' s_c^2 + sigma sigma') / (alpha^2 s_c^2 + sigma^2) (x - alpha m_c) ,

    and the velocity of the mixture is their mean with the responsibilities of the components at x as weights.
    """

    schedule: Any
    means: np.ndarray
    scales: np.ndarray
    basis: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        path = GaussianPath(self.schedule)
        return path.t_min, path.t_max

    def turn(self, x: jax.Array) -> jax.Array:
        """U^T x; U is the matrix `basis`, or the reflection along the vector `basis`, which is its own inverse."""
        return x @ self.basis if self.basis.ndim == 2 else x - 2 * (x @ self.basis)[:, None] * self.basis

    def turn_back(self, y: jax.Array) -> jax.Array:
        return y @ self.basis.T if self.basis.ndim == 2 else self.turn(y)

    def __call__(self, t: Any, x: jax.Array, cond: Any = None) -> jax.Array:
        r, y = rates(self.schedule, t), self.turn(x)[:, None]
        means = self.turn(jnp.asarray(self.means))
        variance = (r.alpha * self.scales) ** 2 + r.sigma**2
        slope = (r.alpha * r.dalpha * self.scales**2 + r.sigma * r.dsigma) / variance
        gap = y - r.alpha * means
        weights = jax.nn.softmax(-0.5 * (gap**2 / variance + jnp.log(variance)).sum(-1))
        return self.turn_back(jnp.einsum("bc,bcd->bd", weights, r.dalpha * means + slope * gap))

    def true(self, t: float, x: np.ndarray) -> np.ndarray:
        """log p_t by SciPy, from covariance matrices."""
        r = jax.tree.map(float, rates(self.schedule, t))
        u = np.asarray(self.turn_back(jnp.eye(x.shape[1])))
        normal: Any = stats.multivariate_normal
        each = [
            normal(r.alpha * m, u.T @ np.diag((r.alpha * s) ** 2 + r.sigma**2) @ u).logpdf(x)
            for m, s in zip(self.means, self.scales, strict=True)
        ]
        return logsumexp(np.reshape(each, (len(each), -1)), axis=0) - np.log(len(each))

    def draw(self, t: float, n: int) -> np.ndarray:
        rng, r = np.random.default_rng(1), jax.tree.map(float, rates(self.schedule, t))
        c = np.arange(n) % len(self.means)
        std = np.sqrt((r.alpha * self.scales[c]) ** 2 + r.sigma**2)
        return np.asarray(r.alpha * self.means[c] + self.turn_back(jnp.asarray(std * rng.normal(size=std.shape))))


@dataclass(frozen=True, eq=False)
class At:
    """The distribution of `FullNormals` at a time, as a source."""

    normals: FullNormals
    t: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.normals.means.shape[1:]

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        raise NotImplementedError("only the density is needed")

    def log_prob(self, x: jax.Array) -> jax.Array:
        r = rates(self.normals.schedule, self.t)
        variance = (r.alpha * self.normals.scales) ** 2 + r.sigma**2
        gap = self.normals.turn(x)[:, None] - r.alpha * self.normals.turn(jnp.asarray(self.normals.means))
        each = -0.5 * (gap**2 / variance + jnp.log(2 * jnp.pi * variance)).sum(-1)
        return jax.scipy.special.logsumexp(each, axis=-1) - jnp.log(len(self.normals.means))


def problem(schedule: str, d: int, components: int = 1) -> FullNormals:
    """Standard deviations between 0.3 and 1.5 along random axes, and means of about 1 (of a mixture 2)."""
    rng = np.random.default_rng(d)
    scales = np.exp(rng.uniform(np.log(0.3), np.log(1.5), (components, d)))
    means = rng.normal(size=(components, d)) * (1.0 if components == 1 else 2.0)
    turned = rng.normal(size=(d, d)) if d <= DENSE else rng.normal(size=d)
    basis = np.linalg.qr(turned).Q if d <= DENSE else turned / np.linalg.norm(turned)
    return FullNormals(SCHEDULES[schedule], means, scales, basis)


def error(normals: FullNormals, rows: int, tolerance: float) -> dict[str, float]:
    """The largest relative error of log p over the points, and the evaluations."""
    t0, t1 = normals.interval
    x = normals.draw(t1, rows)
    start = time.perf_counter()
    found = likelihood.log_prob(normals, jnp.asarray(x), At(normals, t0), rtol=tolerance, atol=tolerance)
    values, seconds = np.asarray(found.log_prob), time.perf_counter() - start
    true = normals.true(t1, x)
    assert values.dtype == np.float64, "set JAX_ENABLE_X64=1"
    worst = float((np.abs(values - true) / np.maximum(1, np.abs(true))).max())
    return {"error": worst, "nfe": int(found.stats.nfe.max()), "log_prob": float(true.mean()), "seconds": seconds}


def table(dimensions: Iterable[int], tolerance: float) -> Iterable[dict[str, Any]]:
    """A row for each normal distribution and mixture on each schedule."""
    for d, name in ((d, name) for d in dimensions for name in SCHEDULES):
        rows = 2 if d > DENSE else 4 if d > 16 else 16
        yield {"data": "normal", "dimension": d, "schedule": name} | error(problem(name, d), rows, tolerance)
    for d, name in ((d, name) for d in (2, 16) for name in SCHEDULES):
        yield {"data": "mixture of 3", "dimension": d, "schedule": name} | error(problem(name, d, 3), 16, tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=1e-7)
    parser.add_argument("--dimensions", default=",".join(map(str, DIMENSIONS)))
    args = parser.parse_args()
    show = partial(print, flush=True)
    for row in table(map(int, args.dimensions.split(",")), args.tolerance):
        show(json.dumps(row))


if __name__ == "__main__":
    main()
