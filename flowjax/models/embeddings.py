"""Embeddings of time and class that the networks share."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowjax.typing import Cond


def time_features(t: Float[Array, " B"], n: int) -> Float[Array, "B n"]:
    """Sines and cosines of pi k t for k = 1 ... n / 2, of unit mean square over the interval: smooth in t in [0, 1]."""
    angle = jnp.pi * t[:, None] * jnp.arange(1, n // 2 + 1)
    return jnp.sqrt(2.0) * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def positional(t: Float[Array, " B"], n: int, period: float = 10_000.0) -> Float[Array, "B n"]:
    """cos and sin of t / period^(k / half) for k = 0 ... half - 1 (Vaswani et al. 2017)."""
    half = n // 2
    angle = t[:, None] * jnp.exp(-math.log(period) / half * jnp.arange(half))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def label_and_augment(cond: Cond) -> tuple[Any, Any]:
    """A condition's labels (B,), and the numbers (B, n) that tell of an augmentation; None for what there is not."""
    return (cond.get("label"), cond.get("augment")) if isinstance(cond, dict) else (cond, None)


def batch_time(t: Array | float, x: Float[Array, "B *event"]) -> Float[Array, " B"]:
    """A scalar or (B,) time as one float32 value a row."""
    return jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])


class LabelEmbedding(nnx.Module):
    """One vector a class, and a last one for `NO_LABEL`, which as the index -1 needs no case of its own.

    Args:
        num_classes: K; labels are 0 ... K - 1, or `NO_LABEL`.
        width: of a vector.
    """

    def __init__(self, num_classes: int, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (num_classes + 1, width)) / jnp.sqrt(width))

    def __call__(self, label: Int[Array, " B"] | None, batch: int) -> Float[Array, "B width"]:
        table = self.table[...]
        if label is None:
            return jnp.broadcast_to(table[-1], (batch, table.shape[1]))
        return table[label]
