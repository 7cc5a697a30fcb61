"""Step size controllers of diffrax without its checks of their arguments at run time.

diffrax checks times that are arguments of a compiled program by a callback to the host. A program with a callback is
not kept in JAX's compilation cache, and the host waits for its result. flowjax checks the times before it compiles.
(diffrax's Brownian motion, and so its SDE solvers, contain such callbacks anyway.)
"""

from typing import Any

import diffrax

__all__ = ["FromFirstStep", "StepTo"]


class FromFirstStep(diffrax.PIDController):
    """A `diffrax.PIDController` whose first step is a fraction of the interval; `diffeqsolve` is called with dt0=None.

    Attributes:
        first_step: the fraction.
    """

    first_step: float = 0.01

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, Any]:
        return super().init(terms, t0, t1, y0, self.first_step * (t1 - t0), args, func, error_order)


class StepTo(diffrax.StepTo):
    """A `diffrax.StepTo` for times that increase or decrease strictly."""

    def wrap(self, direction: Any) -> "StepTo":
        return StepTo(self.ts * direction)

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, Any]:
        return self.ts[1], 2
