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
import numpy as np
from jaxtyping import Array, ArrayLike, Int

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

    Between two equal-weight sets of B points an optimal plan is a permutation, found by SciPy's assignment solver on
    the host, through a callback. It takes about 1 ms at B = 128, 10 ms at 256, 70 ms at 512 and 0.5 s at 1024
    (8 Gaussians from a normal, one CPU core; `scripts/benchmarks/couplings.py`), and the step waits for it.
    """

    keeps_independence = False

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        check_batch(x0, x1)
        rows = jax.ShapeDtypeStruct(x1.shape[:1], jnp.int32)
        return jax.pure_callback(_assign, rows, x0, x1, vmap_method="sequential")


def _assign(x0: ArrayLike, x1: ArrayLike) -> np.ndarray:
    """The permutation `rows` minimising sum |x0[rows] - x1|^2: that is, maximising the sum of inner products."""
    from scipy.optimize import linear_sum_assignment

    a, b = (np.asarray(x, np.float64) for x in (x0, x1))
    x0, x1 = (x.reshape(x.shape[0], -1) for x in (a, b))
    if not (np.isfinite(x0).all() and np.isfinite(x1).all()):
        return np.arange(len(x1), dtype=np.int32)  # the loss is already lost; let the loop see it and stop
    return linear_sum_assignment(-(x1 @ x0.T))[1].astype(np.int32)
