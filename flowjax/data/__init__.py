"""Data sets: 2D densities, scikit-learn's digits, TFDS images, arrays of the user, and folders of images."""

from flowjax.data.affine import Affine, DataError
from flowjax.data.dataset import Dataset
from flowjax.data.sets import DATASETS, open_dataset
from flowjax.data.spec import DataSpec

__all__ = ["DATASETS", "Affine", "DataError", "DataSpec", "Dataset", "open_dataset"]
