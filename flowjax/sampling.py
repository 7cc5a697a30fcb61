"""Samples and log-densities of a run, in batches of one compiled size, in data space.

Sample i depends on the seed and on i alone, not on how many are drawn or in what batches: its noise comes from
`fold_in(key(seed), i)`, each row is its own solve, and the last batch is padded to the size of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import likelihood
from flowjax.likelihood import Divergence
from flowjax.models.embeddings import NO_LABEL
from flowjax.run import Run
from flowjax.solvers import Stats, solve_ode
from flowjax.training.writers import Progress
from flowjax.typing import Params


class SolverFault(RuntimeError):
    """An adaptive solve did not arrive; one line."""


@dataclass(frozen=True)
class Solver:
    """How to integrate: see `flowjax.solvers.solve_ode`."""

    name: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        return {"solver": self.name, "rtol": self.rtol, "atol": self.atol, "steps": self.steps}


DOPRI5 = Solver()


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

    Raises:
        SolverFault: if an adaptive solve does not arrive.
    """
    size = batch or default_batch(run)
    t0, t1 = run.interval
    noise_key, label_key = jax.random.split(jax.random.key(seed))
    conditional = run.config.model.conditional

    @jax.jit
    def draw(params: Params, rows: Array) -> tuple[Array, Array | None, Stats]:
        labels = None
        if conditional and label is not None:
            labels = jnp.full(rows.shape, label)
        elif conditional:
            classes = run.spec.num_classes
            labels = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(label_key, i), (), 0, classes))(rows)
        x0 = source_noise(run, noise_key, rows)
        x, stats = solve_ode(run.problem.field(params), x0, cond=labels, t0=t0, t1=t1, **solver.keywords)
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
            **solver.keywords,
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
