"""Data sets: 2D densities, scikit-learn's digits, TFDS images, and the user's own arrays."""

from flowjax.data.dataset import Dataset
from flowjax.data.sets import DATASETS, open_dataset
from flowjax.data.spec import Affine, DataError, DataSpec

__all__ = ["DATASETS", "Affine", "DataError", "DataSpec", "Dataset", "open_dataset"]
