"""What the figures of a run are drawn from: its data set, and samples that several figures share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flowjax.abilities import abilities_of
from flowjax.data import Dataset
from flowjax.inference import sampling
from flowjax.inference.data_of_run import dataset_of
from flowjax.inference.examples import quick_solver
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.run import Run

__all__ = [
    "LARGE",
    "PER_ROW",
    "POINTS",
    "FigureInputs",
    "PlotError",
    "check_finite",
    "has_velocity",
    "labels_of_rows",
    "only_labels",
]

POINTS, _WIDE_POINTS = 5000, 512
"""How many samples and test points are drawn at most; the second number is for examples with many coordinates."""

LARGE = 64
"""From this number of coordinates on, fewer samples are drawn, and divergences are estimated."""

PER_ROW = 8
"""The number of images of a class."""

_IMAGES, _CLASSES = 64, 10


class PlotError(ValueError):
    """A figure cannot be drawn because numbers of the run are not finite; the message is one line."""


@dataclass(frozen=True)
class FigureInputs:
    """What the figures of a run are drawn from. Each part is computed when a figure first needs it.

    Attributes:
        run: opened with `flowjax.load`.
        given: the data set of the run, if it is open already.
        seed: of the samples.
        batch: rows per batch of samples and points; 0 for a default.
    """

    run: Run
    given: Dataset | None = None
    seed: int = 0
    batch: int = 0

    @cached_property
    def dataset(self) -> Dataset:
        """The data set that the run was trained on."""
        return dataset_of(self.run) if self.given is None else self.given

    @cached_property
    def samples(self) -> sampling.Samples:
        """Samples of the run in data space, with their conditions; images by class where the classes are given."""
        run, spec = self.run, self.run.spec
        if spec.is_image:
            num, solver = _IMAGES, quick_solver(run)
            if (labels := labels_of_rows(run)) is not None:
                num, cond = len(labels), {"label": labels}
            else:
                cond = conditions_of_test(run, self.dataset, num)
            drawn = sampling.sample(run, num, self.seed, solver, batch=self.batch or num, cond=cond)
        else:
            num = POINTS if spec.d < LARGE else _WIDE_POINTS
            drawn = sampling.sample(
                run, num, self.seed, cond=conditions_of_test(run, self.dataset, num), batch=self.batch, labels="shares"
            )
        check_finite("numbers of the samples", drawn.samples)
        return drawn

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples and test points as vectors, (N, d) and (M, d)."""
        samples, test = self.samples.samples, self.dataset.test[:POINTS]
        return samples.reshape(len(samples), -1), test.reshape(len(test), -1)


def only_labels(run: Run) -> bool:
    """Whether a figure can show a run without other conditions."""
    return all(field.kind == "label" for field in run.fields)


def has_velocity(run: Run) -> bool:
    """Whether the model of a run has a velocity."""
    return "velocity" in abilities_of(run.model())


def labels_of_rows(run: Run) -> np.ndarray | None:
    """Eight labels of each of up to ten classes, for rows of images; None unless labels are all that is given."""
    if not run.fields or not only_labels(run) or run.given_source:
        return None
    classes = np.asarray(run.spec.classes, np.int32)
    chosen = classes[np.linspace(0, len(classes) - 1, min(_CLASSES, len(classes))).round().astype(int)]
    return np.repeat(chosen, PER_ROW)


def check_finite(what: str, *arrays: Any) -> None:
    """Raises PlotError if a number in the arrays is not finite; `what` names them in the message."""
    total = sum(a.size for a in arrays)
    bad = total - sum(int(np.isfinite(np.asarray(a)).sum()) for a in arrays)
    if bad:
        raise PlotError(f"{bad:,} of {total:,} {what} are not finite")
