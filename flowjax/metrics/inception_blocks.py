"""The layers of the 2015 Inception network (Szegedy et al. 2016, arXiv:1512.00567, figures 5 to 7) as tables.

The names are those of torchvision.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

__all__ = ["MIXED", "STEM", "Conv", "Layer", "Tower", "kernel_shapes"]


@dataclass(frozen=True)
class Conv:
    """A convolution with batch norm and ReLU.

    Attributes:
        name: the name within its block.
        width: the number of output channels.
        kernel: height and width.
        stride: the stride along both axes.
        padding: as in `jax.lax.conv_general_dilated`.
    """

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"


Layer = Conv | tuple[Conv, ...] | Literal["average", "max", "max/2"]
"""The convolutions in a tuple have the same input, and their outputs are concatenated. Pools are 3 x 3, and `max/2` has
stride 2 and no padding."""

Tower = tuple[Layer, ...]


def _chain(name: str, *convs: tuple[int, int, int]) -> Tower:
    """A sequence of convolutions (width, kernel height, kernel width), named name_1, name_2, ..."""
    return tuple(Conv(f"{name}_{i}", width, (h, w)) for i, (width, h, w) in enumerate(convs, 1))


def _a(pool: int) -> tuple[Tower, ...]:
    return (
        (Conv("branch1x1", 64),),
        _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        ("average", Conv("branch_pool", pool)),
    )


def _c(mid: int) -> tuple[Tower, ...]:
    return (
        (Conv("branch1x1", 192),),
        _chain("branch7x7", (mid, 1, 1), (mid, 1, 7), (192, 7, 1)),
        _chain("branch7x7dbl", (mid, 1, 1), (mid, 7, 1), (mid, 1, 7), (mid, 7, 1), (192, 1, 7)),
        ("average", Conv("branch_pool", 192)),
    )


def _e(pool: Literal["average", "max"]) -> tuple[Tower, ...]:
    split = lambda name: (Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1)))
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), split("branch3x3_2")),
        (*_chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), split("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


_down = partial(Conv, kernel=(3, 3), stride=2, padding="VALID")

STEM: Tower = (
    _down("Conv2d_1a_3x3", 32),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "max/2",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    "max/2",
)

MIXED: dict[str, tuple[Tower, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": (
        (_down("branch3x3", 384),),
        (*_chain("branch3x3dbl", (64, 1, 1), (96, 3, 3)), _down("branch3x3dbl_3", 96)),
        ("max/2",),
    ),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), _down("branch3x3_2", 320)),
        (*_chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1)), _down("branch7x7x3_4", 192)),
        ("max/2",),
    ),
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("max"),
}
"""The blocks in order. All towers of a block have the same input, and their outputs are concatenated."""


def kernel_shapes() -> dict[str, tuple[int, int, int, int]]:
    """The kernel shapes (outputs, inputs, height, width) of all 94 convolutions by name, in the network's order."""
    shapes: dict[str, tuple[int, int, int, int]] = {}

    def walk(tower: Tower, prefix: str, channels: int) -> int:
        for layer in tower:
            if isinstance(layer, str):
                continue
            convs = (layer,) if isinstance(layer, Conv) else layer
            for conv in convs:
                shapes[prefix + conv.name] = (conv.width, channels, *conv.kernel)
            channels = sum(conv.width for conv in convs)
        return channels

    channels = walk(STEM, "", 3)
    for name, towers in MIXED.items():
        channels = sum(walk(tower, f"{name}.", channels) for tower in towers)
    return shapes
