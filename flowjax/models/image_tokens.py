"""Images as tokens, for networks of sequences, signals and sets whose conditions are images."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field
from flowjax.models.encoders import beside, extra_channels
from flowjax.models.layers import fold

__all__ = ["MOST_TOKENS", "ImageEncoder", "patch_of"]

MOST_TOKENS = 64
"""Images are cut into patches of the smallest size for which there are about as many tokens as this at most."""


def patch_of(height: int, width: int) -> int:
    """Returns the side p of a patch: the smallest with height width / p^2 <= `MOST_TOKENS`."""
    return math.ceil(math.sqrt(height * width / MOST_TOKENS))


class ImageEncoder(nnx.Module):
    """A token for each patch of an image: a linear layer of its pixels plus a learned position embedding.

    Pixels that are not given are zeros, and a channel is 1 where a pixel is given. Images whose sides are no multiples
    of the patch are extended by pixels that are not given.

    Args:
        field: the field, of shape (H, W, C).
        width: width of a token.
        init: initialiser of the kernel and of the position embeddings.
    """

    def __init__(self, field: Field, width: int, init: nnx.Initializer | None = None, *, rngs: nnx.Rngs):
        self.field, self.patch = field, patch_of(*field.shape[:2])
        self.pad = tuple(-side % self.patch for side in field.shape[:2])
        tokens = math.prod(-(-side // self.patch) for side in field.shape[:2])
        kernel, positions = init or nnx.initializers.lecun_normal(), init or nnx.initializers.normal(0.02)
        self.linear = nnx.Linear(self.patch**2 * extra_channels([field]), width, kernel_init=kernel, rngs=rngs)
        self.position = nnx.Param(positions(rngs.params(), (tokens, width), jnp.float32))

    def __call__(self, value: Float[Array, "B H W C"] | None, rows: int) -> Float[Array, "B T width"]:
        """Returns the tokens, row by row. If `value` is None, no pixel is given."""
        nothing = jnp.zeros((rows, *self.field.shape[:2], 0))
        given = {} if value is None else {self.field.name: value}
        pixels = jnp.pad(beside(nothing, [self.field], given), ((0, 0), *((0, n) for n in self.pad), (0, 0)))
        folded = fold(pixels, self.patch)
        return self.linear(folded.reshape(rows, -1, folded.shape[-1])) + self.position[...]
