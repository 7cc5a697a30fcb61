"""Small pieces that the image networks share: convolutions, dropout, rematerialisation.

Parameters are float32; a layer computes in the type of its input, so a network in bfloat16 is one whose stem casts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from flowjax.errors import check_name
from flowjax.keys import RowKeys
from flowjax.models import kernels

__all__ = [
    "DTYPES",
    "REMAT",
    "Conv",
    "dropout",
    "fold",
    "remat",
    "split_keys",
    "unfold",
    "uniform_init",
    "upsample_conv",
]

REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a block keeps for its backward pass: everything (`none`), only its input (`block`), or its matrix products."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""Types in which a network computes."""


def remat(policy: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """f, recomputed in the backward pass as the named policy says.

    Raises:
        ValueError: on an unknown policy.
    """
    check_name("remat", policy, REMAT)
    return f if REMAT[policy] is None else jax.checkpoint(f, policy=REMAT[policy])


def split_keys(keys: RowKeys | None, n: int) -> list[RowKeys | None]:
    """n times keys for each row."""
    if keys is None:
        return [None] * n
    return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, n))(keys), 1, 0))


def dropout(x: Float[Array, "B ..."], rate: float, keys: RowKeys | None) -> Float[Array, "B ..."]:
    """Zeroes each number with that probability and scales the rest up; nothing where there are no keys."""
    if keys is None or not rate:
        return x
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys)
    return jnp.where(bits >= min(round(rate * 65536), 65535), x / (1 - rate), 0)


def fold(x: Float[Array, "B H W C"], p: int) -> Float[Array, "B h w D"]:
    """Squares of p x p pixels as channels: in an output pixel row, column, channel of the square."""
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, h // p, w // p, p * p * c)


def unfold(x: Float[Array, "B h w D"], p: int) -> Float[Array, "B H W C"]:
    """The inverse of `fold`."""
    b, h, w, d = x.shape
    return x.reshape(b, h, w, p, p, d // p**2).swapaxes(2, 3).reshape(b, h * p, w * p, d // p**2)


def uniform_init(scale: float = 1.0) -> nnx.Initializer:
    """Uniform with variance scale / (3 fan_in): PyTorch's default of convolutions and linear layers."""
    return nnx.initializers.variance_scaling(scale / 3, "fan_in", "uniform")


class Conv(nnx.Module):
    """A square convolution with bias, NHWC.

    Args:
        a, b: channels in and out.
        size: 1 or 3; a 1 x 1 convolution is a matrix product.
        up: double the resolution first, by repeating pixels.
        down: every other pixel, padded as PyTorch does (one pixel on all sides).
        init: of the kernel.
    """

    def __init__(
        self,
        a: int,
        b: int,
        size: int = 3,
        *,
        up: bool = False,
        down: bool = False,
        init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        self.up, self.down = up, down
        self.kernel = nnx.Param((init or uniform_init())(rngs.params(), (size, size, a, b), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(b))

    def linear(self, x: Float[Array, "B H W a"], forward_mode: bool = False) -> Float[Array, "B h w b"]:
        """Without the bias."""
        kernel = self.kernel[...]
        if kernel.shape[0] == 1:
            return x @ kernel[0, 0].astype(x.dtype)
        return upsample_conv(x, kernel, forward_mode) if self.up else _conv(x, kernel, stride=1 + self.down)

    def __call__(self, x: Float[Array, "B H W a"], forward_mode: bool = False) -> Float[Array, "B h w b"]:
        y = self.linear(x, forward_mode)
        return y + self.bias[...].astype(y.dtype)


_COLUMNS = 32
"""Taps times channels of a convolution that is a matrix product instead: a row of the matrix units' tiles."""


def _conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    size, _, a, b = kernel.shape
    if size == 3 and stride == 1 and 9 * min(a, b) <= _COLUMNS:
        return _from_few(x, kernel) if a <= b else _to_few(x, kernel)
    pad = size // 2
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _from_few(x: Float[Array, "B H W a"], kernel: Float[Array, "3 3 a b"]) -> Float[Array, "B H W b"]:
    """The convolution of an image: its 3 x 3 windows times the kernel. Matrix units are idle on 3 channels."""
    windows = [*_windows(x), jnp.zeros((*x.shape[:3], _COLUMNS - 9 * x.shape[3]), x.dtype)]
    matrix = jnp.pad(kernel.reshape(-1, kernel.shape[3]), ((0, _COLUMNS - 9 * x.shape[3]), (0, 0)))
    return jnp.concatenate(windows, -1) @ matrix.astype(x.dtype)


def _to_few(x: Float[Array, "B H W a"], kernel: Float[Array, "3 3 a b"]) -> Float[Array, "B H W b"]:
    """The convolution to an image: what each pixel sends to its 3 x 3 window, in one product; then their sum."""
    a, b = kernel.shape[2:]
    matrix = jnp.pad(kernel.transpose(2, 0, 1, 3).reshape(a, 9 * b), ((0, 0), (0, _COLUMNS - 9 * b)))
    sent = jnp.matmul(x, matrix.astype(x.dtype), preferred_element_type=jnp.float32)
    taps = [w[..., i * b : (i + 1) * b] for i, w in enumerate(_windows(sent))]
    return sum(taps[1:], taps[0]).astype(x.dtype)


def _windows(x: Float[Array, "B H W c"]) -> list[Float[Array, "B H W c"]]:
    """The 9 neighbours of every pixel, row by row; zeros outside."""
    (h, w), padded = x.shape[1:3], jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)
"""[parity, pixel of a window of two, tap of three]: which taps fall on which pixel once pixels are doubled."""


def upsample_conv(
    x: Float[Array, "B H W a"], kernel: Float[Array, "3 3 a b"], forward_mode: bool = False
) -> Float[Array, "B 2*H 2*W b"]:
    """The 3 x 3 convolution of x with its pixels doubled, at about half of the arithmetic.

    Each output pixel sees 2 x 2 pixels of x, through taps summed by the pixel they fall on, which depends on the parity
    of its place alone. So one 2 x 2 convolution gives all four parities side by side in its channels, and the doubled
    map is never convolved; or, where fused kernels serve, a convolution of size 4 and stride 2, transposed.
    """
    taps = jnp.einsum("pui,qvj,ijab->uvapqb", _TAPS, _TAPS, kernel)
    if kernels.serve(forward_mode):
        # pixel u of the window of an output of parity p sees that output as its tap 2 (1 - u) + p
        wide = taps[::-1, ::-1].transpose(0, 3, 1, 4, 5, 2).reshape(4, 4, -1, x.shape[-1])
        return _unhalved(x, wide.astype(x.dtype))
    (n, h, w, a), b = x.shape, kernel.shape[-1]
    y = lax.conv_general_dilated(
        x,
        taps.reshape(2, 2, a, 4 * b).astype(x.dtype),
        (1, 1),
        [(1, 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ).reshape(n, h + 1, w + 1, 2, 2, b)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h + 2, 2 * w + 2, b)[:, 1:-1, 1:-1]


def _halved(u: Float[Array, "B h w b"], kernel: Float[Array, "4 4 b a"]) -> Float[Array, "B H W a"]:
    """A convolution of stride 2."""
    return lax.conv_general_dilated(u, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _unhalved(x: Float[Array, "B H W a"], kernel: Float[Array, "4 4 b a"]) -> Float[Array, "B h w b"]:
    """The transpose of `_halved` in its map.

    In all three directions a form that GPU libraries have kernels for: XLA knows them as those of a strided convolution
    and its gradients, while the gradient of a dilated one would be a convolution with a map as its kernel.
    """
    (n, h, w, _), b = x.shape, kernel.shape[2]
    transpose = jax.linear_transpose(lambda u: _halved(u, kernel), jax.ShapeDtypeStruct((n, 2 * h, 2 * w, b), x.dtype))
    return transpose(x)[0]


def _unhalved_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx, back = jax.vjp(_halved, dy, kernel)
    return dx, back(x)[1]  # <dy, unhalved(x, kernel)> = <halved(dy, kernel), x>


_unhalved.defvjp(lambda x, kernel: (_unhalved(x, kernel), (x, kernel)), _unhalved_bwd)
