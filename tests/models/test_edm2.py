"""EDM2: what each layer does to magnitudes, what the network returns, and its published sizes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import quad

from flowjax.conditions import NO_LABEL, Field
from flowjax.models import magnitude
from flowjax.models.edm2 import EDM2, noise_level
from flowjax.models.magnitude_blocks import Attention, Decoder, Encoder

FIELDS = (Field("label", "label", num_classes=3), Field("augment", "vector", (2,), zero_is_null=True))

SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (),
    "head_width": 8,
    "fields": FIELDS,
    "dtype": "float32",
}
FLAT = {**SMALL, "multipliers": (2,), "blocks": 0}
"""One level and three blocks: no change of resolution, and little to compile."""


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mean_square(x):
    return float(np.mean(np.asarray(x, np.float64) ** 2))


def within(x, independent):
    """The mean square is 1 within 5 standard deviations of its estimate from that many normal numbers."""
    assert abs(mean_square(x) - 1) < 5 * math.sqrt(2 / independent), mean_square(x)


def filled(build, gain=0.5):
    """The module's graph, and numpy's normal numbers for its weights: JAX's would take seconds to compile.

    Gains start at zero and hide everything behind them: here they are `gain`.
    """
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    numbers = itertools.count()
    make = lambda a: normal(next(numbers), *a.shape) if a.ndim else jnp.asarray(gain, jnp.float32)
    return graph, jax.tree.map(make, shapes)


def network(gain=0.5, **keys):
    """(t, x, cond, key) -> output of a network of 8 x 8 images, compiled; and its parameters."""
    graph, params = filled(lambda rngs: EDM2((8, 8, 3), **{**SMALL, **keys}, rngs=rngs), gain)
    call = jax.jit(lambda params, t, x, cond, key: nnx.merge(graph, params)(t, x, cond, key=key))
    return (lambda t, x, cond=None, key=None, params=params: call(params, t, x, cond, key)), params


@pytest.fixture(scope="module")
def small():
    return network()[0]


@pytest.fixture(scope="module")
def flat():
    return network(**FLAT)[0]


# Magnitudes


@pytest.mark.analytic
def test_silu_constant():
    """The published constant has three digits: half of the last is 5e-4."""
    density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    square = quad(lambda z: (z / (1 + math.exp(-z))) ** 2 * density(z), -12, 12)[0]
    np.testing.assert_allclose(magnitude.SILU_MAGNITUDE, math.sqrt(square), atol=5e-4)


@pytest.mark.analytic
def test_pointwise_layers_keep_magnitude():
    """Of n independent normal numbers the mean square has variance 2 / n; silu^2 has kurtosis 4 times that at most."""
    n = 1 << 18
    a, b = normal(0, n // 64, 64), normal(1, n // 64, 64)
    within(magnitude.mp_silu(a), n / 8)
    gain = normal(2, n // 64, 1)
    np.testing.assert_allclose(magnitude.mp_silu(a, gain), jax.nn.silu(a * gain) / 0.596, rtol=1e-5, atol=1e-6)
    for t in (0.0, 0.3, 0.5, 1.0):
        within(magnitude.mp_sum(a, b, t), n)
    np.testing.assert_allclose(jnp.mean(magnitude.pixel_norm(5 * a) ** 2, -1), 1, rtol=1e-5)
    np.testing.assert_allclose(magnitude.mp_sum(a, b, 0.3), (0.7 * a + 0.3 * b) / math.sqrt(0.58), rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(jax.jacobian(magnitude.normalise)(jnp.zeros(3))).max()) < 2 / magnitude.EPS  # not NaN


@pytest.mark.analytic
def test_concatenation_keeps_magnitude_and_weighs_its_parts():
    """Whatever the widths: the whole has mean square 1, and the parts' energies are as (1 - t)^2 to t^2. Exact."""
    for a, b, t in [(32, 96, 0.5), (64, 64, 0.3), (7, 100, 0.8)]:
        p, q = magnitude.cat_gains(a, b, t)
        np.testing.assert_allclose((a * p**2 + b * q**2) / (a + b), 1, rtol=1e-12)
        np.testing.assert_allclose((b * q**2) / (a * p**2), (t / (1 - t)) ** 2, rtol=1e-12)


@pytest.mark.analytic
def test_weighted_layers_keep_magnitude():
    """Rows of norm 1: each output channel has mean square 1 over the data, here over at least 8192 pixels.

    Neighbouring pixels of a 3 x 3 convolution share inputs, 25 outputs one: a 25th of them counts as independent. The
    border sees zeros and is left out; doubled pixels give a smaller or larger output by how the weights align, so that
    is checked against the plain convolution of the doubled map instead.
    """
    x, few = normal(0, 8, 34, 34, 12), normal(1, 1, 6, 6, 12)
    linear, conv, up = (
        nnx.merge(*filled(build))
        for build in (
            lambda rngs: magnitude.MPLinear(12, 5, rngs=rngs),
            lambda rngs: magnitude.MPConv(12, 5, rngs=rngs),
            lambda rngs: magnitude.MPConv(12, 5, up=True, rngs=rngs),
        )
    )
    y, z = np.asarray(linear(x)), np.asarray(conv(x))
    for channel in range(5):
        within(y[..., channel], 8 * 34 * 34)
        within(z[:, 1:-1, 1:-1, channel], 8 * 32 * 32 / 25)
    np.testing.assert_allclose(linear(x, gain=3.0), 3 * y, atol=1e-4)
    halves = linear(x[..., :5] / 2, x[..., 5:] / 0.5, gains=(2.0, 0.5))
    np.testing.assert_allclose(halves, y, atol=1e-5)
    np.testing.assert_allclose(up(few), conv(magnitude.double(few)), atol=1e-5)
    np.testing.assert_allclose(magnitude.halve(magnitude.double(few)), few, atol=1e-6)
    linear.weight[...], conv.weight[...] = 7 * linear.weight[...], 7 * conv.weight[...]  # has no effect
    np.testing.assert_allclose(linear(x), y, atol=1e-5)
    np.testing.assert_allclose(conv(x), z, atol=1e-5)


@pytest.mark.analytic
def test_embeddings_have_unit_magnitude():
    """2 cos^2 of an angle of uniform phase has mean 1 and variance 1/2; quasi-random phases do no worse than random."""
    features = np.asarray(jax.jit(lambda level: magnitude.fourier(level, 256))(jnp.linspace(-2, 2, 101)))
    np.testing.assert_allclose(np.mean(features**2, -1), 1, atol=5 * math.sqrt(0.5 / 256))
    gram = features @ features.T / 256  # far times look unlike each other: exp(-(2 pi d)^2 / 2) in expectation
    assert np.abs(gram[0, 20:]).max() < 5 * math.sqrt(0.5 / 256)
    table = nnx.merge(*filled(lambda rngs: magnitude.MPEmbedding(4, 32, rngs=rngs)))
    rows = np.asarray(table(jnp.array([0, 1, 2, 3, NO_LABEL]), 5))
    np.testing.assert_allclose(np.mean(rows**2, 0), 1, rtol=1e-5)
    one_hot = nnx.merge(*filled(lambda rngs: magnitude.MPLinear(5, 32, rngs=rngs)))
    np.testing.assert_allclose(rows, one_hot(math.sqrt(5) * jnp.eye(5)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table(None, 2), rows[[4, 4]])


@pytest.mark.parametrize("kind", ["encoder", "decoder", "attention"])
def test_blocks_keep_magnitude(kind):
    """At the start, for white inputs. The branch has 0.3^2 / 0.58 = 16% of the energy. Zeros at the border take
    1 - (1 - 2 / (3 n))^2 of that in each of two 3 x 3 convolutions, for n = 16 pixels a side 8%. silu leaves a mean,
    0.21^2 / 0.355 = 12% of its energy, which shifts each output channel at random: the mean over 64 of them moves by
    0.12 sqrt(2 / 64) = 2%. And the branch is only nearly uncorrelated with the stream: over 64 channels that are, the
    cross term is 2 x 0.7 x 0.3 / 0.58 = 0.72 times a cosine of 1 / sqrt(64), 9%.
    Attention averages values, the one thing here that lowers magnitudes: its branch keeps between none and all of its
    share, and the stream has 84%.
    """
    x, skip, e = normal(0, 8, 16, 16, 64), normal(2, 8, 16, 16, 32), normal(1, 8, 32)
    build, inputs = {
        "encoder": (lambda rngs: Encoder(32, 64, 32, 0.0, 0, rngs=rngs), (skip, e, None)),
        "decoder": (lambda rngs: Decoder(64, 32, 64, 32, 0.0, 0, rngs=rngs), ((x, skip), e, None)),
        "attention": (lambda rngs: Attention(64, 32, rngs=rngs), (x,)),
    }[kind]
    graph, params = filled(build, gain=0.0)
    y = jax.jit(lambda params, inputs: nnx.merge(graph, params)(*inputs))(params, inputs)
    low = 0.84 - 0.09 if kind == "attention" else 1 - 0.16 * (0.08 + 0.08 + 0.02) - 0.09
    assert low < mean_square(y) < 1.11


def test_network_starts_at_zero_and_keeps_magnitude_to_its_end(small):
    """Seven blocks after the last pixel norm, each within 10%: a factor of two, were they all to one side.

    The last convolution has 3 outputs of 72 inputs whose energies the blocks before left uneven, 8 channels to within
    sqrt(2 / 8) = 0.5 of each other: another sqrt(1 + 0.5 / 3). `small` has every gain at 0.5, that of the output too.
    """
    x = normal(0, 4, 8, 8, 3)
    params = network(gain=0.0)[1]
    assert float(jnp.abs(small(0.3, x, params=params)).max()) == 0.0
    params["gain"] = params["gain"].replace(jnp.ones(()))
    assert 0.4 < mean_square(small(0.3, x, params=params)) < 2.4


# The network


def test_time_label_and_augmentation(flat):
    x, labels = normal(0, 4, 8, 8, 3), {"label": jnp.array([0, 1, 2, NO_LABEL])}
    out = flat(0.3, x, labels)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    assert not np.allclose(out, flat(0.7, x, labels), atol=1e-3)
    without = flat(jnp.array([0.1, 0.2, 0.4, 0.3]), x)
    np.testing.assert_allclose(out[3], without[3], rtol=1e-4, atol=1e-5)  # a time a row; no label is label -1
    unlabelled = flat(0.3, x, {"label": jnp.full(4, NO_LABEL)})
    assert all(not np.allclose(a, b, atol=1e-3) for a, b in zip(out[:3], unlabelled[:3], strict=True))
    augmented = lambda a: flat(0.3, x, labels | {"augment": jnp.full((4, 2), a)})
    np.testing.assert_allclose(out, augmented(0.0), rtol=1e-5, atol=1e-5)
    assert not np.allclose(out, augmented(1.0), atol=1e-3)


def test_rows_do_not_see_each_other_and_forward_mode(small):
    """jvp against a central difference: h^2 and rounding / h at h = 1e-2 are both below 1e-2."""
    x, e = normal(0, 2, 4, 8, 8, 3)
    out = small(0.3, x)
    assert out.shape == x.shape
    np.testing.assert_allclose(small(0.3, x.at[1:].add(1.0))[0], out[0], rtol=1e-4, atol=1e-5)
    _, tangent = jax.jvp(lambda x: small(0.3, x), (x,), (e,))
    h = 1e-2
    np.testing.assert_allclose(tangent, (small(0.3, x + h * e) - small(0.3, x - h * e)) / (2 * h), atol=2e-2)


def test_outputs_side_by_side_and_dropout():
    x, key = normal(0, 2, 8, 8, 3), jax.random.key(1)
    apply, _ = network(**FLAT | {"dropout": 0.3, "time": "linear", "outputs": 2})
    out = apply(0.3, x, None, key)
    assert out.shape == (2, 8, 8, 6)
    np.testing.assert_array_equal(out, apply(0.3, x, None, key))
    assert not np.allclose(out, apply(0.3, x, None, jax.random.key(2)), atol=1e-3)


def test_bfloat16_is_close(flat):
    """Roundings of 2^-9, independent, in some 15 layers: sqrt(15) 2^-9 = 0.8% of the magnitude, taken thrice."""
    x, labels = normal(0, 4, 8, 8, 3), {"label": jnp.array([0, 1, 2, NO_LABEL])}
    low, high = network(**FLAT | {"dtype": "bfloat16"})[0](0.3, x, labels), flat(0.3, x, labels)
    assert low.dtype == jnp.float32
    assert 0 < mean_square(low - high) < 0.023**2 * mean_square(high)


@pytest.mark.slow
def test_rematerialised_gradients_are_the_same():
    """The same operations in another order: float32 rounding, over sums of 1e3 terms."""
    x = normal(0, 2, 8, 8, 3)

    def gradient(remat):
        apply, _ = network(**FLAT | {"remat": remat})
        return jax.grad(lambda x: jnp.sum(apply(0.3, x) ** 2))(x)

    kept = gradient("none")
    np.testing.assert_allclose(kept, gradient("block"), rtol=1e-3, atol=1e-5 * float(jnp.abs(kept).max()))


@pytest.mark.analytic
def test_noise_level():
    """Between its bounds, log((1 - t) / t) / 4 in float64; slopes are finite everywhere."""
    t = jnp.linspace(0, 1, 1001)
    level = noise_level(t, "log_snr")
    inner = np.asarray(t, np.float64)[1:-1]
    np.testing.assert_allclose(level[1:-1], np.log((1 - inner) / inner) / 4, rtol=1e-5, atol=1e-6)
    assert (float(level[0]), float(level[-1])) == (2.0, -2.0)
    slope = jax.vmap(jax.grad(lambda t: noise_level(t[None], "log_snr")[0]))(t)
    np.testing.assert_allclose(slope[500], -1, rtol=1e-4)
    assert bool(jnp.isfinite(slope).all())
    np.testing.assert_allclose(noise_level(t, "linear"), np.linspace(2, -2, 1001), atol=1e-6)


@pytest.mark.analytic
@pytest.mark.parametrize(("channels", "published"), [(128, 124.7), (192, 280.2)])
def test_published_sizes(channels, published):
    """EDM2-XS and EDM2-S (Karras et al. 2024, table 2), in millions; ours have a vector more, for missing labels."""
    shapes = nnx.eval_shape(
        lambda: EDM2(
            (64, 64, 4),
            channels=channels,
            multipliers=(1, 2, 3, 4),
            blocks=3,
            attention=(16, 8),
            fields=(Field("label", "label", num_classes=1000),),
            rngs=nnx.Rngs(0),
        )
    )
    count = sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.split(shapes)[1]))
    assert round(count / 1e6, 1) == published


def test_bad_sizes_are_told():
    for keys, message in [
        ({"multipliers": (1, 2, 2, 2, 2)}, "5 levels need images whose sides 16 divides"),
        ({"time": "sigma"}, "unknown time 'sigma'"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"remat": "all"}, "unknown remat"),
        ({"head_width": 24, "attention": (8,)}, "heads of width 24 do not divide"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(**keys)
