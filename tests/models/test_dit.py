"""DiT: published sizes, conditioning, derivatives, and that precision and rematerialisation change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import NO_LABEL, Field
from flowjax.models.dit import SIZES, DiT, patches, pixels, positions
from flowjax.models.layers import REMAT
from tests.models.test_models import perturbed

SHAPE = (4, 8, 2)
LABEL = Field("label", "label", num_classes=3)
TINY = {"patch": 2, "depth": 2, "width": 16, "heads": 2, "fields": (LABEL,), "dtype": "float32"}


def network(**changes):
    """A network whose every parameter is random, as (t, x, cond, key) -> output, jitted."""
    graph, state = nnx.split(perturbed(DiT(SHAPE, **TINY | changes, rngs=nnx.Rngs(0))))
    return jax.jit(lambda t, x, cond, key=None: nnx.merge(graph, state)(t, x, cond, key=key))


@pytest.fixture(scope="module")
def tiny():
    return network()


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (4, *SHAPE))


def closed_form(depth, width, heads, patch, channels, outputs, classes):
    """Adds up Peebles & Xie 2023, fig. 3: adaLN 6 W^2, attention 4 W^2, MLP 8 W^2 a block, and biases."""
    block = 18 * width**2 + (6 + 4 + 5) * width
    ends = patch**2 * channels * width + width + 2 * width**2 + 2 * width + (width + 1) * patch**2 * channels * outputs
    return depth * block + ends + (256 + 1) * width + (width + 1) * width + (classes + 1) * width


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_published_parameter_counts(size, millions):
    """Table 4 of the paper, in millions; without the positions, which are no parameters here."""
    fresh = lambda: DiT(
        (32, 32, 4), **SIZES[size], fields=(Field("label", "label", num_classes=1000),), outputs=2, rngs=nnx.Rngs(0)
    )
    count = sum(a.size for a in jax.tree.leaves(nnx.split(nnx.eval_shape(fresh))[1]))
    assert round(count / 1e6) == millions
    assert count == closed_form(**SIZES[size], patch=2, channels=4, outputs=2, classes=1000)


def test_the_largest_has_the_known_count():
    """DiT-XL/2's checkpoint has 675,129,632 numbers, 256 x 1152 of them positions."""
    assert closed_form(**SIZES["XL"], patch=2, channels=4, outputs=2, classes=1000) == 675_129_632 - 256 * 1152


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "time_scale": 1.0}, {"patch": 4, "outputs": 2}])
def test_shape_time_and_label(changes, x):
    model = nnx.jit(network(**changes))
    labels = {"label": jnp.array([0, 1, 2, NO_LABEL])}
    out = model(0.3, x, labels)
    assert out.shape == (4, 4, 8, 2 * changes.get("outputs", 1))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, model(jnp.full(4, 0.3), x, labels), rtol=1e-5, atol=1e-5)
    assert not np.allclose(out, model(0.7, x, labels), atol=1e-3)
    np.testing.assert_allclose(out[3], model(0.3, x, None)[3], rtol=1e-4, atol=1e-5)  # no label is label -1
    assert not np.allclose(out[0], model(0.3, x, None)[0], atol=1e-4)
    np.testing.assert_allclose(model(0.3, x[1:2], {"label": labels["label"][1:2]})[0], out[1], rtol=1e-4, atol=1e-4)


def test_tokens_know_their_place_and_see_each_other(tiny, x):
    """Equal patches give equal tokens but for their positions; a change of one pixel moves every patch."""
    flat = tiny(0.3, jnp.ones((1, *SHAPE)), None)
    assert len(np.unique(np.round(patches(flat, 2)[0], 4), axis=0)) == 8
    moved = tiny(0.3, x.at[:, 0, 0, 0].add(1.0), None) - tiny(0.3, x, None)
    assert float(jnp.abs(patches(moved, 2)).max(-1).min()) > 1e-5


def test_a_fresh_network_is_zero_and_its_blocks_are_the_identity(x):
    fresh = DiT(SHAPE, **TINY, rngs=nnx.Rngs(0))
    assert float(jnp.abs(fresh(0.5, x)).max()) == 0.0
    h, c = jax.random.normal(jax.random.key(0), (2, 3, 16)), jnp.ones((2, 16))
    np.testing.assert_array_equal(fresh.blocks[0](h, c, (None, None)), h)


def test_fresh_weights_have_the_papers_scales():
    """Xavier's variance is 2 / (in + out); 0.02 for the embedders. 1e4 draws or more: 3 % is 4 standard errors."""
    model = DiT(
        (8, 8, 4), width=128, heads=2, depth=1, fields=(Field("label", "label", num_classes=99),), rngs=nnx.Rngs(0)
    )
    block = model.blocks[0]
    for kernel, std in (
        (block.qkv.kernel, (2 / (4 * 128)) ** 0.5),
        (block.mlp1.kernel, (2 / (5 * 128)) ** 0.5),
        (model.time1.kernel, 0.02),
        (model.time2.kernel, 0.02),
        (model.encoders["label"].table, 0.02),
    ):
        np.testing.assert_allclose(kernel[...].std(), std, rtol=0.03)
    assert float(jnp.abs(block.qkv.kernel[...]).max()) < (6 / (4 * 128)) ** 0.5 + 1e-6


def test_positions_are_the_sines_of_column_and_row():
    """By the definition, one number at a time."""
    table = positions(3, 5, 8)
    for row in range(3):
        for column in range(5):
            want = [f(p * w) for p in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
            np.testing.assert_allclose(table[row * 5 + column], want, atol=1e-6)


def test_pixels_undo_patches():
    x = jnp.arange(2 * 4 * 8 * 3.0).reshape(2, 4, 8, 3)
    np.testing.assert_array_equal(patches(x, 2)[1, 5], x[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(pixels(patches(x, 2), 2, 4, 8), x)


@pytest.mark.slow
def test_remat_changes_no_gradient(x):
    def gradient(policy):
        graph, state = nnx.split(
            perturbed(DiT(SHAPE, **TINY | {"depth": 1}, remat=policy, dropout=0.5, rngs=nnx.Rngs(0)))
        )
        loss = lambda p: (nnx.merge(graph, p)(0.3, x, key=jax.random.key(1)) ** 2).mean()
        return jax.tree.leaves(jax.jit(jax.grad(loss))(state))

    plain = gradient("none")
    for policy in sorted(set(REMAT) - {"none"}):
        for a, b in zip(plain, gradient(policy), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_float32_rounded(tiny, x):
    """bfloat16 has 2^-9 of rounding; some tens of roundings add up in quadrature to a few per cent at most."""
    want, got = tiny(0.3, x, None), network(dtype="bfloat16")(0.3, x, None)
    assert got.dtype == jnp.float32
    error = float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))
    assert 1e-5 < error < 0.05


def test_dropout_is_drawn_from_the_key_alone(x):
    dropped, plain = network(dropout=0.5), network()
    key = jax.random.key(3)
    np.testing.assert_allclose(dropped(0.3, x, None), plain(0.3, x, None), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dropped(0.3, x, None, key), dropped(0.3, x, None, key))
    assert not np.allclose(dropped(0.3, x, None, key), dropped(0.3, x, None, jax.random.key(4)), atol=1e-3)


def test_an_augmentation_is_told(x):
    model = network(fields=(LABEL, Field("augment", "vector", (2,), zero_is_null=True)))
    labels, one = jnp.zeros(4, jnp.int32), jnp.ones((4, 2))
    assert not np.allclose(
        model(0.3, x, {"label": labels, "augment": one}), model(0.3, x, {"label": labels}), atol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "patch 3 does not divide images of 4 x 8"),
        ({"width": 18}, "multiple of 4"),
        ({"heads": 3}, "the 3 heads"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"remat": "all"}, "unknown remat 'all'"),
    ],
)
def test_bad_sizes_are_told(changes, message):
    with pytest.raises(ValueError, match=message):
        DiT(SHAPE, **TINY | changes, rngs=nnx.Rngs(0))
