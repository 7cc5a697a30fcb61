"""Objectives: pure loss functions `loss(params, key, batch) -> scalar`."""

from flowjax.objectives import times, weights
from flowjax.objectives.flow_matching import Batch, Diagnosed, DiagnosedLoss, Loss, conditional, diagnosed, marginal
from flowjax.objectives.variational import variational

__all__ = [
    "Batch",
    "Diagnosed",
    "DiagnosedLoss",
    "Loss",
    "conditional",
    "diagnosed",
    "marginal",
    "times",
    "variational",
    "weights",
]
