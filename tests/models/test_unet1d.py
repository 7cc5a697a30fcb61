"""The 1-D U-Net: any length, signals, its convolutions in NumPy, its count and its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import Field
from flowjax.models import UNet1D
from flowjax.models.unet import ResBlock, _double, _halve
from tests.models.test_models import perturbed

TINY = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 2}
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
"""Float32's rounding in some twenty layers, of numbers of order 1."""


def network(shape, **changes):
    graph, state = nnx.split(perturbed(UNet1D(shape, **TINY | changes, rngs=nnx.Rngs(0))))
    return jax.jit(lambda t, x: nnx.merge(graph, state)(t, x))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_any_length_and_signals():
    """13 has levels of 13, 7 and 4. (L,) is (L, 1), with two outputs one after the other along the last axis."""
    x = normal(0, 2, 13)
    of_sequence, of_signal = network((13, 1), outputs=2), network((13,), outputs=2)
    sequence, signal = of_sequence(0.3, x[..., None]), of_signal(0.3, x)
    assert sequence.shape == (2, 13, 2)
    np.testing.assert_allclose(signal, np.concatenate([sequence[..., 0], sequence[..., 1]], 1), **ROUNDING)
    moved = of_signal(0.3, np.concatenate([x[:, :-1], x[:, -1:] + 1], 1)) - signal
    assert np.abs(moved).min() > 1e-6  # attention: the last element moves the whole output
    assert np.abs(of_signal(0.7, x) - signal).max() > 1e-3


def test_halving_averages_pairs_and_pads_the_end():
    """1 and 3, 5 and 7, and the last one with itself; doubling crops the repeated one."""
    x = jnp.array([1.0, 3, 5, 7, 9])[None, :, None]
    np.testing.assert_array_equal(_halve(x)[0, :, 0], [2, 6, 9])
    np.testing.assert_array_equal(_double(_halve(x), (5,))[0, :, 0], [2, 2, 6, 6, 9])


def test_a_block_is_its_formula():
    """In float64 NumPy, with `np.correlate` for the convolutions. The groups of the norms have four channels."""
    block = perturbed(ResBlock(8, 8, 4, 1, rngs=nnx.Rngs(0)))
    x, e = normal(0, 1, 6, 8), normal(1, 1, 4)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.split(block)[1]))
    silu = lambda a: a / (1 + np.exp(-a))

    def norm(h, layer):
        grouped = h.reshape(6, 2, 4)
        mean, var = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
        return ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(6, 8) * layer["scale"] + layer["bias"]

    def conv(h, layer):
        one = lambda a, b: np.correlate(np.pad(h[:, a], 1), layer["kernel"][:, a, b], "valid")
        return np.stack([sum(one(a, b) for a in range(8)) for b in range(8)], 1) + layer["bias"]

    h = conv(silu(norm(x[0].astype(float), p["norm1"])), p["conv1"])
    scale, shift = np.split(e[0] @ p["modulate"]["kernel"] + p["modulate"]["bias"], 2)
    h = conv(silu(norm(h, p["norm2"]) * (1 + scale) + shift), p["conv2"])
    np.testing.assert_allclose(block(jnp.asarray(x), jnp.asarray(e))[0], h + x[0], rtol=1e-4, atol=1e-4)


def test_the_number_of_parameters_is_the_closed_form():
    """A block a -> b has two norms, convolutions 3 a b and 3 b^2, a modulation, and a 1 x 1 convolution if a != b."""
    w, c, k, seq = 8, 3, 5, 2
    e = 4 * w
    block = lambda a, b: 2 * a + 3 * a * b + b + (e + 1) * 2 * b + 2 * b + 3 * b * b + b + (a != b) * (a + 1) * b
    fields = (Field("label", "label", num_classes=k), Field("seq", "sequence", (10, seq)))
    fresh = lambda: UNet1D((10, c), **TINY | {"multipliers": (1, 2)}, fields=fields, rngs=nnx.Rngs(0))
    count = sum(a.size for a in jax.tree.leaves(nnx.split(nnx.eval_shape(fresh))[1]))
    stem, time = 3 * (c + seq + 1) * w + w, (w + 1) * e + (e + 1) * e + (k + 1) * e
    down = block(w, w) + block(w, 2 * w)
    middle = 2 * block(2 * w, 2 * w) + 2 * 2 * w + (2 * w + 1) * 3 * 2 * w + (2 * w + 1) * 2 * w
    up = block(4 * w, 2 * w) + block(3 * w, w) + block(2 * w, w)
    assert count == stem + time + down + middle + up + 2 * w + 3 * w * c + c


def test_a_sequence_of_another_length_is_put_in_front():
    """The network is that of the whole axis: x after the past, and channels that are not given elsewhere."""
    fields = lambda past, beside: (Field("past", "sequence", (past, 2)), Field("beside", "sequence", (beside, 1)))
    module = perturbed(UNet1D((6, 3), **TINY, fields=fields(4, 6), rngs=nnx.Rngs(0)))
    whole = UNet1D((10, 3), **TINY, fields=fields(10, 10), rngs=nnx.Rngs(0))
    nnx.update(whole, nnx.state(module))
    x, past, beside = (jnp.asarray(normal(i, 2, *shape)) for i, shape in enumerate(((6, 3), (4, 2), (6, 1))))
    nan = lambda rows, channels: jnp.full((2, rows, channels), jnp.nan)
    placed = {"past": jnp.concatenate([past, nan(6, 2)], 1), "beside": jnp.concatenate([nan(4, 1), beside], 1)}
    expected = whole(0.3, jnp.concatenate([jnp.zeros((2, 4, 3)), x], 1), placed)[:, 4:]
    np.testing.assert_array_equal(module(0.3, x, {"past": past, "beside": beside}), expected)
    without = module(0.3, x)
    assert without.shape == x.shape
    assert np.abs(without - expected).max() > 1e-3


def test_a_fresh_network_is_zero():
    assert float(jnp.abs(UNet1D((5, 2), **TINY, rngs=nnx.Rngs(0))(0.5, jnp.ones((2, 5, 2)))).max()) == 0.0


def test_images_are_refused():
    with pytest.raises(ValueError, match=r"^examples must be sequences \(L, C\) or signals \(L,\), not"):
        UNet1D((6, 6, 3), **TINY, rngs=nnx.Rngs(0))
