"""Predictions: what a network's output means (`kinds`), and a network read as a denoiser, a velocity, a score
(`reading`)."""

from flowjax.predictions.kinds import (
    Denoiser,
    Ends,
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
    Reading,
    VelocityField,
    defined_on,
    field,
    no_score,
    read,
    score_field,
    score_of,
)

__all__ = [
    "Denoiser",
    "Ends",
    "Prediction",
    "Reading",
    "VelocityField",
    "data",
    "defined_on",
    "edm",
    "field",
    "no_score",
    "noise",
    "noise_variance",
    "read",
    "score",
    "score_field",
    "score_of",
    "v",
    "velocity",
    "velocity_score",
    "well_conditioned",
]
