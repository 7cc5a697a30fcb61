"""Couplings: exact in float64, what a mask keeps, and the identity at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models import functional
from flowjax.models.bijections import Additive, Affine, ConvNetwork, Coupling, RationalQuadraticSpline, VectorNetwork
from flowjax.models.bijections.masks import alternating, channels, checkerboard
from tests.models.bijections.exact import FIELDS, check_exact

pytestmark = pytest.mark.analytic

SMALL = {"width": 6, "depth": 2}


def make(mask, transform, fields=()):
    kind = ConvNetwork if mask.ndim == 3 else VectorNetwork
    network = lambda rngs: kind(mask.shape[-1], transform.parameters, fields=fields, rngs=rngs, **SMALL)
    return lambda rngs: Coupling(mask, transform, network(rngs))


@pytest.mark.parametrize(
    ("mask", "transform", "fields"),
    [
        (alternating((3,)), Additive(), ()),
        (alternating((4,), 1), Affine(), FIELDS),
        (alternating((3,), 1), RationalQuadraticSpline(3, 2.0), FIELDS),
        (checkerboard((2, 3, 2)), Affine(), FIELDS),
        (channels((2, 1, 3), 1), RationalQuadraticSpline(3, 2.0), ()),
    ],
)
def test_exact(mask, transform, fields):
    jacobians, _ = check_exact(make(mask, transform, fields), mask.shape, fields)
    kept = mask.ravel()
    np.testing.assert_array_equal(
        jacobians[:, kept], np.broadcast_to(np.eye(mask.size)[kept], (3, kept.sum(), mask.size))
    )
    if isinstance(transform, Additive):
        np.testing.assert_allclose(np.linalg.det(jacobians), 1.0, atol=1e-12)


def test_it_starts_at_the_identity():
    for transform in (Additive(), Affine(), RationalQuadraticSpline(5, 3.0)):
        layer = functional(make(alternating((4,)), transform))
        x = 2 * jax.random.normal(jax.random.key(0), (7, 4))
        call = jax.jit(lambda v, x, layer=layer: layer.apply(v, x, method="forward")[0])
        z, log_det = call(layer.init(jax.random.key(0)), x)
        np.testing.assert_allclose(z, x, atol=2e-6)
        np.testing.assert_allclose(log_det, 0, atol=1e-5)


@pytest.mark.parametrize("mask", [alternating, checkerboard, channels])
def test_masks_of_opposite_parity_are_complementary(mask):
    shape = (2, 4, 6)
    np.testing.assert_array_equal(mask(shape, 0), ~mask(shape, 1))
    np.testing.assert_array_equal(mask(shape, 1), mask(shape, 3))
    assert mask(shape, 0).sum() == 24
    if mask is checkerboard:
        expected = [[False, True, False, True], [True, False, True, False]]
        np.testing.assert_array_equal(mask(shape)[..., 0], expected)


def test_a_mask_that_keeps_all_or_nothing_is_refused():
    for size in (1, 0):
        with pytest.raises(ValueError, match="at least 2 numbers"):
            Coupling(np.full((1,), bool(size)), Affine(), lambda x, cond: jnp.zeros(2))
