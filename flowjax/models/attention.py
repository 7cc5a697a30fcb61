"""Softmax attention over tokens, by the fastest kernel that serves.

cuDNN's fused kernel never writes the (T, T) weights to memory; it wants half precision on a recent NVIDIA GPU, and
reverse mode (`models.kernels`). XLA's form runs anywhere, with the softmax in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.models import kernels

__all__ = ["attend", "cudnn_takes"]

_TILE = 64
"""Tokens come in tiles of this size in the fused kernel; fewer make weights that are small in XLA's form too."""


def attend(
    q: Float[Array, "B T N H"], k: Float[Array, "B T N H"], v: Float[Array, "B T N H"], forward_mode: bool = False
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v for each of N heads, with the softmax in float32.

    Args:
        q, k, v: queries, keys and values.
        forward_mode: use only operations that JAX differentiates in forward mode.
    """
    if kernels.serve(forward_mode) and cudnn_takes(q.shape[1], q.shape[3], q.dtype):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    weights = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(weights * q.shape[-1] ** -0.5, -1).astype(q.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def cudnn_takes(tokens: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether cuDNN's kernel is for heads of that width on that many tokens."""
    half = dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return half and tokens % _TILE == 0 and width % 8 == 0 and width <= 128
