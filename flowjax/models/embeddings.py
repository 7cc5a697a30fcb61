"""Features of times, and checks of inputs, which all networks use."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "batch_time",
    "check_features",
    "check_mask",
    "positional",
    "refuse_mask",
    "refuse_two_times",
    "time_features",
    "times_of",
]


def time_features(t: Float[Array, " B"], n: int) -> Float[Array, "B n"]:
    """Returns sqrt(2) sin(pi k t) and sqrt(2) cos(pi k t) for k = 1 ... n / 2, with mean square 1 over [0, 1]."""
    angle = jnp.pi * t[:, None] * jnp.arange(1, n // 2 + 1)
    return jnp.sqrt(2.0) * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def positional(t: Float[Array, " B"], n: int, period: float = 10_000.0) -> Float[Array, "B n"]:
    """Returns cos and sin of t / period^(k / half) for k = 0 ... half - 1, where half = n // 2 (Vaswani et al. 2017,
    arXiv:1706.03762)."""
    half = n // 2
    angle = t[:, None] * jnp.exp(-math.log(period) / half * jnp.arange(half))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def check_features(n: int) -> None:
    """Raises ValueError if `time_features` cannot return n features."""
    if n < 2 or n % 2:
        raise ValueError(f"features must be an even number of at least 2, not {n}")


def batch_time(t: Array | float, x: Float[Array, "B *event"]) -> Float[Array, " B"]:
    """Broadcasts a time, () or (B,), to one value per row of x, in float32 or in the dtype of x if that is wider."""
    return jnp.broadcast_to(jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32)), x.shape[:1])


def times_of(
    t: Float[Array, " B"], s: Array | float | None, two_times: bool
) -> tuple[Float[Array, " B"], Float[Array, " B"] | None]:
    """Returns the time of x, and t - s if the network takes two times, or None if it takes one.

    A network with two times reads x at time s, and its output is about the interval from s to t. At s = t it takes the
    same inputs as a network with one time, whose parameters can therefore be its initial ones.

    Args:
        t: one time per row, (B,).
        s: the time of x, () or (B,), if the network takes two times; None otherwise.
        two_times: whether the network was built with `two_times=True`.

    Raises:
        ValueError: if a network with two times is called without `s`, or a network with one time is called with `s`.
    """
    if two_times != (s is not None):
        raise ValueError(
            "this network takes two times: call it with s"
            if two_times
            else "this network takes one time: build it with two_times=True to call it with s"
        )
    if s is None:
        return t, None
    start = jnp.broadcast_to(jnp.asarray(s, t.dtype), t.shape)
    return start, t - start


def refuse_two_times(network: str, two_times: bool) -> None:
    """Raises ValueError if `two_times` is True, for networks that take only one time."""
    if two_times:
        raise ValueError(f"{network} takes only one time: use one of the other networks with two_times=True")


def refuse_mask(mask: Array | None) -> None:
    """Raises ValueError if a mask is given, for networks that take none."""
    if mask is not None:
        raise ValueError("this network takes no mask: use mlp, resmlp or transformer for sets (B, N, C) with a mask")


def check_mask(mask: Array | None, x: Float[Array, "B *event"]) -> None:
    """Raises ValueError if a mask is given whose shape is not that of the elements of sets x (B, N, C)."""
    if mask is not None and (x.ndim != 3 or mask.shape != x.shape[:2]):
        raise ValueError(f"a mask (B, N) needs x of shape (B, N, C), but the shapes are {mask.shape} and {x.shape}")
