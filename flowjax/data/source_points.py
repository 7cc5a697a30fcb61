"""The rows of a file of the user as source samples, for a flow from one data set to another."""

from math import prod

import jax.numpy as jnp
import numpy as np

from flowjax.data.affine import DataError
from flowjax.data.arrays import read_npz
from flowjax.data.spec import DataSpec
from flowjax.sources import Empirical

__all__ = ["open_source"]

_MOST_NUMBERS = 2**27
"""The largest size of a source, in numbers: 512 MiB in float32, because it is a constant of compiled programs."""


def open_source(path: str, spec: DataSpec) -> Empirical:
    """Opens the array `x` of an .npz file as a source distribution.

    Its rows are mapped to model space with the affine map of the data set, whatever their own mean and scale, so that
    both domains keep the units of the data. Integers are dequantised like the data, which is noise in each sample.

    Args:
        path: the file.
        spec: the description of the data set.

    Returns:
        The source, in model space. It is sampled with replacement and has no density.

    Raises:
        DataError: if the file cannot be read, or its rows are not like those of the data.
    """
    if not path:
        raise DataError("source.name is npz, so source.path must be a file: --config.source.path=A.npz")
    x = read_npz(path)["x"]
    if x.shape[1:] != spec.shape or len(x) == 0:
        shape = ", ".join(map(str, spec.shape))
        raise DataError(f"source.path: x in {path} must be (N, {shape}) like the data, not {x.shape}")
    if len(x) * prod(spec.shape) > _MOST_NUMBERS:
        raise DataError(
            f"source.path: x in {path} holds {x.size:,} numbers, but a source may have at most {_MOST_NUMBERS:,}: use "
            "fewer rows"
        )
    if x.dtype.kind not in "iub" and not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(f"source.path: x in {path} must hold real numbers like the data, not {x.dtype}")
    x = x.astype(np.float64)
    if (spec.levels or spec.integers) and not spec.dequantises(x):
        raise DataError(f"source.path: the data are integers, so x in {path} must hold integers too")
    if spec.levels and not (x.min() >= 0 and x.max() < spec.levels):
        raise DataError(f"source.path: pixels of x in {path} must lie in 0 to {spec.levels - 1} like the data")
    try:
        points = spec.to_model(x)
    except DataError as error:
        raise DataError(f"source.path {path}: {error}") from None
    return Empirical(
        jnp.asarray(points), tuple(spec.steps.tolist()) if spec.steps.size > 1 else float(spec.steps.sum())
    )
