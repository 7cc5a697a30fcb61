"""Architectures of normalizing flows, made of the layers of this folder.

Each function makes a flow for examples of a shape, given the conditions and the sizes. Examples of any shape are
flattened, except by `real_nvp` and `glow` for images, which are convolutional there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowjax.conditions import Field
from flowjax.models.bijections import masks
from flowjax.models.bijections.activation_norm import ActivationNorm
from flowjax.models.bijections.autoregressive import MADE, Autoregressive
from flowjax.models.bijections.base import Bijector, Chain
from flowjax.models.bijections.coupling import Coupling
from flowjax.models.bijections.linear import InvertibleLinear, Permutation, Scale
from flowjax.models.bijections.networks import ConvNetwork, VectorNetwork
from flowjax.models.bijections.shapes import Flattened, OnHalf, Squeezed
from flowjax.models.bijections.spline import RationalQuadraticSpline
from flowjax.models.bijections.transforms import Additive, Affine, Transform
from flowjax.ranges import Range

__all__ = ["FLOWS", "Sizes", "glow", "maf", "nice", "real_nvp", "spline", "spline_maf"]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a flow.

    Attributes:
        layers: number of layers with a network; for images, of `real_nvp` with each kind of mask at each scale, and of
            `glow` at each scale.
        width: width of the hidden layers of each layer's network.
        depth: number of hidden layers of each layer's network.
        bins: number of bins of the splines of `spline` and `spline_maf`.
        bound: the splines are the identity outside of [-bound, bound], in standard deviations of the data of the first
            batch.
        scales: number of scales of `real_nvp` and `glow` for images. Each of them halves the height and the width.
    """

    layers: Annotated[int, Range(1, 64)] = 8
    width: Annotated[int, Range(1, 65_536)] = 64
    depth: Annotated[int, Range(1, 64)] = 2
    bins: Annotated[int, Range(1, 256)] = 8
    bound: Annotated[float, Range(0.1, 1_000)] = 4.0
    scales: Annotated[int, Range(1, 8)] = 2


Shape = tuple[int, ...]
Fields = tuple[Field, ...]
Build = Callable[[Shape, Fields, Sizes, nnx.Rngs], Bijector]


def nice(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Bijector:
    """NICE: additive couplings, and a learned scale of each coordinate (Dinh et al. 2014, arXiv:1410.8516)."""
    d = math.prod(shape)
    return Flattened(shape, Chain([*_couplings(d, Additive(), fields, sizes, rngs), Scale(d)]))


def real_nvp(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Bijector:
    """RealNVP: affine couplings (Dinh et al. 2017, arXiv:1605.08803).

    For images each scale has couplings with checkerboard masks, and after blocks of 2 x 2 pixels have been moved to
    channels, couplings with channel masks. Half of the channels then leave the flow.
    """
    if len(shape) == 3:
        return _for_images(shape, fields, sizes, rngs, _real_nvp_scale)
    return Flattened(shape, Chain(_couplings(math.prod(shape), Affine(), fields, sizes, rngs)))


def spline(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Bijector:
    """Couplings of rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032).

    Activation normalisation comes first, so that the data lie within the bound of the splines, whatever their scale.
    """
    d, transform = math.prod(shape), RationalQuadraticSpline(sizes.bins, sizes.bound)
    return Flattened(shape, Chain([ActivationNorm(d), *_couplings(d, transform, fields, sizes, rngs)]))


def maf(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Bijector:
    """Affine masked autoregressive layers, with reversals of the order between them (Papamakarios et al. 2017,
    arXiv:1705.07057)."""
    return Flattened(shape, Chain(_autoregressive(math.prod(shape), Affine(), fields, sizes, rngs)))


def spline_maf(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Bijector:
    """Activation normalisation and masked autoregressive layers of rational-quadratic splines (Durkan et al. 2019,
    arXiv:1906.04032)."""
    d, transform = math.prod(shape), RationalQuadraticSpline(sizes.bins, sizes.bound)
    return Flattened(shape, Chain([ActivationNorm(d), *_autoregressive(d, transform, fields, sizes, rngs)]))


def glow(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Bijector:
    """Glow: steps of activation normalisation, an invertible linear map and an affine coupling (Kingma & Dhariwal 2018,
    arXiv:1807.03039).

    For images each scale moves blocks of 2 x 2 pixels to channels, takes the steps, and lets half of the channels leave
    the flow. Other data are flattened, and the linear map mixes all coordinates.
    """
    if len(shape) == 3:
        return _for_images(shape, fields, sizes, rngs, _glow_scale)
    return Flattened(shape, Chain(_glow_steps((math.prod(shape),), fields, sizes, rngs)))


FLOWS: dict[str, Build] = {
    "nice": nice,
    "real_nvp": real_nvp,
    "spline": spline,
    "maf": maf,
    "spline_maf": spline_maf,
    "glow": glow,
}
"""The architectures by name."""


def _couplings(d: int, transform: Transform, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> list[Bijector]:
    """Couplings of vectors with alternating masks, so that two of them transform every coordinate.

    A random permutation follows every second one. In two dimensions there is none, because a permutation there can only
    make two couplings after each other transform the same coordinate.
    """
    layers: list[Bijector] = []
    for i in range(sizes.layers):
        if i and i % 2 == 0 and d > 2:
            layers.append(Permutation(jax.random.permutation(rngs.params(), d)))
        layers.append(_coupling(masks.alternating((d,), i), transform, fields, sizes, rngs))
    return layers


def _coupling(mask: Any, transform: Transform, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> Coupling:
    """A coupling with a multilayer perceptron for vectors, or a convolutional network for images."""
    kind = ConvNetwork if mask.ndim == 3 else VectorNetwork
    given: dict[str, Any] = {"fields": fields, "width": sizes.width, "depth": sizes.depth, "rngs": rngs}
    return Coupling(mask, transform, kind(mask.shape[-1], transform.parameters, **given))


def _autoregressive(d: int, transform: Transform, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> list[Bijector]:
    """Autoregressive layers of vectors, with the order reversed between them."""
    layers: list[Bijector] = []
    given: dict[str, Any] = {"fields": fields, "width": sizes.width, "depth": sizes.depth, "rngs": rngs}
    for i in range(sizes.layers):
        if i:
            layers.append(Permutation(jnp.arange(d)[::-1]))
        layers.append(Autoregressive(transform, MADE(d, transform.parameters, **given)))
    return layers


def _for_images(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs, scale: Callable[..., Bijector]) -> Bijector:
    """The flow of all scales, whose convolutions are slow in compiled loops on CPUs."""
    block = 2**sizes.scales
    if shape[0] % block or shape[1] % block:
        raise ValueError(
            f"{sizes.scales} scales need images whose height and width are multiples of {block}, and these have "
            f"{shape[0]} x {shape[1]} pixels: set method.scales to a smaller number, or use another method.flow"
        )
    flow: Any = scale(shape, fields, sizes, rngs, sizes.scales)
    flow.slow_in_cpu_loops = True
    return flow


def _real_nvp_scale(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs, left: int) -> Bijector:
    """The flow from this scale on, with `left` scales left."""
    squeezed = _squeezed(shape)
    coupling = lambda mask: _coupling(mask, Affine(), fields, sizes, rngs)
    pixels = [coupling(masks.checkerboard(shape, i)) for i in range(sizes.layers)]
    inner: list[Bijector] = [coupling(masks.channels(squeezed, i)) for i in range(sizes.layers)]
    if left > 1:
        inner.append(OnHalf(_real_nvp_scale(_half(squeezed), fields, sizes, rngs, left - 1)))
    return Chain([*pixels, Squeezed(shape, Chain(inner))])


def _glow_scale(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs, left: int) -> Bijector:
    """The flow from this scale on, with `left` scales left."""
    squeezed = _squeezed(shape)
    inner = _glow_steps(squeezed, fields, sizes, rngs)
    if left > 1:
        inner.append(OnHalf(_glow_scale(_half(squeezed), fields, sizes, rngs, left - 1)))
    return Squeezed(shape, Chain(inner))


def _glow_steps(shape: Shape, fields: Fields, sizes: Sizes, rngs: nnx.Rngs) -> list[Bijector]:
    """The steps of one scale. The channels that leave the flow are those that the last coupling has transformed."""
    steps: list[Bijector] = []
    for _ in range(sizes.layers):
        mixed = InvertibleLinear(shape[-1], rngs=rngs)
        coupling = _coupling(masks.channels(shape, 1), Affine(), fields, sizes, rngs)
        steps += [ActivationNorm(shape[-1]), mixed, coupling]
    return steps


def _squeezed(shape: Shape) -> Shape:
    return (shape[0] // 2, shape[1] // 2, 4 * shape[2])


def _half(shape: Shape) -> Shape:
    """The shape of what stays in the flow when the first half of the channels leaves it."""
    return (*shape[:2], shape[2] - shape[2] // 2)
