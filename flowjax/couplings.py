"""Couplings: which source sample is paired with which data sample.

A coupling returns rows of x0; the data and its conditions never move, so a label stays with its image. Pairing within a
batch leaves both marginals as they are on average over batches, and changes the paths between them: optimal
transport makes them straighter and the regression target less noisy (Tong et al. 2024; Pooladian et al. 2023).

Exact optimal transport leaves x0 given x1 non-Gaussian: no score and no noise prediction then.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from flowjax.assignment import assign, entropic_potentials
from flowjax.paths.affine import check_batch
from flowjax.typing import Batched, Cond, PRNGKey


@runtime_checkable
class Coupling(Protocol):
    """`rows = coupling(key, x0, x1, cond)`: x0[rows] is paired with x1, row by row."""

    @property
    def keeps_independence(self) -> bool:
        """Whether x0 stays independent of x1, so that scores exist."""
        ...

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]: ...


@jax.tree_util.register_static
@dataclass(frozen=True)
class Independent:
    """Pairs as drawn: I-CFM, and the coupling of diffusion models."""

    keeps_independence = True

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        check_batch(x0, x1)
        return jnp.arange(x1.shape[0])


@jax.tree_util.register_static
@dataclass(frozen=True)
class MinibatchOT:
    """Exact optimal transport of the batch under squared distance (OT-CFM; Tong et al. 2024, sec. 3.2.3).

    Between two equal-weight sets of B points an optimal plan is a permutation. SciPy's solver finds it on the host,
    through a callback, from potentials computed in the step (`flowjax.assignment`); the step waits for it.
    Milliseconds of one CPU core for 8 Gaussians from a normal, by `scripts/benchmarks/couplings.py`: 1.3 at B = 128,
    3 at 256, 15 at 512 and 70 at 1024.
    """

    keeps_independence = False

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        check_batch(x0, x1)
        rows = jax.ShapeDtypeStruct(x1.shape[:1], jnp.int32)
        return jax.pure_callback(assign, rows, x0, x1, *entropic_potentials(x0, x1), vmap_method="sequential")
