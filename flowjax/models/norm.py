"""Group norm, modulation and SiLU as one affine map of each channel and one pass over memory.

    y = silu(gamma (x + add - mean) / std + beta)

with gamma, beta and add for each row and channel, so that a modulation by time is part of gamma and beta, and a value
added to whole channels before the norm (bias, embedding) never makes a map of its own: every step after the statistics
is affine in x, and all of them are one. The statistics come from the sums of x and x^2 over the pixels of each channel,
in float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPS = 1e-5


class GroupNorm(nnx.Module):
    """Group norm (Wu & He 2018) with a gain and a bias a channel.

    Args:
        channels: C.
        groups: they divide C.
        act: SiLU after it.
    """

    def __init__(self, channels: int, groups: int = 32, act: bool = True, *, rngs: nnx.Rngs):
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels")
        self.groups, self.act = groups, act
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        add: Float[Array, "*B C"] | None = None,
        film: tuple[Float[Array, "B C"], Float[Array, "B C"]] | None = None,
    ) -> Float[Array, "B H W C"]:
        """The norm of x.

        Args:
            x: in any float type, which the result has too.
            add: (B, C) or (C,), added to every pixel before the norm.
            film: (scale, shift) after it: (1 + scale) norm + shift.
        """
        rows = lambda a: jnp.broadcast_to(a.astype(jnp.float32), (x.shape[0], x.shape[-1]))
        gamma, beta = rows(self.scale[...]), rows(self.bias[...])
        if film is not None:
            scale, shift = map(rows, film)
            gamma, beta = gamma * (1 + scale), beta * (1 + scale) + shift
        add = jnp.zeros_like(gamma) if add is None else rows(add)
        return group_norm(x, add, gamma, beta, self.groups, self.act, EPS)


def group_norm(
    x: Float[Array, "B H W C"],
    add: Float[Array, "B C"],
    gamma: Float[Array, "B C"],
    beta: Float[Array, "B C"],
    groups: int,
    act: bool,
    eps: float,
) -> Float[Array, "B H W C"]:
    """silu of the norm of x + add, or the norm alone, with its own gamma and beta for each row and channel."""
    n, (batch, *_, channels) = x.shape[1] * x.shape[2], x.shape
    wide = x.astype(jnp.float32)
    total, square = wide.sum((1, 2)), (wide * wide).sum((1, 2))
    square, total = square + add * (2 * total + n * add), total + n * add
    grouped = lambda s: s.reshape(batch, groups, -1).mean(-1, keepdims=True) / n
    mean = grouped(total)
    std = jnp.sqrt(jnp.maximum(grouped(square) - mean**2, 0.0) + eps)
    spread = lambda s: jnp.broadcast_to(s, (batch, groups, channels // groups)).reshape(batch, channels)
    a = gamma / spread(std)
    b = beta + (add - spread(mean)) * a
    z = wide * a[:, None, None] + b[:, None, None]
    return (jax.nn.silu(z) if act else z).astype(x.dtype)
