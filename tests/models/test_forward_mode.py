"""Networks in forward mode: a static argument, whatever was traced before and whatever else is in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import ADM, EDM2, MLP, DiT, ResMLP, Transformer, UNet, UNet1D, functional, kernels
from flowjax.models.layers import DTYPES
from tests.models import test_inputs

IMAGE = (12, 12, 3)  # its numbers of pixels are no powers of two, for which the kernel of the norm is, on a GPU alone
SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1}
NETWORKS = {
    "mlp": (MLP, (3,), {"width": 16, "depth": 2}),
    "resmlp": (ResMLP, (3,), {"width": 16, "depth": 2}),
    "transformer": (Transformer, (64, 3), {"depth": 1, "width": 16, "heads": 2}),
    "unet1d": (UNet1D, (12, 3), {"channels": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2}),
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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unet1d", "unet", "edm2", "dit")]


@pytest.mark.parametrize("name", ["mlp", "resmlp", "transformer", "adm", *SLOW])
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


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n != "mlp")])
def test_forward_derivatives_in_float64_are_differences(name, monkeypatch):
    """In the parameters, x, both times and the conditions at once; one row has all conditions, the other has none.

    A central difference is off by h^2 / 6 of the third derivative, and by the rounding of two outputs over 2 h. Both
    are about h^2 at h = eps^(1/3). The third derivative is at most a few hundred times the first: the bound is 100 h^2.
    JAX's attention, which the U-Nets of `models.unet` use, computes its softmax in float32: there eps is 2^-24.
    """
    monkeypatch.setitem(DTYPES, "float32", jnp.float64)
    fields, rng = test_inputs.fields_of(name), np.random.default_rng(5)
    two = {"s": jnp.array([0.2, 0.5])} if name in ("mlp", "resmlp", "transformer", "adm", "dit") else {}
    keys = {"two_times": True} if two else {}
    if name == "dit":
        keys |= {"time_scale": 1.0}  # of 1000, which is the default, the third derivative in t is 1e6 times the first
    if name in ("unet", "adm", "edm2"):
        keys |= {"multipliers": (1, 2), "blocks": 1}  # with maps of half the size
    rows, cond = test_inputs.rows_of(fields)
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64 if a.dtype == jnp.float32 else a.dtype), tree
        )
        graph, params = test_inputs.filled(lambda rngs: test_inputs.build(name, rngs, fields=fields, **keys))
        cond = {k: a[np.array([rows["all"], rows["none"]])] for k, a in cond.items()}
        x = jnp.asarray(rng.normal(size=(2, *test_inputs.NETWORKS[name][1])))
        label = {k: a for k, a in cond.items() if k == "label"}
        at = wide((params, jnp.array([0.3, 0.6]), x, {k: a for k, a in cond.items() if k != "label"}, two))
        like = lambda a: jnp.asarray(rng.normal(size=a.shape)) * (0.05 if a.ndim > 1 else 0.02)
        along = jax.tree.map(like, at)

        def apply(params, t, x, cond, two, forward_mode):
            return nnx.merge(graph, params)(t, x, cond | label, **two, forward_mode=forward_mode)

        program = jax.jit(lambda at, along: jax.jvp(lambda *at: apply(*at, True), at, along))
        h = (2.0**-24 if name in ("unet", "unet1d") else 2.0**-53) ** (1 / 3)
        y, tangent = program(at, along)
        assert y.dtype == tangent.dtype == jnp.float64
        moved = lambda step: program(jax.tree.map(lambda a, b: a + step * b, at, along), along)[0]
        difference = (moved(h) - moved(-h)) / (2 * h)
        size = float(jnp.abs(tangent).max())
        assert size > 1e-2
        assert float(jnp.abs(tangent - difference).max()) < 100 * h**2 * size
