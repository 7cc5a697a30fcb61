"""The exact divergence: one derivative per coordinate, in forward or in reverse mode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowjax.errors import check_name
from flowjax.likelihood.estimator import dot
from flowjax.likelihood.memory import directions_at_once, mapped
from flowjax.typing import Batched, PRNGKey

__all__ = ["Exact", "exact_divergence"]


@dataclass(frozen=True)
class Exact:
    """The trace of the Jacobian, by D derivatives for each evaluation of the velocity.

    Attributes:
        mode: "forward" takes Jacobian-vector products, "reverse" vector-Jacobian products, which also suit velocities
            that JAX cannot differentiate forwards.
        at_once: how many derivatives are computed at the same time; None takes as many as fit the memory
            (`flowjax.likelihood.memory`).

    Raises:
        ValueError: if the mode is unknown, or `at_once` < 1.
    """

    mode: Literal["forward", "reverse"] = "forward"
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_name("mode", self.mode, ("forward", "reverse"))
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once must be at least 1, not {self.at_once}")

    @property
    def estimates(self) -> int:
        """1, the divergence itself."""
        return 1

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    @property
    def needs_forward_mode(self) -> bool:
        """Whether the mode is "forward"."""
        return self.mode == "forward"

    def draw(self, key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """None, as there are no probes."""

    def __call__(
        self, v: Callable[[Batched], Batched], x: Batched, probes: Array | None = None, rows: int | None = None
    ) -> tuple[Batched, Float[Array, "B 1"]]:
        """v(x) and its divergence, (B, 1); the arguments are those of `DivergenceEstimator`.

        Raises:
            TooLarge: if a single derivative of all rows does not fit the memory, and `at_once` is None.
        """
        shape, d = x.shape[1:], x[0].size
        if self.mode == "forward":
            y, push = jax.linearize(v, x)
        else:
            y, pull = jax.vjp(v, x)
            push = lambda e: pull(e)[0]

        def along(i: Array) -> Float[Array, " B"]:
            e = jnp.broadcast_to(jax.nn.one_hot(i, d, dtype=x.dtype).reshape(shape), x.shape)
            return dot(push(e.astype(y.dtype) if self.mode == "reverse" else e), e)

        at_once = directions_at_once(push, y if self.mode == "reverse" else x, rows) if self.at_once is None else None
        return y, mapped(along, jnp.arange(d), self.at_once or at_once).sum(0)[:, None]


def exact_divergence(v: Callable[[Batched], Batched], x: Batched) -> tuple[Batched, Float[Array, " B"]]:
    """v(x) and its divergence, with one forward-mode derivative per coordinate.

    Args:
        v: the velocity at one time, a function of x that `jax.jvp` can differentiate.
        x: (B, *event).

    Returns:
        v(x), (B, *event), and the trace of the Jacobian of v for each sample, (B,).

    Raises:
        TooLarge: if a single derivative does not fit the memory.
    """
    y, divergence = Exact()(v, x)
    return y, divergence[:, 0]
