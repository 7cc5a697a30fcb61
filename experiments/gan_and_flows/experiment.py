"""A GAN beside flows of many steps and of few steps, at equal training time, in two dimensions and on Fashion-MNIST.

All rows of a data set use the same network, and train for about the same time on one CPU core, the flow from which a
row starts included. Samples are judged by their distance to the data, and by improved precision and recall: the share
of samples that lie among the data, and the share of data that lie among the samples. On Fashion-MNIST both are computed
from the features of a small classifier, which is trained first.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from flowjax import plots
from flowjax.config import Config, changed, defaults
from flowjax.data import Dataset, open_dataset
from flowjax.inference import SolverSettings
from flowjax.inference.pairs import make_pairs
from flowjax.metrics import fid, precision_recall, wasserstein2_squared_pairs
from flowjax.reproduce import Experiment, Form, Results, Study, Trained, file_name
from flowjax.solvers import sample as solve

PLANE, IMAGES = "gaussians8", "fashion_mnist"
HALF = "half of the flow"


@dataclass(frozen=True)
class Entry:
    """A model of the table.

    Attributes:
        method: the value of `method.name`.
        plane, images: training steps on 8 Gaussians and on Fashion-MNIST, chosen so that all rows take about equal
            time, with that of `HALF` for a row that starts from it; 0 for a row that is left out there.
        keys: other keys of the config.
        solver: the solver, which takes one evaluation in each step.
        evaluations: numbers of evaluations with which it is sampled.
        start: whether training starts from `HALF`.
        teacher: whether `HALF` is the teacher.
        pairs: whether it is trained on pairs of `HALF`.
    """

    method: str
    plane: int
    images: int
    keys: Mapping[str, Any] = field(default_factory=dict)
    solver: str = "euler"
    evaluations: tuple[int, ...] = (1,)
    start: bool = False
    teacher: bool = False
    pairs: bool = False

    def steps(self, evaluations: int) -> dict[str, Any]:
        """The number of steps for a number of evaluations, as keyword arguments of a sampler."""
        return {} if self.solver == "push_forward" else {"steps": evaluations}


ENTRIES: dict[str, Entry] = {
    "flow matching": Entry("flow_matching", 8_000, 3_000, evaluations=(50, 8, 1)),
    "GAN": Entry("gan", 1_800, 340, {"train.lr": 1e-3}, "push_forward"),
    "improved MeanFlow": Entry("mean_flow", 4_500, 0, {"method.improved": True}, "flow_map", (1, 2)),
    "consistency": Entry("consistency", 5_300, 1_700, {"method.times": "uniform"}, "consistency", (1, 2)),
    "half a flow, then reflow": Entry("flow_matching", 2_500, 600, evaluations=(1, 2), start=True, pairs=True),
    "half a flow, then consistency tuning": Entry(
        "consistency", 2_200, 850, {"method.times": "uniform"}, "consistency", (1, 2), start=True
    ),
    "half a flow, then a flow map": Entry(
        "flow_map", 1_150, 300, {"method.different": 0.75}, "flow_map", (1, 2), start=True, teacher=True
    ),
}
"""The rows of the table, one for each number of evaluations."""


class Sizes(NamedTuple):
    """Numbers of samples.

    Attributes:
        judged: samples and data that are compared.
        pairs: pairs (x0, x1) for reflow.
    """

    judged: int
    pairs: int


def sets_of(study: Study) -> tuple[str, ...]:
    return (PLANE,) if study.quick else (PLANE, IMAGES)


def rows_of(study: Study, data: str) -> list[str]:
    """The names of the rows of a data set; in the quick form the flow, the GAN and reflow."""
    if study.quick:
        return ["flow matching", "GAN", "half a flow, then reflow"]
    return [name for name, entry in ENTRIES.items() if data == PLANE or entry.images]


def sizes_of(study: Study) -> Sizes:
    return Sizes(2_000, 2_000) if study.quick else Sizes(5_000, 10_000)


def config_of(study: Study, data: str, entry: Entry, seed: int, half: bool = False) -> Config:
    """The config of a model: the same network and batches for all of a data set."""
    config = defaults("mlp" if data == PLANE else "unet", method=entry.method)
    config.data.name = data
    if data == PLANE:
        config.model.width = 128
        config.model.features = 2
        config.train.batch_size = 512
    else:
        config.model.channels = 16
        config.model.multipliers = (1, 2)
        config.model.blocks = 1
        config.model.patch = 2
        config.train.batch_size = 64
    steps = (entry.plane if data == PLANE else entry.images) // (10 if study.quick else 1) // (2 if half else 1)
    config.train.lr = 2e-3
    config.train.warmup = 100.0 * config.train.batch_size
    config.train.steps = steps
    config.train.log_every = max(steps // 10, 1)
    config.train.save_every = steps
    config.ema.half_life = 10.0 * steps  # in samples: the average covers a sixth of the training on images
    if entry.method == "consistency":
        config.method.first, config.method.last, config.method.doubling = 10, 160, steps // 5
    if entry.method == "gan" and data == IMAGES:
        config.method.gamma = 100.0  # a critic that is the mean over 784 pixels has small slopes
    if entry.method == "mean_flow":
        config.method.different = 0.5
        config.method.power = 0.0 if data == PLANE else 1.0
    return changed(config, {"seed": seed, **entry.keys})


@cache
def trained(study: Study, data: str, name: str, seed: int) -> Trained:
    """The trained run of a row, or of `HALF`, with the CPU seconds of its training and of the flow that it needs."""
    entry = ENTRIES["flow matching" if name == HALF else name]
    needs_half = entry.start or entry.teacher or entry.pairs
    first = trained(study, data, HALF, seed) if needs_half else None
    folder = file_name(data, name, seed)

    def changes() -> dict[str, Any]:
        made: dict[str, Any] = {}
        if first is not None:
            workdir = str(first.run.workdir)
            made |= {"train.start_from": workdir} if entry.start else {}
            made |= {"method.teacher": workdir} if entry.teacher else {}
            if entry.pairs:
                settings = SolverSettings("heun", steps=8)
                pairs = make_pairs(
                    first.run, study.folder / "pairs" / folder, sizes_of(study).pairs, seed + 1, settings
                )
                made |= {"data.name": "pairs", "data.path": str(pairs.folder), "data.pairs": "x0"}
        return made

    made = study.timed(folder, config_of(study, data, entry, seed, half=name == HALF), changes)
    return made if first is None else made._replace(seconds=made.seconds + first.seconds)


class Classifier(nnx.Module):
    """Two convolutions and two dense layers, for images of 28 x 28 pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 32, 64, rngs=rngs)
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """The 64 values before the last layer, of images (N, 28, 28, 1) from 0 to 255."""
        x = images.astype(jnp.float32) / 127.5 - 1
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return nnx.relu(self.hidden(x.reshape(len(x), -1)))


class Judge(NamedTuple):
    """What samples are compared with.

    Attributes:
        features: maps points to features, (N, D).
        data: the features of test points.
        modes: the number of modes or classes.
        mode_of: maps features to the numbers of their modes or classes.
        distance: the distance between two sets of features.
    """

    features: Callable[[np.ndarray], np.ndarray]
    data: np.ndarray
    modes: int
    mode_of: Callable[[np.ndarray], np.ndarray]
    distance: Callable[[np.ndarray, np.ndarray], float]


def judge_of(study: Study, data: str) -> Judge:
    """The comparison with a data set."""
    dataset, count = open_dataset(data, cond=() if data == PLANE else ("label",)), sizes_of(study).judged
    if dataset.modes is not None:
        modes = dataset.modes
        near = lambda x: ((x[:, None] - modes) ** 2).sum(-1).argmin(1)
        distance = partial(wasserstein2_squared_pairs, pairs=count // 1000)
        return Judge(lambda x: x, dataset.test[:count], len(modes), near, distance)
    kept = study.arrays("classifier", partial(train_classifier, dataset))
    study.measure(f"{data}: the classifier", lambda: {"accuracy": float(kept["accuracy"])})
    graph, state = nnx.split(Classifier(nnx.Rngs(0)))
    leaves = [kept[f"weight{i}"] for i in range(len(jax.tree.leaves(state)))]
    network = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))
    features = lambda x: np.asarray(jax.jit(network.features)(jnp.asarray(x)))
    class_of = lambda x: np.asarray(network.last(jnp.asarray(x))).argmax(1)
    return Judge(features, features(dataset.test[:count]), 10, class_of, partial(fid, features=lambda x: x))


def train_classifier(dataset: Dataset, epochs: int = 3, batch: int = 200) -> dict[str, np.ndarray]:
    """Trains the classifier on the labels, and returns its weights and its accuracy on the test set."""
    network, rows = Classifier(nnx.Rngs(0)), dataset.arrays()
    optimizer = nnx.Optimizer(network, optax.adam(2e-3), wrt=nnx.Param)

    def loss(network: Classifier, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(network.last(network.features(x)), y).mean()

    @nnx.jit
    def step(network: Classifier, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        optimizer.update(network, nnx.grad(loss)(network, x, y))

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for i in rng.permutation(len(rows.x1)).reshape(-1, batch):
            step(network, optimizer, rows.x1[i], rows.cond["label"][i])
    found = jnp.argmax(network.last(network.features(jnp.asarray(dataset.test))), 1)
    weights = {f"weight{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(nnx.state(network)))}
    return {"accuracy": np.mean(np.asarray(found) == dataset.test_labels), **weights}


def judged(judge: Judge, samples: np.ndarray) -> dict[str, float]:
    """The distance, precision and recall of samples, and the share of their rarest mode in that of equal shares."""
    x = judge.features(samples)
    near = precision_recall(judge.data, x)
    shares = np.bincount(judge.mode_of(x), minlength=judge.modes) / len(x)
    found = {"precision": near.precision, "recall": near.recall, "rarest": shares.min() * judge.modes}
    return {"distance": float(judge.distance(judge.data, x)), **{k: float(v) for k, v in found.items()}}


def scores(study: Study, judge: Judge, data: str, name: str, evaluations: int, seed: int) -> dict[str, float]:
    """Trains a row if that was not done, and judges its samples."""
    entry, made = ENTRIES[name], trained(study, data, name, seed)
    samples = made.run.sample(len(judge.data), seed=seed, solver=entry.solver, **entry.steps(evaluations))
    model, x0 = made.run.model(), made.run.prior.sample(jax.random.key(0), 500)
    draw = jax.jit(lambda x0: solve(model, x0, solver=entry.solver, key=jax.random.key(1), **entry.steps(evaluations)))
    seconds = min(timed(draw, x0) for _ in range(4))  # of which the first one compiles
    return {
        **judged(judge, samples),
        "milliseconds": 1000 * seconds / len(x0),
        "training_seconds": made.seconds,
    }


def timed(draw: Callable[[jax.Array], Any], x0: jax.Array) -> float:
    """The seconds of a call."""
    start = time.perf_counter()
    jax.block_until_ready(draw(x0))
    return time.perf_counter() - start


def other_data(study: Study, judge: Judge, data: str) -> dict[str, float]:
    """The same measures for data: other test points."""
    count = len(judge.data)
    return judged(judge, open_dataset(data).test[count : 2 * count])


def setting(data: str, name: str, evaluations: int) -> str:
    return f"{data}: {name}, {evaluations} evaluation{'s' * (evaluations > 1)}"


def run(study: Study) -> None:
    for data in sets_of(study):
        judge = judge_of(study, data)
        for seed in study.seeds:
            for name in rows_of(study, data):
                for n in ENTRIES[name].evaluations:
                    study.measure(setting(data, name, n), partial(scores, study, judge, data, name, n, seed), seed)
        study.measure(f"{data}: other data", partial(other_data, study, judge, data))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    figures = {"quality": draw_quality(study, results)}
    return figures if study.quick else {**figures, "samples": draw_samples(study)}


def draw_quality(study: Study, results: Results) -> Figure:
    """For each data set, recall against the distance to the data, and the distance against the time of a sample."""
    sets = sets_of(study)
    figure = Figure(figsize=(9, 3.6 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), 2, squeeze=False)
    for (left, right), data in zip(axes, sets, strict=True):
        for name in rows_of(study, data):
            i = list(ENTRIES).index(name)  # the same colours in all rows of the figure
            rows = [setting(data, name, n) for n in ENTRIES[name].evaluations]
            of = lambda metric, rows=rows: [results.mean(row, metric) for row in rows]
            style = {"marker": "osD^vP*"[i % 7], "color": plots.PALETTE[i % len(plots.PALETTE)], "lw": 1}
            left.plot(of("distance"), of("recall"), **style, label=name)
            right.plot(of("milliseconds"), of("distance"), **style)
            for n, x, y in zip(ENTRIES[name].evaluations, of("milliseconds"), of("distance"), strict=True):
                right.annotate(str(n), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        quantity = "squared W2 distance" if data == PLANE else "Fréchet distance"
        left.set(xscale="log", xlabel=f"{quantity} to the data", ylabel="recall", title=data)
        right.set(
            xscale="log", yscale="log", xlabel="milliseconds a sample", ylabel=quantity, title="numbers are evaluations"
        )
        left.grid(alpha=0.3)
        right.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    return figure


def draw_samples(study: Study) -> Figure:
    """Rows of images, one for each row of the table."""
    shown = {}
    for name in rows_of(study, IMAGES):
        for n in ENTRIES[name].evaluations:
            shown[f"{name}, {n}"] = study.arrays(f"images_{len(shown)}", partial(images, study, name, n))["images"]
    figure = Figure(figsize=(8, 0.45 * len(shown)), layout="constrained")
    for ax, (name, rows) in zip(figure.subplots(len(shown), 1), shown.items(), strict=True):
        ax.imshow(np.concatenate(list(rows[..., 0]), 1), cmap="gray", vmin=0, vmax=255)
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        ax.set(xticks=(), yticks=())
    return figure


def images(study: Study, name: str, evaluations: int) -> dict[str, np.ndarray]:
    """16 images of a row, from the same source samples for all rows."""
    entry, made = ENTRIES[name], trained(study, IMAGES, name, 0)
    return {"images": made.run.sample(16, seed=1, solver=entry.solver, **entry.steps(evaluations))}


EXPERIMENT = Experiment(
    title="A GAN beside flows of many and of few steps, at equal training time.",
    source="",
    full=Form("45 minutes of one CPU core", needs=(IMAGES,)),
    quick=Form("2 minutes on 2 CPU cores"),
    run=run,
    columns={
        "distance": "distance",
        "precision": "precision",
        "recall": "recall",
        "rarest": "rarest mode",
        "accuracy": "accuracy",
        "milliseconds": "ms a sample",
        "training_seconds": "training, CPU s",
    },
    draw=draw,
)
