"""Hutchinson's estimator of the divergence: tr J = E[e . J e] for random vectors e with E[e e^T] = I.

(Hutchinson 1990; for flows Grathwohl et al. 2019, arXiv 1810.01367.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.errors import check_name
from flowjax.likelihood.estimator import dot
from flowjax.likelihood.memory import directions_at_once, mapped
from flowjax.typing import Batched, PRNGKey

__all__ = ["GROUPS", "Hutchinson", "ProbeKind", "hutchinson_divergence", "quadratic_forms"]

ProbeKind = Literal["rademacher", "gaussian", "orthogonal"]
"""The distribution of the probes: random signs, normal numbers, or orthogonal directions of length sqrt(D)."""

GROUPS = 4
"""The number of groups of orthogonal probes: directions are orthogonal within a group, and groups are independent."""


@dataclass(frozen=True)
class Hutchinson:
    """The mean of e . J e over random probes e, with one forward-mode derivative per probe and evaluation.

    The variance of one probe is |J + J^T|_F^2 / 2, for signs without the diagonal of J. Orthogonal probes are the
    columns of Q sqrt(D) in the QR decomposition of a Gaussian matrix. They are not independent, so they come in
    4 independent groups of probes / 4 directions, and the mean of each group is one estimate. The standard error then
    has only 3 degrees of freedom. A group of D directions gives the exact trace, and no group has more.

    Attributes:
        probes: the number of probes for each row; a multiple of 4 if they are orthogonal.
        kind: "rademacher", "gaussian" or "orthogonal".

    Raises:
        ValueError: if the kind is unknown, or it cannot have this number of probes.
    """

    probes: int = 1
    kind: ProbeKind = "rademacher"

    def __post_init__(self) -> None:
        check_name("kind of probes", self.kind, get_args(ProbeKind))
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, not {self.probes}")
        if self.kind == "orthogonal" and self.probes % GROUPS:
            raise ValueError(
                f"orthogonal probes come in {GROUPS} independent groups, so probes must be a multiple of {GROUPS}, "
                f"not {self.probes}"
            )

    @property
    def estimates(self) -> int:
        """The number of probes, or of groups of orthogonal probes."""
        return GROUPS if self.kind == "orthogonal" else self.probes

    @property
    def is_exact(self) -> bool:
        """False."""
        return False

    @property
    def needs_forward_mode(self) -> bool:
        """True."""
        return True

    def draw(self, key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "P *event"]:
        """The probes of one row, (P, *shape)."""
        if self.kind == "rademacher":
            return jax.random.rademacher(key, (self.probes, *shape), dtype)
        if self.kind == "gaussian":
            return jax.random.normal(key, (self.probes, *shape), dtype)
        d = math.prod(shape)
        size = min(d, self.probes // GROUPS)
        q = jnp.linalg.qr(jax.random.normal(key, (GROUPS, d, size), dtype)).Q
        return jnp.sqrt(jnp.asarray(d, dtype)) * jnp.moveaxis(q, 2, 1).reshape(GROUPS * size, *shape)

    def __call__(
        self, v: Callable[[Batched], Batched], x: Batched, probes: Array | None, rows: int | None = None
    ) -> tuple[Batched, Float[Array, "B K"]]:
        """v(x) and the estimates of its divergence; the arguments are those of `DivergenceEstimator`."""
        assert probes is not None
        y, terms = quadratic_forms(v, x, probes, rows)
        return y, terms.reshape(x.shape[0], self.estimates, -1).mean(-1)


def quadratic_forms(
    v: Callable[[Batched], Batched], x: Batched, probes: Float[Array, "B P *event"], rows: int | None = None
) -> tuple[Batched, Float[Array, "B P"]]:
    """v(x) and e . J e for each probe e, in chunks that fit the memory, where J is the Jacobian of v."""
    directions = jnp.moveaxis(probes, 1, 0)
    if len(directions) == 1:  # without linearisation no intermediate values are kept
        y, slope = jax.jvp(v, (x,), (directions[0],))
        return y, dot(slope, directions[0])[:, None]
    y, push = jax.linearize(v, x)
    at_once = directions_at_once(push, x, rows)
    return y, mapped(lambda e: dot(push(e), e), directions, at_once).T


def hutchinson_divergence(
    v: Callable[[Batched], Batched], x: Batched, probes: Float[Array, "B P *event"]
) -> tuple[Batched, Float[Array, " B"]]:
    """v(x) and Hutchinson's estimate of its divergence, with one forward-mode derivative per probe.

    Args:
        v: the velocity at one time, a function of x that `jax.jvp` can differentiate.
        x: (B, *event).
        probes: (B, P, *event) random vectors e with E[e e^T] = I.

    Returns:
        v(x), (B, *event), and the mean of e . J e over the probes for each sample, (B,), where J is the Jacobian of v.
    """
    y, terms = quadratic_forms(v, x, probes)
    return y, terms.mean(1)
