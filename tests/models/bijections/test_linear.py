"""Linear layers: exact in float64, and the rotation from which the invertible linear map starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models.bijections import InvertibleLinear, Permutation, Scale
from tests.models.bijections.exact import check_exact

pytestmark = pytest.mark.analytic

ORDER = jnp.array([2, 0, 1])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rngs: InvertibleLinear(3, rngs=rngs), (3,)),
        (lambda rngs: InvertibleLinear(3, rngs=rngs), (2, 2, 3)),
        (lambda rngs: Permutation(ORDER), (3,)),
        (lambda rngs: Scale(3), (2, 1, 3)),
    ],
)
def test_exact(make, shape):
    check_exact(make, shape)


def test_the_linear_map_starts_as_a_rotation_and_mixes_channels_at_each_pixel():
    layer = InvertibleLinear(4, rngs=nnx.Rngs(3))
    matrix = layer.forward(jnp.eye(4))[0]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-5)
    assert abs(matrix - jnp.eye(4)).max() > 0.1
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 4))
    np.testing.assert_allclose(layer.forward(x)[0], x @ matrix, atol=1e-5)


def test_a_permutation_takes_the_entries_of_its_order():
    np.testing.assert_array_equal(Permutation(ORDER).forward(jnp.array([[10.0, 11.0, 12.0]]))[0], [[12.0, 10.0, 11.0]])
