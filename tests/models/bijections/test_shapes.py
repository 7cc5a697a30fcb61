"""Layers in other shapes: blocks of pixels as channels, and channels that leave the flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.bijections import Chain, Flattened, OnHalf, Scale, Squeezed
from flowjax.models.bijections.shapes import squeeze, unsqueeze

pytestmark = pytest.mark.analytic


def doubling(size):
    layer = Scale(size)
    layer.log_scale[...] = jnp.full(size, jnp.log(2.0))
    return layer


def test_squeezing_moves_each_block_of_pixels_to_the_channels_of_one():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3) * 1.0
    y = squeeze(x)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(np.sort(y[1, 1, 2]), np.sort(x[1, 2:4, 4:6].ravel()))
    np.testing.assert_array_equal(unsqueeze(y), x)


def test_half_of_the_channels_leave_at_each_scale():
    """Of an image of 4 x 4 pixels, 8 numbers leave after the first scale and the other 8 pass the second."""
    second = Squeezed((2, 2, 2), doubling(8))
    flow = Squeezed((4, 4, 1), Chain([doubling(4), OnHalf(second)]))
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    z, log_det = flow.forward(x)
    assert z.shape == x.shape
    factor = z / x
    np.testing.assert_allclose(np.sort(factor[0].ravel()), [2] * 8 + [4] * 8, rtol=1e-5)
    np.testing.assert_allclose(factor[:, 0, :, 0], 2.0, rtol=1e-5)  # the upper row of each block leaves first
    np.testing.assert_allclose(log_det, 24 * np.log(2), rtol=1e-5)
    back, inverse = flow.inverse(z)
    np.testing.assert_allclose(back, x, rtol=1e-5)
    np.testing.assert_allclose(inverse, -log_det, rtol=1e-5)


def test_flattened_examples_keep_their_order():
    layer = Scale(4)
    layer.log_scale[...] = jnp.log(jnp.arange(1.0, 5.0))
    z, _ = Flattened((2, 2), layer).forward(jnp.ones((1, 2, 2)))
    np.testing.assert_allclose(z[0], [[1, 2], [3, 4]], rtol=1e-6)


def test_an_odd_image_is_refused():
    with pytest.raises(ValueError, match=r"even height and width, not \(3, 4, 1\)"):
        Squeezed((3, 4, 1), Scale(4))
