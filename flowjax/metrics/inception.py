"""The Inception network (Szegedy et al. 2016, arXiv:1512.00567) with the weights of 2015-12-05, as used for FID.

FID is due to Heusel et al. 2017 (arXiv:1706.08500). Images are resized to 299 x 299 as in TensorFlow 1 (`resize`) and
mapped to (x - 128) / 128. There are two outputs:

- `pooled`, 2048 numbers: the spatial mean of the last block (TensorFlow's `pool_3:0`), for FID, KID, precision and
  recall.
- `spatial`, 17 x 17 x 7 = 2023 numbers: the first 7 channels of TensorFlow's `mixed_6/conv:0`, which ADM's evaluator
  uses for sFID (Dhariwal and Nichol 2021, arXiv:2105.05233; Nash et al. 2021, arXiv:2103.03841). TensorFlow names the
  blocks mixed, mixed_1, ..., mixed_10, and torchvision Mixed_5b, 5c, 5d, 6a, ..., 7c, so `mixed_6` is Mixed_6d. `conv`
  is its 1 x 1 branch, and `conv:0` the output of that branch: the ReLU after convolution and batch norm.

There are two differences from torchvision's network: average pools exclude the padding from the mean, and Mixed_7c uses
a max pool.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from flowjax.archives import ArchiveError, read_npz
from flowjax.errors import WeightsError
from flowjax.metrics.cache import WEIGHTS, cache_folder
from flowjax.metrics.inception_blocks import MIXED, STEM, Layer, Tower, kernel_shapes
from flowjax.metrics.notes import Say, to_stderr

__all__ = [
    "POOLED",
    "SIDE",
    "SPATIAL",
    "Features",
    "Inception",
    "Precision",
    "batches",
    "fold",
    "inception_features",
    "load_inception",
    "pool",
    "resize",
]

SIDE = 299
POOLED, SPATIAL = 2048, 17 * 17 * 7
_EPS = 1e-3  # of the batch norm, which has no scale parameter

Precision = Literal["highest", "high", "default"]
"""The precision of the convolutions. `highest` is float32. `default` is the fastest on the device: TF32 on a GPU,
bfloat16 on a TPU and float32 on a CPU."""


class Features(NamedTuple):
    """Features of images.

    Attributes:
        pooled: (N, 2048).
        spatial: (N, 2023), or None if they were not requested.
    """

    pooled: Any
    spatial: Any = None


class Inception(nnx.Module):
    """The Inception network, with batch norm folded into the convolutions.

    Args:
        weights: a mapping from each name in `kernel_shapes` to a kernel (height, width, inputs, outputs) and a bias.
        checksum: the checksum of the weights, which is recorded with reference statistics.
    """

    def __init__(self, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], checksum: str = ""):
        self.kernels = nnx.Dict({name: nnx.Param(jnp.asarray(k, jnp.float32)) for name, (k, _) in weights.items()})
        self.biases = nnx.Dict({name: nnx.Param(jnp.asarray(b, jnp.float32)) for name, (_, b) in weights.items()})
        self.checksum = checksum

    def __call__(
        self, images: UInt8[Array, "B H W 3"], precision: Precision = "highest"
    ) -> tuple[Float[Array, "B 2048"], Float[Array, "B 2023"]]:
        """The pooled and the spatial features of images with pixel values 0 to 255.

        Under `jit`, an output that is not used is not computed.
        """
        x = (resize(images) - 128) / 128
        x = self._tower(STEM, "", x, precision)
        spatial = x
        for name, towers in MIXED.items():
            outputs = [self._tower(tower, f"{name}.", x, precision) for tower in towers]
            if name == "Mixed_6d":
                spatial = outputs[0][..., :7].reshape(len(x), SPATIAL)
            x = jnp.concatenate(outputs, -1)
        return x.mean((1, 2)), spatial

    def _tower(self, tower: Tower, prefix: str, x: Array, precision: Precision) -> Array:
        for layer in tower:
            x = self._layer(layer, prefix, x, precision)
        return x

    def _layer(self, layer: Layer, prefix: str, x: Array, precision: Precision) -> Array:
        if isinstance(layer, str):
            return pool(layer, x)
        if isinstance(layer, tuple):
            return jnp.concatenate([self._layer(conv, prefix, x, precision) for conv in layer], -1)
        name = prefix + layer.name
        y = lax.conv_general_dilated(
            x,
            self.kernels[name][...],
            (layer.stride, layer.stride),
            layer.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )
        return jax.nn.relu(y + self.biases[name][...])


def pool(kind: str, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """A 3 x 3 pool.

    Args:
        kind: "average" for the mean over the pixels inside the image, "max", both with stride 1 and padding, or "max/2"
            with stride 2 and without padding.
        x: (B, H, W, C).
    """
    window, padding = (1, 3, 3, 1), "VALID" if kind == "max/2" else "SAME"
    strides = (1, 2, 2, 1) if kind == "max/2" else (1, 1, 1, 1)
    if kind != "average":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
    inside = [np.convolve(np.ones(n), np.ones(3), "same") for n in x.shape[1:3]]  # 2, 3, ..., 3, 2
    count = jnp.asarray(np.outer(*inside)[..., None], x.dtype)
    return lax.reduce_window(x, 0.0, lax.add, window, strides, padding) / count


def resize(images: UInt8[Array, "B H W C"]) -> Float[Array, "B 299 299 C"]:
    """The bilinear resize of TensorFlow 1, which samples the source at i * size / 299 without half-pixel centres.

    There is no antialiasing, and the last row and column are repeated at the border.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        size = x.shape[axis]
        source = np.arange(SIDE) * (size / SIDE)
        low = np.floor(source).astype(int)
        fraction = (source - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
        first, second = (jnp.take(x, i, axis, mode="clip") for i in (low, low + 1))
        x = first + (second - first) * fraction
    return x


def load_inception(path: str | Path | None = None) -> Inception:
    """Loads the network with its published weights.

    Args:
        path: the .npz file that `scripts/convert_inception.py` writes; None for the one in `cache_folder()`.

    Raises:
        WeightsError: if the file does not exist, cannot be read or is incomplete.
    """
    path = cache_folder() / WEIGHTS if path is None else Path(path)
    if not path.is_file():
        raise WeightsError(
            f"no Inception weights at {path}: run `python scripts/convert_inception.py`, whose --help says where to "
            "get them, or set $FLOWJAX_CACHE to the folder that has them"
        )
    return _load(path, path.stat().st_mtime_ns)


@cache
def _load(path: Path, changed: int) -> Inception:
    del changed  # the modification time is part of the cache key, so that a changed file is read again
    try:
        arrays = dict(sorted(read_npz(path).items()))
    except ArchiveError as error:
        raise WeightsError(f"{error}; write it again with scripts/convert_inception.py") from None
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    weights = {}
    for name, shape in kernel_shapes().items():
        parts = [arrays.get(f"{name}/{key}") for key in ("kernel_OIHW", "bn_beta", "bn_mean", "bn_var")]
        if any(
            p is None or p.shape != s or p.dtype.kind != "f"
            for p, s in zip(parts, (shape, *[shape[:1]] * 3), strict=True)
        ):
            raise WeightsError(
                f"{path} has no {name} with kernel shape {shape}; write it again with scripts/convert_inception.py"
            )
        weights[name] = fold(*(np.asarray(p, np.float64) for p in parts))
    return Inception(weights, digest.hexdigest())


def fold(kernel: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Folds the batch norm (x - mean) / sqrt(var + eps) + beta into a convolution.

    Args:
        kernel: (O, I, H, W).
        beta, mean, var: the parameters of the batch norm, (O,) each.

    Returns:
        The kernel (H, W, I, O) and the bias (O,) of the resulting convolution.
    """
    scale = 1 / np.sqrt(var + _EPS)
    return kernel.transpose(2, 3, 1, 0) * scale, beta - mean * scale


@partial(jax.jit, static_argnames=("graph", "precision", "spatial"))
def _forward(graph: Any, state: Any, images: Array, precision: Precision, spatial: bool) -> tuple[Array, ...]:
    outputs = nnx.merge(graph, state)(images, precision)
    return outputs if spatial else outputs[:1]


def batches(
    images: UInt8[np.ndarray, "N H W 3"],
    batch: int = 0,
    *,
    network: Inception | None = None,
    precision: Precision = "highest",
    spatial: bool = False,
    say: Say = to_stderr,
) -> Iterator[Features]:
    """Computes the features of images on all local devices.

    Args:
        images: (N, H, W, 3) uint8, pixel values 0 to 255.
        batch: the batch size, rounded up to a multiple of the number of devices; 0 for 256 per device, or 32 on a CPU.
        network: the network; None for the result of `load_inception()`.
        precision: the precision of the convolutions.
        spatial: whether to return the spatial features as well.
        say: called with a line on the progress, at most twice a minute.

    Yields:
        The features of each batch, in the order of the images.

    Raises:
        WeightsError: if `network` is None and its weights are missing.
        ValueError: if the images do not have 8 bits and three channels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"Inception needs images (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
    network = load_inception() if network is None else network
    devices = jax.local_devices()
    batch = batch or (32 if devices[0].platform == "cpu" else 256) * len(devices)
    batch += -batch % len(devices)
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    graph, state = nnx.split(network)
    state = jax.device_put(state, NamedSharding(mesh, P()))
    waiting: list[tuple[int, tuple[Array, ...]]] = []
    reported = time.monotonic()
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        padded = np.concatenate([rows, np.zeros((batch - len(rows), *rows.shape[1:]), np.uint8)])
        placed = jax.device_put(padded, NamedSharding(mesh, P("data")))
        waiting.append((len(rows), _forward(graph, state, placed, precision, spatial)))
        if len(waiting) == 2:  # the device computes one batch while the host copies the other
            yield _taken(*waiting.pop(0))
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            say(f"inception: {start + len(rows)} of {len(images)} images")
    for rows, outputs in waiting:
        yield _taken(rows, outputs)


def _taken(rows: int, outputs: tuple[Array, ...]) -> Features:
    return Features(*(np.asarray(output)[:rows] for output in outputs))


def inception_features(images: UInt8[np.ndarray, "N H W 3"], batch: int = 0, **options: Any) -> np.ndarray:
    """The pooled features of images; arguments are those of `batches`.

    Returns:
        (N, 2048) float32.
    """
    parts = [part.pooled for part in batches(images, batch, **options)]
    return np.concatenate(parts) if parts else np.zeros((0, POOLED), np.float32)
