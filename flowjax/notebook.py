"""Notebooks: the curve of the loss, which is drawn again during training."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

__all__ = ["LiveLoss"]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {"loss": "training", "val_loss": "validation"}


class LiveLoss:
    """Draws the training and the validation loss in the output of a notebook cell.

    The figure appears with the first record of the training, and each further record replaces it:

        run = flowjax.train("gaussians8", callback=flowjax.notebook.LiveLoss())

    Args:
        log: whether the axis of the loss is logarithmic.
        dpi: resolution of the figure in dots per inch.

    Attributes:
        records: the records of `metrics.jsonl` so far.
    """

    def __init__(self, log: bool = False, dpi: int = 72):
        self.log, self.dpi = log, dpi
        self.records: list[dict[str, Any]] = []
        self._handle: Any = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Adds a record, and draws the figure again."""
        from IPython.display import Image, display

        self.records.append(dict(record))
        image = Image(self.png())
        if self._handle is None:
            self._handle = display(image, display_id=True)
        else:
            self._handle.update(image)

    def png(self) -> bytes:
        """The figure of all records so far, as the contents of a .png file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure, out = Figure(figsize=(5.0, 2.8), dpi=self.dpi, layout="constrained"), io.BytesIO()
        FigureCanvasAgg(figure)
        self._draw(figure)
        figure.savefig(out, format="png")
        return out.getvalue()

    def _draw(self, figure: "Figure") -> None:
        axes, steps = figure.subplots(), [record["step"] for record in self.records]
        for name, label in _CURVES.items():
            losses = [float("nan") if record[name] is None else record[name] for record in self.records]
            axes.plot(steps, losses, marker=".", label=f"{label}: {losses[-1]:.4g}")
        axes.set(xlabel="step", ylabel="loss", yscale="log" if self.log else "linear")
        axes.legend()
        axes.grid(alpha=0.3)
