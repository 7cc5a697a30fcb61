"""The blocks of DiT with adaptive layer norm (adaLN-Zero; Peebles & Xie 2023, arXiv:2212.09748), and their layers.

A modulation is a linear layer of the embedding of time and conditions. It gives the shift and the scale after a layer
norm and the gate of a residual branch, and it is initialised to zero, so that a block is initially the identity.
Parameters, norms and modulations are float32; the products are computed in the dtype of their input. The backward pass
recomputes the norms and the GELU, which only need inputs that are kept in memory anyway.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flowjax.keys import RowKeys
from flowjax.models.attention import attend
from flowjax.models.layers import dropout
from flowjax.precision import at_least_float32

__all__ = ["Block", "gelu", "linear", "modulated_norm", "products", "xavier", "zeros"]

_EPS = 1e-6

zeros = nnx.initializers.zeros_init()
"""The initialiser of modulations and of layers whose output is initially zero."""

xavier = nnx.initializers.xavier_uniform()
"""The initialiser of all other kernels of the blocks."""


@jax.checkpoint
def modulated_norm(
    x: Float[Array, "B T W"], shift: Float[Array, "B W"], scale: Float[Array, "B W"]
) -> Float[Array, "B T W"]:
    """(1 + scale) norm(x) + shift, where norm is layer norm without gain and bias, computed in float32."""
    h = at_least_float32(x)
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + _EPS)
    return (h * (1 + scale[:, None]) + shift[:, None]).astype(x.dtype)


gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=True))
"""GELU by its approximation with tanh, recomputed in the backward pass."""


def _rms_norm(x: Float[Array, "B T N H"], gain: Float[Array, " H"]) -> Float[Array, "B T N H"]:
    h = at_least_float32(x)
    return (h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + _EPS) * gain).astype(x.dtype)


def linear(layer: nnx.Linear, x: Float[Array, "*B a"]) -> Float[Array, "*B b"]:
    """Applies the layer in the dtype of its input."""
    (y,) = products(layer, x, 1)
    return y


def products(layer: nnx.Linear, x: Float[Array, "*B a"], n: int) -> list[Float[Array, "*B c"]]:
    """Returns the layer's output in n parts, each from one product, because splitting one product would copy them."""
    assert layer.bias is not None
    kernels, biases = (jnp.split(p.astype(x.dtype), n, -1) for p in (layer.kernel[...], layer.bias[...]))
    return [x @ kernel + bias for kernel, bias in zip(kernels, biases, strict=True)]


class Block(nnx.Module):
    """Attention, then an MLP with hidden width 4 W, each as x + gate f((1 + scale) norm(x) + shift)."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rate: float, *, rngs: nnx.Rngs):
        self.heads, self.rate = heads, rate
        dense = lambda a, b, init: nnx.Linear(a, b, kernel_init=init, rngs=rngs)
        self.modulation = dense(width, 6 * width, zeros)
        self.qkv, self.out = dense(width, 3 * width, xavier), dense(width, width, xavier)
        self.mlp1, self.mlp2 = dense(width, 4 * width, xavier), dense(4 * width, width, xavier)
        self.q_gain = nnx.Param(jnp.ones(width // heads)) if qk_norm else None
        self.k_gain = nnx.Param(jnp.ones(width // heads)) if qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T W"],
        c: Float[Array, "B W"],
        keys: Sequence[RowKeys | None],
        forward_mode: bool = False,
        *,
        mask: Bool[Array, "B T"] | None = None,
        rotate: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "B T W"]:
        """Returns the tokens after the block.

        Args:
            x: tokens, (B, T, W).
            c: embedding of times and conditions, (B, W).
            keys: two keys per row for the dropout of the two branches, or None twice.
            forward_mode: whether to use only operations that JAX differentiates in forward mode.
            mask: (B, T), True for the tokens that exist; None if all exist. The others are not attended to.
            rotate: a function of the queries and of the keys, (B, T, N, H), such as `transformer.rotated`.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(self.modulation(c), 6, -1)
        h = self._attention(modulated_norm(x, shift1, scale1), forward_mode, mask, rotate)
        h = dropout(h, self.rate, keys[0])
        x = x + gate1[:, None].astype(x.dtype) * h
        h = linear(self.mlp2, gelu(linear(self.mlp1, modulated_norm(x, shift2, scale2))))
        return x + gate2[:, None].astype(x.dtype) * dropout(h, self.rate, keys[1])

    def _attention(
        self,
        x: Float[Array, "B T W"],
        forward_mode: bool,
        mask: Bool[Array, "B T"] | None,
        rotate: Callable[[Array], Array] | None,
    ) -> Float[Array, "B T W"]:
        b, n, w = x.shape
        q, k, v = (y.reshape(b, n, self.heads, w // self.heads) for y in products(self.qkv, x, 3))
        if self.q_gain is not None and self.k_gain is not None:
            q, k = _rms_norm(q, self.q_gain[...]), _rms_norm(k, self.k_gain[...])
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        return linear(self.out, attend(q, k, v, forward_mode, mask).reshape(b, n, w))
