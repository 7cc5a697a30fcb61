"""The transformer: rotary positions, permutations, masks, its count and start, precision and rematerialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import Field
from flowjax.models import Transformer
from flowjax.models.attention import attend
from flowjax.models.image_tokens import ImageEncoder
from flowjax.models.layers import REMAT
from flowjax.models.transformer import CrossAttention, rotated
from tests.models.test_models import perturbed

TINY = {"depth": 2, "width": 16, "heads": 2, "features": 4}
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
"""Float32's rounding in some twenty layers, of numbers of order 1."""


def network(shape=(6, 3), **changes):
    graph, state = nnx.split(perturbed(Transformer(shape, **TINY | changes, rngs=nnx.Rngs(0))))
    return jax.jit(lambda t, x, cond=None, key=None, mask=None: nnx.merge(graph, state)(t, x, cond, key=key, mask=mask))


@pytest.fixture(scope="module")
def tiny():
    return network()


@pytest.fixture(scope="module")
def unordered():
    return network(positions="none", fields=(Field("set", "set", (3, 2)),))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (4, 6, 3))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Attention


def test_rotary_attention_is_that_of_complex_numbers():
    """In float64 NumPy: pair k of the vector at m is a complex number, multiplied by exp(i m / 10000^(k / half)).

    The score is the real part of q conj(k), whose phase depends on m - n only. Float32: angles up to 6, numbers up to
    3, sums of 6 terms.
    """
    q, k, v = (normal(i, 1, 7, 2, 6) for i in range(3))
    out = attend(rotated(q), rotated(k), v)
    turned = lambda a: np.asarray(a[0, ..., :3], np.float64) + 1j * np.asarray(a[0, ..., 3:], np.float64)
    phase = (np.arange(7)[:, None] - np.arange(7))[..., None] * 10_000.0 ** (-np.arange(3) / 3)
    for head in range(2):
        scores = np.einsum("mk,nk,mnk->mn", turned(q)[:, head], turned(k)[:, head].conj(), np.exp(1j * phase)).real
        weights = np.exp(scores / np.sqrt(6))
        expected = weights / weights.sum(1, keepdims=True) @ np.asarray(v[0, :, head], np.float64)
        np.testing.assert_allclose(out[0, :, head], expected, rtol=1e-5, atol=1e-5)


def test_rotary_scores_depend_on_the_difference_of_positions_only():
    """Of the same query and key at all positions: the scores are constant along diagonals, and differ between them.

    Float32 rounds an angle of at most 30 by 2e-6, in scores of six products of order 1.
    """
    q, k = (jnp.broadcast_to(normal(i, 1, 1, 1, 6), (1, 30, 1, 6)) for i in (3, 4))
    scores = np.asarray(jnp.einsum("bmnh,bsnh->ms", rotated(q), rotated(k)))
    for distance in range(-29, 30):
        assert np.ptp(np.diagonal(scores, distance)) < 1e-4
    assert np.ptp(scores[0]) > 0.1


def test_cross_attention_depends_on_the_distance_to_the_elements_of_a_sequence():
    """Of equal tokens x: what the one at m attends to at positions p is what the one at m + 1 attends to at p + 1.

    Without positions, all tokens of x attend in the same way. Float32 rounds angles of at most 12 by 1e-6.
    """
    cross = perturbed(CrossAttention(16, 2, 0.0, rngs=nnx.Rngs(0)))
    x, c, tokens = jnp.broadcast_to(normal(0, 3, 1, 16), (3, 8, 16)), normal(1, 3, 16), 3 * normal(2, 3, 5, 16)
    at = lambda positions: cross(x, c, tokens, jnp.ones((3, 5), bool), None, positions=positions)
    np.testing.assert_allclose(at(jnp.arange(5))[:, :-1], at(jnp.arange(5) + 1)[:, 1:], **ROUNDING)
    assert np.abs(at(jnp.arange(5))[:, 1:] - at(jnp.arange(5))[:, :-1]).max() > 1e-2
    np.testing.assert_allclose(at(None), at(None)[:, ::-1], **ROUNDING)


def test_the_network_knows_the_order_of_a_sequence_and_not_of_a_set():
    """Tokens of a sequence are rotated, and those of a set are not, whether they come first or last."""
    fields = (Field("set", "set", (3, 2)), Field("seq", "sequence", (4, 2)))
    graph, state = nnx.split(perturbed(Transformer((6, 3), **TINY, fields=fields, rngs=nnx.Rngs(0))))
    state["encoders"]["seq"]["position"].set_value(jnp.zeros((4, 16)))
    call = jax.jit(lambda cond: nnx.merge(graph, state)(0.3, normal(0, 2, 6, 3), cond))
    cond = {"set": normal(1, 2, 3, 2), "seq": normal(2, 2, 4, 2)}
    out = call(cond)
    np.testing.assert_allclose(call(cond | {"set": cond["set"][:, ::-1]}), out, **ROUNDING)
    assert np.abs(call(cond | {"seq": cond["seq"][:, ::-1]}) - out).max() > 1e-3


def test_attention_to_masked_keys_is_attention_to_the_others():
    """To rounding; and bitwise the same for any contents of the masked keys, whose weights are zero."""
    q, k, v = normal(0, 2, 5, 2, 4), normal(1, 2, 6, 2, 4), normal(2, 2, 6, 2, 4)
    mask = jnp.array([[True, False, True, True, False, True]] * 2)
    kept = np.array([0, 2, 3, 5])
    out = attend(q, k, v, mask=mask)
    np.testing.assert_allclose(out, attend(q, k[:, kept], v[:, kept]), rtol=1e-5, atol=1e-6)
    other = jnp.where(mask[..., None, None], k, 1e3), jnp.where(mask[..., None, None], v, -1e3)
    np.testing.assert_array_equal(attend(q, *other, mask=mask), out)


# Sets


def test_a_network_without_positions_is_equivariant_under_permutations(unordered, tiny, x):
    order = np.array([3, 0, 5, 1, 4, 2])
    cond = {"set": normal(5, 4, 3, 2)}
    out = unordered(0.3, x, cond)
    np.testing.assert_allclose(unordered(0.3, x[:, order], cond), out[:, order], **ROUNDING)
    assert np.abs(out - out[:, order]).max() > 1e-2
    np.testing.assert_allclose(unordered(0.3, x, {"set": cond["set"][:, ::-1]}), out, **ROUNDING)
    assert np.abs(tiny(0.3, x[:, order]) - tiny(0.3, x)[:, order]).max() > 1e-2  # with rotary positions it is not


def test_absent_elements_change_nothing(unordered, x):
    """A set of four of six elements is a set of four: of x, and of a condition."""
    mask, nan = jnp.array([[True, False, True, True, False, True]] * 4), jnp.nan
    kept = np.array([0, 2, 3, 5])
    cond = {"set": normal(5, 4, 3, 2).at[:, 1].set(nan)}
    out = unordered(0.3, x, cond, mask=mask)
    np.testing.assert_allclose(out[:, kept], unordered(0.3, x[:, kept], cond), **ROUNDING)
    np.testing.assert_array_equal(out[:, np.array([1, 4])], 0)
    assert np.abs(out[:, kept] - unordered(0.3, x, cond)[:, kept]).max() > 1e-2
    empty = unordered(0.3, x, cond, mask=mask.at[0].set(False))
    np.testing.assert_array_equal(empty[0], 0)
    np.testing.assert_allclose(empty[1:], out[1:], **ROUNDING)


# Signals, sizes and start


def test_a_signal_is_a_sequence_of_one_channel(x):
    """(L,) as (L, 1); two outputs are one after the other along the last axis."""
    of_signal, of_sequence = network((6,), outputs=2), network((6, 1), outputs=2)
    signal, sequence = of_signal(0.3, x[..., 0]), of_sequence(0.3, x[..., :1])
    assert signal.shape == (4, 12)
    assert sequence.shape == (4, 6, 2)
    np.testing.assert_allclose(signal[:, :6], sequence[..., 0], **ROUNDING)
    np.testing.assert_allclose(signal[:, 6:], sequence[..., 1], **ROUNDING)


@pytest.mark.parametrize("crossed", [False, True])
def test_the_number_of_parameters_is_the_closed_form(crossed):
    """Peebles & Xie 2023, fig. 3: adaLN 6 W^2, attention 4 W^2, MLP 8 W^2 a block, and biases. Cross-attention adds its
    adaLN 3 W^2 and 4 W^2, a sequence (L, C) a linear layer, L positions and a vector for absent elements."""
    w, c, f, depth = 24, 3, 8, 3
    fields = (Field("seq", "sequence", (5, 2)),) if crossed else ()
    fresh = lambda: Transformer((9, c), depth=depth, width=w, heads=2, features=f, fields=fields, rngs=nnx.Rngs(0))
    count = sum(a.size for a in jax.tree.leaves(nnx.split(nnx.eval_shape(fresh))[1]))
    block = 18 * w**2 + (6 + 4 + 5) * w + crossed * (7 * w**2 + (3 + 4) * w)
    ends = (c + 1) * w + 2 * (w + 1) * w + (w + 1) * c + (f + 1) * w + (w + 1) * w
    assert count == depth * block + ends + crossed * (3 * w + 5 * w + w)


def test_a_fresh_network_is_zero_and_its_blocks_are_the_identity(x):
    fresh = Transformer((6, 3), **TINY, rngs=nnx.Rngs(0))
    assert float(jnp.abs(fresh(0.5, x)).max()) == 0.0
    cross = CrossAttention(16, 2, 0.0, rngs=nnx.Rngs(0))
    h, tokens = normal(0, 3, 5, 16), normal(1, 3, 2, 16)
    np.testing.assert_array_equal(cross(h, jnp.ones((3, 16)), tokens, jnp.ones((3, 2), bool), None), h)


def test_the_first_norm_does_not_remove_the_scale_of_x():
    """Of one channel: a layer norm of (x w) without bias would only know the sign of x."""
    stem = Transformer((6, 1), **TINY, rngs=nnx.Rngs(0)).stem
    normed = lambda x: (h := stem(x) - stem(x).mean()) / jnp.sqrt((h**2).mean())
    assert float(jnp.abs(normed(jnp.ones(1)) - normed(2 * jnp.ones(1))).max()) > 0.1


def test_bfloat16_is_float32_rounded(tiny, x):
    """bfloat16 has 2^-9 of rounding; some tens of roundings add up in quadrature to a few per cent at most."""
    want, got = tiny(0.3, x), network(dtype="bfloat16")(0.3, x)
    assert got.dtype == jnp.float32
    assert 1e-5 < float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.05


def test_dropout_is_drawn_from_the_key_alone(tiny, x):
    dropped, key = network(dropout=0.5), jax.random.key(3)
    np.testing.assert_allclose(dropped(0.3, x), tiny(0.3, x), **ROUNDING)
    np.testing.assert_array_equal(dropped(0.3, x, key=key), dropped(0.3, x, key=key))
    assert not np.allclose(dropped(0.3, x, key=key), dropped(0.3, x, key=jax.random.key(4)), atol=1e-3)


@pytest.mark.slow
def test_remat_changes_no_gradient(x):
    def gradient(policy):
        fields = (Field("set", "set", (3, 2)),)
        model = perturbed(Transformer((6, 3), **TINY, remat=policy, dropout=0.5, fields=fields, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        loss = lambda p: (nnx.merge(graph, p)(0.3, x, key=jax.random.key(1)) ** 2).mean()
        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    plain = gradient("none")
    for policy in sorted(set(REMAT) - {"none"}):
        for a, b in zip(plain, gradient(policy), strict=True):
            np.testing.assert_allclose(a, b, **ROUNDING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width must be a multiple of the 3 heads, not 16"),
        ({"heads": 0}, "width must be a multiple of the 0 heads, not 16"),
        ({"width": 18}, "rotary positions need heads of even width, not 18 / 2 = 9"),
        ({"positions": "sines"}, "unknown positions 'sines'"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"remat": "all"}, "unknown remat 'all'"),
        ({"features": 3}, "features must be an even number of at least 2, not 3"),
    ],
)
def test_bad_sizes_are_told(changes, message):
    with pytest.raises(ValueError, match=message):
        Transformer((6, 3), **TINY | changes, rngs=nnx.Rngs(0))


def test_images_are_refused():
    with pytest.raises(
        ValueError, match=r"^examples must be sequences \(L, C\) or signals \(L,\), not arrays of shape"
    ):
        Transformer((6, 6, 3), **TINY, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("size", "patch", "tokens"), [((6, 10), 1, 60), ((9, 21), 2, 55), ((28, 28), 4, 49)])
def test_tokens_of_an_image_are_linear_in_its_patches(size, patch, tokens):
    """In NumPy, patch by patch: float32 sums of up to 48 products of order 1."""
    field = Field("image", "image", (*size, 2))
    encoder = ImageEncoder(field, 8, rngs=nnx.Rngs(0))
    value = np.array(normal(0, 3, *size, 2))
    value[0, 1:3, 2] = np.nan
    value[1, 4, 4, 0] = np.nan  # a pixel is given in full or not at all
    missing = np.isnan(value).any(-1, keepdims=True)
    full = np.concatenate([np.where(missing, 0, value), ~missing], -1)
    found = []
    for i in range(0, size[0], patch):
        for j in range(0, size[1], patch):
            part = np.zeros((3, patch, patch, 3))
            inside = full[:, i : i + patch, j : j + patch]
            part[:, : inside.shape[1], : inside.shape[2]] = inside
            found.append(part.reshape(3, -1) @ np.asarray(encoder.linear.kernel[...], np.float64))
    expected = np.stack(found, 1) + np.asarray(encoder.linear.bias[...]) + np.asarray(encoder.position[...])
    assert expected.shape == (3, tokens, 8)
    np.testing.assert_allclose(encoder(jnp.asarray(value), 3), expected, atol=1e-5)
    nothing = jnp.full((3, *size, 2), jnp.nan)
    np.testing.assert_array_equal(encoder(nothing, 3), encoder(None, 3))
