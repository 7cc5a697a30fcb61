"""A Triton kernel (Pallas) for the sums over the pixels in the backward pass of group norm.

    s1 = sum dz,   s2 = sum dz x,   dz = dy silu'(z),   z = a x + b

The kernel needs one pass over x and dy. XLA does not fuse exponentials into such sums; it writes dz to memory in
float32 and reads it back. Each program loops over the pixels of some channels of one image. On several devices the
kernel runs on the rows of each device (`custom_partitioning`), and under `vmap` it runs on all rows at once.
"""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

__all__ = ["Sums", "interpret", "pixel_sums", "sigmoid", "silu_slope", "takes"]

_LANES = 64
"""The largest number of channels of a program: a cache line in bfloat16."""

_PIXELS = 64
"""The number of pixels that a program processes in one iteration."""

_LOG2E = math.log2(math.e)

interpret = False
"""Whether to run the kernel in the interpreter of Pallas, for tests without a GPU."""

Sums = tuple[Float[Array, "B c"], Float[Array, "B c"]]
"""s1 and s2."""


def sigmoid(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / (1 + exp(-z)), computed with two instructions of the special function unit of a GPU.

    A division would take ten ordinary instructions.
    """
    r = lax.rsqrt(1 + jnp.exp2(-_LOG2E * z))
    return r * r


def silu_slope(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The derivative of silu."""
    s = sigmoid(z)
    return s * (1 + z * (1 - s))


def takes(pixels: int, *channels: int) -> bool:
    """Returns whether the kernel supports maps with this number of pixels and parts with these numbers of channels.

    The number of pixels must be a power of two and at least 16. The largest power of two, up to 64, that divides all
    numbers of channels must be at least 16.
    """
    return pixels & (pixels - 1) == 0 and pixels >= 16 and _lanes(*channels) >= 16


def _lanes(*channels: int) -> int:
    return math.gcd(_LANES, *channels)


def pixel_sums(
    x: Float[Array, "B n c"], dy: Float[Array, "B n C"], a: Float[Array, "B c"], b: Float[Array, "B c"], first: int
) -> Sums:
    """Returns s1 and s2 for the channels of x, which are the channels of dy that start at `first`.

    Args:
        x: one part of the input, (B, n, c), with n pixels.
        dy: gradient of the output, (B, n, C).
        a, b: coefficients of z = a x + b for the channels of x, (B, c).
        first: index in dy of the first channel of x.
    """
    return _over_rows(first)(x, dy, a, b)


def _local(first: int, x: Array, dy: Array, a: Array, b: Array) -> Sums:
    """Runs the kernel on one device."""
    from jax.experimental import pallas as pl  # most runs do not need it, and importing it takes 0.2 s
    from jax.experimental.pallas import triton as plgpu

    rows, pixels, channels = x.shape
    lanes, tall = _lanes(channels, first), min(pixels, _PIXELS)

    def kernel(x: Any, dy: Any, a: Any, b: Any, s1: Any, s2: Any) -> None:
        slope, offset = a[...][None], b[...][None]

        def more(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            place = (pl.ds(i * tall, tall), slice(None))
            wide = x[place].astype(jnp.float32)
            dz = dy[place].astype(jnp.float32) * silu_slope(wide * slope + offset)
            return sums[0] + dz, sums[1] + dz * wide

        zero = jnp.zeros((tall, lanes), jnp.float32)
        one, two = lax.fori_loop(0, pixels // tall, more, (zero, zero))
        s1[...], s2[...] = one.sum(0), two.sum(0)

    part = lambda at: pl.BlockSpec((None, pixels, lanes), lambda row, i: (row, 0, i + at))
    row = pl.BlockSpec((None, lanes), lambda row, i: (row, i))
    out = jax.ShapeDtypeStruct((rows, channels), jnp.float32)
    call = pl.pallas_call(
        kernel,
        grid=(rows, channels // lanes),
        in_specs=[part(0), part(first // lanes), row, row],
        out_specs=[row, row],
        out_shape=[out, out],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="group_norm_sums",
    )
    return tuple(call(x, dy, a, b))


@cache
def _over_rows(first: int) -> Any:
    """Returns `_local` for rows on several devices. Under `vmap`, the mapped axis is merged with the rows."""
    local = partial(_local, first)
    split = custom_partitioning(local)
    leading = lambda mesh, like, axis: NamedSharding(mesh, P(axis, *[None] * (len(like.shape) - 1)))

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        spec = arguments[0].sharding.spec
        axis = spec[0] if len(spec) else None
        into, out = (tuple(leading(mesh, like, axis) for like in each) for each in (arguments, results))
        return mesh, local, out, into

    rule = "b n c, b n d, b c, b c -> b c, b c"
    split.def_partition(partition, sharding_rule=rule, need_replication_factors=("n", "c", "d"))
    whole = custom_vmap(split)

    @whole.def_vmap
    def merged(size: int, batched: list[bool], *args: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        mapped = [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(args, batched, strict=True)]
        one, two = whole(*(a.reshape(-1, *a.shape[2:]) for a in mapped))
        return (one.reshape(size, -1, *one.shape[1:]), two.reshape(size, -1, *two.shape[1:])), (True, True)

    return whole
