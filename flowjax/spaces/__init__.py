"""Spaces: where samples live, and the geometry that paths, solvers and couplings ask of it."""

from flowjax.spaces.base import Space, leaf_spaces
from flowjax.spaces.euclidean import EUCLIDEAN, Euclidean

__all__ = ["EUCLIDEAN", "Euclidean", "Space", "leaf_spaces"]
