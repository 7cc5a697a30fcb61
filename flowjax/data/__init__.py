"""Data sets: 2D densities, scikit-learn's digits, TFDS images, and the user's own arrays."""

from flowjax.data.dataset import Affine, DataError, Dataset, DataSpec
from flowjax.data.sets import DATASETS, open_dataset

__all__ = ["DATASETS", "Affine", "DataError", "DataSpec", "Dataset", "open_dataset"]
