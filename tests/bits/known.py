"""Runs whose models and data are known in closed form: mixtures of points or normals on integers."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from flowjax import oracles
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.data import DataSpec
from flowjax.data.affine import image_scale
from flowjax.inference.run import Run
from flowjax.methods import Network
from flowjax.paths import GaussianPath
from flowjax.predictions import velocity

PROBABILITIES = np.array([0.5, 0.2, 0.2, 0.1])
"""The probabilities of the integers 0 to 3 in one pixel."""

IMAGES = np.array([[0, 0, 1, 3], [3, 2, 0, 0], [1, 1, 1, 1]]).reshape(3, 2, 2, 1)
SHARES = np.array([0.5, 0.3, 0.2])
"""Three images of 2 x 2 pixels with 4 levels, and their probabilities."""


def points(path, spec, rows, probabilities):
    """The exact model of data that are these integers, at the centres of their bins."""
    centres = np.asarray(spec.to_model(np.asarray(rows, np.float64) + 0.5))
    zeros = jnp.zeros(len(rows))
    return oracles.Oracle(path, jnp.asarray(centres), zeros, jnp.log(jnp.asarray(probabilities, jnp.float32)))


def pixels(shape, dequantisation="none"):
    """The description of images or vectors of four levels."""
    return DataSpec("npz", shape, image_scale(4), levels=4, dequantisation=dequantisation)


def run_of(spec, schedule, oracle_of, **keys):
    """A run of flow matching on a Gaussian path whose network is the velocity of the oracle `oracle_of(path)`."""
    config = defaults("mlp")
    given = {"data.name": "npz", "path.schedule": schedule, "data.dequantisation": spec.dequantisation, **keys}
    config = changed(config, given)
    method = build(config, spec)
    oracle = oracle_of(method.path)
    apply = lambda params, t, x, cond: velocity.from_ends(method.path, t, x, oracle.ends(t, x))
    method = dataclasses.replace(method, network=Network.from_function(apply), prediction=velocity)
    assert isinstance(method.path, GaussianPath)
    return Run(Path("run"), config, 0, spec, method, {})
