"""Densities of maximum likelihood and of flow matching at training times of the same order: planes, tables, images.

The numbers of steps were chosen for the same training time, which they meet within a factor of about two in the quick
form. The checkpoint with the lowest loss on validation rows is scored on test rows that take no part in training. The
two continuous flows have the same network, the couplings and autoregressive layers have networks of the same width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn import datasets

from flowjax import plots
from flowjax.config import Config, changed, defaults
from flowjax.data import open_dataset
from flowjax.data.densities import DENSITIES
from flowjax.inference import Run, load
from flowjax.likelihood import log_prob
from flowjax.reproduce import Experiment, Form, Results, Study, Trained, file_name
from flowjax.solvers import solve_ode
from flowjax.training.writers import read_metrics

PLANES, TABLES, DIGITS = ("moons", "checkerboard"), ("wine", "breast_cancer"), "digits"
HALF = "half of flow matching"


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        method: the value of `method.name`.
        plane, table, digits: training steps, chosen for training times of the same order.
        keys: other keys of the config.
        network_calls: evaluations of the network in a training step; 0 for those that the run has recorded.
        half: whether it starts from `HALF`, whose time is added.
    """

    method: str
    plane: int
    table: int
    digits: int
    keys: Mapping[str, Any] = field(default_factory=dict)
    network_calls: int = 1
    half: bool = False

    def steps(self, data: str) -> int:
        return self.plane if data in PLANES else self.digits if data == DIGITS else self.table


REGULAR = {"method.kinetic": 0.01, "method.jacobian": 0.01, "method.solver": "tsit5"}
REGULAR |= {"method.rtol": 1e-3, "method.atol": 1e-3}
ENTRIES: dict[str, Entry] = {
    "flow matching": Entry("flow_matching", 16_000, 12_000, 14_000),
    "CNF": Entry("cnf", 250, 100, 100, REGULAR, 0),
    "half flow matching, then CNF": Entry("cnf", 125, 50, 50, REGULAR, 0, half=True),
    "RealNVP": Entry("normalizing_flow", 12_000, 3_000, 2_500, {"method.flow": "real_nvp"}),
    "splines": Entry("normalizing_flow", 4_000, 700, 400, {"method.flow": "spline", "method.layers": 4}),
    "MAF": Entry("normalizing_flow", 13_000, 4_400, 2_600, {"method.flow": "maf", "method.layers": 4}),
}
"""The rows of a data set, beside a normal distribution and, where it is known, the true density."""


def sets_of(study: Study) -> tuple[str, ...]:
    return ("moons", "wine") if study.quick else (*PLANES, *TABLES, DIGITS)


def rows_of(study: Study) -> list[str]:
    """The names of the rows; in the quick form without RealNVP and without the row that starts from flow matching."""
    return [name for name in ENTRIES if not study.quick or not (ENTRIES[name].half or name == "RealNVP")]


class Rows(NamedTuple):
    """Rows of a data set in data space.

    Attributes:
        train, validation, test: the rows.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@cache
def rows(study: Study, data: str) -> Rows:
    """60%, 20% and 20% of the rows of a set of scikit-learn, in a fixed random order; of a plane, 20,000 and 2,000."""
    if data in PLANES:
        density = DENSITIES[data]()
        train, test = (density.sample(jax.random.key(i), n) for i, n in enumerate((20_000, 2_000)))
        return Rows(np.asarray(train), np.asarray(open_dataset(data).test[:2_000]), np.asarray(test))
    loaded: Any = getattr(datasets, f"load_{data}")()
    x = loaded.data.astype(np.int64 if data == DIGITS else np.float32)
    x = x[np.random.default_rng(0).permutation(len(x))]
    first, second = int(0.6 * len(x)), int(0.8 * len(x))
    return Rows(x[:first], x[first:second], x[second:])


def config_of(study: Study, data: str, entry: Entry, seed: int, half: bool = False) -> Config:
    """The config of a row. A plane has new samples in each batch; the other sets are files with validation rows."""
    config = defaults("mlp", method=entry.method)
    width = 128 if data == DIGITS else 64
    if entry.method == "normalizing_flow":
        config.method.layers, config.method.width = 6, width
    else:
        config.model.width = width
    if data in PLANES:
        config.data.name = data
    else:
        found = rows(study, data)
        study.arrays(data, lambda: {"x": found.train, "x_test": found.validation})
        config.data.path = str(study.folder / "arrays" / f"{data}.npz")
    steps = entry.steps(data) // (2 if half else 1) // (8 if study.quick else 1)
    config.train.steps = steps
    config.train.batch_size = 256 if data in PLANES else 64
    config.train.lr = 2e-3
    config.train.warmup = 0.1 * steps * config.train.batch_size
    config.train.log_every = config.train.save_every = max(steps // (10 if data in PLANES else 16), 4)
    config.train.keep_last = 1
    config.ema.half_life = 0.02 * steps * config.train.batch_size
    return changed(config, {"seed": seed, **entry.keys})


@cache
def trained(study: Study, data: str, name: str, seed: int) -> Trained:
    """The best checkpoint of a row, or of `HALF`, and the CPU seconds of its training and of the run it starts from."""
    entry = ENTRIES["flow matching" if name == HALF else name]
    first = trained(study, data, HALF, seed) if entry.half else None
    folder = file_name(data, name, seed)
    changes = {} if first is None else {"train.start_from": str(first.run.workdir)}
    config = config_of(study, data, entry, seed, half=name == HALF)
    made = study.timed(folder, config, changes)
    before = first.seconds if first is not None else 0.0
    return Trained(load(made.run.workdir, checkpoint="best"), made.seconds + before)


def scores(study: Study, data: str, name: str, seed: int) -> dict[str, float]:
    """Trains a row if that was not done, and scores it."""
    made, entry = trained(study, data, name, seed), ENTRIES[name]
    records = read_metrics(made.run.workdir / "metrics.jsonl")
    rate = max(record["samples_per_second"] or 0.0 for record in records)  # None in the first one
    evaluations = entry.network_calls or records[-1]["nfe"]
    return {
        **nll(made.run, rows(study, data).test, data, seed),
        "training_evaluations": float(evaluations),
        "milliseconds": 1000 * made.run.config.train.batch_size / rate,
        "sampling_evaluations": sampling_evaluations(made.run),
        "training_seconds": made.seconds,
        "step": float(made.run.step),
    }


def nll(run: Run, x: np.ndarray, data: str, seed: int) -> dict[str, float]:
    """The mean of -log p over test rows, in nats of the standardised data; of digits, bits per dimension of integers.

    The divergence of the 64 numbers of an image is estimated with 4 random vectors an image.
    """
    if data == DIGITS:
        found = run.log_prob(x, seed=seed, divergence="hutchinson", probes=4)
        return {"bits": float(-found.mean()) / (x.shape[1] * np.log(2))}
    points = jnp.asarray(run.spec.to_model(x), jnp.float32)
    return {"nll": float(-log_prob(run.model(), points, run.prior)[0].mean())}


def sampling_evaluations(run: Run) -> float:
    """Evaluations of the network, or of each layer's network, for a sample: by adaptive steps for a velocity."""
    if run.config.method.name == "normalizing_flow":
        return float(run.spec.d) if run.config.method.flow == "maf" else 1.0
    x0 = run.prior.sample(jax.random.key(0), 200)
    return float(solve_ode(run.model().velocity, x0)[1].nfe.mean())


def normal(study: Study, data: str) -> dict[str, float]:
    """The score of the normal distribution with the mean and the covariance of the training rows."""
    found, d = rows(study, data), rows(study, data).train.shape[1]
    if data == DIGITS:
        rng = np.random.default_rng(0)
        train, test = (x + rng.uniform(size=x.shape) for x in (found.train, found.test))
    else:
        mean, std = (0.0, 1.0) if data in PLANES else (found.train.mean(0), found.train.std(0))
        train, test = ((x - mean) / std for x in (found.train, found.test))
    covariance = np.cov(train.T)
    away = test - train.mean(0)
    square = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    value = 0.5 * (square.mean() + d * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])
    return {"bits": value / (d * np.log(2))} if data == DIGITS else {"nll": value}


def truth(study: Study, data: str) -> dict[str, float]:
    """The score of the true density."""
    return {"nll": float(-DENSITIES[data]().log_prob(jnp.asarray(rows(study, data).test)).mean())}


def run(study: Study) -> None:
    for data in sets_of(study):
        for seed in study.seeds:
            for name in rows_of(study):
                study.measure(f"{data}: {name}", partial(scores, study, data, name, seed), seed)
        study.measure(f"{data}: a normal distribution", partial(normal, study, data))
        if data in PLANES:
            study.measure(f"{data}: the true density", partial(truth, study, data))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    return {"density": draw_density(study), "time": draw_time(study, results)}


def draw_density(study: Study) -> Figure:
    """The true density of the moons, and those of the rows for seed 0."""
    xs, ys = np.linspace(-5, 6, 88), np.linspace(-4, 4.5, 68)
    grid = jnp.asarray(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2), jnp.float32)
    exact = DENSITIES["moons"]().log_prob
    shown = {"the true density": study.arrays("density", lambda: {"log_prob": exact(grid)})["log_prob"]}
    for i, name in enumerate(rows_of(study)):
        made = partial(density, study, name, grid)
        shown[name] = study.arrays(f"density{i}", made)["log_prob"]
    return plots.density(xs, ys, {name: np.exp(a).reshape(len(ys), len(xs)) for name, a in shown.items()})


def density(study: Study, name: str, grid: jax.Array) -> dict[str, Any]:
    made = trained(study, "moons", name, 0).run
    return {"log_prob": log_prob(made.model(), grid, made.prior, rtol=1e-3, atol=1e-3)[0]}


def draw_time(study: Study, results: Results) -> Figure:
    """The negative log-likelihood against the milliseconds of a training step, a panel for each data set.

    A panel ends twice as far above the normal distribution as the best row is below it. Larger values are arrows.
    """
    sets = sets_of(study)
    figure = Figure(figsize=(3.2 * len(sets), 3.4), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for ax, data in zip(axes, sets, strict=True):
        metric = "bits" if data == DIGITS else "nll"
        scored = [(name, results.values(f"{data}: {name}", metric)) for name in rows_of(study)]
        normal = results.mean(f"{data}: a normal distribution", metric)
        best = min((v for _, y in scored for v in y if v < normal), default=0.9 * normal)
        top = normal + 2 * (normal - best)
        for name, y in scored:
            i = list(ENTRIES).index(name)  # the same colours in both forms
            x = results.values(f"{data}: {name}", "milliseconds")
            ax.plot(x, y, "osD^vP"[i], color=plots.PALETTE[i], label=name, ms=5, alpha=0.8)
            above = [where for where, value in zip(x, y, strict=True) if value > top]
            ax.plot(
                above, [top - 0.04 * (top - best)] * len(above), marker=r"$\uparrow$", ls="", color=plots.PALETTE[i]
            )
        for name, style in (("a normal distribution", ":"), ("the true density", "--")):
            if f"{data}: {name}" in results.settings:
                ax.axhline(results.mean(f"{data}: {name}", metric), color="0.5", ls=style, label=name)
        ax.set(xscale="log", xlabel="milliseconds a training step", title=data)
        ax.set_ylim(best - 0.1 * (normal - best), min(top, ax.get_ylim()[1]))
        ax.set_ylabel("bits per dimension" if data == DIGITS else "negative log-likelihood in nats")
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return figure


EXPERIMENT = Experiment(
    title="Densities by maximum likelihood and by flow matching, at training times of the same order.",
    source="",
    full=Form("95 minutes of one CPU core", seeds=5),
    quick=Form("3 minutes on 2 CPU cores"),
    run=run,
    columns={
        "nll": "NLL, nats",
        "bits": "bits/dim",
        "training_evaluations": "evaluations a step",
        "milliseconds": "ms a step",
        "sampling_evaluations": "evaluations a sample",
        "training_seconds": "training, CPU s",
    },
    draw=draw,
)
