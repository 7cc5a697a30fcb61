"""Pairs (x0, x1) from a trained run, for reflow and distillation (Liu et al. 2022, arXiv:2209.03003).

x1 is the sample to which the run maps the source sample x0. A share of the pairs can come from real data: then x1 is a
training row, and x0 is found by solving the ODE of the run backwards in time (Lee et al. 2024, arXiv:2405.20320).

Pairs are kept in blocks, from which the same call continues after an interruption. Pair i depends only on the seed and
on i.
"""

import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.abilities import abilities_of, velocity_of
from flowjax.batch import Batch
from flowjax.data import Dataset, open_dataset
from flowjax.data.batches import prepared
from flowjax.data.model_pairs import DESCRIPTION, X0, PairFolder
from flowjax.errors import ConfigError, RunFault
from flowjax.inference.batches import Meter, default_batch, everywhere, in_batches, over_rows, rows_of_a_block
from flowjax.inference.choose import DEFAULT_SOLVER, Choice, Guide, SolverSettings, choose
from flowjax.inference.data_of_run import dataset_of, origin_of
from flowjax.inference.figure_inputs import only_labels
from flowjax.inference.finished_batches import Block, differences, request_of
from flowjax.inference.program import LabelRule, compile_pairs, other_seed
from flowjax.inference.run import Run
from flowjax.solvers import SDE_SOLVERS, Stats, solve_ode
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, SOLVERS
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["MadePairs", "make_pairs"]

_BATCHES = 8
"""Number of batches in a block. The first block has a single batch, so that pairs are kept early."""

_REAL = 0x4EA1  # folded into the key of the seed, for the choice of training rows


class MadePairs(NamedTuple):
    """The result of `make_pairs`.

    Attributes:
        folder: the folder of the pairs.
        num: the number of pairs.
        transport_cost: the mean of |x1 - x0|^2 over the pairs, in model space.
    """

    folder: Path
    num: int
    transport_cost: float


def make_pairs(
    run: Run,
    folder: Path,
    num: int,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    guide: Guide | None = None,
    batch: int = 0,
    real: float = 0.0,
    labels: LabelRule = "shares",
) -> MadePairs:
    """Makes pairs with a run and keeps them in a folder, a data set of the name `pairs`.

    Conditions of the network are kept with the pairs. Labels are chosen by a rule; if there are other conditions, those
    of random training rows are taken.

    Args:
        run: opened with `flowjax.load`.
        folder: the folder. If it holds pairs of the same call, this one continues.
        num: number of pairs, at least 2.
        seed: of the noise, the labels and the choice of training rows. The source samples are independent of those of
            `flowjax.inference.sample` with the same seed.
        solver, guide, batch: as for `flowjax.inference.sample`; the sampler must be deterministic.
        real: the share of pairs whose x1 is a training row, between 0 and 1. It needs a velocity, and an explicit ODE
            solver, which takes equal steps if it has a fixed number of them.
        labels: how the classes of the other pairs are chosen.

    Raises:
        ConfigError: if the run has a mask or source samples of its own, the sampler cannot be used, or the folder holds
            other pairs.
        RunFault: if pairs are not finite.
    """
    choice = choose(run, solver, guide, show=True)
    _check(run, choice, num, real)
    size = rows_of_a_block(batch or default_batch(run.spec.d))
    options = {"num": num, "batch": size, "seed": seed, "real": real, "labels": labels}
    request = request_of(run, choice.solver, guide, {}, **options)
    processes.check_same("request", request)
    spec = replace(run.spec, paired_source=run.config.source.name)
    kept = PairFolder(folder, spec, num, origin_of(run), request, tuple(field.name for field in run.fields))
    done = _continue(kept)
    made = _maker(run, choice, seed, real, labels) if done < num else None
    every = _BATCHES * size
    starts = [done, *range(done + size, num, every)] if done < num else []
    with closing(Meter(num, done, "pairs", "pair", processes.is_primary())) as meter:
        for start, stop in itertools.pairwise([*starts, num]):
            assert made is not None
            block = made(np.arange(start, stop, dtype=np.int32), size)
            if bad := sum(int((~np.isfinite(block[x].reshape(len(block[x]), -1)).all(1)).sum()) for x in (X0, "x1")):
                raise RunFault(f"{bad} of {len(block[X0])} pairs are not finite: use another solver or more steps")
            if processes.is_primary():
                kept.write(start, block)
            meter.dispatched()  # after the first block, whose time is that of the compilation
            meter.advance(stop - start, 0 if start == done else stop - start)
    processes.wait("pairs written")
    return MadePairs(folder, num, _transport_cost(kept, every))


def _check(run: Run, choice: Choice, num: int, real: float) -> None:
    if run.spec.has_mask:
        raise ConfigError(f"data {run.spec.name!r} has a mask of absent elements, of which no pairs can be made")
    if run.given_source:
        raise ConfigError(f"the run was trained on given source samples, data.pairs {run.given_source!r}: it has pairs")
    if "source" not in run.config:
        raise ConfigError(f"method.name {run.config.method.name!r} has no section source, of which pairs need samples")
    if num < 2:
        raise ConfigError(f"at least 2 pairs are needed, not {num}: one is held out")
    name = choice.solver.name
    if name in SDE_SOLVERS or (choice.sampler is not None and choice.sampler.stochastic):
        raise ConfigError(f"solver {name!r} adds noise, so that x1 does not follow from x0: use an ODE solver")
    if not 0 <= real <= 1:
        raise ConfigError(f"the share of real pairs must be between 0 and 1, not {real:g}")
    if not real:
        return
    if "velocity" not in abilities_of(run.model()):
        raise ConfigError(f"real pairs need the velocity, which method.name {run.config.method.name!r} does not offer")
    if name not in (SOLVERS if choice.solver.steps is not None else ADAPTIVE_SOLVERS):
        raise ConfigError(f"real pairs are made by an ODE solver in reverse, such as dopri5 or heun, not by {name!r}")


def _continue(kept: PairFolder) -> int:
    """Creates the folder, or compares its request; returns the number of pairs that it has.

    Only the first of several processes creates it.
    """
    folder, fix = kept.folder, "remove the folder, or take another one"
    if (folder / DESCRIPTION).exists():
        known = PairFolder.open(folder)
        if text := differences(known.request, kept.request):
            raise ConfigError(f"{folder} holds pairs of another model or request: {text}; {fix}")
        if 0 < known.finished < known.num:
            say(f"pairs: going on from the {known.finished} pairs in {folder}")
        return min(known.finished, known.num)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds other files than pairs: {fix}")
    processes.wait("pairs looked for")
    if processes.is_primary():
        try:
            kept.create()
        except OSError as error:
            raise RunFault(f"cannot write to {folder}: {error.strerror}") from None
    return 0


def _maker(
    run: Run, choice: Choice, seed: int, real: float, labels: LabelRule
) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """The function from the numbers of pairs and the size of a batch to the arrays of `PairFolder`."""
    chosen = only_labels(run)
    training = None if chosen and not real else _training_rows(run, seed)
    rule = "none" if not run.fields or not chosen else labels
    draw = compile_pairs(choice, other_seed(seed), rule)
    invert = _inversion(choice) if real else None
    name = choice.solver.name

    def solved(block: Any, arrays: tuple[Any, ...], size: int) -> Block:
        rows = len(arrays[0])
        shared = rows >= processes.process_count() > 1
        mine = processes.share(rows) if shared else slice(None)
        values = in_batches(block, jax.tree.map(lambda a: a[mine], arrays), size, solver=name, label="pairs").values
        return {key: processes.gathered(a) if shared else a for key, a in values.items()}

    def made(rows: np.ndarray, size: int) -> dict[str, np.ndarray]:
        is_real = np.floor((rows + 1) * real) > np.floor(rows * real)
        parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        for which in (False, True):
            if not len(some := rows[is_real == which]):
                continue
            given = None if training is None else training(some)
            cond = {} if given is None or (chosen and not which) else dict(given.cond or {})
            if which:
                assert given is not None
                assert invert is not None
                values = solved(invert, (some, given.x1, cond), size) | {"x1": given.x1}
            else:
                values = solved(draw, (some, cond), size)
            cond |= {"label": values["label"]} if "label" in values else {}
            arrays = {X0: values[X0], "x1": values["x1"]} | {f"cond_{key}": a for key, a in cond.items()}
            parts.append((some, arrays))
        order = np.argsort(np.concatenate([some for some, _ in parts]))
        return {key: np.concatenate([arrays[key] for _, arrays in parts])[order] for key in parts[0][1]}

    return made


def _inversion(choice: Choice) -> Any:
    """The compiled solve from the data back to the source, for rows of `in_batches`."""
    solver, scale = choice.solver, choice.start_scale
    low, high = choice.interval or (0.0, 1.0)
    assert choice.arrays is not None

    def invert(arrays: Any, rows: Array, x1: Array, cond: dict[str, Array]) -> tuple[dict[str, Array], Stats]:
        velocity = velocity_of(choice.model(*arrays))
        tolerances = {"rtol": solver.rtol, "atol": solver.atol, "steps": solver.steps}
        x, stats = solve_ode(velocity, x1, cond=cond or None, t0=high, t1=low, solver=solver.name, **tolerances)
        return {X0: x / scale}, stats

    return partial(over_rows(invert), everywhere(choice.arrays))


def _training_rows(run: Run, seed: int) -> Callable[[np.ndarray], Batch]:
    """The function from the numbers of pairs to training rows in model space, of which row i depends on i only."""
    dataset = _real_data(run)
    names = [field.name for field in run.fields]
    key = jax.random.fold_in(jax.random.key(seed), _REAL)
    rows = dataset.rows
    arrays = jax.device_put(dataset.arrays())

    def ready(i: Any, row: Batch) -> Batch:
        cond = {name: (row.cond or {})[name] for name in names}
        return prepared(dataset.spec, jax.random.fold_in(jax.random.fold_in(key, i), 1), Batch(row.x1, cond))

    def drawn(arrays: Any, i: Any) -> Batch:
        assert dataset.sample is not None
        return ready(i, dataset.sample(arrays, jax.random.fold_in(key, i), 1))

    first = lambda batch: jax.tree.map(lambda a: a[:, 0], batch)
    from_arrays = jax.jit(lambda arrays, i: first(jax.vmap(drawn, (None, 0))(arrays, i)))
    prepare = jax.jit(jax.vmap(ready))

    def take(index: np.ndarray) -> Batch:
        if rows is None:
            found = from_arrays(arrays, jnp.asarray(index))
        else:
            size = len(rows)
            places = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 0, size))(index)
            stacked = jax.tree.map(lambda *a: np.stack(a), *(rows[int(place)] for place in places))
            found = prepare(jnp.asarray(index), stacked._replace(x0=None))
        return jax.tree.map(np.asarray, found)

    return take


def _real_data(run: Run) -> Dataset:
    """The data that a run, or the first of the models from which its pairs come, was trained on."""
    return open_dataset(**origin_of(run), plugins=run.plugins) if run.spec.paired_source else dataset_of(run)


def _transport_cost(kept: PairFolder, every: int) -> float:
    """The mean of |x1 - x0|^2 over all pairs."""
    arrays = kept.read()
    squares = [
        float(((np.asarray(arrays["x1"][i : i + every], np.float64) - arrays[X0][i : i + every]) ** 2).sum())
        for i in range(0, kept.num, every)
    ]
    return sum(squares) / kept.num
