"""Metrics: how far samples are from data, and how straight a flow's paths are."""

from flowjax.metrics.distances import mmd, wasserstein2_squared, wasserstein2_squared_pairs
from flowjax.metrics.path_energy import normalised_path_energy, path_energy

__all__ = ["mmd", "normalised_path_energy", "path_energy", "wasserstein2_squared", "wasserstein2_squared_pairs"]
