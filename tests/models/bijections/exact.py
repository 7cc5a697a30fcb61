"""A layer compared with the Jacobian of its own forward pass, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.conditions import Field
from flowjax.models import functional

LABEL = Field("label", "label", num_classes=3)
VECTOR = Field("y", "vector", (2,))
FIELDS = (LABEL, VECTOR)
ROWS = 3


def conditions(fields):
    """One array per field: a label that is not given, and a vector that is not given, are among the rows."""
    values = {"label": jnp.array([0, 2, -1]), "y": jnp.array([[0.3, -1.0], [jnp.nan, 0.0], [1.5, 0.2]])}
    return {f.name: values[f.name] for f in fields} or None


def perturbed(variables, scale=0.3):
    """Parameters away from their initial values, at which many layers are the identity, with floats in float64."""
    wide = lambda a: a.astype(float) if a.dtype == jnp.float32 else a
    rng = np.random.default_rng(0)
    noisy = lambda a: wide(a) + scale * jnp.asarray(rng.normal(size=a.shape))
    return variables._replace(params=jax.tree.map(noisy, variables.params), state=jax.tree.map(wide, variables.state))


def check_exact(make, shape, fields=(), scale=0.3, spread=1.0):
    """Checks the inverse, and both log-determinants against log |det| of the Jacobian by LU, to 1e-10.

    Args:
        make: makes the layer, `make(rngs)`.
        shape: shape of one example.
        fields: the conditions.
        scale: standard deviation of the noise in the parameters.
        spread: standard deviation of the examples.

    Returns:
        The Jacobians (B, D, D), and z.
    """
    with jax.enable_x64(True):
        layer = functional(make)
        variables = perturbed(layer.init(jax.random.key(0)), scale)
        cond = conditions(fields)

        @jax.jit
        def everything(x, cond):
            z, log_det = layer.apply(variables, x, cond, method="forward")[0]
            back, inverse_log_det = layer.apply(variables, z, cond, method="inverse")[0]

            def one(flat, c):
                c = None if c is None else {name: a[None] for name, a in c.items()}
                return layer.apply(variables, flat.reshape(1, *shape), c, method="forward")[0][0].ravel()

            return z, log_det, back, inverse_log_det, jax.vmap(jax.jacfwd(one))(x.reshape(ROWS, -1), cond)

        x = spread * jax.random.normal(jax.random.key(2), (ROWS, *shape), float)
        z, log_det, back, inverse_log_det, jacobians = everything(x, cond)
        assert z.shape == x.shape
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(log_det, -inverse_log_det, atol=1e-10)
        np.testing.assert_allclose(log_det, np.linalg.slogdet(np.asarray(jacobians))[1], atol=1e-10)
        return np.asarray(jacobians), np.asarray(z)
