"""EDM's non-leaking geometric augmentation (Karras et al. 2022, appendix F.2, table 6; Karras et al. 2020, ADA).

Each of six transforms is applied independently with probability p (the left-right mirror always with 1/2), and they
are composed into one affine map of the plane, so that an image is resampled once:

    mirror left-right, mirror up-down,
    scale       2^(0.2 n)                n ~ N(0, 1)
    rotate      pi u                     u ~ U(-1, 1)
    stretch     2^(0.2 n) along an axis of angle pi u
    translate   0.125 n of the side along each axis

The transforms are passed to the network as a condition of nine numbers, which are zero for no transform: the mirrors, n
of the scale, cos - 1 and sin of the rotation, n cos and n sin of the stretch, and the two translations. (As in EDM, a
stretch by n and one by -n along the axis turned by pi have the same numbers, although one is the inverse of the other.)

Images are continued by reflection outside their edges. They are resampled with cubic convolution (Keys 1981), where EDM
uses a wavelet filter on a doubled grid.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from flowjax.typing import PRNGKey

__all__ = ["LABELS", "check_probability", "edm", "warp"]

LABELS = 9
_SCALE, _SHIFT = 0.2, 0.125


def check_probability(p: float | int) -> None:
    """Raises a ValueError if p is not a probability."""
    if not (isinstance(p, float | int) and 0 <= p <= 1):
        raise ValueError(f"p must be a probability between 0 and 1, not {p!r}")


def edm(key: PRNGKey, x: Num[Array, "B H W C"], p: float | int) -> tuple[Float[Array, "B H W C"], Float[Array, "B 9"]]:
    """Applies random transforms to each image.

    Args:
        key: PRNG key.
        x: images of any dtype.
        p: probability of each transform.

    Returns:
        The images as float32, and the nine numbers that describe the transforms of each.

    Raises:
        ValueError: if p is not a probability.
    """
    check_probability(p)
    maps, augment_labels = _draw(key, x.shape[0], float(p))
    return jax.vmap(warp)(x.astype(jnp.float32), maps), augment_labels


def _draw(key: PRNGKey, n: int, p: float) -> tuple[Float[Array, "B 2 3"], Float[Array, "B 9"]]:
    """Draws maps from positions in the result to positions in the image, in units of the side; and the labels."""
    keys = iter(jax.random.split(key, 12))
    on = lambda rate=p: jax.random.bernoulli(next(keys), rate, (n,))
    normal = lambda: jax.random.normal(next(keys), (n,))
    angle = lambda: jnp.pi * jax.random.uniform(next(keys), (n,), minval=-1.0, maxval=1.0)
    mirror_x, mirror_y = on(0.5), on() & jax.random.bernoulli(next(keys), 0.5, (n,))
    scale = jnp.where(on(), normal(), 0.0)
    turn = jnp.where(on(), angle(), 0.0)
    which = on()
    stretch, axis = jnp.where(which, normal(), 0.0), jnp.where(which, angle(), 0.0)
    shift = jnp.where(on()[:, None], jax.random.normal(next(keys), (n, 2)), 0.0)
    diagonal = lambda a, b: jax.vmap(jnp.diag)(jnp.stack(jnp.broadcast_arrays(a, b), -1))
    rotation = lambda a: jnp.stack([jnp.cos(a), -jnp.sin(a), jnp.sin(a), jnp.cos(a)], -1).reshape(n, 2, 2)
    sign = lambda m: 1.0 - 2.0 * m
    # an image is mirrored, scaled, rotated, stretched and shifted; the inverse map says where a pixel comes from
    grow, pull = 2.0 ** (_SCALE * scale), 2.0 ** (_SCALE * stretch)
    along = rotation(axis) @ diagonal(1 / pull, pull) @ rotation(-axis)
    linear = diagonal(sign(mirror_x), sign(mirror_y)) @ diagonal(1 / grow, 1 / grow) @ rotation(-turn) @ along
    maps = jnp.concatenate([linear, -linear @ (_SHIFT * shift)[..., None]], -1)
    augment_labels = [
        mirror_x,
        mirror_y,
        scale,
        jnp.cos(turn) - 1,
        jnp.sin(turn),
        stretch * jnp.cos(axis),
        stretch * jnp.sin(axis),
    ]
    return maps, jnp.stack([*(a.astype(jnp.float32) for a in augment_labels), shift[:, 0], shift[:, 1]], -1)


def warp(image: Float[Array, "H W C"], to: Float[Array, "2 3"]) -> Float[Array, "H W C"]:
    """Resamples an image: the result at q is the image at `linear @ q + offset`, continued by reflection.

    Args:
        image: (H, W, C).
        to: (2, 3) linear part and offset, for positions (x, y) from the centre in units of the longer side.
    """
    height, width, _ = image.shape
    side = max(height, width)  # the same unit for both axes, otherwise a rotation would shear
    place = lambda size: (jnp.arange(size) + 0.5 - size / 2) / side
    y, x = jnp.meshgrid(place(height), place(width), indexing="ij")
    at = to[:, 0, None, None] * x + to[:, 1, None, None] * y + to[:, 2, None, None]
    column, row = at[0] * side + (width - 1) / 2, at[1] * side + (height - 1) / 2
    taps = jnp.arange(-1, 3)
    rows, columns = jnp.floor(row).astype(int)[..., None] + taps, jnp.floor(column).astype(int)[..., None] + taps
    wy, wx = _cubic(row[..., None] - rows), _cubic(column[..., None] - columns)
    pixels = image[_reflect(rows, height)[..., :, None], _reflect(columns, width)[..., None, :]]
    return jnp.einsum("hwi,hwj,hwijc->hwc", wy, wx, pixels)


def _cubic(d: Float[Array, "..."]) -> Float[Array, "..."]:
    """The kernel of Keys (1981) with a = -1/2, which interpolates quadratics exactly."""
    d = jnp.abs(d)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return jnp.where(d <= 1, near, jnp.where(d < 2, far, 0.0))


def _reflect(i: Array, size: int) -> Array:
    """Reflects indices beyond the edges about the centre of the edge pixel: -1 to 1, size to size - 2."""
    period = 2 * (size - 1)
    return (size - 1) - jnp.abs(i % period - (size - 1))
