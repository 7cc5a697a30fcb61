"""The data set of a run, opened again and compared with the data that the run was trained on."""

from collections.abc import Sequence
from pathlib import Path

from flowjax.build import data_arguments
from flowjax.config import Config
from flowjax.data import DataError, Dataset, DataSpec, open_dataset
from flowjax.inference.run import Run
from flowjax.training.writers import say

__all__ = ["check_same_data", "dataset_of", "open_data"]


def open_data(config: Config, plugins: Sequence[str]) -> Dataset:
    """Opens the data set of a config, and prints its notes on stderr. Only the modules in `plugins` may be imported."""
    dataset = open_dataset(*data_arguments(config), plugins=plugins)
    for note in dataset.notes:
        say(f"data: {note}")
    return dataset


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
