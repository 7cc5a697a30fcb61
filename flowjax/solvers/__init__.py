"""Solvers and samplers, which compute samples from a model or a velocity field."""

from flowjax.solvers import diffusions, grids
from flowjax.solvers.deterministic import DDIM, AdamsBashforth, EDMHeun, RungeKutta
from flowjax.solvers.exponential import DPMSolverPP2M, DPMSolverPP3M, UniPC
from flowjax.solvers.flow_map import ConsistencySteps, FlowMapSteps
from flowjax.solvers.names import SAMPLERS, NamedSampler, Options, known_solvers, make_sampler, needs_of
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS, Stats, solve_ode
from flowjax.solvers.sample import sample
from flowjax.solvers.samplers import BaseSampler, BoundModel, Sampler, SamplerState, StochasticSampler, run
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
    "BaseSampler",
    "BoundModel",
    "ConsistencySteps",
    "DPMSolverPP2M",
    "DPMSolverPP3M",
    "EDMHeun",
    "EulerMaruyama",
    "FlowMapSteps",
    "NamedSampler",
    "Options",
    "PredictorCorrector",
    "RungeKutta",
    "Sampler",
    "SamplerState",
    "Stats",
    "StochasticHeun",
    "StochasticSampler",
    "UniPC",
    "diffusions",
    "grids",
    "known_solvers",
    "make_sampler",
    "needs_of",
    "run",
    "sample",
    "solve_ode",
    "solve_sde",
]
