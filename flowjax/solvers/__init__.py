"""Solvers: from a field or a denoiser to samples."""

from flowjax.solvers import diffusions, grids
from flowjax.solvers.deterministic import DDIM, AdamsBashforth, EDMHeun, RungeKutta
from flowjax.solvers.exponential import DPMSolverPP2M, DPMSolverPP3M, UniPC
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS, Stats, solve_ode
from flowjax.solvers.sample import SAMPLERS, Options, known_solvers, make_sampler, sample
from flowjax.solvers.samplers import Carry, Method, Sampler, run
from flowjax.solvers.sde import SDE_SOLVERS, solve_sde
from flowjax.solvers.stochastic import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    PredictorCorrector,
    StochasticHeun,
)

__all__ = [
    "ADAPTIVE_SOLVERS",
    "DDIM",
    "SAMPLERS",
    "SDE_SOLVERS",
    "SOLVERS",
    "AdamsBashforth",
    "Ancestral",
    "AnnealedLangevin",
    "Carry",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "EDMHeun",
    "EulerMaruyama",
    "Method",
    "Options",
    "PredictorCorrector",
    "RungeKutta",
    "Sampler",
    "Stats",
    "StochasticHeun",
    "UniPC",
    "diffusions",
    "grids",
    "known_solvers",
    "make_sampler",
    "run",
    "sample",
    "solve_ode",
    "solve_sde",
]
