"""Networks: Flax NNX modules that map (t, x, cond) to an array shaped like x. They know nothing of paths."""

from flowjax.models.mlp import MLP
from flowjax.models.unet import UNet

__all__ = ["MLP", "UNet"]
