"""Predictions: the quantities that a network can be trained to output, and models built from such networks.

`kinds` defines the parametrisations (velocity, noise, data, ...); `read` and `model` turn a network or a denoiser into
a model with a velocity and, where it exists, a score.
"""

from flowjax.abilities import Ends, VelocityField
from flowjax.predictions.kinds import (
    Denoiser,
    Prediction,
    data,
    edm,
    noise,
    noise_variance,
    score,
    v,
    velocity,
    velocity_score,
    well_conditioned,
)
from flowjax.predictions.reading import (
    DenoiserModel,
    PathModel,
    Reading,
    model,
    no_score,
    read,
    score_of,
)

__all__ = [
    "Denoiser",
    "DenoiserModel",
    "Ends",
    "PathModel",
    "Prediction",
    "Reading",
    "VelocityField",
    "data",
    "edm",
    "model",
    "no_score",
    "noise",
    "noise_variance",
    "read",
    "score",
    "score_of",
    "v",
    "velocity",
    "velocity_score",
    "well_conditioned",
]
