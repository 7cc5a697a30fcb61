"""Invertible layers with exact log-determinants, and the normalizing flows that are made of them.

A layer has `forward(x, cond) -> (z, log_det)` from the data to the source, and its `inverse`. To add a layer, write a
file in this folder; to add an architecture, write a function in `flows` and a line in `FLOWS`.
"""

from flowjax.models.bijections.activation_norm import ActivationNorm
from flowjax.models.bijections.autoregressive import MADE, Autoregressive
from flowjax.models.bijections.base import Bijector, Chain
from flowjax.models.bijections.coupling import Coupling
from flowjax.models.bijections.flows import FLOWS, Sizes
from flowjax.models.bijections.learned_noise import WithLearnedNoise
from flowjax.models.bijections.linear import InvertibleLinear, Permutation, Scale
from flowjax.models.bijections.networks import ConvNetwork, VectorNetwork
from flowjax.models.bijections.shapes import Flattened, OnHalf, Squeezed
from flowjax.models.bijections.spline import RationalQuadraticSpline
from flowjax.models.bijections.transforms import Additive, Affine, Transform

__all__ = [
    "FLOWS",
    "MADE",
    "ActivationNorm",
    "Additive",
    "Affine",
    "Autoregressive",
    "Bijector",
    "Chain",
    "ConvNetwork",
    "Coupling",
    "Flattened",
    "InvertibleLinear",
    "OnHalf",
    "Permutation",
    "RationalQuadraticSpline",
    "Scale",
    "Sizes",
    "Squeezed",
    "Transform",
    "VectorNetwork",
    "WithLearnedNoise",
]
