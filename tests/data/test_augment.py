"""Augmentation: pixels against array operations, EDM's maps against their labels, and a run conditional on these."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.build import build, make_augmentation
from flowjax.config import defaults, resolve
from flowjax.data import open_dataset
from flowjax.data.augment import AUGMENTATIONS, crop, flip
from flowjax.data.augment_edm import LABELS, _draw, _reflect, edm, warp
from flowjax.errors import ConfigError
from flowjax.inference import sampling
from flowjax.inference.choose import SolverSettings
from flowjax.inference.run import Run
from flowjax.training.trainer import Trainer

KEY = jax.random.key(0)


def images(n, height, width, channels=1, high=256):
    return np.random.default_rng(3).integers(0, high, (n, height, width, channels)).astype(np.uint8)


# Flips and crops


def test_flip_mirrors_half_of_the_images_and_is_its_own_inverse():
    """Rows of 3 different pixels are mirrored or not, exactly; the share of 4,000 is 1/2 within 5 standard errors."""
    x = np.array([0, 7, 255], np.uint8) * np.ones((4000, 2, 1), np.uint8)
    x = x[..., None]
    out, augment_labels = flip(KEY, jnp.asarray(x))
    assert augment_labels is None
    assert out.dtype == jnp.uint8
    mirrored = (np.asarray(out) == x[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(np.where(mirrored[:, None, None, None], x[:, :, ::-1], x), out)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    np.testing.assert_array_equal(flip(KEY, out).x, x)


def test_crop_takes_every_window_equally_often():
    """One image, 5,000 times: each result is one of 5 x 5 windows of NumPy's reflection or its mirror, with counts
    that pass a chi-square test at level 1e-3 with a fixed key."""
    image = images(1, 5, 6, 2)[0]
    wide = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = [wide[i : i + 5, j : j + 6] for i in range(5) for j in range(5)]
    place = {w[:, ::step].tobytes(): k for k, (w, step) in enumerate(itertools.product(windows, (1, -1)))}
    assert len(place) == 50
    out = jax.jit(crop(2))(KEY, jnp.broadcast_to(image, (5000, *image.shape))).x
    assert out.dtype == jnp.uint8
    counts = np.bincount([place[row.tobytes()] for row in np.asarray(out)], minlength=50)
    assert stats.chisquare(counts).pvalue > 1e-3


# Maps of the plane


def test_reflection_is_numpys():
    """Over three widths on each side, for sizes down to 2."""
    for size in (2, 5, 8):
        expected = np.pad(np.arange(size), 3 * size, mode="reflect")
        np.testing.assert_array_equal(_reflect(jnp.arange(-3 * size, 4 * size), size), expected)


def test_whole_pixels_are_moved_exactly():
    """Sides are powers of two, so that places are exact, and the kernel is 1 and 0 on whole pixels. Shifts beyond the
    edge show NumPy's reflection."""
    image = images(1, 8, 16, 2)[0].astype(np.float32)
    square = image[:, :8]
    seen = jax.jit(lambda image, linear, dx, dy: warp(image, jnp.column_stack([linear, jnp.stack([dx, dy])])))
    at = lambda image, linear, dx=0, dy=0: seen(
        image, jnp.array(linear, jnp.float32), *jnp.array([dx, dy]) / jnp.float32(max(image.shape[:2]))
    )
    identity, wide = np.eye(2), np.pad(image, ((7, 7), (7, 7), (0, 0)), mode="reflect")
    for dx, dy in [(0, 0), (1, 0), (-3, 2), (7, -7)]:
        np.testing.assert_array_equal(at(image, identity, dx, dy), wide[7 + dy : 15 + dy, 7 + dx : 23 + dx])
    np.testing.assert_array_equal(at(image, np.diag([-1, 1])), image[:, ::-1])
    np.testing.assert_array_equal(at(image, np.diag([1, -1])), image[::-1])
    turn = np.array([[0, -1], [1, 0]])
    for k in range(4):
        np.testing.assert_array_equal(at(square, np.linalg.matrix_power(turn, k)), np.rot90(square, k))


def quadratic(x, y):
    return 0.3 + 0.8 * x - 0.5 * y + 1.1 * x * x - 0.7 * x * y + 0.9 * y * y


def places(height, width):
    """Centres of the pixels, (x, y), in longer sides from the centre of the image, in float64."""
    along = lambda size: (np.arange(size) + 0.5 - size / 2) / max(height, width)
    y, x = np.meshgrid(along(height), along(width), indexing="ij")
    return x, y


def inner(x, y, height, width):
    """Where all four pixels along each axis that a place is interpolated from are in the image: 1.5 of them to the
    edge, and a hundredth for rounding."""
    side = max(height, width)
    return (np.abs(x) * side < width / 2 - 1.51) & (np.abs(y) * side < height / 2 - 1.51)


def test_resampling_is_exact_for_quadratics():
    """Inside. A place of up to 10 pixels is off by 10 2^-24, slopes are below 0.2 a pixel, and 16 products of numbers
    of order 1 round to 2^-24 each: 3e-6 in all. Cubics are not exact, which is seen at 1e-3."""
    height, width = 12, 10
    x, y = places(height, width)
    linear, offset = np.array([[0.8, -0.3], [0.25, 0.7]]), np.array([0.031, -0.047])
    u, v = linear[0, 0] * x + linear[0, 1] * y + offset[0], linear[1, 0] * x + linear[1, 1] * y + offset[1]
    to = jnp.asarray(np.column_stack([linear, offset]), jnp.float32)
    picture = lambda f: jnp.asarray(f(x, y)[..., None], jnp.float32)
    mask, seen = inner(u, v, height, width), jax.jit(warp)
    assert mask.sum() > 60
    np.testing.assert_allclose(seen(picture(quadratic), to)[..., 0][mask], quadratic(u, v)[mask], atol=3e-6)
    cubic = lambda x, y: 100 * x**3
    assert np.abs(np.asarray(seen(picture(cubic), to)[..., 0]) - cubic(u, v))[mask].max() > 1e-3


# EDM's transforms


def described_places(augment_labels, x, y):
    """Where the pixel at (x, y) of the result comes from, by the nine numbers alone: two answers.

    The image is mirrored, scaled, turned, stretched and shifted in this order, so a place goes back through the
    inverse of each in the opposite order: complex numbers where the code has matrices. A stretch n along an axis has
    the numbers of -n along the axis turned by pi, which is its inverse.
    """
    mirror_x, mirror_y, scale, cos_less_1, sin, stretch_cos, stretch_sin, *shift = np.asarray(
        augment_labels, np.float64
    )
    axis, n = np.arctan2(stretch_sin, stretch_cos), np.hypot(stretch_cos, stretch_sin)
    for pull in (2 ** (0.2 * n), 2 ** (-0.2 * n)):
        z = ((x - 0.125 * shift[0]) + 1j * (y - 0.125 * shift[1])) * np.exp(-1j * axis)
        z = (z.real / pull + 1j * z.imag * pull) * np.exp(1j * axis)
        z = z / (cos_less_1 + 1 + 1j * sin) / 2 ** (0.2 * scale)
        yield z.real * (1 - 2 * mirror_x), z.imag * (1 - 2 * mirror_y)


@pytest.mark.parametrize("p", [0.4, 1])
def test_what_is_told_is_what_was_done(p):
    """Quadratic images, looked up at the places that the labels say. The labels are float32 and places at most 0.5, off
    by some 1e-6 through five maps; the slope is below 3 a side: 1e-5 with the rounding of the resampling. A stretch by
    1% moves places by 5e-3, so its two readings differ by more; both occur."""
    side, n = 16, 48
    x, y = places(side, side)
    out, augment_labels = jax.jit(edm, static_argnums=2)(
        KEY, jnp.broadcast_to(quadratic(x, y)[..., None], (n, side, side, 1)), p
    )
    assert augment_labels.shape == (n, LABELS)
    checked, readings = 0, []
    for image, numbers in zip(np.asarray(out)[..., 0], augment_labels, strict=True):
        errors = []
        for u, v in described_places(numbers, x, y):
            mask = inner(u, v, side, side)
            errors.append(np.abs(image - quadratic(u, v))[mask].max(initial=0))
            checked += mask.sum() / 2
        assert min(errors) < 1e-5
        readings.append(np.sign(np.round(errors[1] - errors[0], 5)))
    assert checked > n * side * side / 4
    assert set(readings) >= {-1, 1}
    assert np.all(np.std(augment_labels, 0) > 0)  # every transform was among them


def test_without_probability_only_mirrors_are_left():
    """Exactly, in float32: the places of 16 pixels are exact. On 10 pixels a place is off by 10 2^-24 of a pixel, which
    mixes in that share of neighbours up to 255 away, through a kernel of slope at most 1, along each axis: 3e-4."""
    for side, atol in [(16, 0.0), (10, 3e-4)]:
        x = images(400, side, side, 3)
        out, augment_labels = jax.jit(lambda x: edm(KEY, x, 0))(x)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(augment_labels[:, 1:], 0)
        mirrored = np.asarray(augment_labels[:, 0])
        assert set(mirrored) == {0.0, 1.0}
        assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(400)
        expected = np.where(mirrored[:, None, None, None], x[:, :, ::-1], x).astype(np.float32)
        np.testing.assert_allclose(out, expected, rtol=0, atol=atol)


def test_how_often_and_how_far():
    """Shares within 5 standard errors, laws by Kolmogorov-Smirnov at level 1e-3, no two transforms correlated, all with
    a fixed key; the zeros are exact."""
    n, p = 20_000, 0.3
    augment_labels = np.asarray(jax.jit(_draw, static_argnums=(1, 2))(KEY, n, p)[1], np.float64)
    error = 5 * 0.5 / np.sqrt(n)
    mirror_x, mirror_y, scale, cos_less_1, sin, stretch_cos, stretch_sin, *shift = augment_labels.T
    turned, stretched, shifted = (a != 0 for a in (sin, np.hypot(stretch_cos, stretch_sin), shift[0]))
    done = np.stack([mirror_x != 0, mirror_y != 0, scale != 0, turned, stretched, shifted])
    np.testing.assert_allclose(done.mean(1), [0.5, p / 2, p, p, p, p], atol=error)
    assert np.abs(np.corrcoef(done) - np.eye(6)).max() < 5 / np.sqrt(n)
    np.testing.assert_array_equal(shifted, shift[1] != 0)
    np.testing.assert_array_equal(cos_less_1[~turned], 0)
    np.testing.assert_allclose(np.hypot(cos_less_1 + 1, sin), 1, atol=1e-6)
    law = lambda a, cdf: stats.kstest(a, cdf).pvalue > 1e-3
    assert all(law(a, stats.norm.cdf) for a in (scale[scale != 0], shift[0][shifted], shift[1][shifted]))
    assert law(np.arctan2(sin, cos_less_1 + 1)[turned], stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert law(np.arctan2(stretch_sin, stretch_cos)[stretched], stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert law(np.hypot(stretch_cos, stretch_sin)[stretched], stats.halfnorm.cdf)


# In a config


def config(name, path="", **model):
    c = defaults(name)
    c.model.update(model)
    c.data.name, c.data.path = ("npz", path) if path else ("gaussians8", "")
    c.data.augment = "edm(0.5)"
    c.train.update({"steps": 4, "batch_size": 4})
    return c


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edm(2)", "p must be a probability between 0 and 1, not 2"),
        ("edm('a')", "p must be a number, not 'a'"),
        ("crop(0)", "pad must be a positive integer"),
        ("crop(1.5)", "pad must be a whole number, not 1.5"),
        ("flip(1)", "flip takes no arguments"),
        ("edn", "did you mean 'edm'"),
    ],
)
def test_bad_augmentations_are_told_before_anything_is_built(text, message):
    c = config("mlp")
    c.data.augment = text
    with pytest.raises(ConfigError) as error:
        make_augmentation(resolve(c), open_dataset("digits").spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"p must be a probability between 0 and 1, not 1\.1"):
        edm(KEY, jnp.zeros((1, 4, 4, 1)), 1.1)


def test_what_cannot_be_augmented_is_told():
    spec = open_dataset("gaussians8").spec
    with pytest.raises(ConfigError, match="is for images, and data 'gaussians8'"):
        build(resolve(config("mlp")), spec)
    coupled = config("adm", channels=32)
    coupled.coupling.name = "ot"  # would pair images with noise by what was done to them
    with pytest.raises(ConfigError, match=r"use coupling\.name 'independent'"):
        build(resolve(coupled), open_dataset("digits").spec)
    assert {name: make().labels for name, make in AUGMENTATIONS.items()} == {"none": 0, "flip": 0, "crop": 0, "edm": 9}


def filled(like):
    """A state of that shape, from NumPy, as JAX's random numbers take seconds to compile: small normal parameters, of
    which no layer is zero and hides those behind it."""
    rng = np.random.default_rng(0)
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    zeros = jax.tree.map(lambda a: KEY if is_key(a) else jnp.zeros(a.shape, a.dtype), like)
    params = jax.tree.map(lambda a: jnp.asarray(0.05 * rng.normal(size=a.shape), jnp.float32), like.params)
    place = lambda a, like: jax.device_put(a, like.sharding)  # or the first step would be compiled for itself
    return jax.tree.map(place, dataclasses.replace(zeros, params=params), like)


@pytest.mark.slow
def test_a_run_with_its_augmentation_as_a_condition_trains_and_samples(tmp_path):
    """Adam moves what has a gradient by the learning rate, 1e-3 a step: the weights of the labels among them, where the
    labels that arrive are not zero. Samples have none."""
    np.savez(tmp_path / "a.npz", x=images(20, 16, 16, 3))
    path = str(tmp_path / "a.npz")
    small = {"channels": 32, "multipliers": (1,), "blocks": 1, "attention": (), "head_width": 32, "dropout": 0.1}
    c = resolve(config("adm", path, **small, film=True, dtype="float32"))
    dataset = open_dataset("npz", path)
    trainer = Trainer(c, build(c, dataset.spec), dataset)
    cond = jax.eval_shape(trainer._get_batch, trainer.arrays(), KEY, jnp.asarray(0)).cond
    assert set(cond) == {"augment"}
    assert cond["augment"].shape == (4, LABELS)
    state = filled(trainer.like())
    before = np.array(state.params["encoders"]["augment"]["linear"]["kernel"])
    state, metrics = trainer.run(state, trainer.arrays(), 2)
    assert (int(state.step), int(metrics.bad_step)) == (2, 0)
    assert np.isfinite(float(metrics.loss))
    assert np.abs(np.asarray(state.params["encoders"]["augment"]["linear"]["kernel"]) - before).max() > 5e-4
    run = Run(tmp_path, c, 2, trainer.dataset.spec, trainer.method, state.params)
    drawn = sampling.sample(run, 2, solver=SolverSettings("euler", steps=2), batch=2)
    assert drawn.samples.shape == (2, 16, 16, 3)
    assert drawn.samples.dtype == np.uint8
    assert np.ptp(drawn.samples) > 50  # noise is still noise
    assert drawn.labels is None
