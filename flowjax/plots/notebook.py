"""A matplotlib figure that notebooks show without pyplot. Importing this module imports matplotlib."""

from flowjax.extras import require
from flowjax.plots.style import to_bytes

require("matplotlib", "plots")
from matplotlib.figure import Figure  # noqa: E402

__all__ = ["NotebookFigure"]


class NotebookFigure(Figure):
    """A figure that a notebook shows if it is the value of a cell."""

    def _repr_png_(self) -> bytes:
        return to_bytes(self)
