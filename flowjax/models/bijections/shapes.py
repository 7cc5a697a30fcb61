"""Layers that apply another layer in another shape, or to a part of an example. Their own shape stays the same.

Together they make the multi-scale architecture of RealNVP (Dinh et al. 2017, arXiv:1605.08803), in which half of the
channels leave the flow after each scale: `Squeezed(Chain([..., OnHalf(Squeezed(Chain([...])))]))`. The latent array has
the shape of an image, and the numbers that leave at each scale stay at the place from which they came.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.models.bijections.base import Bijector
from flowjax.typing import Batched, Cond

__all__ = ["Flattened", "OnHalf", "Squeezed", "squeeze", "unsqueeze"]


def squeeze(x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    """Moves blocks of 2 x 2 pixels to channels: (B, H, W, C) to (B, H / 2, W / 2, 4 C)."""
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(x: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
    """The inverse of `squeeze`."""
    b, h, w, d = x.shape
    return x.reshape(b, h, w, d // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * h, 2 * w, d // 4)


class Squeezed(nnx.Module):
    """Applies a layer to images whose blocks of 2 x 2 pixels have been moved to channels.

    Args:
        shape: shape (H, W, C) of one example, before blocks are moved.
        inner: a layer of examples (H / 2, W / 2, 4 C).

    Raises:
        ValueError: if the height or the width is odd.
    """

    def __init__(self, shape: tuple[int, ...], inner: Bijector):
        if len(shape) != 3 or shape[0] % 2 or shape[1] % 2:
            raise ValueError(f"blocks of 2 x 2 pixels need images (H, W, C) of even height and width, not {shape}")
        self.inner = inner

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        z, log_det = self.inner.forward(squeeze(x), cond)
        return unsqueeze(z), log_det

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        x, log_det = self.inner.inverse(squeeze(z), cond)
        return unsqueeze(x), log_det


class OnHalf(nnx.Module):
    """Applies a layer to the second half of the channels; the first half is factored out and stays as it is.

    Args:
        inner: a layer of examples with half of the channels, rounded up.
    """

    def __init__(self, inner: Bijector):
        self.inner = inner

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        out, kept = jnp.split(x, [x.shape[-1] // 2], -1)
        z, log_det = self.inner.forward(kept, cond)
        return jnp.concatenate([out, z], -1), log_det

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        out, kept = jnp.split(z, [z.shape[-1] // 2], -1)
        x, log_det = self.inner.inverse(kept, cond)
        return jnp.concatenate([out, x], -1), log_det


class Flattened(nnx.Module):
    """Applies a layer of vectors (D,) to examples of any shape with D numbers.

    Args:
        shape: shape of one example.
        inner: a layer of vectors.
    """

    def __init__(self, shape: tuple[int, ...], inner: Bijector):
        self.size, self.inner = math.prod(shape), inner

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        z, log_det = self.inner.forward(x.reshape(-1, self.size), cond)
        return z.reshape(x.shape), log_det

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        x, log_det = self.inner.inverse(z.reshape(-1, self.size), cond)
        return x.reshape(z.shape), log_det
