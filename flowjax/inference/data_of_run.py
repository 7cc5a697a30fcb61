"""The data set of a run, opened again and compared with the data that the run was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowjax.build import data_arguments
from flowjax.config import Config
from flowjax.data import DataError, Dataset, DataSpec, open_dataset
from flowjax.data.model_pairs import PairFolder
from flowjax.inference.run import Run
from flowjax.training.writers import say

__all__ = ["check_same_data", "dataset_of", "open_data", "origin_of"]


def open_data(config: Config, plugins: Sequence[str]) -> Dataset:
    """Opens the data set of a config, and prints its notes on stderr. Only the modules in `plugins` may be imported."""
    dataset = open_dataset(*data_arguments(config), plugins=plugins)
    for note in dataset.notes:
        say(f"data: {note}")
    return dataset


def origin_of(run: Run) -> dict[str, Any]:
    """The arguments of `open_dataset` for the data of a run; for a run on pairs of a model, those of the model."""
    if run.spec.paired_source:
        return dict(PairFolder.open(Path(run.config.data.path)).origin)
    names = ("name", "path", "cond", "pairs", "normalise", "simulator", "degrade", "dequantisation")
    return dict(zip(names, data_arguments(run.config), strict=True))


def dataset_of(run: Run) -> Dataset:
    """Opens the data set that the run was trained on.

    Raises:
        DataError: if the data are missing, or differ from the data that the run was trained on.
    """
    dataset = open_data(run.config, run.plugins)
    check_same_data(run.workdir, dataset.spec, run.spec)
    return dataset


def check_same_data(workdir: Path, now: DataSpec, trained: DataSpec) -> None:
    """Raises DataError if the data of a run differ from the data that it was trained on."""
    if differences := now.differences(trained):
        raise DataError(f"the data of {workdir} have changed since it was started: {'; '.join(differences)[:300]}")
