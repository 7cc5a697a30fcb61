"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 with 17 grey levels, shipped with the library."""

from typing import Any

import numpy as np

from flowjax.data.dataset import Dataset, DataSpec, image_scale, sample_rows

_TEST = 297


def open_digits() -> Dataset:
    """1,500 images to train on and the last 297 to test, pixels 0 to 16, labels 0 to 9."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x = digits.images[..., None].astype(np.uint8)
    y = digits.target.astype(np.int32)
    return Dataset(
        spec=DataSpec("digits", (8, 8, 1), image_scale(17), num_classes=10, levels=17),
        test=x[-_TEST:].astype(np.float32),
        test_labels=y[-_TEST:],
        arrays=lambda: (x[:-_TEST], y[:-_TEST]),
        sample=sample_rows,
    )
