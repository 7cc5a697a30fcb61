"""Samples and log-densities of a run, in batches of one compiled size, in data space.

Sample i depends on the seed and on i alone, not on how many are drawn or in what batches: its noise comes from
`fold_in(key(seed), i)`, each row is its own solve, and the last batch is padded to the size of the others.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax import guidance, likelihood, solvers
from flowjax.build import make_schedule
from flowjax.config import ConfigError, make, unknown
from flowjax.likelihood import Divergence
from flowjax.models.embeddings import NO_LABEL
from flowjax.paths import AffinePath
from flowjax.predictions import Denoiser, defined_on
from flowjax.reschedule import reschedule
from flowjax.run import Run
from flowjax.solvers import Options, Stats, diffusions, grids, make_sampler
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.grids import GRIDS
from flowjax.solvers.sample import check_solver
from flowjax.solvers.sample import interval as solver_interval
from flowjax.solvers.stochastic import Variance
from flowjax.sources import has_density
from flowjax.training.writers import Progress, say
from flowjax.typing import Params


class SolverFault(RuntimeError):
    """An adaptive solve did not arrive; one line."""


@dataclass(frozen=True)
class Solver:
    """How to integrate: see `flowjax.solvers.sample`.

    Attributes:
        name, rtol, atol, steps: of the solver; adaptive where steps is None.
        grid: a name in `GRIDS`, or `learned`, for `steps` steps; empty for the sampler's own.
        eta, churn, g, variance: as in `flowjax.solvers.Options`, but churn is S_churn, the sum over all steps, and g
            a name in `DIFFUSIONS` with its arguments, or a number for a constant.
        schedule: another one than was trained, as in configs.
    """

    name: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    grid: str = ""
    eta: float | None = None
    churn: float | None = None
    g: str | None = None
    variance: Variance | None = None
    schedule: str | None = None

    @property
    def tolerances(self) -> dict[str, Any]:
        """What `likelihood.log_prob` takes."""
        return {"solver": self.name, "rtol": self.rtol, "atol": self.atol, "steps": self.steps}

    def options(self) -> Options:
        """Raises ConfigError if g is not one."""
        churn = None if self.churn is None else min(self.churn / (self.steps or 1), 2**0.5 - 1)
        return Options(self.eta, churn, None if self.g is None else _diffusion(self.g), self.variance)

    def check(self) -> None:
        """Refuses what cannot be meant, before a run is opened.

        Raises:
            ValueError: one line.
        """
        check_solver(self.name, self.steps, self.options())
        if self.schedule is not None:
            make_schedule(self.schedule)
        if self.variance not in (None, "small", "large", "learned"):
            raise ValueError(f"variance: {unknown(self.variance, ('small', 'large', 'learned'))}")
        if self.grid not in ("", "learned"):
            make("grid", self.grid, {**GRIDS, "learned": lambda: None})
        if self.grid and self.steps is None:
            raise ValueError("grid: an adaptive solve chooses its own times: say how many with steps=N")


def _diffusion(text: str) -> Diffusion:
    try:
        return diffusions.Constant(float(text))
    except ValueError as error:
        if "negative" in str(error):
            raise ConfigError(str(error)) from None
    return make("g", text, diffusions.DIFFUSIONS)


@dataclass(frozen=True)
class Guide:
    """How to guide: see `flowjax.guidance`.

    Attributes:
        name: `cfg`, or `auto`, against `weak`.
        scale: 1 for none.
        interval: times outside which `cfg` is off.
        rescale: of `cfg`.
        weak: a run of the same path.
    """

    name: str
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    weak: Run | None = None


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
    path, interval, scale = _start(run, solver, guide, show)
    options = _options(run, solver)

    def labels_of(rows: Array) -> Array | None:
        if not conditional:
            return None
        if label is not None:
            return jnp.full(rows.shape, label)
        classes = run.spec.num_classes
        return jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(label_key, i), (), 0, classes))(rows)

    grid = _grid(solver)
    if solver.grid == "learned":
        sampler = make_sampler(solver.name, path, options)
        if sampler is None or solver.steps is None:
            raise ConfigError(f"grid 'learned' is for samplers with a fixed number of steps, not {solver.name}")
        say("sample: learning the time grid on 256 samples")
        rows = jnp.arange(2**31 - 256, 2**31)
        x0 = scale * source_noise(run, noise_key, rows)
        try:
            known = _denoiser(run, run.params, path, guide)
            grid = grids.learn(sampler, known, x0, solver.steps, cond=labels_of(rows), t0=interval[0], t1=interval[1])
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @jax.jit
    def draw(params: Params, rows: Array) -> tuple[Array, Array | None, Stats]:
        labels = labels_of(rows)
        x0 = scale * source_noise(run, noise_key, rows)
        x, stats = solvers.sample(
            _denoiser(run, params, path, guide),
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


def _start(run: Run, solver: Solver, guide: Guide | None, show: bool) -> tuple[AffinePath, tuple[float, float], float]:
    """The path to sample on, the times of the solve, and what multiplies the prior's samples at its start.

    Raises:
        ConfigError: if the solver, the schedule or the guidance has no meaning for this run.
    """
    path, options = run.path, _options(run, solver)
    try:
        if solver.schedule is not None:
            path = dataclasses.replace(run.path, schedule=make_schedule(solver.schedule))
        low, high = defined_on(_denoiser(run, run.params, path, guide))
        if path != run.path:
            path.prior(run.source)  # refuses a source that the schedule cannot start from
        ours = solver_interval(solver.name, path, options)
        low, high = max(low, ours[0], path.t_min), min(high, ours[1], path.t_max)
        if low >= high:
            raise ValueError(f"{path.schedule} has no noise levels in common with {run.path.schedule}")
        sampler = make_sampler(solver.name, path, options)
        if sampler is not None and solver.steps is not None:
            grids.times_for(sampler, solver.steps, _grid(solver), low, high)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"solver {solver.name!r}: {error}") from None
    if show and path != run.path and (low > path.t_min + 1e-6 or high < path.t_max - 1e-6):
        say(
            f"sample: {path.schedule} reaches beyond the noise levels that the network has seen; the solve runs from "
            f"t = {low:.4g} to {high:.4g}, where it has"
        )
    # noise of the size it has where the solve starts; the prior's is that of t = 0 of the trained schedule
    first = float(run.path.schedule.sigma(0.0)) if float(run.path.schedule.alpha(0.0)) else 1.0
    return path, (low, high), float(path.schedule.sigma(low)) / first


def _denoiser(run: Run, params: Params, path: AffinePath, guide: Guide | None) -> Denoiser:
    """The network, guided on the path it was trained on, then read on the path it is sampled on."""
    plain = _guided(run, run.problem.denoiser(params), guide)
    return plain if path == run.path else reschedule(plain, run.path, path)


def _grid(solver: Solver) -> grids.Grid | None:
    """The grid of that name; None for the sampler's own, which `learned` starts from too."""
    return None if solver.grid in ("", "learned") else make("grid", solver.grid, GRIDS)


def _options(run: Run, solver: Solver) -> Options:
    """The solver's options; `ddpm` takes the variance that the network has learned, if it has."""
    options = solver.options()
    learned = run.problem.prediction.name == "noise_variance"
    if options.variance == "learned" and not learned:
        raise ConfigError(f"variance 'learned' needs prediction 'noise_variance', not {run.config.prediction!r}")
    if solver.name == "ddpm" and learned and options.variance is None:
        return dataclasses.replace(options, variance="learned")
    return options


def _guided(run: Run, denoiser: Denoiser, guide: Guide | None) -> Denoiser:
    if guide is None:
        return denoiser
    if guide.name == "auto":
        weak = guide.weak
        same = lambda run: (run.path, run.spec, run.config.source, run.config.coupling, run.config.model.conditional)
        if weak is None or same(weak) != same(run):
            raise ConfigError(
                "guidance 'auto' needs --weak WORKDIR, a run of the same data, source, path, coupling and condition"
            )
        return guidance.Auto(denoiser, weak.denoiser, guide.scale)
    if guide.name != "cfg":
        raise ConfigError(f"guidance: {unknown(guide.name, ('cfg', 'auto'))}")
    if not run.config.model.conditional:
        raise ConfigError("guidance 'cfg' needs labels, and this network has none: train with model.conditional=true")
    if not run.config.train.label_dropout:
        raise ConfigError(
            "guidance 'cfg' needs a network that was trained without labels now and then: label_dropout is 0"
        )
    return guidance.ClassifierFree(denoiser, guide.scale, guide.interval, guide.rescale, run.path)


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
