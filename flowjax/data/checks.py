"""Checks of the user's arrays `x` and `x_test`: their shapes, dtypes and values."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax.data.affine import DataError
from flowjax.data.integers import Integers
from flowjax.data.spec import DataSpec
from flowjax.ranges import MAX_COORDINATES

__all__ = ["check_rows", "check_test", "is_pixels", "numbers", "pixels"]


def check_rows(path: str, x: Any) -> tuple[str, ...]:
    """Checks the shape and dtype of x, and returns a note if its channels may come first."""
    if x.ndim < 2 or len(x) < 2:
        raise DataError(f"{path}: x must be (N, *event) with N >= 2, not {x.shape}")
    if 0 in x.shape:
        raise DataError(f"{path}: x has an empty axis: its shape is {x.shape}")
    if math.prod(x.shape[1:]) > MAX_COORDINATES:  # checked before a row is read, because a file can declare any shape
        raise DataError(f"{path}: an example of shape {x.shape[1:]} has more than {MAX_COORDINATES:,} numbers")
    channels_first = x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] > 4
    turn = f"x of shape {x.shape} has its channels first, but they must come last: x = x.transpose(0, 2, 3, 1)"
    if x.dtype == np.uint8 and x.ndim == 3:
        raise DataError(
            f"{path}: uint8 data must be images (N, H, W, C), not {x.shape}: for grey images use x = x[..., None], and "
            "for sequences of integers x.astype('int64')"
        )
    if is_pixels(x):
        if channels_first:
            raise DataError(f"{path}: {turn}")
    elif x.dtype.kind in "iub":
        if x.ndim > 3:
            raise DataError(
                f"{path}: x holds {x.dtype} of shape {x.shape}, but integers must be 8-bit images, vectors (N, D) or "
                "sequences (N, L, C): convert images with x.astype('uint8') or x.astype('float32')"
            )
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        complex_ = jnp.issubdtype(x.dtype, jnp.complexfloating)
        how = "numpy.stack([x.real, x.imag], -1)" if complex_ else "x.astype('float32')"
        raise DataError(f"{path}: x must hold integers or floats, not {x.dtype}: convert it, for example with {how}")
    return (f"perhaps {turn}",) if channels_first else ()


def is_pixels(x: Any) -> bool:
    """Whether an array holds 8-bit images."""
    return x.dtype == np.uint8 and x.ndim == 4


def pixels(path: str, test: np.ndarray) -> np.ndarray:
    """Converts test rows of uint8 images, which must be integers from 0 to 255 of any dtype."""
    if test.dtype == np.uint8:
        return test
    real = test.dtype.kind in "iu" or jnp.issubdtype(test.dtype, jnp.floating)
    whole = real and bool(np.all((test >= 0) & (test <= 255) & (test == np.floor(test))))
    if not whole or (test.dtype.kind not in "iu" and test.max() <= 1):
        seen = f" between {test.min():g} and {test.max():g}" if real else ""
        raise DataError(
            f"{path}: x is uint8, so x_test must hold integers from 0 to 255 too, but it is {test.dtype}{seen}: store "
            "both with the same dtype and scale"
        )
    return test.astype(np.uint8)


def numbers(integers: Integers, path: str, test: np.ndarray) -> np.ndarray:
    """Converts test rows of real numbers or integers to float64 without loss."""
    if test.dtype.kind not in "iub" and not jnp.issubdtype(test.dtype, jnp.floating):
        raise DataError(f"{path}: x_test must hold real numbers as x does, not {test.dtype}")
    if test.dtype.kind in "iu" and np.any((test > 2**53) | (test < -(2**53))):
        raise DataError(f"{path}: x_test holds integers beyond 2^53, which float64 rounds")
    test = test.astype(np.float64)
    if not np.isfinite(test).all():
        raise DataError(f"{path}: x_test holds values that are not finite")
    if integers and not integers.are_whole(test):
        raise DataError(f"{path}: x holds integers, so x_test must hold integers too: store both with the same dtype")
    return test


def check_test(spec: DataSpec, test: np.ndarray) -> tuple[str, ...]:
    """Returns a note if mean or scale of the test rows are unlike those of the training rows.

    Raises:
        DataError: if float32 cannot represent the test rows in model space.
    """
    y = spec.to_model(test)
    mean, std = float(y.mean(dtype=np.float64)), float(y.std(dtype=np.float64))
    if y.size < 100 or (abs(mean) < 3 and 0.1 < std < 10):
        return ()
    return (
        f"the test rows do not look like the training rows: their mean is {mean:.3g} standard deviations of x away, "
        f"and their standard deviation {std:.3g} times as large",
    )
