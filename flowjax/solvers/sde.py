"""diffrax's SDE solvers for dX = (v + g^2/2 score) dt + g dW, with a separate Brownian motion for each sample."""

from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float

from flowjax.abilities import HasEnds
from flowjax.precision import at_least_float32
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.rows import rows_of, with_rows
from flowjax.solvers.stochastic import drift
from flowjax.typing import Batched, Cond, PyTree

__all__ = ["SDE_SOLVERS", "evaluations", "solve_sde"]

_NAMES = ("EulerHeun", "ItoMilstein", "StratonovichMilstein", "SEA", "SRA1", "ShARK", "GeneralShARK", "SlowRK", "SPaRK")
SDE_SOLVERS: dict[str, Any] = {name.lower(): getattr(diffrax, name) for name in _NAMES}
"""diffrax's SDE solvers by name. g depends only on t, so the Ito and the Stratonovich solution are equal."""


def evaluations(name: str, steps: int) -> int:
    """The number of evaluations of the model in `steps` steps of the solver of that name.

    Each stage with a drift is one evaluation per step; a solver without a tableau has one evaluation per step.
    """
    tableau = getattr(SDE_SOLVERS[name], "tableau", None)
    if tableau is None:
        return steps
    ignored = 0 if tableau.ignore_stage_f is None else int(np.sum(tableau.ignore_stage_f))
    return steps * (len(tableau.c) + 1 - ignored)


@partial(jax.jit, static_argnames=("model", "g", "name"))
def solve_sde(
    model: HasEnds,
    x: Batched,
    times: Float[Array, " T"],
    keys: Any,
    *,
    g: Diffusion,
    name: str,
    cond: Cond = None,
) -> Batched:
    """Solves the SDE with one step between consecutive times.

    diffrax documents the order of each solver for additive noise; `evaluations` returns the cost.

    Args:
        model: a model with ends, on a path with a score.
        x: (B, *event) samples at times[0].
        times: (T,) increasing times.
        keys: (B,) keys.
        g: the diffusion, (path, t) -> g^2.
        name: the name of the solver in `SDE_SOLVERS`.
        cond: the condition, with leading axis B, or None.

    Returns:
        The state at times[-1], in the dtype of x but at least float32.
    """
    x, path = at_least_float32(x), model.path

    def one(x: Array, key: Array, cond: Cond, rows: PyTree) -> Array:
        lift = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
        one_model = with_rows(model, lift(rows))

        def f(t: Any, y: Array, args: Any) -> Array:
            point = y.reshape(1, *x.shape)
            return drift(path, g(path, t), t, point, one_model.ends(t, point, lift(cond))).reshape(-1)

        def noise(t: Any, y: Array, args: Any) -> lineax.DiagonalLinearOperator:
            return lineax.DiagonalLinearOperator(jnp.full(y.shape, jnp.sqrt(g(path, t)), y.dtype))

        brownian = diffrax.VirtualBrownianTree(
            times[0], times[-1], 0.5 * jnp.min(jnp.diff(times)), (x.size,), key, levy_area=diffrax.SpaceTimeLevyArea
        )
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(f), diffrax.ControlTerm(noise, brownian)),
            SDE_SOLVERS[name](),
            times[0],
            times[-1],
            dt0=None,
            y0=x.reshape(-1),
            stepsize_controller=diffrax.StepTo(times),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=times.shape[0],
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys[0].reshape(x.shape)

    return jax.vmap(one)(x, keys, cond, rows_of(model, x.shape[0]))
