"""Activation normalisation: exact in float64, and initialised by the first batch of training only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models import functional
from flowjax.models.bijections import ActivationNorm
from tests.models.bijections.exact import check_exact

pytestmark = pytest.mark.analytic


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3)])
def test_exact(shape):
    check_exact(lambda rngs: ActivationNorm(3), shape)


def test_the_first_batch_of_training_is_standardised_and_later_ones_change_nothing():
    layer = functional(lambda rngs: ActivationNorm(3))
    variables = layer.init(jax.random.key(0))
    images = lambda key: 5 + 3 * jax.random.normal(jax.random.key(key), (8, 2, 2, 3))
    call = lambda variables, x, training: layer.apply(variables, x, training=training, method="forward")
    (z, log_det), state = call(variables, images(0), False)
    np.testing.assert_array_equal(z, images(0))
    assert not state["initialised"]
    (z, log_det), state = call(variables, images(0), True)
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, rtol=1e-5)
    deviation = np.asarray(images(0)).std((0, 1, 2))
    np.testing.assert_allclose(log_det, -4 * np.log(deviation).sum(), rtol=1e-5)
    later = variables._replace(state=state)
    for training in (True, False):
        (z, _), after = call(later, images(1), training)
        jax.tree.map(np.testing.assert_array_equal, after, state)
        np.testing.assert_allclose(z, (images(1) - state["mean"]) / state["deviation"], rtol=1e-5, atol=1e-5)


def test_an_entry_that_is_constant_in_the_first_batch_stays_finite():
    layer = functional(lambda rngs: ActivationNorm(2))
    x = jnp.ones((4, 2))
    (z, log_det), _ = layer.apply(layer.init(jax.random.key(0)), x, training=True, method="forward")
    np.testing.assert_array_equal(z, 0)
    np.testing.assert_allclose(log_det, 2 * np.log(1e3), rtol=1e-5)
