"""Points of a run mapped to its source, and points of the source mapped to data: the two directions of a flow.

Both need a deterministic map with an inverse: the ODE of a velocity, or a bijection. Equal conditions in both
directions give back the points, up to the tolerances of the solver; other conditions in the second direction change a
point while what the conditions do not explain stays the same.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.abilities import abilities_of, velocity_of
from flowjax.errors import ConfigError
from flowjax.inference.batches import (
    default_batch,
    everywhere,
    in_batches,
    over_rows,
    rows_of_a_block,
    rows_of_this_process,
)
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.dequantisations import dequantisation_of
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.points import check_array, check_points
from flowjax.inference.program import keys_of_seed
from flowjax.inference.run import Run
from flowjax.solvers import Stats, solve_ode
from flowjax.training import processes

__all__ = ["Mapped", "decode", "encode"]


class Mapped(NamedTuple):
    """The result of `encode` and `decode`.

    Attributes:
        points: (N, *event): of `encode` points of the source, in the scale in which `Run.prior` has its density; of
            `decode` data, in the units of the data.
        nfe: the largest number of evaluations that a point took.
    """

    points: np.ndarray
    nfe: int


def encode(
    run: Run,
    x: np.ndarray,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
) -> Mapped:
    """Maps data to the source of the run, by its ODE backwards in time or by its inverse.

    Args:
        run: opened with `flowjax.load`.
        x: (N, *event) in data space. If the run's data are integers and all of x are, they are dequantised by `seed`.
        cond: conditions by name, in data space, with one row for all points or one row per point. For a condition that
            is absent the network gets its null value.
        seed: of dequantisation; row i depends only on the seed and on i. The noise is the first draw of
            `flowjax.inference.log_prob` with this seed (`flowjax.inference.dequantisations`).
        solver: an ODE solver with its tolerances or its number of equal steps; `dopri5` by default.
        batch, show: as for `flowjax.inference.sample`.

    Raises:
        SolverFault: if an adaptive solve does not reach its final time.
        ConfigError: if the model has neither a velocity nor an inverse, the data have a mask, a point is not finite, or
            a condition is missing or does not fit.
    """
    check_points(run.spec, x)
    noise, (key, _) = dequantisation_of(run, x), keys_of_seed(seed, 2)  # the keys of `flowjax.inference.log_prob`

    def prepare(model: Any, rows: Array, edges: Array, cond: dict[str, Array]) -> Array:
        if noise is None:
            return edges
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 0))(rows)
        return noise.draw(model, keys, edges, cond).z

    return _mapped(run, run.spec.to_model(x), cond, False, prepare, solver, batch, show)


def decode(
    run: Run,
    z: np.ndarray,
    cond: Mapping[str, Any] | None = None,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
) -> Mapped:
    """Maps points of the source to data, by the ODE of the run or by its bijection.

    Args:
        run: opened with `flowjax.load`.
        z: (N, *event) points of the source, such as `encode(run, x).points`.
        cond, solver, batch, show: as for `encode`.

    Raises:
        SolverFault, ConfigError: as for `encode`.
    """
    check_array(run.spec, z, "points z")
    found = _mapped(run, np.asarray(z, np.float32), cond, True, lambda model, rows, z, cond: z, solver, batch, show)
    return found._replace(points=run.spec.finish(found.points))


def _mapped(
    run: Run,
    points: np.ndarray,
    cond: Mapping[str, Any] | None,
    to_data: bool,
    prepare: Any,
    solver: SolverSettings,
    batch: int,
    show: bool,
) -> Mapped:
    """Maps encoded points (N, *event) in batches, each process a share.

    `prepare(model, rows, points, cond)` precedes the map.
    """
    verb = "decode" if to_data else "encode"
    has_solve = _check(run, verb)
    given = encode_given(run, cond, len(points), "point", verb, fill_labels=True)
    names, mine = solver.tolerances["solver"], rows_of_this_process(len(points))
    t0, t1 = run.interval if has_solve else (0.0, 1.0)

    def step(shared: Any, rows: Array, x: Array, cond: dict[str, Array]) -> tuple[dict[str, Array], Stats]:
        model = run.model(*shared)
        x = prepare(model, rows, x, cond)
        if not has_solve:
            y = (model.forward if to_data else model.inverse)(x, cond)[0]
            return {"points": y}, Stats(jnp.ones(len(x), int), jnp.ones(len(x), bool))
        ends = (t0, t1) if to_data else (t1, t0)
        y, stats = solve_ode(velocity_of(model), x, cond=cond, t0=ends[0], t1=ends[1], **solver.tolerances)
        return {"points": y}, stats

    rows = {name: a[mine] for name, a in given.rows.items()}
    arrays = (np.arange(len(points), dtype=np.int32)[mine], points[mine], rows)
    size = rows_of_a_block(batch or default_batch(run.spec.d))
    block = partial(over_rows(step), everywhere(run.arrays))
    values = in_batches(block, arrays, size, solver=names, label=verb, show=show).values
    found = {name: processes.gathered(a) for name, a in values.items()}
    return Mapped(found["points"], int(found["nfe"].max()))


def _check(run: Run, verb: str) -> bool:
    """Whether the map is the solve of an ODE, and not a bijection; ConfigError if the run has neither."""
    offered = abilities_of(run.model())
    if run.spec.has_mask:
        raise ConfigError(f"data {run.spec.name!r} has a mask of absent elements: {verb} is for data without one")
    if not {"velocity", "bijection"} & set(offered):
        raise ConfigError(
            f"the model of method.name {run.config.method.name!r} has neither a velocity nor an inverse, so it cannot "
            f"{verb} points: sample instead"
        )
    return "velocity" in offered
