"""Samples of a run on images beside the images that they were made from, and the truth: for figures and metrics.

The images that a sample is made from are conditions of the kind `image`, source samples of the run's pairs
(`data.pairs`), or images of a data set that is the source (`source.name=npz`).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from flowjax.abilities import abilities_of
from flowjax.data import Dataset
from flowjax.inference import sampling
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.program import keys_of_seed, source_noise
from flowjax.inference.run import Run
from flowjax.sources import Empirical

__all__ = ["Examples", "examples_of", "given_images", "quick_solver"]

_STEPS, _SDE_STEPS = 25, 100


class Examples(NamedTuple):
    """Samples beside what they were made from.

    Attributes:
        given: (N, H, W, C) images by the name of the condition, of `data.pairs`, or `source`; in data space. NaN where
            a pixel is not given.
        samples: (K, N, H, W, C), K samples for each row.
        truth: (N, H, W, C) test images; None if the source is a data set without pairs.
        nfe: the largest number of evaluations that a sample took.
    """

    given: dict[str, np.ndarray]
    samples: np.ndarray
    truth: np.ndarray | None
    nfe: int


def given_images(run: Run) -> tuple[str, ...]:
    """The names of the images from which samples of a run are made; empty if there are none."""
    if not run.spec.is_image:
        return ()
    names = [field.name for field in run.fields if field.kind == "image"]
    pairs = run.given_source
    if names or pairs:
        return tuple(dict.fromkeys(names + [pairs] * bool(pairs)))
    return ("source",) if isinstance(getattr(run.method, "source", None), Empirical) else ()


def quick_solver(run: Run) -> SolverSettings:
    """A solver with few steps: of the SDE if the samples of an ODE would not differ from each other."""
    offered = abilities_of(run.model())
    if run.given_source and "score" in offered and "velocity" in offered:
        return SolverSettings("euler_maruyama", steps=_SDE_STEPS)
    return SolverSettings("heun", steps=_STEPS) if "velocity" in offered else DEFAULT_SOLVER


def examples_of(
    run: Run,
    dataset: Dataset,
    rows: int,
    each: int,
    seed: int = 0,
    solver: SolverSettings | None = None,
    batch: int = 0,
    show: bool = False,
) -> Examples:
    """Draws samples for the first test images.

    Args:
        run: opened with `flowjax.load`, with `given_images`.
        dataset: the data set of the run.
        rows: the number of rows N, at most that of the test images; a source without pairs has any number.
        each: the number of samples of each row, K. Of a source without pairs there is one sample for each row.
        seed, batch, show: as for `flowjax.inference.sample`.
        solver: how to integrate; None for `quick_solver`.
    """
    solver, names = solver or quick_solver(run), given_images(run)
    if names == ("source",):
        drawn = sampling.sample(run, rows, seed, solver, batch=batch or rows, show=show)
        sources = source_noise(run, keys_of_seed(seed, 3)[0], jnp.arange(rows))
        return Examples({"source": run.spec.finish(np.asarray(sources))}, drawn.samples[None], None, drawn.nfe)
    rows = min(rows, len(dataset.test))
    cond = conditions_of_test(run, dataset, rows)
    repeated = {name: np.concatenate([a] * each) for name, a in cond.items()}
    drawn = sampling.sample(run, rows * each, seed, solver, batch=batch or rows * each, cond=repeated, show=show)
    samples = drawn.samples.reshape(each, rows, *run.spec.shape)
    return Examples({name: cond[name] for name in names}, samples, dataset.test[:rows], drawn.nfe)
