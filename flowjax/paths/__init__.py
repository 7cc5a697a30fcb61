"""Probability paths: the bridges between a source sample and a data sample."""

from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.paths.base import Path, PathSample
from flowjax.paths.noise import Bridge, Constant, Gamma, Sine2

__all__ = ["AffinePath", "Bridge", "Constant", "Gamma", "GaussianPath", "Path", "PathSample", "Sine2"]
