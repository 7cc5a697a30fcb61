"""Whether log-densities have converged: what finer steps of the solver change for the first points."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from flowjax.inference.choose import SolverSettings
from flowjax.likelihood import smallest_tolerance

__all__ = ["CHECKED", "CONVERGED_WITHIN", "Convergence", "compared", "finer"]

CHECKED = 64
"""How many points are solved again by default."""

CONVERGED_WITHIN = 0.0035
"""The default limit of the mean difference, in nats per dimension: half of the second decimal of bits
per dimension, 0.005 log 2 = 0.0035."""


class Convergence(NamedTuple):
    """The comparison of log-densities with those of finer steps, in nats.

    Attributes:
        num: the number of points that were solved again.
        difference: the mean of the absolute differences.
        largest: the largest absolute difference.
        within: the limit of `difference`.
        finer: the solver of the comparison.
    """

    num: int
    difference: float
    largest: float
    within: float
    finer: SolverSettings

    @property
    def converged(self) -> bool:
        """Whether the mean difference is at most the limit."""
        return self.difference <= self.within

    def describe(self, solver: SolverSettings) -> str:
        """One line about a result that has not converged, with what to do."""
        if solver.steps is not None:
            changed = f"{self.finer.steps or 'adaptive'} instead of {solver.steps} steps"
            fix = "take many more steps, or adaptive ones, which are the default"
        else:
            changed = f"rtol={self.finer.rtol:g}, atol={self.finer.atol:g}"
            fix = f"take {changed} or smaller"
        return (
            f"warning: not converged: with {changed}, the log-densities of {self.num} points change by "
            f"{self.difference:.3g} nats on average and {self.largest:.3g} at most, and {self.within:.3g} are allowed: "
            f"{fix}"
        )


def finer(solver: SolverSettings) -> SolverSettings:
    """The solver with twice the steps, or a tenth of the tolerances, but no smaller ones than float32 can reach."""
    if solver.steps is not None:
        return replace(solver, steps=2 * solver.steps)
    least = smallest_tolerance(np.float64 if jax.config.read("jax_enable_x64") else np.float32)
    tenth = lambda tolerance: min(tolerance, max(tolerance / 10, 2 * least))
    return replace(solver, rtol=tenth(solver.rtol), atol=tenth(solver.atol))


def compared(values: np.ndarray, again: np.ndarray, within: float, solver: SolverSettings) -> Convergence:
    """Compares log-densities with those of finer steps. Points with the density 0 in both have the difference 0.

    Args:
        values, again: (N,) log-densities of the same points.
        within: the limit of the mean difference, in nats.
        solver: that of `again`.
    """
    same = values == again
    gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, values) - np.where(same, 0.0, again)))
    return Convergence(len(gap), float(gap.mean()), float(gap.max()), within, solver)
