"""Spaces: the sets in which samples lie, with their geometry."""

from flowjax.spaces.base import Space
from flowjax.spaces.euclidean import EUCLIDEAN, Euclidean, check_euclidean

__all__ = ["EUCLIDEAN", "Euclidean", "Space", "check_euclidean"]
