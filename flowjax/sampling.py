"""Samples and log-densities of a run, in batches of one compiled size, in data space.

Sample i depends on the seed and on i alone, not on how many are drawn or in what batches: its noise comes from
`fold_in(key(seed), i)`, each row is its own solve, and the last batch is padded to the size of the others.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import likelihood, solvers
from flowjax.config import ConfigError
from flowjax.likelihood import Divergence
from flowjax.models.embeddings import NO_LABEL
from flowjax.run import Run
from flowjax.solvers import Stats, grids, make_sampler
from flowjax.solving import DOPRI5, Guide, Solver, bind, denoiser_of, grid_of, options_of
from flowjax.sources import has_density
from flowjax.training.writers import Progress, say
from flowjax.typing import Params


class SolverFault(RuntimeError):
    """An adaptive solve did not arrive; one line."""


class Drawn(NamedTuple):
    """Samples in data space (N, *event), their labels (N,) or None, and the largest number of evaluations."""

    samples: np.ndarray
    labels: np.ndarray | None
    nfe: int


class Scored(NamedTuple):
    """log p in nats of the data space (N,), in the order of the points, and the largest number of evaluations."""

    log_prob: np.ndarray
    nfe: int


def default_batch(run: Run) -> int:
    """Rows a batch: about four million numbers of activations at a time, a power of two."""
    return max(16, min(4096, 2 ** int(np.log2(2**21 / max(64, 64 * run.spec.d)))))


def source_noise(run: Run, key: Array, rows: Array) -> Array:
    """x0 of these rows, (B, *event): each from its own key."""
    return jax.vmap(lambda i: run.prior.sample(jax.random.fold_in(key, i), 1)[0])(rows)


def sample(
    run: Run,
    num: int,
    seed: int = 0,
    solver: Solver = DOPRI5,
    label: int | None = None,
    batch: int = 0,
    show: bool = False,
    guide: Guide | None = None,
) -> Drawn:
    """Draws `num` samples.

    Args:
        run: opened with `flowjax.load`.
        num: how many, at least 1.
        seed: of the noise and, for a conditional network, of the labels.
        solver: how to integrate.
        label: one class for all; classes uniformly at random where None.
        batch: rows a batch, 0 for a default.
        show: progress on stderr.
        guide: guidance, or none.

    Raises:
        SolverFault: if an adaptive solve does not arrive.
        ConfigError: if the solver or the guidance has no meaning for this run.
    """
    size = batch or default_batch(run)
    noise_key, label_key, solver_key = jax.random.split(jax.random.key(seed), 3)
    conditional = run.config.model.conditional
    options = options_of(run, solver)
    path, interval, scale = bind(run, solver, options, guide, show)

    def labels_of(rows: Array) -> Array | None:
        if not conditional:
            return None
        if label is not None:
            return jnp.full(rows.shape, label)
        classes = run.spec.num_classes
        return jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(label_key, i), (), 0, classes))(rows)

    grid = grid_of(solver)
    if solver.grid == "learned":
        sampler = make_sampler(solver.name, path, options)
        if sampler is None or solver.steps is None:
            raise ConfigError(f"grid 'learned' is for samplers with a fixed number of steps, not {solver.name}")
        say("sample: learning the time grid on 256 samples")
        rows = jnp.arange(2**31 - 256, 2**31)
        x0 = scale * source_noise(run, noise_key, rows)
        try:
            known = denoiser_of(run, run.params, path, guide)
            grid = grids.learn(sampler, known, x0, solver.steps, cond=labels_of(rows), t0=interval[0], t1=interval[1])
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @jax.jit
    def draw(params: Params, rows: Array) -> tuple[Array, Array | None, Stats]:
        labels = labels_of(rows)
        x0 = scale * source_noise(run, noise_key, rows)
        x, stats = solvers.sample(
            denoiser_of(run, params, path, guide),
            path,
            x0,
            solver=solver.name,
            steps=solver.steps,
            grid=grid,
            key=jax.vmap(partial(jax.random.fold_in, solver_key))(rows),
            cond=labels,
            t0=interval[0],
            t1=interval[1],
            options=options,
            rtol=solver.rtol,
            atol=solver.atol,
        )
        return x, labels, stats

    batches = _batched(partial(draw, run.params), (np.arange(num),), num, size, show, "sample", solver)
    labels = np.concatenate([b[1] for b in batches]).astype(np.int32) if conditional else None
    samples = run.spec.finish(np.concatenate([b[0] for b in batches]))
    return Drawn(samples, labels, max(int(b[2].nfe.max()) for b in batches))


def log_prob(
    run: Run,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    divergence: Divergence = "exact",
    seed: int = 0,
    probes: int = 1,
    solver: Solver = DOPRI5,
    batch: int = 0,
    show: bool = False,
) -> Scored:
    """log p(x | label) in nats of the data space, in the order of x.

    Args:
        run: opened with `flowjax.load`.
        x: (N, *event) in data space. If the run's data are integers and all of x are, they are dequantised by `seed`.
        labels: (N,) for a conditional network; None asks for the density without a label.
        divergence, probes: as in `flowjax.likelihood.log_prob`.
        seed: of dequantisation and of Hutchinson's probes; row i depends on it and on i alone.
        solver, batch, show: as for `sample`.
    """
    if not has_density(run.prior):
        raise ConfigError(
            f"source.name {run.config.source.name!r} has no density, so there is no likelihood: sample instead"
        )
    size = batch or max(16, default_batch(run) // (min(run.spec.d, 64) if divergence == "exact" else 1))
    t0, t1 = run.interval
    noise_key, probe_key = jax.random.split(jax.random.key(seed))
    conditional = run.config.model.conditional
    labels = np.full(len(x), NO_LABEL, np.int32) if labels is None else labels
    if run.spec.levels and np.all(x == np.floor(x)):
        prepare = lambda i, row: run.spec.prepare(jax.random.fold_in(noise_key, i), row)
    else:
        prepare = lambda i, row: run.spec.normalise.to_model(row)

    @jax.jit
    def score(params: Params, rows: Array, x: Array, labels: Array) -> tuple[Array, Stats]:
        return likelihood.log_prob(
            run.problem.field(params),
            jax.vmap(prepare)(rows, x),
            run.prior,
            cond=labels if conditional else None,
            t0=t0,
            t1=t1,
            divergence=divergence,
            key=jax.vmap(partial(jax.random.fold_in, probe_key))(rows),
            probes=probes,
            **solver.tolerances,
        )

    points = (np.arange(len(x)), np.asarray(x, np.float32), labels)
    batches = _batched(partial(score, run.params), points, len(x), size, show, "likelihood", solver)
    values = run.spec.normalise.log_prob_to_data(np.concatenate([b[0] for b in batches]), run.spec.d)
    return Scored(values, max(int(b[1].nfe.max()) for b in batches))


def _batched(
    f: Callable[..., Any], arrays: tuple[np.ndarray, ...], num: int, size: int, show: bool, label: str, solver: Solver
) -> list[Any]:
    """f over blocks of `size` rows, the last one padded; its results, as NumPy, without the padding."""
    results = []
    progress = Progress(num, 0, label, "row") if show else None
    for start in range(0, num, size):
        block = tuple(a[start : start + size] for a in arrays)
        n = len(block[0])
        padded = (np.concatenate([a, np.repeat(a[:1], size - n, 0)]) if n < size else a for a in block)
        result = jax.tree.map(partial(_head, n), f(*padded))
        if late := int((~result[-1].converged).sum()):
            fix = "loosen --rtol and --atol, or use --steps"
            raise SolverFault(f"{solver.name} did not arrive for {late} of {n} rows: {fix}")
        results.append(result)
        if progress:
            progress.advance(start + n)
    if progress:
        progress.close()
    return results


def _head(n: int, a: Array) -> np.ndarray:
    return np.asarray(a)[:n]
