"""ADM and its layers: each fused or rearranged piece, and the whole network, against what it stands for in float64."""

import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from flowjax import conditions
from flowjax.conditions import NO_LABEL, Field
from flowjax.keys import row_keys
from flowjax.models import adm, attention, encoders, kernels
from flowjax.models.adm import ADM
from flowjax.models.layers import REMAT, Conv, dropout, remat, upsample_conv

FIELDS = (Field("label", "label", num_classes=3), Field("augment", "vector", (2,), zero_is_null=True))

SMALL = {
    "channels": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "head_width": 32,
    "time_scale": 10.0,
    "fields": FIELDS,
    "dropout": 0.0,
    "dtype": "float32",
}
FLAT = {**SMALL, "multipliers": (1,), "attention": (), "film": True}
"""One level and five blocks: no change of resolution, and little to compile."""

LABELS = jnp.array([0, 2, NO_LABEL])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def filled(build):
    """The module's graph, and numpy's numbers for its weights: JAX's would take seconds to compile.

    Matrices keep magnitudes; biases, and what gains add to 1, are 0.3 of normal: last layers start at zero and would
    hide everything behind them.
    """
    graph, shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    numbers = itertools.count()

    def make(path, a):
        z = normal(next(numbers), *a.shape)
        if a.ndim > 1:
            return z / math.sqrt(math.prod(a.shape[:-1]))
        return 0.3 * z + (1.0 if "scale" in jax.tree_util.keystr(path) else 0.0)

    return graph, jax.tree_util.tree_map_with_path(make, shapes)


def network(**keys):
    """(t, x, cond, key) -> output of a network of 8 x 8 images, compiled; and its parameters."""
    graph, params = filled(lambda rngs: ADM((8, 8, 3), **{**SMALL, **keys}, rngs=rngs))
    call = jax.jit(lambda params, t, x, cond, key: nnx.merge(graph, params)(t, x, cond, key=key))
    return (lambda t, x, cond=None, key=None: call(params, t, x, cond, key)), params


@pytest.fixture(scope="module")
def small():
    return network()


@pytest.fixture(scope="module")
def flat():
    return network(**FLAT)


# The same in float64, one operation after the other


def silu(x):
    return x / (1 + np.exp(-x))


def convolved(x, kernel, stride=1):
    """The sum over taps of shifted images, padded with zeros by one pixel on all sides, as PyTorch's padding=1."""
    x, (height, width) = np.asarray(x, np.float64), x.shape[1:3]
    if kernel.shape[0] == 1:
        return x @ kernel[0, 0]
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = itertools.product(range(3), range(3))
    return sum(wide[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j] for i, j in taps)


def doubled(x):
    return np.repeat(np.repeat(x, 2, 1), 2, 2)


def normed(x, groups=32, eps=1e-5):
    """Group by group and row by row, with NumPy's variance of all pixels of the group's channels."""
    out = np.empty_like(x)
    for row, group in itertools.product(range(len(x)), np.split(np.arange(x.shape[-1]), groups)):
        part = x[row][..., group]
        out[row][..., group] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return out


class Plain:
    """ADM in float64 NumPy: every bias is added where it is born, every map is made."""

    def __init__(self, params, film=False, head_width=32, channels=32, time_scale=10.0):
        self.p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(params))
        self.film, self.head_width, self.channels, self.time_scale = film, head_width, channels, time_scale

    def conv(self, x, p, **how):
        return convolved(x, p["kernel"], **how) + p["bias"]

    def linear(self, x, p):
        return x @ p["kernel"] + p["bias"]

    def norm(self, x, p):
        return normed(x) * p["scale"] + p["bias"]

    def block(self, x, p, e):
        h = self.conv(silu(self.norm(x, p["norm1"])), p["conv1"])
        e = self.linear(e, p["embed"])[:, None, None]
        if self.film:
            scale, shift = np.split(e, 2, -1)
            h = self.norm(h, p["norm2"]) * (1 + scale) + shift
        else:
            h = self.norm(h + e, p["norm2"])
        return self.conv(silu(h), p["conv2"]) + (self.conv(x, p["skip"]) if p.get("skip") else x)

    def attend(self, x, p):
        b, h, w, c = x.shape
        q, k, v = np.split(self.linear(self.norm(x, p["norm"]).reshape(b, h * w, c), p["qkv"]), 3, -1)
        heads = [slice(i, i + self.head_width) for i in range(0, c, self.head_width)]
        mixed = np.concatenate([softmax_attention(q[..., s], k[..., s], v[..., s]) for s in heads], -1)
        return x + self.linear(mixed, p["out"]).reshape(x.shape)

    def stage(self, x, p, e):
        x = self.block(x, p["block"], e)
        return self.attend(x, p["attention"]) if p.get("attention") else x

    def __call__(self, t, x, label, augment):
        p, half = self.p, self.channels // 2
        angle = self.time_scale * t[:, None] * 10_000.0 ** (-np.arange(half) / half)
        e = self.linear(np.concatenate([np.cos(angle), np.sin(angle)], -1), p["time1"])
        e = self.linear(silu(e), p["time2"])
        e = silu(e + p["encoders"]["label"]["table"][label] + augment @ p["encoders"]["augment"]["linear"]["kernel"])
        h = self.conv(x, p["stem"])
        skips = [h]
        for i, level in p["down"].items():
            if i:
                h = self.conv(h, p["downs"][i - 1], stride=2)
                skips.append(h)
            for stage in level.values():
                h = self.stage(h, stage, e)
                skips.append(h)
        h = self.stage(self.stage(h, p["middle1"], e), p["middle2"], e)
        for i, level in p["up"].items():
            for stage in level.values():
                h = self.stage(np.concatenate([h, skips.pop()], -1), stage, e)
            if i < len(p["up"]) - 1:
                h = self.conv(doubled(h), p["ups"][i])
        assert not skips
        return self.conv(silu(self.norm(h, p["norm"])), p["out"])


def softmax_attention(q, k, v):
    """(B, T, H) each, one head."""
    weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]))
    return weights / weights.sum(-1, keepdims=True) @ v


# Layers


@pytest.mark.analytic
def test_convolutions_are_their_taps():
    """Sums of 45 products of order 1 / sqrt(45), in float32: 1e-6 would do. Every other pixel starts at the first: the
    corner sees the padding on two sides, as with PyTorch's stride=2, padding=1."""
    x = normal(0, 2, 6, 4, 5)
    for how in ({}, {"down": True}, {"up": True}, {"size": 1}):
        layer = nnx.merge(*filled(lambda rngs, how=how: Conv(5, 7, **how, rngs=rngs)))
        kernel, bias = np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64)
        source = doubled(x) if "up" in how else x
        expected = convolved(source, kernel, stride=2 if "down" in how else 1)
        np.testing.assert_allclose(layer.linear(x), expected, atol=1e-5)
        np.testing.assert_allclose(layer(x), expected + bias, atol=1e-5)
    for a, b in [(3, 40), (40, 3)]:  # to and from images: matrix products
        layer = nnx.merge(*filled(lambda rngs, a=a, b=b: Conv(a, b, rngs=rngs)))
        image = normal(1, 2, 6, 4, a)
        expected = convolved(image, np.asarray(layer.kernel[...], np.float64))
        np.testing.assert_allclose(layer.linear(image), expected, atol=2e-5)
    assert convolved(x, np.ones((3, 3, 5, 1)), 2).shape == (2, 3, 2, 1)
    np.testing.assert_allclose(
        convolved(x, np.ones((3, 3, 5, 1)), 2)[:, 0, 0, 0], x[:, :2, :2].sum((1, 2, 3)), atol=1e-5
    )


@pytest.mark.analytic
def test_gradients_of_a_doubling_convolution():
    """Against autodiff of the convolution of the doubled map: sums of at most 2 x 6 x 4 x 4 terms of order 1, 1e-4."""
    x, kernel, target = normal(0, 2, 3, 2, 5), normal(1, 3, 3, 5, 7), normal(2, 2, 6, 4, 7)

    def plain(x, kernel):
        wide = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        y = lax.conv_general_dilated(wide, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(target * y)

    ours = lambda x, kernel: jnp.sum(target * upsample_conv(x, kernel))
    gradient = lambda f: jax.jit(jax.grad(f, (0, 1)))(x, kernel)
    for a, b in zip(gradient(ours), gradient(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.analytic
def test_both_forms_of_a_doubling_convolution(monkeypatch):
    """The same products in another order, in the map and both gradients: sums of at most 2 x 6 x 8, that reach 35; if
    the roundings are independent sqrt(96) 35 2^-24 = 2e-5."""
    x, kernel, target = normal(0, 2, 3, 4, 5), normal(1, 3, 3, 5, 7), normal(2, 2, 6, 8, 7)

    @jax.jit
    def found(x, kernel):
        y, back = jax.vjp(upsample_conv, x, kernel)
        return y, *back(target)

    expected = found(x, kernel)
    monkeypatch.setattr(kernels, "available", lambda: True)
    found.clear_cache()
    for a, b in zip(found(x, kernel), expected, strict=True):
        assert 5 < float(jnp.abs(b).max()) < 35
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.analytic
def test_dropout_keeps_the_mean():
    """Of n numbers the share kept is off by 5 deviations at most; kept ones are x / (1 - rate), to one rounding."""
    n, keys = 1 << 18, row_keys(jax.random.key(3), 8)
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (8, n // 8)), jnp.float32)
    for rate in (0.1, 0.5):
        out = np.asarray(dropout(x, rate, keys), np.float64)
        kept = out != 0
        assert abs(kept.mean() - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / n)
        np.testing.assert_allclose(out[kept], np.asarray(x)[kept] / (1 - rate), rtol=1e-6)
        spread = math.sqrt(rate / (1 - rate) * np.mean(np.square(x)) / n)
        assert abs(out.mean() - float(x.mean())) < 5 * spread
        np.testing.assert_array_equal(out[3:5], dropout(x[3:5], rate, keys[3:5]))  # a row by its own key
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, keys), x)
    nearly_all = dropout(x, 1 - 1e-7, keys)  # rounds to all of 16 bits
    assert int((nearly_all != 0).sum()) < 30  # 4 of 2^18 expected
    assert dropout(x.astype(jnp.bfloat16), 0.5, keys).dtype == jnp.bfloat16


@pytest.mark.analytic
def test_attention_is_a_softmax():
    """In float64, head by head: 5 products of order 1 and a sum of 7 in float32; large logits do not overflow."""
    q, k, v = (normal(i, 2, 7, 3, 5) for i in range(3))
    for scale in (1.0, 30.0):
        out = attention.attend(scale * q, k, v)
        for head in range(3):
            wide = (np.asarray(a[:, :, head], np.float64) for a in (scale * q, k, v))
            np.testing.assert_allclose(out[:, :, head], softmax_attention(*wide), atol=3e-6 * scale)
    assert bool(jnp.isfinite(attention.attend(1e4 * q, k, v)).all())
    half = attention.attend(*(a.astype(jnp.bfloat16) for a in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), attention.attend(q, k, v), atol=0.05)


@pytest.mark.analytic
def test_fused_attention_is_for_whole_tiles_in_half_precision(monkeypatch):
    calls = []
    fused = lambda q, k, v, implementation: calls.append(implementation) or q
    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    ask = lambda tokens, width, dtype: jax.eval_shape(
        lambda *qkv: attention.attend(*qkv), *[jnp.ones((1, tokens, 1, width), dtype)] * 3
    )
    ask(64, 8, jnp.bfloat16)
    assert not calls  # no GPU here
    monkeypatch.setattr(kernels, "available", lambda: True)
    for tokens, width, dtype in [
        (64, 8, jnp.float32),
        (63, 8, jnp.bfloat16),
        (64, 12, jnp.bfloat16),
        (64, 136, jnp.float16),
    ]:
        ask(tokens, width, dtype)
    assert not calls
    ask(64, 8, jnp.bfloat16)
    ask(128, 128, jnp.float16)
    assert calls == ["cudnn", "cudnn"]


@pytest.mark.analytic
def test_kernels_serve_on_recent_nvidia_gpus_in_reverse_mode(monkeypatch):
    assert not kernels.serve()  # the CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability, served in [
        ("9.0", True),
        ("8.0", True),
        ("10.3", True),
        ("7.5", False),
        ("gfx90a", False),
        (None, False),
    ]:
        monkeypatch.setattr(jax, "devices", lambda c=capability: [SimpleNamespace(compute_capability=c)])
        assert kernels.serve() is served
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace()])
    assert not kernels.serve()
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability="9.0")])
    assert not kernels.serve(forward_mode=True)
    assert kernels.serve()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not kernels.serve()


# The network


@pytest.mark.parametrize("name", ["small", "flat"])
def test_the_network_is_its_layers_one_after_the_other(name, request):
    """With every parameter away from its first value. Some 25 layers in float32, each with sums of at most 600 terms,
    and norms that divide by what is left of a difference: 25 sqrt(600) 2^-24 = 4e-5, of outputs of order 1; 3e-4."""
    apply, params = request.getfixturevalue(name)
    t, x, augment = np.array([0.1, 0.5, 0.9]), normal(0, 3, 8, 8, 3), normal(1, 3, 2)
    out = apply(jnp.asarray(t, jnp.float32), x, {"label": LABELS, "augment": augment})
    wide = (np.asarray(a, np.float64) for a in (x, augment))
    x, augment = wide
    expected = Plain(params, film=name == "flat")(t, x, np.asarray(LABELS), augment)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    assert 0.1 < np.std(expected) < 10
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=3e-4)


def test_time_label_and_augmentation_count(flat):
    """Each changes the output, and rows do not see each other."""
    apply, _ = flat
    x = normal(0, 3, 8, 8, 3)
    out = told(apply, x)
    for other in ({"t": 0.7}, {"label": jnp.array([1, 0, 0])}, {"augment": 1.0}):
        assert float(jnp.abs(out - told(apply, x, **other)).max((1, 2, 3)).min()) > 1e-2
    np.testing.assert_allclose(told(apply, x.at[1:].add(1.0))[0], out[0], rtol=1e-4, atol=1e-5)


def told(apply, x, t=0.3, label=LABELS, augment=0.0):
    """In the one form of time and condition that is compiled already."""
    return apply(jnp.full(3, t), x, {"label": label, "augment": jnp.full((3, 2), augment)})


def test_nothing_told_is_no_label_and_zeros():
    """Whichever way it is told: a dictionary may lack either."""
    model = nnx.merge(*filled(lambda rngs: ADM((8, 8, 3), **FLAT, rngs=rngs)))
    zeros, none = jnp.zeros((3, 2)), jnp.full(3, NO_LABEL)
    embed = lambda cond: encoders.embed(model, jnp.full(3, 0.3), None, conditions.check(cond, model.fields))
    labelled, nothing = embed({"label": LABELS, "augment": zeros}), embed({"label": none, "augment": zeros})
    np.testing.assert_allclose(embed({"label": LABELS}), labelled, rtol=1e-6, atol=1e-7)
    for same in (None, {"label": none}, {}, {"augment": zeros}):
        np.testing.assert_allclose(embed(same), nothing, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(labelled[2], nothing[2], rtol=1e-6, atol=1e-7)
    assert float(jnp.abs(labelled - nothing)[:2].max(1).min()) > 1e-2


def test_outputs_side_by_side_dropout_and_half_precision():
    """bfloat16 against float64: roundings of 2^-9, independent, in 25 layers, 1% of the magnitude, taken thrice.
    Dropout follows its key, and is off without one."""
    keys = FLAT | {"dropout": 0.3, "outputs": 2, "dtype": "bfloat16"}
    apply, params = network(**keys)
    x, labels = normal(0, 3, 8, 8, 3), {"label": LABELS}
    out = apply(0.3, x, labels)
    assert out.shape == (3, 8, 8, 6)
    assert out.dtype == jnp.float32
    t, wide = np.full(3, 0.3), np.asarray(x, np.float64)
    expected = Plain(params, film=True)(t, wide, np.asarray(LABELS), np.zeros((3, 2)))
    error = np.sqrt(np.mean((out - expected) ** 2)) / np.std(expected)
    assert 1e-4 < error < 0.03
    dropped = [np.asarray(apply(0.3, x, labels, jax.random.key(seed))) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.1
    assert np.abs(dropped[0] - out).max() > 0.1


def test_every_policy_of_rematerialisation_gives_the_same_gradient():
    """The same operations, to rounding, and the same dropout though its mask is drawn again. They differ in what they
    keep: the less, the more products are done again."""
    w, x = normal(0, 6, 6) / 3, normal(1, 4, 6)

    def gradient(policy):
        f = remat(policy, lambda w, x, key: jnp.tanh(dropout(jnp.tanh(x @ w), 0.3, key) @ w))
        return jax.grad(lambda w, x: jnp.sum(f(w, x, row_keys(jax.random.key(0), 4)) ** 2), (0, 1))

    gradients = {policy: gradient(policy)(w, x) for policy in REMAT}
    for policy in REMAT:
        for a, b in zip(gradients[policy], gradients["none"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    products = {policy: str(jax.make_jaxpr(gradient(policy))(w, x)).count("dot_general") for policy in REMAT}
    assert products["none"] == products["dots"] == products["dots_no_batch"] < products["block"]


def test_gradients_of_a_rematerialised_network(flat):
    """Along one direction, against a central difference of the network that keeps everything: as in
    `test_forward_mode`, but of a mean of 576 products with normal numbers, which are off by 2e-2 / sqrt(576) if
    independent, taken twice."""
    apply, params = flat
    x, e, target = normal(0, 3, 3, 8, 8, 3)
    graph, _ = nnx.split(nnx.eval_shape(lambda: ADM((8, 8, 3), **FLAT | {"remat": "block"}, rngs=nnx.Rngs(0))))
    call = lambda t, x, cond: nnx.merge(graph, params)(t, x, cond)
    gradient = jax.jit(jax.grad(lambda x: jnp.mean(target * told(call, x))))(x)
    h = 1e-2
    difference = jnp.mean(target * (told(apply, x + h * e) - told(apply, x - h * e)) / (2 * h))
    assert float(jnp.sum(gradient * e)) == pytest.approx(float(difference), abs=2e-3)
    assert abs(float(difference)) > 1e-2


def count(tree):
    return sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.split(tree)[1]))


@pytest.mark.analytic
def test_the_preset_has_the_parameters_of_torchcfms_network():
    """Its U-Net for CIFAR-10 has 35,746,307."""
    assert count(nnx.eval_shape(lambda: ADM((32, 32, 3), rngs=nnx.Rngs(0)))) == 35_746_307


def test_every_block_has_a_key_of_its_own(monkeypatch):
    """100 of them, of which none computes anything."""
    seen = []

    class Stage(nnx.Module):
        def __init__(self, a, b, *args, **kwargs):
            self.b = b

        def __call__(self, m, embedding, key, forward_mode):
            seen.append(key)
            return adm.Map((jnp.concatenate(m.parts, -1)[..., : self.b],), m.bias[: self.b])

    monkeypatch.setattr(adm, "Stage", Stage)
    keys = {"multipliers": (1, 1), "blocks": 24, "film": True}
    model = nnx.merge(*filled(lambda rngs: ADM((2, 2, 1), **SMALL | keys, rngs=rngs)))
    model(0.3, jnp.zeros((1, 2, 2, 1)), key=jax.random.key(0))
    assert len(seen) == 2 * 24 + 2 + 2 * 25 == 100
    assert len({tuple(np.asarray(jax.random.key_data(keys))[0]) for keys in seen}) == 100
    model(0.3, jnp.zeros((1, 2, 2, 1)))
    assert seen[100:] == [None] * 100


def test_bad_sizes_are_told():
    for keys, message in [
        ({"multipliers": (1, 2, 2, 2, 2)}, "5 levels need images whose sides 16 divides"),
        ({"channels": 48}, "channels must be a multiple of 32"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"remat": "all"}, "unknown remat 'all'"),
        ({"head_width": 24}, "heads of width 24 do not divide"),
        ({"heads": 3}, "3 heads do not divide"),
        ({"multipliers": (1,)}, "adm without film needs a level of more than 32 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            nnx.eval_shape(lambda keys=keys: ADM((8, 8, 3), **SMALL | keys, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="unknown remat 'all'"):
        remat("all", lambda x: x)
