"""Notebooks: the curve of the loss, which is drawn again during training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowjax import extras, plots

__all__ = ["LiveLoss"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LiveLoss:
    """Draws the training and the validation loss in the output of a notebook cell.

    The figure appears with the first record of the training, and each further record replaces it:

        run = flowjax.train("gaussians8", callback=flowjax.notebook.LiveLoss())

    Attributes:
        records: the records of `metrics.jsonl` so far.
    """

    def __init__(self):
        self.records: list[dict[str, Any]] = []
        self._handle: Any = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Adds a record, and draws the figure again."""
        extras.require("IPython", "notebooks")
        from IPython.display import display

        self.records.append(dict(record))
        if self._handle is None:
            self._handle = display(self.figure(), display_id=True)
        else:
            self._handle.update(self.figure())

    def figure(self) -> "Figure":
        """The figure of all records so far."""
        return plots.losses_of_records(self.records)
