"""Softmax attention over tokens, by the fused kernel of cuDNN if possible and by plain XLA operations otherwise.

The kernel of cuDNN does not write the (T, T) attention weights to memory. It needs half precision, a recent NVIDIA GPU
and reverse mode (`models.kernels`). The XLA operations run on all devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowjax.models import kernels

__all__ = ["attend", "cudnn_takes"]

_TILE = 64
"""The number of tokens in a tile of the fused kernel. With fewer tokens, the XLA weights are small as well."""


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    forward_mode: bool = False,
    mask: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v for each of N heads, with the softmax in float32.

    Args:
        q: queries, (B, T, N, H).
        k, v: keys and values, (B, S, N, H).
        forward_mode: whether to use only operations that JAX differentiates in forward mode.
        mask: (B, S), True for the keys that exist; None if all exist. The weight of the others is exactly zero, except
            in rows without any key, whose output has no meaning.

    Returns:
        The attention output (B, T, N, H) in the dtype of q.
    """
    fused = mask is None and all(cudnn_takes(a.shape[1], a.shape[3], a.dtype) for a in (q, k))
    if fused and kernels.serve(forward_mode):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    weights = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    weights = weights * q.shape[-1] ** -0.5
    if mask is not None:
        weights = jnp.where(mask[:, None, None], weights, jnp.finfo(weights.dtype).min)
    weights = jax.nn.softmax(weights, -1).astype(q.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def cudnn_takes(tokens: int, width: int, dtype: jnp.dtype) -> bool:
    """Returns whether the kernel of cuDNN supports this number of tokens, width of a head and dtype."""
    half = dtype in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    return half and tokens % _TILE == 0 and width % 8 == 0 and width <= 128
