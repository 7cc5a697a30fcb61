"""Augmentation of images inside the compiled step.

    flip          mirrored with probability 1/2
    crop(p)       padded by p pixels of reflection on all sides and cropped back at a random place, mirrored or not
    edm(p)        EDM's geometric transforms, each with probability p, passed to the network (`data.augment_edm`)

`flip` and `crop` change the distribution that is learned. `edm` does not leak into the samples: what was done
is a condition of the network, and samples are drawn under the condition that nothing was.
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
    """Images in data space, and (B, n) numbers that describe what was done to each, or None."""

    x: Images
    augment_labels: Float[Array, "B n"] | None = None


Augment = Callable[[PRNGKey, Images], Augmented]
"""`augment(key, x)`: x in data space, of the type it is stored in."""


class Augmentation(NamedTuple):
    """What is done to a batch of images, and how many numbers describe it."""

    apply: Augment
    labels: int = 0


def flip(key: PRNGKey, x: Images) -> Augmented:
    """Each image mirrored, left to right, with probability 1/2."""
    coin = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
    return Augmented(jnp.where(coin, x[:, :, ::-1], x))


def crop(pad: int) -> Augment:
    """A random window of the image padded by reflection, and mirrored or not."""
    if not isinstance(pad, int) or pad < 1:
        raise ValueError(f"a padding of a whole number of pixels, at least one, is needed, not {pad!r}")

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
"""What `data.augment` may name."""
