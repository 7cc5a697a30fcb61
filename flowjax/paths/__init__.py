"""Probability paths: random interpolants between a source sample x0 at t = 0 and a data sample x1 at t = 1."""

from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.paths.base import Path, PathSample
from flowjax.paths.noise import Bridge, Constant, Fading, Gamma, Sine2

__all__ = ["AffinePath", "Bridge", "Constant", "Fading", "Gamma", "GaussianPath", "Path", "PathSample", "Sine2"]
