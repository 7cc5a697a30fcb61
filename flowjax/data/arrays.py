"""The user's own data: an .npz file with `x`, and if there are any, `y`, `x_test` and `y_test`."""

import zipfile
from pathlib import Path

import numpy as np

from flowjax.data.dataset import Affine, DataError, Dataset, DataSpec, image_scale, sample_rows


def read_npz(path: str | Path, key: str = "x") -> dict[str, np.ndarray]:
    """The arrays of an .npz file that must hold `key`; DataError in one line if it cannot."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = "not an archive of arrays" if "pickle" in str(error) else str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable .npz file: {reason}") from None
    if key not in arrays:
        raise DataError(f"{path} holds no array named {key!r}: it has {', '.join(arrays) or 'none'}")
    return arrays


def open_npz(path: str) -> Dataset:
    """`x` (N, *event): uint8 images (N, H, W, C), or floats, standardised by one mean and one deviation.

    Where there is no `x_test`, the last tenth of `x` is held out (the order of the file is kept).
    """
    if not path:
        raise DataError("data.name is npz, so data.path must name the file: --config.data.path=mine.npz")
    arrays = read_npz(path)
    x, y = arrays["x"], arrays.get("y")
    if x.ndim < 2 or len(x) < 2:
        raise DataError(f"{path}: x must be (N, *event) with N >= 2, not {x.shape}")
    _check_labels(path, "y", y, len(x))
    if "x_test" in arrays:
        test, test_labels = arrays["x_test"], arrays.get("y_test")
        if test.shape[1:] != x.shape[1:] or len(test) == 0:
            raise DataError(f"{path}: x_test must be (N, {', '.join(map(str, x.shape[1:]))}), N >= 1, not {test.shape}")
        if (y is None) != (test_labels is None):
            raise DataError(f"{path}: of y and y_test one is there and the other is not")
        _check_labels(path, "y_test", test_labels, len(test))
    else:
        cut = len(x) - max(1, len(x) // 10)
        x, test = x[:cut], x[cut:]
        y, test_labels = (None, None) if y is None else (y[:cut], y[cut:])
    num_classes = 0 if y is None or test_labels is None else 1 + int(max(y.max(), test_labels.max()))
    if x.dtype == np.uint8:
        if x.ndim != 4:
            raise DataError(f"{path}: uint8 data are images (N, H, W, C), not {x.shape}")
        levels, normalise = 256, image_scale(256)
    elif np.issubdtype(x.dtype, np.floating):
        x, test = x.astype(np.float32), test.astype(np.float32)
        if not (np.isfinite(x).all() and np.isfinite(test).all()):
            raise DataError(f"{path}: x holds values that are not finite")
        levels, normalise = 0, Affine(float(x.std()) or 1.0, float(x.mean()))
    else:
        raise DataError(f"{path}: x must be uint8 or floating point, not {x.dtype}")
    return Dataset(
        spec=DataSpec("npz", x.shape[1:], normalise, num_classes=num_classes, levels=levels),
        test=test.astype(np.float32),
        test_labels=None if test_labels is None else test_labels.astype(np.int32),
        arrays=lambda: (x, None if y is None else y.astype(np.int32)),
        sample=sample_rows,
    )


def _check_labels(path: str, key: str, y: np.ndarray | None, rows: int) -> None:
    if y is not None and (y.shape != (rows,) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise DataError(f"{path}: {key} must hold one label 0, 1, ... for each of the {rows} rows")
