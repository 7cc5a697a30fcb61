"""Networks in forward mode: a static argument, whatever was traced before and whatever else is in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models import ADM, EDM2, MLP, DiT, UNet, functional, kernels

IMAGE = (12, 12, 3)  # its numbers of pixels are no powers of two, for which the kernel of the norm is, on a GPU alone
SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1}
NETWORKS = {
    "mlp": (MLP, (3,), {"width": 16, "depth": 2}),
    "unet": (UNet, IMAGE, {"channels": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2}),
    "adm": (ADM, IMAGE, {**SMALL, "attention": (6,), "head_width": 16, "film": True, "dtype": "float32"}),
    "edm2": (EDM2, IMAGE, {**SMALL, "attention": (6,), "head_width": 16, "dtype": "float32"}),
    "dit": (DiT, IMAGE, {"depth": 1, "width": 16, "heads": 2, "dtype": "float32"}),
}


def network(name):
    """The network with parameters of which no layer is zero, as a function of (x, forward_mode)."""
    kind, shape, sizes = NETWORKS[name]
    module = functional(lambda rngs: kind(shape, rngs=rngs, **sizes))
    variables = module.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    variables = variables._replace(params=tree.unflatten(moved))
    return shape, lambda x, forward_mode: module.apply(variables, 0.3, x, None, forward_mode=forward_mode)[0]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "edm2", "dit")]


@pytest.mark.parametrize("name", ["mlp", "adm", *SLOW])
def test_forward_derivatives_are_those_of_reverse_mode_and_of_differences(name, monkeypatch):
    """With fused kernels in the same program, and in an inner `jax.jit` that was traced without forward mode before.

    <w, J e> = <J^T w, e>, with J^T w from the rules of the fused kernels: to float32's rounding in a sum of 864 terms.
    A central difference at h = 1e-2 is off by h^2 times a third derivative and by rounding / h, 1e-2 of the size.
    """
    monkeypatch.setattr(kernels, "available", lambda: True)
    shape, apply = network(name)
    x, e, w = jax.random.normal(jax.random.key(2), (3, 2, *shape))
    inner = jax.jit(apply, static_argnums=1)
    inner(x, False)

    @jax.jit
    def program(x, e, w):
        y, back = jax.vjp(lambda x: inner(x, False), x)
        z, tangent = jax.jvp(lambda x: inner(x, True), (x,), (e,))
        return y, z, tangent, back(w)[0]

    y, z, tangent, cotangent = map(np.asarray, program(x, e, w))
    np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-4)
    size = float(np.linalg.norm(tangent) * np.linalg.norm(w))
    assert float(np.vdot(w, tangent)) == pytest.approx(float(np.vdot(cotangent, e)), abs=1e-4 * size)
    h = 1e-2
    difference = (inner(x + h * e, True) - inner(x - h * e, True)) / (2 * h)
    assert np.linalg.norm(tangent - difference) < 1e-2 * np.linalg.norm(difference)
    assert np.abs(tangent).max() > 1e-2


def test_the_kernels_of_reverse_mode_have_no_forward_derivative(monkeypatch):
    """What the argument is for: without it JAX refuses."""
    monkeypatch.setattr(kernels, "available", lambda: True)
    _, apply = network("adm")
    x = jnp.ones((1, *IMAGE))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: apply(x, False), (x,), (x,))
