"""Metrics: distances between samples and data, scores of images, and the straightness of flows.

Submodules are imported on first use, so that a script which needs one metric does not import the rest of the package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowjax.metrics.c2st import c2st
    from flowjax.metrics.calibration import Bands, RankCurves, posterior_ranks, rank_curves, tarp_ranks, uniform_bands
    from flowjax.metrics.distances import (
        gaussian_mmd,
        mmd,
        sliced_wasserstein2_squared,
        wasserstein2_squared,
        wasserstein2_squared_pairs,
    )
    from flowjax.metrics.energy import crps, energy_distance, energy_score
    from flowjax.metrics.frechet import fid, frechet_distance
    from flowjax.metrics.images import score_images
    from flowjax.metrics.inception import inception_features, load_inception
    from flowjax.metrics.kid import kernel_distance
    from flowjax.metrics.local_c2st import LocalC2ST, local_c2st
    from flowjax.metrics.manifold import precision_recall
    from flowjax.metrics.marginals import correlation_error, marginal_distances
    from flowjax.metrics.moments import Moments
    from flowjax.metrics.path_energy import normalised_path_energy, path_energy
    from flowjax.metrics.reference import Reference, reference_statistics
    from flowjax.metrics.restoration import psnr, restoration
    from flowjax.metrics.series import autocorrelation, autocorrelation_error
    from flowjax.metrics.straightness import Straightness, straightness

_OBJECTS = {
    "c2st": "c2st",
    "Bands": "calibration",
    "RankCurves": "calibration",
    "posterior_ranks": "calibration",
    "rank_curves": "calibration",
    "tarp_ranks": "calibration",
    "uniform_bands": "calibration",
    "gaussian_mmd": "distances",
    "mmd": "distances",
    "sliced_wasserstein2_squared": "distances",
    "wasserstein2_squared": "distances",
    "wasserstein2_squared_pairs": "distances",
    "crps": "energy",
    "energy_distance": "energy",
    "energy_score": "energy",
    "fid": "frechet",
    "frechet_distance": "frechet",
    "score_images": "images",
    "inception_features": "inception",
    "load_inception": "inception",
    "kernel_distance": "kid",
    "LocalC2ST": "local_c2st",
    "local_c2st": "local_c2st",
    "precision_recall": "manifold",
    "correlation_error": "marginals",
    "marginal_distances": "marginals",
    "Moments": "moments",
    "normalised_path_energy": "path_energy",
    "path_energy": "path_energy",
    "Reference": "reference",
    "reference_statistics": "reference",
    "psnr": "restoration",
    "restoration": "restoration",
    "autocorrelation": "series",
    "autocorrelation_error": "series",
    "Straightness": "straightness",
    "straightness": "straightness",
}

__all__ = [
    "Bands",
    "LocalC2ST",
    "Moments",
    "RankCurves",
    "Reference",
    "Straightness",
    "autocorrelation",
    "autocorrelation_error",
    "c2st",
    "correlation_error",
    "crps",
    "energy_distance",
    "energy_score",
    "fid",
    "frechet_distance",
    "gaussian_mmd",
    "inception_features",
    "kernel_distance",
    "load_inception",
    "local_c2st",
    "marginal_distances",
    "mmd",
    "normalised_path_energy",
    "path_energy",
    "posterior_ranks",
    "precision_recall",
    "psnr",
    "rank_curves",
    "reference_statistics",
    "restoration",
    "score_images",
    "sliced_wasserstein2_squared",
    "straightness",
    "tarp_ranks",
    "uniform_bands",
    "wasserstein2_squared",
    "wasserstein2_squared_pairs",
]


def __getattr__(name: str) -> Any:
    if name in _OBJECTS:
        module = importlib.import_module(f"flowjax.metrics.{_OBJECTS[name]}")
        # All names of the module are bound: the import binds names such as `path_energy` and `c2st` to the modules, but
        # they must be the functions.
        globals().update({n: getattr(module, n) for n, where in _OBJECTS.items() if where == _OBJECTS[name]})
        return globals()[name]
    raise AttributeError(f"module 'flowjax.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
