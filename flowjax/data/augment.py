"""Augmentation of images inside the compiled training step.

    flip          mirrors left-right with probability 1/2
    crop(p)       pads p pixels on all sides by reflection, crops a random window of the original size, then as flip
    edm(p)        applies EDM's geometric transforms, each with probability p (`data.augment_edm`)

`flip` and `crop` change the distribution that is learned. `edm` does not leak into samples: a description of the
transforms is passed to the network as a condition, and samples are drawn with the condition "not augmented".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from flowjax.data.augment_edm import LABELS, check_probability, edm
from flowjax.typing import PRNGKey

__all__ = ["AUGMENTATIONS", "Augment", "Augmentation", "Augmented", "crop", "flip"]

Images = Num[Array, "B H W C"]


class Augmented(NamedTuple):
    """Augmented images, and the numbers that describe the transforms of each image.

    Attributes:
        x: images in data space.
        augment_labels: (B, n) description of the transforms, zero for none; None if there is no description.
    """

    x: Images
    augment_labels: Float[Array, "B n"] | None = None


Augment = Callable[[PRNGKey, Images], Augmented]
"""`augment(key, x) -> Augmented`, for images x in data space, in their stored dtype."""


class Augmentation(NamedTuple):
    """An augmentation.

    Attributes:
        apply: function (key, images) -> `Augmented`.
        labels: how many numbers describe the transforms of an image.
    """

    apply: Augment
    labels: int = 0


def flip(key: PRNGKey, x: Images) -> Augmented:
    """Mirrors each image left-right with probability 1/2."""
    coin = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
    return Augmented(jnp.where(coin, x[:, :, ::-1], x))


def crop(pad: int) -> Augment:
    """Returns an augmentation that pads by reflection, crops a random window of the original size, and flips.

    Args:
        pad: number of pixels to pad on each side, at least 1.

    Raises:
        ValueError: if `pad` is not a positive integer.
    """
    if not isinstance(pad, int) or pad < 1:
        raise ValueError(f"pad must be a positive integer, not {pad!r}")

    def augment(key: PRNGKey, x: Images) -> Augmented:
        key_place, key_flip = jax.random.split(key)
        wide = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        place = jax.random.randint(key_place, (x.shape[0], 2), 0, 2 * pad + 1)
        window = lambda image, at: lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:])
        return flip(key_flip, jax.vmap(window)(wide, place))

    return augment


def _edm(p: float | int = 0.12) -> Augmentation:
    check_probability(p)
    return Augmentation(lambda key, x: Augmented(*edm(key, x, p)), LABELS)


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "none": lambda: Augmentation(lambda key, x: Augmented(x)),
    "flip": lambda: Augmentation(flip),
    "crop": lambda pad=4: Augmentation(crop(pad)),
    "edm": _edm,
}
"""Augmentations by their names in `data.augment`."""
