"""Optimal transport between two batches of points: costs, exact assignment, the auction algorithm and Sinkhorn."""

from flowjax.transport.assignment import assign, entropic_potentials
from flowjax.transport.auction import auction
from flowjax.transport.cost import condition_penalty, pairwise_cost
from flowjax.transport.sinkhorn import Plan, draw_rows, round_plan, sinkhorn

__all__ = [
    "Plan",
    "assign",
    "auction",
    "condition_penalty",
    "draw_rows",
    "entropic_potentials",
    "pairwise_cost",
    "round_plan",
    "sinkhorn",
]
