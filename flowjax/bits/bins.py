"""The bins of integers in model space: the integer k is the interval [edge, edge + width), and its centre between."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.typing import Batched

__all__ = ["Bins"]


@dataclass(frozen=True)
class Bins:
    """The bins of the entries of the last axis of an example.

    Attributes:
        widths: the width of a bin in model space for each entry of the last axis, or one for all; 0 where an entry is a
            real number.
        lowest: the centre of the bin of the smallest possible integer in model space, in the same way. It has
            a meaning only with `levels`; otherwise there is no smallest integer.
        levels: the number of possible integers, as of pixels; 0 if every integer is possible.
    """

    widths: tuple[float, ...]
    lowest: tuple[float, ...] = (0.0,)
    levels: int = 0

    @property
    def complete(self) -> bool:
        """Whether all entries are integers."""
        return min(self.widths) > 0

    @property
    def smallest(self) -> float:
        """The smallest width of a bin."""
        return min(width for width in self.widths if width > 0)

    @property
    def width(self) -> Float[np.ndarray, " C"]:
        """The widths as an array that broadcasts against examples."""
        return np.asarray(self.widths, np.float32)

    def centres(self, edges: Batched) -> Batched:
        """The centres of the bins with these lower edges; real numbers stay as they are."""
        return edges + 0.5 * self.width

    def index(self, centres: Batched) -> Float[Array, "B *event"]:
        """The number of the bin with these centres: 0 for the smallest integer, 1 for the next. It needs `levels`."""
        return jnp.round((centres - jnp.asarray(self.lowest, centres.dtype)) / self.width)
