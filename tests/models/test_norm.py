"""Group norm: its formula in float64, and its backward pass by rules and a kernel of our own, which JAX's interpreter
runs here."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.models import kernels, norm_kernel
from flowjax.models.norm import GroupNorm, fused_group_norm, group_norm
from tests.conftest import simulated


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layer(channels, groups, act=True):
    """With a gain and a bias away from their first values."""
    made = GroupNorm(channels, groups, act, rngs=nnx.Rngs(0))
    made.bias[...], made.scale[...] = 0.3 * normal(0, channels), 1 + 0.3 * normal(1, channels)
    return made


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, groups, eps=1e-5):
    """Group by group and row by row, with NumPy's variance of all pixels of the group's channels."""
    out = np.empty_like(x)
    for row, group in itertools.product(range(len(x)), np.split(np.arange(x.shape[-1]), groups)):
        part = x[row][..., group]
        out[row][..., group] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return out


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(norm_kernel, "interpret", True)


# The layer


@pytest.mark.analytic
@pytest.mark.parametrize("act", [True, False])
def test_group_norm_is_its_formula(act):
    """Against float64. The variance as a difference of means of squares loses what the mean exceeds it by, here
    (1 + 3^2) 2^-24 of it, and sums of 24 numbers round as often: 1e-5."""
    norm = layer(8, 4, act)
    x, add, scale, shift = 2 * normal(0, 2, 4, 3, 8) + 1, 3 * normal(1, 2, 8), normal(2, 2, 8), normal(3, 2, 8)
    wide, gain, bias = (np.asarray(a, np.float64) for a in (x, norm.scale[...], norm.bias[...]))
    rows = lambda a: np.asarray(a, np.float64)[:, None, None]
    plain = lambda y: normed(y, 4) * gain + bias
    for out, expected in [
        (norm(x), plain(wide)),
        (norm(x, add=add), plain(wide + rows(add))),
        (norm(x, add=add[0]), plain(wide + np.asarray(add[0], np.float64))),
        (norm(x, add=add, film=(scale, shift)), plain(wide + rows(add)) * (1 + rows(scale)) + rows(shift)),
        (norm(x[..., :3], x[..., 3:], add=add), plain(wide + rows(add))),  # a group on two maps
    ]:
        np.testing.assert_allclose(out, silu(expected) if act else expected, rtol=1e-4, atol=1e-5)
    # no variance: the difference of two numbers 5 / sqrt(1e-5) = 1600, each rounded to 2^-24 of it
    constant = np.broadcast_to(silu(bias) if act else bias, (1, 4, 3, 8))
    np.testing.assert_allclose(norm(jnp.full((1, 4, 3, 8), 5.0)), constant, atol=3e-4)
    half = norm(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), norm(x), atol=0.05)  # 2^-8 of numbers up to 10
    with pytest.raises(ValueError, match="5 groups do not divide 8 channels"):
        GroupNorm(8, 5, rngs=nnx.Rngs(0))


@pytest.mark.analytic
@pytest.mark.parametrize("served", [False, True])
def test_gradients_of_group_norm(monkeypatch, served):
    """Against autodiff of the plain formula, for every argument: float32 sums of some 50 terms of order 1, 1e-4."""
    monkeypatch.setattr(kernels, "available", lambda: served)
    graph, params = nnx.split(layer(8, 4))
    arguments = (2 * normal(0, 2, 4, 3, 8) + 1, normal(1, 2, 8), normal(2, 2, 8), normal(3, 2, 8))
    target = normal(4, 2, 4, 3, 8)

    def ours(params, x, add, scale, shift):
        return jnp.sum(target * nnx.merge(graph, params)(x, add=add, film=(scale, shift)))

    def plain(params, x, add, scale, shift):
        p, rows = nnx.to_pure_dict(params), lambda a: a[:, None, None]
        parts = (x + rows(add)).reshape(2, 12, 4, 2)
        mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
        y = ((parts - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * p["scale"] + p["bias"]
        return jnp.sum(target * jax.nn.silu(y * (1 + rows(scale)) + rows(shift)))

    gradient = lambda f: jax.tree.leaves(jax.jit(jax.grad(f, (0, 1, 2, 3, 4)))(params, *arguments))
    for a, b in zip(gradient(ours), gradient(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# The backward pass of our own


def weighed(norm, act=True):
    """(target, parts, add, gamma, beta) -> the sum of target times the norm in 8 groups, and the norm."""

    def f(target, parts, *rows):
        y = norm(parts, *rows, 8, act, 1e-5)
        return jnp.sum(target * y), y

    return f


def given(rows, size, *channels):
    """target, parts, add, gamma, beta of normal numbers; the parts have deviation 2 and mean 1."""
    both = sum(channels)
    parts = tuple(2 * normal(i, rows, *size, c) + 1 for i, c in enumerate(channels))
    return normal(2, rows, *size, both), parts, *(normal(i, rows, both) for i in (3, 4, 5))


GRADIENTS = {"rtol": 0, "atol": 3e-5}
"""Sums over 128 pixels, that reach 40 at most: if the roundings are independent, sqrt(128) 40 2^-24."""


@pytest.mark.analytic
@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize(
    ("size", "channels", "kernel"),
    [((8, 16), (32,), True), ((4, 4), (16, 48), True), ((3, 4), (3, 13), False)],
)
def test_the_fused_norm_is_the_plain_one(monkeypatch, interpreted, size, channels, kernel, act):
    """z up to 10 is the same to two roundings; silu's ten more, of numbers up to 10: sqrt(10) 10 2^-24 = 2e-6, thrice.
    In all gradients too, whether by the kernel or not."""
    calls, sums = [], norm_kernel.pixel_sums
    monkeypatch.setattr(norm_kernel, "pixel_sums", lambda *args: calls.append(args) or sums(*args))
    arguments = given(2, size, *channels)
    gradient = lambda norm: jax.jit(jax.grad(weighed(norm, act), (1, 2, 3, 4), has_aux=True))(*arguments)
    (ours, y), (plain, expected) = gradient(fused_group_norm), gradient(group_norm)
    assert len(calls) == (len(channels) if kernel and act else 0)
    assert 3 < float(jnp.abs(expected).max()) < 10
    np.testing.assert_allclose(y, expected, rtol=0, atol=6e-6)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert 0.5 < float(jnp.abs(b).max()) < 40
        np.testing.assert_allclose(a, b, **GRADIENTS)


@pytest.mark.analytic
def test_half_precision_keeps_the_types(interpreted):
    """The map and its gradient in bfloat16 are those of the same numbers in float32, rounded: 2^-9 of them, which is
    more than what float32 left of the rest."""
    target, (x,), *rows = given(2, (4, 4), 32)
    target, x = target.astype(jnp.bfloat16), x.astype(jnp.bfloat16)
    gradient = jax.jit(jax.grad(weighed(fused_group_norm), (1, 2, 3, 4), has_aux=True))
    half, y = gradient(target, (x,), *rows)
    wide, expected = gradient(target.astype(jnp.float32), (x.astype(jnp.float32),), *rows)
    assert y.dtype == half[0][0].dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves((half, y)), jax.tree.leaves((wide, expected)), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=2.0**-8, atol=3e-5)


@pytest.mark.analytic
def test_vmap_adds_to_the_rows(interpreted):
    """Of the gradient, with what has no axis of its own in the same place for all; twice, of the kernel."""
    target, parts, add, *rows = given(6, (4, 4), 16, 32)
    split = lambda tree: jax.tree.map(lambda a: a.reshape(3, 2, *a.shape[1:]), tree)
    arguments = (target[:2], split(parts), add[:2], *split(rows))
    axes = (None, 0, None, 0, 0)

    def gradient(norm):
        f = jax.grad(weighed(norm), (1, 2, 3, 4), has_aux=True)
        return jax.tree.leaves(jax.jit(jax.vmap(f, axes))(*arguments)[0])

    for a, b in zip(gradient(fused_group_norm), gradient(group_norm), strict=True):
        np.testing.assert_allclose(a, b, **GRADIENTS)

    x, dy, slope, offset = normal(0, 2, 3, 1, 16, 16), normal(1, 3, 1, 16, 32), normal(2, 2, 1, 16), normal(3, 1, 16)
    sums = lambda *args: norm_kernel.pixel_sums(*args, 16)
    out = jax.vmap(jax.vmap(sums, (0, 0, None, None)), (0, None, 0, None))(x, dy, slope, offset)
    for i, j in itertools.product(range(2), range(3)):
        for a, b in zip(out, sums(x[i, j], dy[j], slope[i], offset), strict=True):
            np.testing.assert_allclose(a[i, j], b, rtol=0, atol=1e-5)


# The kernel


def wide_sigmoid(z):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


def wide_slope(z):
    return wide_sigmoid(z) * (1 + z * (1 - wide_sigmoid(z)))


@pytest.mark.analytic
def test_sigmoid_and_the_slope_of_silu():
    """Against float64, to the very ends of float32's exponents. The exponent -z log2(e) is off by 2^-23 of it, which
    the sigmoid s feels s (1 - s) z < 0.23 as much; the root by 2^-23, twice of which s feels; the sum under it and the
    square each by 2^-24: within 7 2^-24. The slope feels an error of s z s times as much, and s is exactly 1 from
    log(2^24) = 16.7 on: 7 2^-24 (1 + 16.7)."""
    z = jnp.concatenate([jnp.linspace(-200, 200, 4001), jnp.linspace(-20, 20, 4001)])
    wide, ulp = np.asarray(z, np.float64), 2.0**-24
    np.testing.assert_allclose(norm_kernel.sigmoid(z), wide_sigmoid(wide), rtol=0, atol=7 * ulp)
    np.testing.assert_allclose(norm_kernel.silu_slope(z), wide_slope(wide), rtol=0, atol=7 * 17.7 * ulp)
    ends = norm_kernel.silu_slope(jnp.array([-3e38, -200.0, 200.0, 3e38]))
    np.testing.assert_array_equal(ends, [0, 0, 1, 1])


@pytest.mark.analytic
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_sums_over_pixels(interpreted, dtype):
    """Against float64, of channels that start at the fourth block of 16: each of the 128 terms, of deviation 5 at most,
    has some 10 roundings, and the sums as many as terms: sqrt(10 128) 5 2^-24 = 1e-5, thrice."""
    x, dy = (2 * normal(0, 2, 128, 32) + 1).astype(dtype), normal(1, 2, 128, 96).astype(dtype)
    a, b = normal(2, 2, 32), normal(3, 2, 32)
    wide = [np.asarray(each, np.float64) for each in (x, dy[..., 48:80], a[:, None], b[:, None])]
    dz = wide[1] * wide_slope(wide[2] * wide[0] + wide[3])
    one, two = norm_kernel.pixel_sums(x, dy, a, b, 48)
    assert one.dtype == two.dtype == jnp.float32
    np.testing.assert_allclose(one, dz.sum(1), rtol=0, atol=3e-5)
    np.testing.assert_allclose(two, (dz * wide[0]).sum(1), rtol=0, atol=3e-5)


@pytest.mark.analytic
def test_the_kernel_is_for_powers_of_two():
    for pixels, channels in [(16, [16]), (1024, [128, 256]), (64, [48, 80])]:
        assert norm_kernel.takes(pixels, *channels)
    for pixels, channels in [(8, [64]), (15, [64]), (48, [64]), (64, [8]), (64, [24]), (64, [64, 3]), (64, [32, 40])]:
        assert not norm_kernel.takes(pixels, *channels)


# Over several devices


def over_a_mesh():
    """What each gradient over all devices is off by from that of one, and what the devices send each other."""
    norm_kernel.interpret = True
    *mapped, gamma, beta = given(8, (4, 4), 16, 32)
    arguments = (*mapped, gamma[0], beta)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    split, same = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    places = (split, split, split, same, split)

    def gradients(target, parts, add, gain, beta):
        loss = lambda parts, add, gain, beta: weighed(fused_group_norm)(
            target, parts, add, jnp.broadcast_to(gain, add.shape), beta
        )[0]
        return jax.grad(loss, (0, 1, 2, 3))(parts, add, gain, beta)

    one = jax.jit(gradients)(*arguments)
    program = jax.jit(gradients, in_shardings=places, out_shardings=places[1:]).lower(*arguments).compile()
    many = program(*jax.device_put(arguments, places))
    off = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), one, many)
    sent = re.findall(r" = (.+?) ((?:all|collective|reduce-scatter)\b[\w-]*)\(", program.as_text())
    return jax.tree.leaves(off), sent


def test_each_device_sums_its_own_rows():
    """In a process with four CPU devices: they send each other the sum of the shared gain's gradient and no map, and
    differ from one device by rounding."""
    code = "import json; from tests.models.test_norm import over_a_mesh; print(json.dumps(over_a_mesh()))"
    env = {"XLA_FLAGS": simulated(4), "JAX_PLATFORMS": "cpu", "PATH": ""}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    off, sent = json.loads(done.stdout)
    assert len(off) == 5
    np.testing.assert_allclose(off, 0, **GRADIENTS)
    assert sent == [["f32[48]{0}", "all-reduce"]]
