"""Couplings: the joint distribution of source and data samples, as a pairing within each batch.

A coupling returns indices of rows of x0; the data and their conditions are not permuted. Averaged over batches, pairing
preserves the distributions of x0 and of x1. Pairing by optimal transport makes paths straighter and the regression
target less noisy (Tong et al. 2024, arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772).

With every coupling except `Independent`, x0 given x1 is not Gaussian. There is then no score and no noise prediction,
except on a path with noise. x0 given a *condition* is not Gaussian either, although conditional sampling starts from
N(0, I). `condition_weight=inf` removes this bias for labels: it pairs only rows with equal labels.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from flowjax.paths.affine import check_batch
from flowjax.spaces import EUCLIDEAN, Euclidean, Space
from flowjax.transport import (
    assign,
    auction,
    condition_penalty,
    draw_rows,
    entropic_potentials,
    pairwise_cost,
    sinkhorn,
)
from flowjax.typing import Batched, Cond, PRNGKey

__all__ = [
    "INDEPENDENT",
    "LARGEST_MARGINAL_ERROR",
    "Coupling",
    "Independent",
    "MinibatchOT",
    "Pairs",
    "Sinkhorn",
    "pair",
]

LARGEST_MARGINAL_ERROR = 0.05
"""The marginal error of a transport plan above which training stops."""


@runtime_checkable
class Coupling(Protocol):
    """A function `rows = coupling(key, x0, x1, cond)` with the meaning that x0[rows[i]] is paired with x1[i]."""

    @property
    def keeps_independence(self) -> bool:
        """Whether x0 is independent of x1 after pairing, which a score on a `GaussianPath` requires."""
        ...

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]: ...


class Pairs(NamedTuple):
    """The result of a coupling.

    Attributes:
        rows: indices of rows of x0, (B,); x0[rows[i]] is paired with x1[i].
        marginal_error: 0 for an exact coupling. For `Sinkhorn` it is the marginal error of the plan, and for the
            auction the fraction of rows that were assigned only after the last round.
    """

    rows: Int[Array, " B"]
    marginal_error: Float[Array, ""]


def pair(coupling: Coupling, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Pairs:
    """Pairs a batch and reports the marginal error.

    It calls `coupling.pairs` if there is such a method. Otherwise the marginal error is taken to be 0.

    Args:
        coupling: the coupling.
        key: the PRNG key; may be None for deterministic couplings.
        x0, x1: source and data samples, (B, *event).
        cond: the conditions of the data, a pytree of arrays (B, ...), or None.
    """
    pairs = getattr(coupling, "pairs", None)
    if pairs is not None:
        return pairs(key, x0, x1, cond)
    return Pairs(coupling(key, x0, x1, cond), jnp.zeros(()))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Independent:
    """Pairs x0[i] with x1[i], as in I-CFM and diffusion models."""

    keeps_independence = True

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        check_batch(x0, x1)
        return jnp.arange(x1.shape[0])


INDEPENDENT = Independent()
"""The default coupling."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class MinibatchOT:
    """Optimal transport between the two batches under squared distance (OT-CFM; Tong et al. 2024, sec. 3.2.3).

    Between two sets of B points with equal weights there is an optimal plan that is a permutation.

    Attributes:
        solver: "scipy" computes an optimal permutation on the host (`flowjax.transport.assignment`) through a callback,
            for which the training step waits. "auction" runs on the device and is optimal up to `tolerance`. From a
            normal to 8 Gaussians, "scipy" takes 1.3 ms at B = 128, 3 ms at 256, 15 ms at 512 and 70 ms at 1024 on one
            CPU core (`scripts/benchmarks/couplings.py`). The auction is meant for accelerators: at B = 256 it takes six
            times as long on that CPU core, and 20 batches of 512 take 14 ms in total on an H200.
        tolerance: the relative error of the cost with "auction".
        condition_weight: the weight of the squared distance between conditions, which is added to the cost (Cheng &
            Schwing 2025, arXiv:2503.10636). Different labels are at distance 1. inf pairs only rows with equal labels
            and ignores other conditions.
        max_rounds: the largest number of rounds of "auction", after which the remaining rows are paired in order. The
            fraction of these rows is reported as the marginal error.
        space: the space whose distance is used; "scipy" supports only Euclidean space.
    """

    solver: Literal["scipy", "auction"] = "scipy"
    tolerance: float = 0.01
    condition_weight: float = 0.0
    max_rounds: int = 20_000
    space: Space = field(default=EUCLIDEAN, repr=False)

    keeps_independence = False

    def __post_init__(self):
        if self.solver not in ("scipy", "auction"):
            raise ValueError(f"MinibatchOT: solver must be 'scipy' or 'auction', not {self.solver!r}")
        if not (self.tolerance > 0 and self.condition_weight >= 0):
            raise ValueError("MinibatchOT: tolerance must be positive and condition_weight must not be negative")
        if self.solver == "scipy" and type(self.space) is not Euclidean:
            raise ValueError(f"MinibatchOT: solver 'scipy' needs Euclidean space: take 'auction' on {self.space}")

    def pairs(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Pairs:
        check_batch(x0, x1)
        cost = pairwise_cost(x0, x1, self.space)
        penalty = condition_penalty(cond, self.condition_weight) if self.condition_weight else None
        cost = cost if penalty is None else cost + penalty
        if self.solver == "auction":
            return Pairs(*auction(cost, self.tolerance, self.max_rounds))
        shape = jax.ShapeDtypeStruct(x1.shape[:1], jnp.int32)
        arguments = (x0, x1, *entropic_potentials(cost)) + (() if penalty is None else (penalty,))
        return Pairs(jax.pure_callback(assign, shape, *arguments, vmap_method="sequential"), jnp.zeros(()))

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        return self.pairs(key, x0, x1, cond).rows


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sinkhorn:
    """Samples one x0 per data point from the entropic transport plan of the batch.

    This is the coupling of SB-CFM (Tong et al. 2024, sec. 3.2.4) and SF2M (arXiv:2307.03672). Balanced plans are
    rounded to exact marginals before sampling (`flowjax.transport.sinkhorn`).

    Attributes:
        eps: the regularisation, in units of squared distance; 2 sigma^2 matches a `Bridge` of scale sigma.
        tau: inf for balanced transport; a finite value is the penalty for using source points unevenly.
        condition_weight: as in `MinibatchOT`.
        max_sweeps: the largest number of Sinkhorn sweeps.
        space: the space whose distance is used.
    """

    eps: float
    tau: float = math.inf
    condition_weight: float = 0.0
    max_sweeps: int = 2000
    space: Space = field(default=EUCLIDEAN, repr=False)

    keeps_independence = False

    def __post_init__(self):
        if not (self.eps > 0 and self.tau > 0 and self.condition_weight >= 0 and self.max_sweeps >= 1):
            raise ValueError(
                f"Sinkhorn: eps, tau and max_sweeps must be positive and condition_weight must not be negative: {self}"
            )

    def pairs(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Pairs:
        check_batch(x0, x1)
        if key is None:
            raise ValueError("Sinkhorn samples from a plan and needs a key: pass key=jax.random.key(seed)")
        cost = pairwise_cost(x0, x1, self.space)
        if self.condition_weight:
            cost = cost + condition_penalty(cond, self.condition_weight)
        plan = sinkhorn(cost, self.eps, tau=self.tau, max_sweeps=self.max_sweeps)
        return Pairs(draw_rows(key, plan.matrix), plan.marginal_error)

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        """Indices of rows of x0, (B,). Under `jit` convergence is not checked; use `pairs` for the marginal error.

        Raises:
            ValueError: outside `jit`, if the plan has not converged.
        """
        rows, marginal_error = self.pairs(key, x0, x1, cond)
        if not isinstance(marginal_error, Tracer) and not marginal_error <= LARGEST_MARGINAL_ERROR:
            raise ValueError(
                f"Sinkhorn has not converged: the marginal error of its plan is {float(marginal_error):.2g}; use a "
                "larger eps, a larger max_sweeps, or MinibatchOT"
            )
        return rows
