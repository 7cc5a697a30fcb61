"""The base class of the guides."""

from collections.abc import Mapping

from flowjax.abilities import HasEnds, interval_of, missing_from
from flowjax.paths.affine import AffinePath
from flowjax.predictions import PathModel

__all__ = ["Guide"]


class Guide(PathModel):
    """A model that guides another model: it has the same path and can be evaluated at the same times.

    Attributes:
        model: the model that is guided.
    """

    model: HasEnds

    @property
    def path(self) -> AffinePath:
        return self.model.path

    @property
    def interval(self) -> tuple[float, float]:
        return interval_of(self.model)

    @property
    def missing(self) -> Mapping[str, str]:
        return missing_from(self.model)
