"""Probability paths: the bridges between a source sample and a data sample."""

from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.paths.base import Path, PathSample

__all__ = ["AffinePath", "GaussianPath", "Path", "PathSample"]
