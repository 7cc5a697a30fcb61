"""Normalisers that are known, by importance sampling with trained flows as proposals, in 2 to 16 dimensions.

The potentials are sums over independent pairs (x, y) of a double well a x^4 - b x^2 - c x and a normal y, so that log Z
is that of one dimension, by quadrature. Flows learn from exact samples, from samples that populate the wells wrongly,
and from samples in which a well is missing.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from flowjax import plots
from flowjax.config import Config, changed, defaults
from flowjax.free_energy import Weighted, importance_sample, importance_sample_sde, log_normalizer
from flowjax.reproduce import Experiment, Form, Results, Study, Trained, file_name

GRID = np.linspace(-4.0, 4.0, 80_001)
"""Points of the quadrature of x; the density is below exp(-80) of its maximum at the ends."""

ROWS, SAMPLES, BLOCK = 50_000, 4_000, 1_000
"""Training samples, samples of a proposal (half of them in the quick form), and how many of them are drawn at once."""


@dataclass(frozen=True)
class Wells:
    """The potential U of pairs (x, y): sum over pairs of a x^4 - b x^2 - c x + y^2 / 2, in units of the temperature.

    Attributes:
        a, b, c: the coefficients of x.
        pairs: the number of pairs; a point has 2 * pairs coordinates x_1, y_1, x_2, ....
    """

    a: float
    b: float
    c: float
    pairs: int

    def minus_energy(self, x: Float[Array, "B D"]) -> Float[Array, " B"]:
        """log f = -U of each point."""
        first, second = x[:, 0::2], x[:, 1::2]
        return jnp.sum(first**2 * (self.b - self.a * first**2) + self.c * first - second**2 / 2, -1)

    def masses(self) -> Float[np.ndarray, " G"]:
        """The integral of exp(b x^2 + c x - a x^4) from the start of the grid to each of its points, in float64."""
        values = np.exp(self.b * GRID**2 + self.c * GRID - self.a * GRID**4)
        return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) / 2)]) * (GRID[1] - GRID[0])

    def log_z(self) -> float:
        return self.pairs * float(np.log(self.masses()[-1]) + 0.5 * np.log(2 * np.pi))

    def left(self) -> float:
        """The share of x < 0."""
        masses = self.masses()
        return float(np.interp(0.0, GRID, masses) / masses[-1])

    def sample(self, rng: np.random.Generator, n: int, left: tuple[float, ...] = ()) -> Float[np.ndarray, "n D"]:
        """Exact samples within each well, by the inverse of the distribution function.

        Args:
            rng: the random numbers.
            n: the number of samples.
            left: the shares of x < 0 of the first pairs; those of the others are exact.
        """
        cdf, exact = self.masses() / self.masses()[-1], self.left()
        shares = np.array([*left, *(exact,) * (self.pairs - len(left))])
        on_left, u = rng.random((n, self.pairs)) < shares, rng.random((n, self.pairs))
        first = np.interp(np.where(on_left, exact * u, exact + (1 - exact) * u), cdf, GRID)
        return np.stack([first, rng.normal(size=(n, self.pairs))], -1).reshape(n, -1)


DOUBLE = Wells(0.5, 3.0, -0.5, 1)
"""The double well of the notebook *Maximum likelihood and change of variables*."""


@dataclass(frozen=True)
class Case:
    """A potential, and the samples from which the flows learn.

    Attributes:
        wells: the potential; with a = 1, b = 6, c = 1/2 the many wells of Midgley et al. 2022.
        left: the shares of x < 0 in the training samples of the first pairs; () for exact samples.
        width: of the network of flow matching; the networks of the splines have half of it.
    """

    wells: Wells
    left: tuple[float, ...] = ()
    width: int = 128


EIGHT = Wells(1.0, 6.0, 0.5, 4)
CASES: dict[str, Case] = {
    "double well": Case(DOUBLE, width=64),
    "8 dimensions": Case(EIGHT),
    "16 dimensions": Case(Wells(1.0, 6.0, 0.5, 8)),
    "8 dimensions, equal wells": Case(EIGHT, (0.5,) * 4),
    "8 dimensions, a missing well": Case(EIGHT, (1.0,)),
}
PROPOSALS = ("a normal distribution", "splines", "flow matching, ODE", "flow matching, SDE")
STEPS = {"normalizing_flow": 300, "flow_matching": 3_000}
"""Training steps; the quick form has half of them."""


def cases_of(study: Study) -> list[str]:
    return [name for name in CASES if not study.quick or name != "16 dimensions"]


def proposals_of(name: str) -> tuple[str, ...]:
    """The proposals of a case: all if the training samples are exact, and otherwise two trained ones."""
    return PROPOSALS[1:3] if CASES[name].left else PROPOSALS


def config_of(study: Study, case: Case, method: str, data: str, seed: int) -> Config:
    config = defaults("mlp", method=method) if method == "flow_matching" else defaults(method=method)
    steps = STEPS[method] // (2 if study.quick else 1)
    if method == "flow_matching":
        config.model.width = case.width
    else:
        config.method.layers, config.method.width = 4, case.width // 2
    config.data.name, config.data.path = "npz", str(study.folder / "arrays" / f"{data}.npz")
    config.data.normalise = "feature"
    config.train.steps, config.train.batch_size, config.train.lr = steps, 256, 2e-3
    config.train.warmup = 0.1 * steps * config.train.batch_size
    config.train.log_every = config.train.save_every = steps
    config.ema.half_life = 0.02 * steps * config.train.batch_size
    return changed(config, {"seed": seed})


def training_rows(study: Study, name: str, seed: int) -> Float[np.ndarray, "N D"]:
    case = CASES[name]
    draw = lambda: {"x": case.wells.sample(np.random.default_rng(seed), ROWS, case.left).astype(np.float32)}
    return study.arrays(file_name(name, seed), draw)["x"]


@cache
def trained(study: Study, name: str, method: str, seed: int) -> Trained:
    """A trained flow, and the CPU seconds of its training."""
    training_rows(study, name, seed)
    config = config_of(study, CASES[name], method, file_name(name, seed), seed)
    return study.timed(file_name(name, method, seed), config)


class Drawn(NamedTuple):
    """Samples of a proposal with their weights, and what they cost.

    Attributes:
        x: samples in data space, (n, D).
        log_weights: the logarithms of their weights, (n,).
        evaluations: mean evaluations of the network for a sample.
        training: CPU seconds of the training.
        sampling: CPU seconds for 1,000 samples, without compilation.
    """

    x: Float[np.ndarray, "n D"]
    log_weights: Float[np.ndarray, " n"]
    evaluations: float = 0.0
    training: float = 0.0
    sampling: float = 0.0


def drawn(study: Study, name: str, proposal: str, seed: int) -> Drawn:
    """Trains the proposal of a row if that was not done, and draws its samples."""
    wells, n = CASES[name].wells, SAMPLES // (2 if study.quick else 1)
    if proposal == PROPOSALS[0]:
        return normal(training_rows(study, name, seed), wells, np.random.default_rng(1_000 + seed), n)
    run, seconds = trained(study, name, "normalizing_flow" if proposal == "splines" else "flow_matching", seed)
    scale, shift = jnp.asarray(run.spec.normalise.scale), jnp.asarray(run.spec.normalise.shift)
    how: Callable[..., Any] = (
        partial(importance_sample_sde, steps=100 if wells.pairs == 1 else 500)
        if proposal == "flow matching, SDE"
        else partial(importance_sample, rtol=1e-4, atol=1e-4)
    )

    @jax.jit
    def draw(params: Any, variables: Any, scale: Array, shift: Array, key: Array) -> Weighted:
        """The weights of f in model space, where its normaliser is that in data space."""
        log_f = lambda z: wells.minus_energy(z * scale + shift) + jnp.log(scale).sum()
        return how(log_f, run.model(params, variables), run.prior, key, BLOCK)

    blocks, times = [], []
    for key in jax.random.split(jax.random.key(seed), n // BLOCK):
        start = time.process_time()
        blocks.append(jax.tree.map(np.asarray, draw(*run.arrays, scale, shift, key)))
        times.append(time.process_time() - start)
    found = jax.tree.map(lambda *parts: np.concatenate(parts), *blocks)
    x = found.x * np.asarray(scale) + np.asarray(shift)
    return Drawn(x, found.log_weights, float(found.nfe.mean()), seconds, float(np.mean(times[1:])))


def normal(rows: Float[np.ndarray, "N D"], wells: Wells, rng: np.random.Generator, n: int) -> Drawn:
    """Samples of the normal distribution with the mean and the covariance of rows, and their log-weights."""
    mean, root = rows.mean(0), np.linalg.cholesky(np.cov(rows.T))
    z = rng.normal(size=(n, rows.shape[1]))
    x = mean + z @ root.T
    log_q = -0.5 * (z**2 + np.log(2 * np.pi)).sum(-1) - np.log(np.diag(root)).sum()
    return Drawn(x, np.asarray(wells.minus_energy(jnp.asarray(x))) - log_q)


def scores(study: Study, name: str, proposal: str, seed: int) -> dict[str, float]:
    """The estimate of log Z by a row, compared with the truth."""
    found, wells = drawn(study, name, proposal, seed), CASES[name].wells
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a small effective sample size, which is in the table
        result = log_normalizer(jnp.asarray(found.log_weights))
    weights = np.asarray(jax.nn.softmax(jnp.asarray(found.log_weights)))
    x = found.x[:, 0]
    if seed == 0 and name != "double well" and proposal == "flow matching, ODE":
        study.arrays(file_name("first", name), lambda: {"x": x, "weights": weights})
    return {
        "error": float(result.log_z) - wells.log_z(),
        "stderr": float(result.stderr),
        "ess": 100 * float(result.ess) / len(x),
        "left": 100 * float((x < 0).mean()),
        "left_weighted": 100 * float(weights[x < 0].sum()),
        "evaluations": found.evaluations,
        "samples": len(x),
        "training_seconds": found.training,
        "sampling_seconds": found.sampling,
        "log_z": wells.log_z(),
        "left_true": 100 * wells.left(),
    }


def run(study: Study) -> None:
    for name in cases_of(study):
        for seed in study.seeds:
            for proposal in proposals_of(name):
                study.measure(f"{name}: {proposal}", partial(scores, study, name, proposal, seed), seed)


def draw(study: Study, results: Results) -> dict[str, Figure]:
    return {"wells": draw_wells(study), "log_z": draw_log_z(study, results)}


def draw_wells(study: Study) -> Figure:
    """Histograms of the first coordinate: of the samples of flow matching, the same with weights, and the target."""
    names = [name for name in cases_of(study) if name.startswith("8")]
    figure = Figure(figsize=(3.4 * len(names), 2.9), layout="constrained")
    edges = np.linspace(-2.6, 2.6, 53)
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        kept = study.arrays(file_name("first", name), dict)
        density = np.gradient(CASES[name].wells.masses(), GRID) / CASES[name].wells.masses()[-1]
        ax.hist(kept["x"], edges, density=True, color="0.75", label="samples")
        ax.hist(kept["x"], edges, weights=kept["weights"], density=True, histtype="step", color=plots.PALETTE[0])
        ax.plot([], [], color=plots.PALETTE[0], label="samples with weights")
        ax.plot(GRID, density, color=plots.PALETTE[1], lw=1, ls="--", label="target")
        ax.set(xlim=(edges[0], edges[-1]), xlabel="$x_1$", title=name)
        ax.title.set_fontsize(9)
    figure.axes[0].set_ylabel("density")
    figure.axes[0].legend(fontsize=7)
    return figure


def draw_log_z(study: Study, results: Results) -> Figure:
    """The error of log Z with two standard errors of each seed, by row, on an axis that is linear within 0.1."""
    names = cases_of(study)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    ax = figure.subplots()
    for i, name in enumerate(names):
        for proposal in proposals_of(name):
            j = PROPOSALS.index(proposal)
            row = f"{name}: {proposal}"
            errors, stderrs = results.values(row, "error"), results.values(row, "stderr")
            y = -(i + 0.2 * (j - 1.5)) - 0.04 * np.arange(len(errors))
            label = proposal if i == 0 else None
            ax.errorbar(errors, y, xerr=2 * np.array(stderrs), fmt="o", ms=3, capsize=2, label=label, color=COLOURS[j])
    ax.axvline(0, color="0.5", lw=0.8)
    ax.set_xscale("symlog", linthresh=0.1)
    ax.set_xlim(-4, 4)
    ax.set(yticks=-np.arange(len(names)), yticklabels=names, xlabel="estimate - log Z, with two standard errors")
    ax.grid(alpha=0.3, axis="x")
    ax.legend(fontsize=7)
    return figure


COLOURS = ("#888888", *plots.PALETTE[:3])

EXPERIMENT = Experiment(
    title="Free energies of wells by trained proposals: does reweighting mend them, and when is it wrong?",
    source="",
    full=Form("10 minutes of one CPU core", seeds=3),
    quick=Form("2 minutes on 2 CPU cores"),
    run=run,
    columns={
        "error": "log Z - truth",
        "stderr": "standard error",
        "ess": "effective samples, %",
        "left": "left well, %",
        "left_weighted": "with weights, %",
        "evaluations": "evaluations a sample",
        "samples": "samples",
        "training_seconds": "training, CPU s",
        "sampling_seconds": "1,000 samples, CPU s",
    },
    draw=draw,
)
