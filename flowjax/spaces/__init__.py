"""Spaces: the sets in which samples lie, with the geometry that paths, solvers and couplings use."""

from flowjax.spaces.base import Space, leaf_spaces
from flowjax.spaces.euclidean import EUCLIDEAN, Euclidean

__all__ = ["EUCLIDEAN", "Euclidean", "Space", "leaf_spaces"]
