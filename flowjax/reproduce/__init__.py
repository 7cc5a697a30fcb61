"""Experiments that reproduce papers and answer questions, each with one command (`flowjax reproduce`)."""

from flowjax.reproduce.experiment import Experiment, Form
from flowjax.reproduce.results import Measurement, Results
from flowjax.reproduce.study import Study, Trained, file_name

__all__ = ["Experiment", "Form", "Measurement", "Results", "Study", "Trained", "file_name"]
