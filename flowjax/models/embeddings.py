"""Features of times, and checks of a network's inputs, that the networks share."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["batch_time", "positional", "refuse_mask", "refuse_two_times", "time_difference", "time_features"]


def time_features(t: Float[Array, " B"], n: int) -> Float[Array, "B n"]:
    """Sines and cosines of pi k t for k = 1 ... n / 2, of unit mean square over the interval: smooth in t in [0, 1]."""
    angle = jnp.pi * t[:, None] * jnp.arange(1, n // 2 + 1)
    return jnp.sqrt(2.0) * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def positional(t: Float[Array, " B"], n: int, period: float = 10_000.0) -> Float[Array, "B n"]:
    """cos and sin of t / period^(k / half) for k = 0 ... half - 1 (Vaswani et al. 2017)."""
    half = n // 2
    angle = t[:, None] * jnp.exp(-math.log(period) / half * jnp.arange(half))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def batch_time(t: Array | float, x: Float[Array, "B *event"]) -> Float[Array, " B"]:
    """A scalar or (B,) time as one float32 value a row."""
    return jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])


def time_difference(t: Float[Array, " B"], s: Array | float | None, two_times: bool) -> Float[Array, " B"] | None:
    """t - s for a network of two times, None for a network of one.

    Args:
        t: one time a row.
        s: the second time, () or (B,), or None.
        two_times: whether the network was built with `two_times=True`.

    Raises:
        ValueError: if a network of two times is called without `s`, or a network of one time with it.
    """
    if two_times != (s is not None):
        raise ValueError(
            "this network takes two times: call it with s"
            if two_times
            else "this network takes one time: build it with two_times=True to call it with s"
        )
    return None if s is None else t - jnp.asarray(s, jnp.float32)


def refuse_two_times(network: str, two_times: bool) -> None:
    """ValueError if a network that takes one time alone is to take two."""
    if two_times:
        raise ValueError(f"{network} takes one time: two_times=True is for mlp, adm and dit")


def refuse_mask(mask: Array | None) -> None:
    """ValueError if a network of images is called with a mask."""
    if mask is not None:
        raise ValueError("networks of images take no mask: it is for sets and sequences (B, N, C), which mlp takes")
