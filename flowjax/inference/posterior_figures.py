"""The figures of runs on simulations: calibration, a corner plot of a posterior, and its posterior predictive check."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from flowjax import plots
from flowjax.data.simulated import OBSERVATION
from flowjax.inference import sampling
from flowjax.inference.calibration import calibrate, shaped
from flowjax.inference.figure_inputs import FigureInputs, check_finite
from flowjax.inference.reference_posteriors import path_of, reference_posteriors, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration", "corner", "predictive"]

_CORNER, _PREDICTIVE = 5000, 1000
"""The numbers of posterior samples."""

_SEED = 76


class _Posterior(NamedTuple):
    """Samples of the posterior of one observation, the true parameters, and samples of a reference if it is known."""

    observed: np.ndarray
    truth: np.ndarray
    samples: np.ndarray
    reference: np.ndarray | None


def calibration(inputs: FigureInputs) -> "Figure":
    """Draws the ranks and the expected coverage of held-out simulations."""
    found = calibrate(inputs.run, inputs.dataset, seed=inputs.seed, batch=inputs.batch)
    ranks, coverage = found.ranks, found.coverage
    bands = ((curves.low, curves.high) for curves in (ranks, coverage))
    return plots.calibration(ranks.levels, ranks.ecdf, coverage.ecdf[:, 0], *bands, names=_names(inputs))


def corner(inputs: FigureInputs) -> "Figure":
    """Draws a posterior: of the benchmark's first observation over the reference, or of the first test row."""
    found = _posterior(inputs, _CORNER)
    labels = ("posterior of the run", "reference posterior")
    return plots.corner(found.samples, _names(inputs), truth=found.truth, reference=found.reference, labels=labels)


def predictive(inputs: FigureInputs) -> "Figure":
    """Draws the same observation over simulations from samples of its posterior."""
    found, simulator = _posterior(inputs, _PREDICTIVE), inputs.dataset.simulator
    assert simulator is not None
    simulated = np.asarray(jax.jit(simulator.simulate)(jax.random.key(_SEED + inputs.seed), found.samples))
    return plots.predictive(_series(found.observed[None])[0], _series(simulated))


def _posterior(inputs: FigureInputs, num: int) -> _Posterior:
    """Samples of the posterior of the benchmark's first observation if its reference is there, or of a test row."""
    run, dataset, task = inputs.run, inputs.dataset, task_of(inputs.run)
    observed, truth, reference = np.asarray(dataset.test_cond[OBSERVATION][:1]), dataset.test[0], None
    if task is not None and path_of(task).is_file():
        known = reference_posteriors(task)
        observed, truth, reference = shaped(run, known.observation[:1]), known.true_parameters[0], known.reference[0]
    drawn = sampling.sample_each(run, num, {OBSERVATION: observed}, inputs.seed, batch=inputs.batch).samples[0]
    check_finite("numbers of the samples", drawn)
    return _Posterior(observed[0], truth.ravel(), drawn.reshape(num, -1), reference)


def _names(inputs: FigureInputs) -> tuple[str, ...]:
    """The names of the parameters; empty if they have only numbers."""
    return () if inputs.dataset.simulator is None else inputs.dataset.simulator.names


def _series(rows: np.ndarray) -> np.ndarray:
    """Observations as they are if they are vectors or series, and otherwise as vectors."""
    return rows if rows.ndim in (2, 3) else rows.reshape(len(rows), -1)
