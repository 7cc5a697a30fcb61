"""The metrics of runs that make images from other images: distances to the test images, and to what was given."""

from typing import Any

import numpy as np

from flowjax.data import Dataset
from flowjax.data.degrade import DEGRADED, make_degrade
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.examples import examples_of, given_images
from flowjax.inference.run import Run
from flowjax.metrics.restoration import restoration
from flowjax.training.writers import say

__all__ = ["OF_RESTORED", "restoration_metrics"]

OF_RESTORED = ("psnr_sample", "psnr_mean", "psnr_given", "sample_spread", "consistency")
"""The metrics of restored images."""

_ROWS, _EACH = 256, 4


def restoration_metrics(
    run: Run, dataset: Dataset, seed: int = 0, solver: SolverSettings = DEFAULT_SOLVER, batch: int = 0
) -> dict[str, Any]:
    """The metrics of `flowjax.metrics.restoration` for 4 samples of each of up to 256 test images.

    Args:
        run, dataset, seed, solver, batch: as for `flowjax.inference.evaluate`. The default solver is replaced by
            `examples.quick_solver`.

    Returns:
        The metrics by name; empty for a run that makes no images from images of its test set.
    """
    names = given_images(run)
    if not names or names == ("source",):
        return {}
    say(f"evaluate: {_EACH} samples for each of {min(_ROWS, len(dataset.test))} test images")
    quick = None if solver == DEFAULT_SOLVER else solver
    found = examples_of(run, dataset, _ROWS, _EACH, seed, quick, batch or _ROWS, show=True)
    assert found.truth is not None
    pairs, peak = run.given_source, run.spec.levels - 1 if run.spec.levels else float(np.ptp(dataset.test))
    of_data = next((name for name in (DEGRADED, pairs) if name in found.given), None)
    degrade = None
    if DEGRADED in found.given and run.config.data.degrade:
        degrade = make_degrade(run.config.data.degrade, run.spec)
    given = None if of_data is None else found.given[of_data]
    return restoration(found.samples, found.truth, peak, given, degrade)
