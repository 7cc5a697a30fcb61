"""Simulators: a prior over parameters, and a stochastic program from parameters to observations.

`BENCHMARK` has the tasks of the benchmark of simulation-based inference (Lueckmann et al. 2021).
"""

from flowjax.simulators.benchmark import BENCHMARK
from flowjax.simulators.priors import LogNormal, MultivariateNormal
from flowjax.simulators.simulator import Simulator

__all__ = ["BENCHMARK", "LogNormal", "MultivariateNormal", "Simulator"]
