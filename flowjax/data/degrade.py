"""Pairs from any set of images: each image is degraded by an operator, and the result is an array beside x.

`data.degrade` names the operator, such as `downsample(4)`. The array is called `degraded`, has the shape of the images,
and is in the units of the data. With `data.cond=degraded` it is a condition of the network; with `data.pairs=degraded`
it is the source sample of each image. Pixels that an operator removes are NaN, which means "not given": encoders of
conditions mark them in a channel of their own (`models.encoders.beside`), and in source samples they are drawn from
the source, as in Albergo et al. 2023 (arXiv:2310.03725, sec. 4.1).

Training images are degraded inside the compiled step, or as they are read if the data set is streamed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowjax.arguments import make
from flowjax.batch import AnyArray, Batch
from flowjax.conditions import Field
from flowjax.data.dataset import ArrayRows, Dataset, Rows
from flowjax.data.requests import FieldRequest
from flowjax.data.spec import DataSpec
from flowjax.errors import ConfigError
from flowjax.typing import PRNGKey

__all__ = ["DEGRADED", "DEGRADES", "Box", "Degrade", "Downsample", "Edges", "Grey", "degrade_dataset", "make_degrade"]

DEGRADED = "degraded"
"""The name of the array that `data.degrade` makes."""

Degrade = Callable[[AnyArray], AnyArray]
"""A function from images (B, H, W, C) in data space, NumPy or JAX arrays of floats, to images of the same shape. Pixels
that it removes are NaN. It can be pickled."""


@dataclass(frozen=True)
class Downsample:
    """Replaces each block of factor x factor pixels by its mean, so that the image keeps its size.

    Attributes:
        shape: (H, W, C) of an image.
        factor: side of a block, which must divide H and W.

    Raises:
        ValueError: if the factor does not divide the image, or is less than 2.
    """

    shape: tuple[int, ...]
    factor: int

    def __post_init__(self) -> None:
        height, width = self.shape[:2]
        if self.factor < 2 or height % self.factor or width % self.factor:
            raise ValueError(f"the factor must be at least 2 and divide images of {height} x {width}")

    def __call__(self, x: AnyArray) -> AnyArray:
        height, width, channels = self.shape
        f = self.factor
        blocks = x.reshape(-1, height // f, f, width // f, f, channels)
        return blocks.mean((2, 4)).repeat(f, 1).repeat(f, 2)


@dataclass(frozen=True)
class Box:
    """Removes a centred square of side x side pixels: its pixels become NaN.

    Where the remaining margin is odd, the square is half a pixel nearer to the upper left corner.

    Attributes:
        shape: (H, W, C) of an image.
        side: side of the square, smaller than the image.

    Raises:
        ValueError: if no pixel would be removed, or all of them.
    """

    shape: tuple[int, ...]
    side: int

    def __post_init__(self) -> None:
        height, width = self.shape[:2]
        if not 0 < self.side < max(height, width) or self.side > min(height, width):
            raise ValueError(f"the side must be at least 1 and smaller than the images of {height} x {width}")

    def __call__(self, x: AnyArray) -> AnyArray:
        hole = np.zeros(self.shape, np.float32)
        top, left = ((side - self.side) // 2 for side in self.shape[:2])
        hole[top : top + self.side, left : left + self.side] = np.nan
        return x + hole


@dataclass(frozen=True)
class Grey:
    """Replaces the channels of each pixel by their mean.

    Attributes:
        shape: (H, W, C) of an image.

    Raises:
        ValueError: if the image has a single channel.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.shape[2] == 1:
            raise ValueError("the images are grey already: they have one channel")

    def __call__(self, x: AnyArray) -> AnyArray:
        return x.mean(-1, keepdims=True).repeat(self.shape[2], -1)


@dataclass(frozen=True)
class Edges:
    """A sketch: the length of the gradient of each channel, by differences to the next pixel to the right and below.

    At the last column and the last row these differences are 0.

    Attributes:
        shape: (H, W, C) of an image.
    """

    shape: tuple[int, ...]

    def __call__(self, x: AnyArray) -> AnyArray:
        down = (x.swapaxes(1, 3) @ _differences(self.shape[0])).swapaxes(1, 3)
        right = (x.swapaxes(2, 3) @ _differences(self.shape[1])).swapaxes(2, 3)
        return (down**2 + right**2) ** 0.5


def _differences(n: int) -> np.ndarray:
    """The matrix (n, n) that maps a row x to x[1] - x[0], ..., x[n - 1] - x[n - 2], 0."""
    matrix = np.eye(n, k=-1, dtype=np.float32) - np.eye(n, dtype=np.float32)
    matrix[:, -1] = 0
    return matrix


DEGRADES: dict[str, Callable[..., Degrade]] = {"downsample": Downsample, "box": Box, "grey": Grey, "edges": Edges}
"""Operators by name: functions of the shape of an image and the arguments in brackets."""


def make_degrade(text: str, spec: DataSpec) -> Degrade:
    """Returns the operator that `data.degrade` names.

    Args:
        text: `data.degrade`, such as "downsample(4)".
        spec: the description of the data.

    Raises:
        ConfigError: if the data are not images, the name is unknown, or the arguments do not fit the images.
    """
    if not spec.is_image:
        raise ConfigError(
            f"data.degrade {text!r} is for images (H, W, C), and data {spec.name!r} has shape {spec.shape}"
        )
    return make("data.degrade", text, DEGRADES, spec.shape)


@dataclass(frozen=True)
class _Adds:
    """Adds degraded images to batches of encoded rows.

    Attributes:
        degrade: the operator.
        spec: the description of the images.
        cond, pairs: whether the degraded images are a condition, and whether they are the source samples.
    """

    degrade: Degrade
    spec: DataSpec
    cond: bool
    pairs: bool

    def __call__(self, rows: Batch) -> Batch:
        levels, normalise = self.spec.levels, self.spec.normalise
        degraded = self.degrade(rows.x1.astype(np.float32) if levels else normalise.to_data(rows.x1))
        encoded = normalise.to_model(degraded).astype(np.float32)
        cond = {**(rows.cond or {}), **({DEGRADED: encoded} if self.cond else {})}
        x0 = (degraded.astype(np.float32) if levels else encoded) if self.pairs else rows.x0
        return rows._replace(cond=cond, x0=x0)


@dataclass(frozen=True)
class _Encoded:
    """Encodes rows, if there is something to encode, and adds degraded images. It can be pickled."""

    encode: Callable[[Batch], Batch] | None
    add: _Adds

    def __call__(self, rows: Batch) -> Batch:
        return self.add(rows if self.encode is None else self.encode(rows))


@dataclass(frozen=True)
class _DegradedRows:
    """Rows of a streamed data set with degraded images."""

    rows: Rows
    add: _Adds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        added = self.add(row._replace(x1=row.x1[None]))
        first = {DEGRADED: added.cond[DEGRADED][0]} if self.add.cond and added.cond else {}
        x0 = row.x0 if added.x0 is None or not self.add.pairs else added.x0[0]
        return row._replace(cond={**(row.cond or {}), **first}, x0=x0)


def degrade_dataset(dataset: Dataset, text: str, cond: Sequence[FieldRequest], pairs: bool) -> Dataset:
    """Returns a set of images with the array `degraded`.

    Args:
        dataset: the images.
        text: `data.degrade`.
        cond: the entries of `data.cond`; if `degraded` is one of them, it is a condition.
        pairs: whether the degraded images are the source samples.

    Raises:
        ConfigError: if the operator cannot be used with the data, or nothing would use its result.
    """
    as_cond = any(field.name == DEGRADED for field in cond)
    if not as_cond and not pairs:
        raise ConfigError(
            f"data.degrade {text!r} makes the array {DEGRADED!r}, which nothing uses: add data.cond={DEGRADED} or "
            f"data.pairs={DEGRADED}"
        )
    spec, degrade = dataset.spec, make_degrade(text, dataset.spec)
    if as_cond:
        spec = replace(
            spec,
            conditions=(*spec.conditions, Field(DEGRADED, "image", spec.shape)),
            condition_maps=(*spec.condition_maps, spec.normalise),
            condition_ranges=(*spec.condition_ranges, ((), ())) if spec.condition_ranges else (),
        )
    add, inner = _Adds(degrade, spec, as_cond, pairs), dataset.sample
    sample: Callable[[Any, PRNGKey, int], Batch] | None = None
    if inner is not None:
        sample = lambda arrays, key, n: add(inner(arrays, key, n))
    test = np.asarray(degrade(np.asarray(dataset.test, np.float32)), np.float32)
    test_cond: Mapping[str, np.ndarray] = {**dataset.test_cond, **({DEGRADED: test} if as_cond else {})}
    return replace(
        dataset,
        spec=spec,
        test_cond=test_cond,
        test_x0=test if pairs else dataset.test_x0,
        sample=sample,
        rows=None if dataset.rows is None else _with_degraded(dataset.rows, add),
    )


def _with_degraded(rows: Rows, add: _Adds) -> Rows:
    """Rows with degraded images; rows of arrays can still be taken many at a time."""
    if isinstance(rows, ArrayRows):
        return replace(rows, encode=_Encoded(rows.encode, add))
    return _DegradedRows(rows, add)
