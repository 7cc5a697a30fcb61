"""Networks: Flax NNX modules that map (t, x, cond) to arrays shaped like x, independently of paths and methods."""

from flowjax.models.adm import ADM
from flowjax.models.dit import DiT
from flowjax.models.edm2 import EDM2
from flowjax.models.functional import Functional, Variables, functional
from flowjax.models.mlp import MLP
from flowjax.models.resmlp import ResMLP
from flowjax.models.transformer import Transformer
from flowjax.models.unet import UNet
from flowjax.models.unet1d import UNet1D

__all__ = [
    "ADM",
    "EDM2",
    "MLP",
    "DiT",
    "Functional",
    "ResMLP",
    "Transformer",
    "UNet",
    "UNet1D",
    "Variables",
    "functional",
]
