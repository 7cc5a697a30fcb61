"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels with 17 grey levels, which come with the package."""

from typing import Any

import numpy as np

from flowjax.batch import Batch
from flowjax.data.affine import image_scale
from flowjax.data.dataset import Dataset, sample_rows
from flowjax.data.spec import DataSpec
from flowjax.extras import require

__all__ = ["digits_of", "open_digits"]

_TEST = 297


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Returns all images (1797, 8, 8, 1) uint8 and their labels."""
    require("sklearn", "data")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.images[..., None].astype(np.uint8), digits.target.astype(np.int32)


def open_digits(label: int | tuple[int, ...] | None = None) -> Dataset:
    """Opens scikit-learn's digits, with pixels from 0 to 16: 1,500 training images, and the last 297 as test images.

    Args:
        label: restricts the data to one digit or to several, without labels; None for all digits with their labels.
    """
    if label is not None:
        train, test = digits_of(label)
        return Dataset(
            spec=DataSpec(f"digits({label})".replace(" ", ""), (8, 8, 1), image_scale(17), num_classes=0, levels=17),
            test=test.astype(np.float32),
            arrays=lambda: Batch(train),
            sample=sample_rows,
        )
    x, y = _load()
    return Dataset(
        spec=DataSpec("digits", (8, 8, 1), image_scale(17), num_classes=10, levels=17),
        test=x[-_TEST:].astype(np.float32),
        test_cond={"label": y[-_TEST:]},
        arrays=lambda: Batch(x[:-_TEST], {"label": y[:-_TEST]}),
        sample=sample_rows,
    )


def digits_of(label: int | tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the training images and the test images of one label or of several, (n, 8, 8, 1) uint8."""
    labels = label if isinstance(label, tuple) else (label,)
    if not labels or any(one not in range(10) for one in labels):
        raise ValueError(f"label must be an integer from 0 to 9, or several in brackets, not {label}")
    x, y = _load()
    chosen = np.isin(y, labels)
    return x[:-_TEST][chosen[:-_TEST]], x[-_TEST:][chosen[-_TEST:]]
