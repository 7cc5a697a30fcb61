"""Solvers: from a field to where its flow goes."""

from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS, Stats, solve_ode

__all__ = ["ADAPTIVE_SOLVERS", "SOLVERS", "Stats", "solve_ode"]
