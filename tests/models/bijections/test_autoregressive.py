"""Masked autoregressive layers: exact in float64, and what each output of MADE depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models.bijections import MADE, Affine, Autoregressive, RationalQuadraticSpline
from tests.models.bijections.exact import FIELDS, LABEL, check_exact

pytestmark = pytest.mark.analytic


def made(size, outputs, fields=(), width=7, depth=2):
    return lambda rngs: MADE(size, outputs, fields=fields, width=width, depth=depth, rngs=rngs)


@pytest.mark.parametrize(
    ("size", "transform", "fields"),
    [(4, Affine(), FIELDS), (3, RationalQuadraticSpline(3, 2.0), ()), (1, Affine(), (LABEL,))],
)
def test_exact_and_triangular(size, transform, fields):
    network = made(size, transform.parameters, fields)
    jacobians, _ = check_exact(lambda rngs: Autoregressive(transform, network(rngs)), (size,), fields)
    np.testing.assert_array_equal(jacobians, np.tril(jacobians))
    below = np.tril_indices(size, -1)
    assert (abs(jacobians[:, below[0], below[1]]).max(0) > 0).all()


@pytest.mark.parametrize(("size", "width", "depth"), [(5, 9, 3), (6, 2, 1), (2, 3, 2)])
def test_the_outputs_of_made_depend_on_the_coordinates_before(size, width, depth):
    """Of every output array, also if there are fewer hidden units than coordinates."""
    network = made(size, 2, width=width, depth=depth)(nnx.Rngs(0))
    network.out.kernel[...] = jax.random.normal(jax.random.key(0), network.out.kernel.shape)
    jacobian = jax.jacfwd(lambda x: network(x[None])[0])(jnp.arange(1.0, size + 1))
    for part in jnp.split(jacobian, 2):
        np.testing.assert_array_equal(part, np.tril(part, -1))
        assert (abs(part[-1, :-1]) > 0).all()


def test_the_inverse_of_a_layer_with_large_shifts_is_finite():
    """Coordinates that are not yet found are zero, because numbers that grow there would become infinite."""
    layer = Autoregressive(Affine(), made(40, 2, width=64)(nnx.Rngs(0)))
    layer.network.out.kernel[...] = 50 * jax.random.normal(jax.random.key(0), layer.network.out.kernel.shape)
    x = jnp.zeros((2, 40)).at[:, 0].set(1.0)
    assert np.isfinite(layer.inverse(layer.forward(x)[0])[0]).all()
