"""`data.degrade`: operators against plain NumPy, the array `degraded` beside resident and streamed rows, refusals."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build, data_arguments, fields_of
from flowjax.config import changed, defaults
from flowjax.data import DataError, open_dataset
from flowjax.data.batches import prepared
from flowjax.data.degrade import Box, Downsample, Edges, Grey
from flowjax.data.stream import Stream
from flowjax.errors import ConfigError
from tests.data.stored import store

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (40, 6, 4, 3), np.uint8)
FLOATS = RNG.normal(size=(40, 6, 4, 3)) * 3 + 7
SHAPE = X.shape[1:]


def downsampled(x: np.ndarray) -> np.ndarray:
    out = np.empty(x.shape)
    for i in range(0, 6, 2):
        for j in range(0, 4, 2):
            block = x[:, i : i + 2, j : j + 2]
            out[:, i : i + 2, j : j + 2] = block.sum((1, 2), keepdims=True) / 4
    return out


def boxed(x: np.ndarray) -> np.ndarray:
    """A square of side 3 in images of 6 x 4: rows 1 to 3 and columns 0 to 2."""
    out = x.astype(np.float64)
    out[:, 1:4, 0:3] = np.nan
    return out


def edges(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    down, right = np.zeros(x.shape), np.zeros(x.shape)
    down[:, :-1] = x[:, 1:] - x[:, :-1]
    right[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return np.hypot(down, right)


OPERATORS = {
    "downsample(2)": (Downsample(SHAPE, 2), downsampled),
    "box(3)": (Box(SHAPE, 3), boxed),
    "grey": (Grey(SHAPE), lambda x: np.repeat((x[..., :1] / 3 + x[..., 1:2] / 3 + x[..., 2:] / 3), 3, -1)),
    "edges": (Edges(SHAPE), edges),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("to", [np.asarray, jnp.asarray])
def test_operators_are_those_of_numpy(name, to):
    """In float32, which rounds a few times by 2^-24 of at most 512."""
    operator, expected = OPERATORS[name]
    found = operator(to(X.astype(np.float32)))
    assert isinstance(found, np.ndarray) == (to is np.asarray)
    assert found.shape == X.shape
    np.testing.assert_allclose(found, expected(X), atol=8 * 512 * 2.0**-24)
    assert pickle.loads(pickle.dumps(operator)) == operator


@pytest.mark.parametrize("x", [X, FLOATS], ids=["pixels", "floats"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["downsample(2)", "box(3)"])
def test_degraded_rows_stay_with_their_images(tmp_path, monkeypatch, x, streamed, name):
    """Condition and source sample are NumPy's degraded image of the same row, in model space."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    path = store(tmp_path / "data", "npy", x=x)
    dataset = open_dataset("npy", path, ("degraded",), "degraded", degrade=name)
    batch = Stream(dataset.rows, 0, 20)[0] if streamed else dataset.sample(dataset.arrays(), jax.random.key(0), 20)
    shift, scale = (127.5, 127.5) if x is X else (dataset.spec.normalise.shift, dataset.spec.normalise.scale)
    images = np.asarray(batch.x1, np.float64) * (1 if x is X else scale) + (0 if x is X else shift)
    expected = (OPERATORS[name][1](images) - shift) / scale
    np.testing.assert_allclose(batch.cond["degraded"], expected, atol=1e-5)
    model = prepared(dataset.spec, jax.random.key(1), jax.tree.map(jnp.asarray, batch))
    width = 1 / 127.5 if x is X else 0  # pixels of sources are dequantised like those of the data
    difference = np.asarray(model.x0) - expected
    assert np.array_equal(np.isnan(difference), np.isnan(expected))
    assert np.nanmin(difference) >= -1e-5
    assert np.nanmax(difference) <= width + 1e-5
    test = OPERATORS[name][1](x[dataset.test_rows].astype(np.float64))
    np.testing.assert_allclose(dataset.test_cond["degraded"], test, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dataset.test_x0, dataset.test_cond["degraded"])
    encoded = dataset.encoded_test(3, ("degraded",))
    assert encoded.cond["degraded"].shape == encoded.x0.shape == (3, *SHAPE)


def test_a_row_of_a_stream_that_is_not_of_arrays(tmp_path, monkeypatch):
    from PIL import Image

    for i, image in enumerate(X):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    dataset = open_dataset("folder", str(tmp_path), ("degraded",), "degraded", degrade="downsample(2)")
    row = dataset.rows[3]
    np.testing.assert_allclose(row.x0, downsampled(row.x1[None].astype(float))[0], rtol=1e-6)
    np.testing.assert_allclose(row.cond["degraded"], row.x0 / 127.5 - 1, atol=1e-6)
    assert pickle.loads(pickle.dumps(dataset.rows))[3].x0.shape == SHAPE


def test_the_description_is_enough_for_the_network():
    config = changed(
        defaults("unet"),
        {"data.name": "digits", "data.degrade": "box(4)", "data.cond": ("degraded(dropout=0.3)",), "model.channels": 8},
    )
    dataset = open_dataset(*data_arguments(config))
    (field,) = fields_of(config, dataset.spec)
    assert (field.name, field.kind, field.shape, field.dropout) == ("degraded", "image", (8, 8, 1), 0.3)
    assert type(dataset.spec).from_record(dataset.spec.to_record()) == dataset.spec
    build(config, dataset.spec)


@pytest.mark.parametrize(
    ("name", "degrade", "cond", "pairs", "error", "message"),
    [
        ("moons", "box(2)", ("degraded",), "", ConfigError, "is for images .* data 'moons' has shape"),
        ("digits", "downsample(3)", ("degraded",), "", ConfigError, "must be at least 2 and divide images of 8 x 8"),
        ("digits", "downsample(1)", ("degraded",), "", ConfigError, "must be at least 2"),
        ("digits", "box(8)", ("degraded",), "", ConfigError, "smaller than the images of 8 x 8"),
        ("digits", "grey", ("degraded",), "", ConfigError, "grey already"),
        ("digits", "downsampel(2)", ("degraded",), "", ConfigError, "did you mean 'downsample'"),
        ("digits", "box(2)", ("label",), "", ConfigError, "which nothing uses: add data.cond=degraded"),
        ("digits", "", ("degraded",), "", DataError, "no such array"),
        ("digits", "", (), "degraded", DataError, "has no pairs"),
    ],
)
def test_refusals(name, degrade, cond, pairs, error, message):
    with pytest.raises(error, match=message) as caught:
        open_dataset(name, "", cond, pairs, degrade=degrade)
    assert "\n" not in str(caught.value)
