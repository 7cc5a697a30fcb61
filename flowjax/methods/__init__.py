"""Objectives: pure loss functions `loss(params, key, batch) -> scalar`."""

from flowjax.methods import times, weights
from flowjax.methods.flow_matching import Diagnosed, DiagnosedLoss, Loss, conditional, diagnosed, marginal
from flowjax.methods.variational import variational

__all__ = [
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
