"""Couplings: which source sample is paired with which data sample.

A coupling returns rows of x0; the data and its conditions never move, so a label stays with its image. Pairing within a
batch leaves both marginals as they are on average over batches, and changes the paths between them: optimal
transport makes them straighter and the regression target less noisy (Tong et al. 2024; Pooladian et al. 2023).

Any of them but `Independent` leaves x0 given x1 non-Gaussian: no score and no noise prediction then, except on a path
with noise of its own. And x0 given a *condition* is not Gaussian either, though sampling with that condition starts
from all of N(0, I): `condition_weight` inf pairs within equal conditions, which keeps x0 given the condition as drawn.
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
"""Of a plan's marginals: training stops above it."""


@runtime_checkable
class Coupling(Protocol):
    """`rows = coupling(key, x0, x1, cond)`: x0[rows] is paired with x1, row by row."""

    @property
    def keeps_independence(self) -> bool:
        """Whether x0 stays independent of x1, so that scores exist."""
        ...

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]: ...


class Pairs(NamedTuple):
    """Rows of x0, and how far the plan they were drawn from was from its marginals (0 for an exact coupling)."""

    rows: Int[Array, " B"]
    marginal_error: Float[Array, ""]


def pair(coupling: Coupling, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Pairs:
    """The coupling's rows with its marginal_error; a coupling that has none to report needs no `pairs` of its own."""
    pairs = getattr(coupling, "pairs", None)
    if pairs is not None:
        return pairs(key, x0, x1, cond)
    return Pairs(coupling(key, x0, x1, cond), jnp.zeros(()))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Independent:
    """Pairs as drawn: I-CFM, and the coupling of diffusion models."""

    keeps_independence = True

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        check_batch(x0, x1)
        return jnp.arange(x1.shape[0])


INDEPENDENT = Independent()
"""The default coupling."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class MinibatchOT:
    """Optimal transport of the batch under squared distance (OT-CFM; Tong et al. 2024, sec. 3.2.3).

    Between two equal-weight sets of B points an optimal plan is a permutation.

    Args:
        solver: "scipy" finds it exactly on the host, through a callback, from potentials computed in the step
            (`flowjax.transport.assignment`); the step waits for it. "auction" stays on the device and is within
            `tolerance` of the least cost. Milliseconds of one CPU core with "scipy" for 8 Gaussians from a normal, by
            `scripts/benchmarks/couplings.py`: 1.3 at B = 128, 3 at 256, 15 at 512 and 70 at 1024. The
            auction is for accelerators: on a CPU it took six times as long at 256; on an H200, 20 batches of 512 took
            14 ms together.
        tolerance: of the auction, relative.
        max_rounds: of the auction; rows that are left then are paired as they come, and their share is reported.
        condition_weight: on the squared distance of conditions (Cheng & Schwing 2025; labels are 0 or 1 apart); inf
            pairs within equal conditions only.
        space: whose distance is the cost; "scipy" takes Euclidean space alone.
    """

    solver: Literal["scipy", "auction"] = "scipy"
    tolerance: float = 0.01
    condition_weight: float = 0.0
    max_rounds: int = 20_000
    space: Space = field(default=EUCLIDEAN, repr=False)

    keeps_independence = False

    def __post_init__(self):
        if self.solver not in ("scipy", "auction"):
            raise ValueError(f"MinibatchOT: solver is 'scipy' or 'auction', not {self.solver!r}")
        if not (self.tolerance > 0 and self.condition_weight >= 0):
            raise ValueError("MinibatchOT: tolerance must be positive and condition_weight not negative")
        if self.solver == "scipy" and type(self.space) is not Euclidean:
            raise ValueError(f"MinibatchOT: the solver 'scipy' is for Euclidean space: take 'auction' on {self.space}")

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
    """One x0 for each row, drawn from the batch's entropic plan (SB-CFM, SF2M; Tong et al. 2024, sec. 3.2.4).

    The plan is rounded to its exact marginals before the draw (`flowjax.transport.sinkhorn`).

    Args:
        eps: the regularisation, in units of squared distance; 2 sigma^2 for a bridge of that sigma.
        tau: inf for balanced transport; else the penalty that lets source points be used unevenly.
        condition_weight: as in `MinibatchOT`.
        max_sweeps: of Sinkhorn's iteration.
        space: whose distance is the cost.
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
                f"Sinkhorn: eps, tau and max_sweeps must be positive and condition_weight not negative, not {self}"
            )

    def pairs(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Pairs:
        check_batch(x0, x1)
        if key is None:
            raise ValueError("Sinkhorn draws from a plan: pass key=jax.random.key(seed)")
        cost = pairwise_cost(x0, x1, self.space)
        if self.condition_weight:
            cost = cost + condition_penalty(cond, self.condition_weight)
        plan = sinkhorn(cost, self.eps, tau=self.tau, max_sweeps=self.max_sweeps)
        return Pairs(draw_rows(key, plan.matrix), plan.marginal_error)

    def __call__(self, key: PRNGKey | None, x0: Batched, x1: Batched, cond: Cond = None) -> Int[Array, " B"]:
        """Rows of x0. Outside `jit` a plan that has not converged is a ValueError; inside, look at `pairs`."""
        rows, marginal_error = self.pairs(key, x0, x1, cond)
        if not isinstance(marginal_error, Tracer) and not marginal_error <= LARGEST_MARGINAL_ERROR:
            raise ValueError(
                f"Sinkhorn has not converged: its plan misses its marginals by {float(marginal_error):.2g}; take a "
                "larger eps or more max_sweeps, or MinibatchOT"
            )
        return rows
