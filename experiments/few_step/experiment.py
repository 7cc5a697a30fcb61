"""Methods of few steps on 8 Gaussians and the checkerboard, with the same network, batches and number of steps.

Each method is sampled with 1, 2, 4, 8 and 100 evaluations of its network, and the squared W2 distance of the samples to
the data is compared with that of two true samples. Rows "from the flow" start from the trained flow of the first row,
or learn from it, and train half as many steps; the training of the flow is not counted in their seconds.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from flowjax import plots
from flowjax.config import Config, changed, defaults
from flowjax.data.densities import DENSITIES
from flowjax.inference import Run, SolverSettings
from flowjax.inference.pairs import make_pairs
from flowjax.metrics import wasserstein2_squared_pairs
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.solvers import sample

SETS = ("gaussians8", "checkerboard")
EVALUATIONS = (1, 2, 4, 8, 100)
FLOW = "flow matching"


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        method: the value of `method.name`.
        keys: other keys of the config.
        shares: keys that count steps, as fractions of the training steps.
        solver: the solver, which takes one evaluation in each step.
        evaluations: numbers of evaluations with which it can be sampled.
        start: whether training starts from the trained flow.
        teacher: whether the trained flow is the teacher.
        pairs: whether it is trained on pairs of the trained flow.
    """

    method: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    solver: str = "flow_map"
    evaluations: tuple[int, ...] = EVALUATIONS
    start: bool = False
    teacher: bool = False
    pairs: bool = False


_ONE: dict[str, Any] = {"solver": "push_forward", "evaluations": (1,)}
_SCORES: dict[str, Any] = {"start": True, "teacher": True, **_ONE}
_BOTH_NETWORKS: dict[str, Any] = {"train.lr": 1e-3, "method.generator_every": 2}
_CONSISTENCY: dict[str, Any] = {
    "keys": {"method.times": "uniform", "method.first": 10, "method.last": 640},
    "shares": {"method.doubling": 1 / 7},
    "solver": "consistency",
}

ENTRIES: dict[str, Entry] = {
    FLOW: Entry("flow_matching", solver="euler"),
    "MeanFlow": Entry("mean_flow", {"method.power": 0.0}),
    "improved MeanFlow": Entry("mean_flow", {"method.power": 0.0, "method.improved": True, "method.different": 0.5}),
    "shortcut": Entry("shortcut"),
    "flow map, Lagrangian": Entry("flow_map", {"method.form": "lagrangian", "method.different": 0.5}),
    "flow map, Eulerian": Entry("flow_map", {"method.form": "eulerian", "train.lr": 5e-4}),
    "flow map, progressive": Entry("flow_map", {"method.form": "progressive", "method.different": 0.5}),
    "consistency": Entry("consistency", **_CONSISTENCY),
    "continuous consistency": Entry(
        "continuous_consistency", {"method.times": "uniform"}, {"method.warmup": 1 / 4}, solver="consistency"
    ),
    "consistency trajectory": Entry("consistency_trajectory"),
    "moment matching": Entry("moment_matching"),
    "GAN": Entry("gan", **_ONE),
    "from the flow: reflow": Entry("flow_matching", solver="euler", start=True, pairs=True),
    "from the flow: distillation": Entry("distillation", start=True, pairs=True, **_ONE),
    "from the flow: consistency tuning": Entry("consistency", **_CONSISTENCY, start=True),
    "from the flow: flow map": Entry("flow_map", {"method.different": 0.75}, start=True, teacher=True),
    "from the flow: progressive distillation": Entry(
        "progressive_distillation", solver="euler", start=True, teacher=True, evaluations=(8, 4, 2, 1)
    ),
    "from the flow: score distillation, DMD": Entry(
        "score_distillation", {**_BOTH_NETWORKS, "method.loss": "dmd"}, **_SCORES
    ),
    "from the flow: score distillation, SiD": Entry(
        "score_distillation", {**_BOTH_NETWORKS, "method.loss": "sid"}, **_SCORES
    ),
}
"""The rows of the table."""

SHOWN = (FLOW, "from the flow: reflow", "MeanFlow", "flow map, Lagrangian", "consistency")
"""The rows of the figure of trajectories."""

CURVES = (*SHOWN, "continuous consistency", "moment matching")
"""The rows of the figure of quality."""

QUICK = (FLOW, "flow map, Lagrangian", "consistency", "from the flow: reflow")
"""The rows of the quick form."""


def sets_of(study: Study) -> tuple[str, ...]:
    """The data sets."""
    return SETS[:1] if study.quick else SETS


def blocks_of(study: Study) -> int:
    """The number of pairs of 1,000 points from which the W2 distance is computed."""
    return 5 if study.quick else 10


def true_samples(study: Study, data: str, seed: int = 71) -> np.ndarray:
    """Samples of the data."""
    return np.asarray(DENSITIES[data]().sample(jax.random.key(seed), blocks_of(study) * 1000))


def distance(study: Study, data: str, samples: np.ndarray) -> float:
    """The squared W2 distance of samples to the data."""
    return float(wasserstein2_squared_pairs(true_samples(study, data), samples, pairs=blocks_of(study)))


def rows_of(study: Study) -> list[str]:
    """The names of the rows."""
    return [name for name in ENTRIES if not study.quick or name in QUICK]


def config_of(data: str, entry: Entry, steps: int, seed: int) -> Config:
    """The config of a row: the same network and batches for all methods."""
    config = defaults("mlp", method=entry.method)
    config.data.name = data
    config.model.width = 128
    config.model.features = 2  # a network that is smooth in time, which derivatives in time need
    config.train.batch_size = 512
    config.train.lr = 2e-3
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.steps = steps
    config.train.log_every = max(steps // 4, 1)
    config.train.save_every = steps
    counted = {key: round(share * steps) for key, share in entry.shares.items()}
    return changed(config, {"seed": seed, **entry.keys, **counted})


def steps_of(study: Study, entry: Entry) -> int:
    """Training steps: half as many for a method that learns from the trained flow."""
    steps = 400 if study.quick else 4_000
    return steps // 2 if entry.start or entry.teacher or entry.pairs else steps


def flow(study: Study, data: str, seed: int) -> Run:
    """The trained flow, from which some methods start."""
    entry = ENTRIES[FLOW]
    return study.train(f"{data}_flow_{seed}", config_of(data, entry, steps_of(study, entry), seed))


def trained(study: Study, data: str, name: str, seed: int) -> Run:
    """The trained run of a row."""
    entry = ENTRIES[name]
    if name == FLOW:
        return flow(study, data, seed)
    first = flow(study, data, seed) if entry.start or entry.teacher or entry.pairs else None
    config = config_of(data, entry, steps_of(study, entry), seed)
    changes: dict[str, Any] = {}
    if first is not None:
        changes |= {"train.start_from": str(first.workdir)} if entry.start else {}
        changes |= {"method.teacher": str(first.workdir)} if entry.teacher else {}
        if entry.pairs:
            folder = study.folder / "pairs" / f"{data}_{seed}"
            made = make_pairs(
                first, folder, 10_000 if study.quick else 50_000, seed + 1, SolverSettings("heun", steps=20)
            )
            changes |= {"data.name": "pairs", "data.path": str(made.folder), "data.pairs": "x0"}
    return study.train(f"{data}_{list(ENTRIES).index(name)}_{seed}", config, changes)


def scores(study: Study, data: str, name: str, seed: int) -> dict[str, float]:
    """Trains one row, and compares its samples with the data."""
    entry = ENTRIES[name]
    if entry.teacher or entry.start or entry.pairs:
        flow(study, data, seed)  # whose seconds are not counted
    start = time.perf_counter()
    run = trained(study, data, name, seed)
    found = {"training_seconds": time.perf_counter() - start}
    for n in entry.evaluations:
        steps = {} if entry.solver == "push_forward" else {"steps": n}
        samples = run.sample(blocks_of(study) * 1000, seed=seed, solver=entry.solver, **steps)
        found[f"w2_squared_{n}"] = distance(study, data, samples)
    return found


def progressive(study: Study, data: str, name: str, seed: int) -> dict[str, float]:
    """Progressive distillation: each round halves the number of steps, from 16 of the flow to 1."""
    entry, teacher = ENTRIES[name], flow(study, data, seed)
    found = {"training_seconds": 0.0}
    for n in entry.evaluations:
        steps = steps_of(study, entry) // len(entry.evaluations)
        changes = {"method.steps": n, "method.teacher": str(teacher.workdir), "train.start_from": str(teacher.workdir)}
        start = time.perf_counter()
        teacher = study.train(f"{data}_progressive_{n}_{seed}", config_of(data, entry, steps, seed), changes)
        found["training_seconds"] += time.perf_counter() - start
        samples = teacher.sample(blocks_of(study) * 1000, seed=seed, solver=entry.solver, steps=n)
        found[f"w2_squared_{n}"] = distance(study, data, samples)
    return found


def floor(study: Study, data: str) -> dict[str, float]:
    """The distance between two sets of true samples."""
    between = distance(study, data, true_samples(study, data, seed=73))
    return {f"w2_squared_{n}": between for n in EVALUATIONS}


def setting(data: str, name: str) -> str:
    return f"{data}: {name}"


def run(study: Study) -> None:
    for seed in study.seeds:
        for data in sets_of(study):
            for name in rows_of(study):
                measured = progressive if ENTRIES[name].method == "progressive_distillation" else scores
                study.measure(setting(data, name), partial(measured, study, data, name, seed), seed)
    for data in sets_of(study):
        study.measure(setting(data, "two true samples"), partial(floor, study, data))


def trajectories(study: Study, name: str) -> dict[str, np.ndarray]:
    """Trajectories of 8 steps from the same 200 source samples, and 4,000 samples of one step."""
    entry, trained_run = ENTRIES[name], trained(study, SETS[0], name, 0)
    x0 = trained_run.prior.sample(jax.random.key(0), 200)
    n = max(n for n in entry.evaluations if n <= 8)
    keys = jax.random.key(1)
    path, _ = sample(trained_run.model(), x0, solver=entry.solver, steps=n, key=keys, save=True)
    few = trained_run.sample(4_000, solver=entry.solver, steps=1)
    return {"path": trained_run.spec.finish(np.asarray(path)), "few": few}


def draw(study: Study, results: Results) -> dict[str, Figure]:
    return {"trajectories": draw_trajectories(study), "quality": draw_quality(study, results)}


def draw_trajectories(study: Study) -> Figure:
    """A column for each of some methods: trajectories of 8 steps, and samples of one step."""
    shown = [name for name in SHOWN if name in rows_of(study)]
    figure = Figure(figsize=(2.3 * len(shown), 4.8), layout="constrained")
    axes = figure.subplots(2, len(shown), sharex=True, sharey=True)
    for i, name in enumerate(shown):
        arrays = study.arrays(f"trajectories{i}", partial(trajectories, study, name))
        above, below = axes[:, i]
        above.plot(*np.moveaxis(arrays["path"], -1, 0), lw=0.4, alpha=0.5, color=plots.PALETTE[0])
        below.scatter(*arrays["few"].T, s=1, lw=0, alpha=0.4, color=plots.PALETTE[1])
        above.set(title=name.removeprefix("from the flow: "), aspect="equal", xticks=(-4, 0, 4), yticks=(-4, 0, 4))
        below.set(aspect="equal")
    axes[0][0].set_ylabel("8 steps")
    axes[1][0].set_ylabel("1 step")
    return figure


def draw_quality(study: Study, results: Results) -> Figure:
    """The distance to the data against the number of evaluations, on the first set."""
    curves = {}
    for name in CURVES:
        if name in rows_of(study):
            row = setting(SETS[0], name)
            values = [results.values(row, f"w2_squared_{n}") for n in EVALUATIONS]
            curves[name] = (EVALUATIONS, np.transpose(values))
    true = results.mean(setting(SETS[0], "two true samples"), "w2_squared_1")
    labels = "evaluations of the network", "squared W2 distance to the data"
    return plots.lines(curves, *labels, references={"two true samples": true})


EXPERIMENT = Experiment(
    title="Methods of few steps in two dimensions, with 1 to 100 evaluations of the same network.",
    source="the papers that the methods name",
    full=Form("2 hours on one CPU core", seeds=5),
    quick=Form("2 minutes on 2 CPU cores"),
    run=run,
    columns={f"w2_squared_{n}": f"W2², {n} evaluation{'s' * (n > 1)}" for n in EVALUATIONS}
    | {"training_seconds": "training, s"},
    draw=draw,
)
