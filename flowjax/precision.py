"""Precision of computations: half precision is for networks, all else is done in float32 or wider."""

import jax
import jax.numpy as jnp

from flowjax.typing import PyTree

__all__ = ["at_least_float32"]


def at_least_float32(tree: PyTree) -> PyTree:
    """Arrays of half precision and integers as float32; wider arrays as they are."""
    return jax.tree.map(lambda a: jnp.asarray(a).astype(jnp.promote_types(jnp.result_type(a), jnp.float32)), tree)
