"""Layers and functions that the image networks share: convolutions, dropout, rematerialisation.

Parameters are float32, and layers compute in the dtype of their input. A network computes in bfloat16 if it casts its
input to bfloat16.
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
"""The rematerialisation policies, by what a block keeps in memory for its backward pass: everything (`none`), only its
input (`block`), its matrix products (`dots`), or its matrix products without batch dimensions (`dots_no_batch`)."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""The compute types of networks by name."""


def remat(policy: str, f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns f with rematerialisation in the backward pass.

    Args:
        policy: a name in `REMAT`.
        f: the function.

    Raises:
        ValueError: if the policy is unknown.
    """
    check_name("remat", policy, REMAT)
    return f if REMAT[policy] is None else jax.checkpoint(f, policy=REMAT[policy])


def split_keys(keys: RowKeys | None, n: int) -> list[RowKeys | None]:
    """Splits the key of each row into n keys. Returns n arrays of one key per row, or n times None for None."""
    if keys is None:
        return [None] * n
    return list(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, n))(keys), 1, 0))


def dropout(x: Float[Array, "B ..."], rate: float, keys: RowKeys | None) -> Float[Array, "B ..."]:
    """Sets each number to zero with probability `rate` and divides the others by 1 - rate; the identity without keys.

    Args:
        x: the input, (B, ...).
        rate: the dropout rate, which is rounded to a multiple of 2^-16 for the choice of numbers.
        keys: one key per row, or None.
    """
    if keys is None or not rate:
        return x
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(keys)
    return jnp.where(bits >= min(round(rate * 65536), 65535), x / (1 - rate), 0)


def fold(x: Float[Array, "B H W C"], p: int) -> Float[Array, "B h w D"]:
    """Folds squares of p x p pixels into channels, ordered by row, column and channel of the square."""
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, h // p, w // p, p * p * c)


def unfold(x: Float[Array, "B h w D"], p: int) -> Float[Array, "B H W C"]:
    """The inverse of `fold`."""
    b, h, w, d = x.shape
    return x.reshape(b, h, w, p, p, d // p**2).swapaxes(2, 3).reshape(b, h * p, w * p, d // p**2)


def uniform_init(scale: float = 1.0) -> nnx.Initializer:
    """Uniform with variance scale / (3 fan_in), the default of PyTorch for convolutions and linear layers."""
    return nnx.initializers.variance_scaling(scale / 3, "fan_in", "uniform")


class Conv(nnx.Module):
    """A square convolution with bias, in NHWC layout.

    Args:
        a, b: number of input and output channels.
        size: kernel size, 1 or 3.
        up: whether to double the resolution first, by repeating pixels.
        down: whether to use stride 2, with the padding of PyTorch (one pixel on all sides).
        init: initialiser of the kernel; None for `uniform_init()`.
        rngs: random number generators of the initialisation.
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
        """Applies the convolution without the bias."""
        kernel = self.kernel[...]
        if kernel.shape[0] == 1:
            return x @ kernel[0, 0].astype(x.dtype)
        return upsample_conv(x, kernel, forward_mode) if self.up else _conv(x, kernel, stride=1 + self.down)

    def __call__(self, x: Float[Array, "B H W a"], forward_mode: bool = False) -> Float[Array, "B h w b"]:
        y = self.linear(x, forward_mode)
        return y + self.bias[...].astype(y.dtype)


_COLUMNS = 32
"""The largest number of kernel taps times channels for which a 3 x 3 convolution is computed as a matrix product. It is
the width of a tile of the matrix units."""


def _conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    size, _, a, b = kernel.shape
    if size == 3 and stride == 1 and 9 * min(a, b) <= _COLUMNS:
        return _from_few(x, kernel) if a <= b else _to_few(x, kernel)
    pad = size // 2
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _from_few(x: Float[Array, "B H W a"], kernel: Float[Array, "3 3 a b"]) -> Float[Array, "B H W b"]:
    """A 3 x 3 convolution with few input channels, as a product of the 3 x 3 windows with the kernel.

    A direct convolution with 3 input channels would leave the matrix units mostly idle.
    """
    windows = [*_windows(x), jnp.zeros((*x.shape[:3], _COLUMNS - 9 * x.shape[3]), x.dtype)]
    matrix = jnp.pad(kernel.reshape(-1, kernel.shape[3]), ((0, _COLUMNS - 9 * x.shape[3]), (0, 0)))
    return jnp.concatenate(windows, -1) @ matrix.astype(x.dtype)


def _to_few(x: Float[Array, "B H W a"], kernel: Float[Array, "3 3 a b"]) -> Float[Array, "B H W b"]:
    """A 3 x 3 convolution with few output channels.

    One product gives the contributions of each pixel to its 3 x 3 window, which are then summed.
    """
    a, b = kernel.shape[2:]
    matrix = jnp.pad(kernel.transpose(2, 0, 1, 3).reshape(a, 9 * b), ((0, 0), (0, _COLUMNS - 9 * b)))
    contributions = jnp.matmul(
        x, matrix.astype(x.dtype), preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)
    )
    taps = [w[..., i * b : (i + 1) * b] for i, w in enumerate(_windows(contributions))]
    return sum(taps[1:], taps[0]).astype(x.dtype)


def _windows(x: Float[Array, "B H W c"]) -> list[Float[Array, "B H W c"]]:
    """Returns the 9 pixels of the window around every pixel, row by row, with zeros outside the image."""
    (h, w), padded = x.shape[1:3], jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)
"""[parity, pixel of a window of two, tap of three]: 1 where the tap falls on the pixel after doubling the pixels."""


def upsample_conv(
    x: Float[Array, "B H W a"], kernel: Float[Array, "3 3 a b"], forward_mode: bool = False
) -> Float[Array, "B 2*H 2*W b"]:
    """The 3 x 3 convolution of x after doubling its pixels, with about half of the arithmetic.

    Each output pixel depends on 2 x 2 pixels of x. The weight of each of them is a sum of kernel taps that depends only
    on the parity of the output row and column. Therefore one 2 x 2 convolution computes the outputs of all four
    parities as channels. If fused kernels are used, a transposed convolution of size 4 and stride 2 is used instead.

    Args:
        x: feature map, (B, H, W, a).
        kernel: (3, 3, a, b).
        forward_mode: whether to use only operations that JAX differentiates in forward mode.

    Returns:
        The feature map of twice the resolution, (B, 2 H, 2 W, b).
    """
    taps = jnp.einsum("pui,qvj,ijab->uvapqb", _TAPS, _TAPS, kernel)
    if kernels.serve(forward_mode):
        # for an output of parity p, pixel u of its window contributes through tap 2 (1 - u) + p
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
    """The transpose of `_halved` with respect to its feature map.

    The forward pass and both gradients are then a strided convolution and its gradients, for which GPU libraries have
    kernels. The kernel gradient of a dilated convolution would be a convolution with a feature map as its kernel.
    """
    (n, h, w, _), b = x.shape, kernel.shape[2]
    transpose = jax.linear_transpose(lambda u: _halved(u, kernel), jax.ShapeDtypeStruct((n, 2 * h, 2 * w, b), x.dtype))
    return transpose(x)[0]


def _unhalved_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx, back = jax.vjp(_halved, dy, kernel)
    return dx, back(x)[1]  # <dy, unhalved(x, kernel)> = <halved(dy, kernel), x>


_unhalved.defvjp(lambda x, kernel: (_unhalved(x, kernel), (x, kernel)), _unhalved_bwd)
