"""Objectives: pure loss functions `loss(params, key, batch) -> scalar`."""

from flowjax.objectives.flow_matching import Batch, Loss, conditional, marginal

__all__ = ["Batch", "Loss", "conditional", "marginal"]
