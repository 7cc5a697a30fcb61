"""Hutch++ (Meyer, Musco, Musco & Woodruff 2021, arXiv 2010.09649, algorithm 1): the trace of the largest part of the
Jacobian exactly, and Hutchinson's estimator for the rest.

With random signs S and G (D, r), Q an orthonormal basis of the columns of J S, and P = I - Q Q^T,

    tr J  =  tr(Q^T J Q) + tr(P J P),    and each column g of G estimates the second term by  (P g) . J (P g) .

Given S, the r estimates tr(Q^T J Q) + (P g) . J (P g) are independent and each is unbiased, for every square J.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.likelihood.estimator import dot
from flowjax.likelihood.memory import directions_at_once, mapped
from flowjax.typing import Batched, PRNGKey

__all__ = ["HutchPlusPlus"]

_PARTS = 3
"""A third of the products are J S, a third J Q, and a third those of Hutchinson's estimator."""


@dataclass(frozen=True)
class HutchPlusPlus:
    """Hutch++ with `probes` forward-mode derivatives per evaluation, for a Jacobian with few large singular values.

    The gradient takes Q as a constant. It is an unbiased estimate of the gradient of the divergence, as the estimate is
    unbiased for every Q, but not the derivative of the estimate.

    Attributes:
        probes: the number of Jacobian-vector products for each row, a multiple of 3. There are probes / 3 estimates,
            and the standard error has one degree of freedom less: 1 for the default of 6.

    Raises:
        ValueError: if `probes` is not a multiple of 3, or less than 3.
    """

    probes: int = 6

    def __post_init__(self) -> None:
        if self.probes < _PARTS or self.probes % _PARTS:
            raise ValueError(f"probes of hutch++ must be a multiple of {_PARTS}, such as 6, not {self.probes}")

    @property
    def estimates(self) -> int:
        """A third of the probes."""
        return self.probes // _PARTS

    @property
    def is_exact(self) -> bool:
        """False."""
        return False

    @property
    def needs_forward_mode(self) -> bool:
        """True."""
        return True

    def draw(self, key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "P *event"]:
        """The columns of S and then of G for one row, (2 probes / 3, *shape)."""
        return jax.random.rademacher(key, (2 * self.estimates, *shape), dtype)

    def __call__(
        self, v: Callable[[Batched], Batched], x: Batched, probes: Array | None, rows: int | None = None
    ) -> tuple[Batched, Float[Array, "B K"]]:
        """v(x) and the estimates of its divergence; the arguments are those of `DivergenceEstimator`."""
        assert probes is not None
        flat = lambda a: a.reshape(*a.shape[:2], -1)
        y, push = jax.linearize(v, x)
        at_once = directions_at_once(push, x, rows)
        s, g = jnp.split(jnp.moveaxis(probes, 1, 0), 2)  # each (r, B, *event)
        image = flat(mapped(push, s[: x[0].size], at_once))
        q = jnp.linalg.qr(jax.lax.stop_gradient(jnp.moveaxis(image, 0, -1))).Q  # (B, D, r), or (B, D, D) if r > D
        rest = flat(g) - jnp.einsum("bdk,bek,rbe->rbd", q, q, flat(g))
        basis = jnp.moveaxis(q, -1, 0)
        directions = jnp.concatenate([basis, rest]).reshape(-1, *x.shape)
        terms = mapped(lambda e: dot(push(e), e), directions, at_once)
        return y, (terms[: len(basis)].sum(0) + terms[len(basis) :]).T
