"""Does the exact minimiser of the loss memorise, and why does the network not?

The minimiser of the loss on N training points is the exact field of their empirical distribution, whose samples are the
training points. Networks are trained on N of scikit-learn's digits. A sample counts as a copy if its nearest training
image is at most a third as far away as the second nearest (Gu et al. 2023, arXiv:2310.02664, use the same criterion).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import flowjax
from flowjax import oracles
from flowjax.config import defaults
from flowjax.inference import Run
from flowjax.paths import GaussianPath
from flowjax.plots import PALETTE
from flowjax.plots.style import new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.schedules import CondOT
from flowjax.solvers import sample

COPY = 1 / 3
HELD_OUT, SAMPLES = 297, 500
LAST = 0.999
"""The time at which the exact field of the training points is left: it is singular at 1."""


def sizes(study: Study) -> tuple[int, ...]:
    return (16, 64, 1_024) if study.quick else (16, 64, 256, 1_024)


def stages(study: Study) -> tuple[int, ...]:
    return (250, 1_000, 2_000) if study.quick else (500, 1_000, 2_000, 4_000, 8_000)


def images() -> np.ndarray:
    """All digits, (1797, 64), in a fixed random order, with pixels from -1 to 1."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return np.random.default_rng(0).permutation(digits.data).astype(np.float32) / 8 - 1


def split(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images, other ones for each seed, and held-out images."""
    x = images()
    rows = np.random.default_rng(seed).permutation(len(x) - HELD_OUT)[:size]
    return x[HELD_OUT:][rows], x[:HELD_OUT]


def trained(study: Study, size: int, seed: int) -> Run:
    path = study.folder / f"digits{size}_{seed}.npz"
    train, held_out = split(size, seed)
    if not path.exists():
        np.savez(path, x=train, x_test=held_out)
    made = defaults("mlp")
    made.seed = seed
    made.data.name, made.data.path, made.data.normalise = "npz", str(path), "global"
    made.model.width, made.model.features = 256, 32
    made.train.batch_size, made.train.lr, made.train.schedule = 128, 1e-3, "constant"
    made.train.steps, made.train.keep_at = stages(study)[-1], stages(study)
    made.train.log_every = stages(study)[0]
    made.train.save_every = made.train.steps
    made.ema.half_life = 100.0 * 128
    return study.train(f"size{size}_{seed}", made)


def of_samples(x: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """The share of copies, and the mean distance to the nearest training image, per pixel."""
    squares = (x**2).sum(1)[:, None] + (train**2).sum(1) - 2 * x @ train.T
    nearest = np.sqrt(np.maximum(np.sort(squares.astype(np.float64), 1)[:, :2], 0))
    return {
        "copies": float((nearest[:, 0] < COPY * nearest[:, 1]).mean()),
        "distance": float(nearest[:, 0].mean()) / train.shape[1] ** 0.5,
    }


def samples_of(model: Any, seed: int, num: int = SAMPLES) -> jax.Array:
    x0 = jax.random.normal(jax.random.key(seed), (num, images().shape[1]))
    return sample(model, x0, solver="heun", steps=40, t1=LAST)[0]


def exact(size: int, seed: int) -> dict[str, float]:
    """Samples of the exact field of the training points."""
    train, _ = split(size, seed)
    return of_samples(np.asarray(samples_of(oracle(train), seed)), train)


def oracle(train: np.ndarray) -> oracles.Oracle:
    return oracles.dataset(GaussianPath(CondOT()), jnp.asarray(train))


def scores(study: Study, size: int, seed: int) -> dict[str, Any]:
    """Copies, distances and losses after each stage; the last stage is tabulated."""
    run = trained(study, size, seed)
    train, held_out = split(size, seed)
    curves: dict[str, list[float]] = {"copies_curve": [], "distance_curve": [], "train_loss": [], "test_loss": []}
    for stage in stages(study):
        model = flowjax.load(run.workdir, checkpoint=stage).model()
        x = run.spec.finish(np.asarray(samples_of(model, seed)))
        for metric, value in of_samples(x, train).items():
            curves[f"{metric}_curve"].append(value)
        for name, rows in (("train", train), ("test", held_out)):
            curves[f"{name}_loss"].append(loss(model, jnp.asarray(run.spec.to_model(rows), jnp.float32)))
    last = {name.removesuffix("_curve"): values[-1] for name, values in curves.items() if "loss" not in name}
    losses = {f"last_{name}": curves[name][-1] for name in ("train_loss", "test_loss")}
    return last | losses | {"held_out": of_samples(held_out, train)["distance"]} | curves


def loss(model: Any, rows: jax.Array) -> float:
    """The flow matching loss on rows, at 2,048 stratified times."""
    n = 2_048
    t = (jnp.arange(n) + 0.5) / n
    x0 = jax.random.normal(jax.random.key(3), (n, rows.shape[1]))
    x1 = rows[jax.random.permutation(jax.random.key(4), jnp.resize(jnp.arange(len(rows)), (n,)))]
    p = GaussianPath(CondOT()).sample(jax.random.key(5), t, x0, x1)
    return float(((model.velocity(t, p.x_t) - p.dx_t) ** 2).mean())


def run(study: Study) -> None:
    for seed in study.seeds:
        for size in sizes(study):
            study.measure(f"exact field, N = {size:,}", partial(exact, size, seed), seed)
            study.measure(f"network, N = {size:,}", partial(scores, study, size, seed), seed)


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 2, 4.0, 3.5)
    for size, colour, marker in zip(sizes(study), PALETTE, "os^D", strict=False):
        setting = f"network, N = {size:,}"
        copies, distance = (results.series(setting, f"{name}_curve") for name in ("copies", "distance"))
        style = {"c": colour, "marker": marker, "ms": 4, "lw": 1.3}
        axes[0, 0].plot(stages(study), copies, label=f"N = {size:,}", **style)
        held_out = results.mean(setting, "held_out")
        axes[0, 1].plot(stages(study), np.asarray(distance) / held_out, label=f"N = {size:,}", **style)
    axes[0, 0].axhline(1, c="0.3", ls=":", label="exact field, every N")
    axes[0, 1].axhline(1, c="0.3", ls="--", label="held-out images")
    axes[0, 0].set(ylim=(-0.04, 1.06), ylabel="share of samples that are copies")
    axes[0, 1].set(ylabel="distance to nearest training image,\nrelative to held-out images")
    axes[0, 1].set_ylim(bottom=0)
    for ax in axes[0]:
        ax.set(xscale="log", xlabel="training steps")
        ax.set_xticks(stages(study), [f"{stage:,}" for stage in stages(study)])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return {"memorisation": figure, "samples": draw_samples(study)}


def draw_samples(study: Study) -> Figure:
    """Samples, each above its nearest training image."""
    small, large = sizes(study)[0], sizes(study)[-1]
    kinds = {
        f"exact field,\nN = {large:,}": lambda: (samples_of(oracle(split(large, 0)[0]), 0, 10), split(large, 0)[0]),
        f"network,\nN = {small}": lambda: network_samples(study, small),
        f"network,\nN = {large:,}": lambda: network_samples(study, large),
    }
    figure, axes = new_figure(len(kinds), 1, 6.2, 1.45)
    for i, (ax, (name, make)) in enumerate(zip(axes[:, 0], kinds.items(), strict=True)):
        rows = study.arrays(f"images{i}", lambda make=make: beside(*make()))["rows"]
        tiles = rows.reshape(2, 10, 8, 8).transpose(0, 2, 1, 3).reshape(16, 80)
        ax.imshow(tiles, cmap="gray", vmin=-1, vmax=1)
        ax.axhline(7.5, c=PALETTE[1], lw=1)
        ax.set_xticks([])
        ax.set_yticks([3.5, 11.5], ["sample", "nearest"], fontsize=8)
        ax.set_title(name.replace("\n", " "), fontsize=9)
    return figure


def network_samples(study: Study, size: int) -> tuple[np.ndarray, np.ndarray]:
    run = trained(study, size, 0)
    return run.spec.finish(np.asarray(samples_of(run.model(), 0, 10))), split(size, 0)[0]


def beside(x: Any, train: np.ndarray) -> dict[str, np.ndarray]:
    """Samples, and the training images nearest to them."""
    x = np.asarray(x)
    nearest = ((x[:, None] - train) ** 2).sum(-1).argmin(1)
    return {"rows": np.concatenate([x, train[nearest]])}


EXPERIMENT = Experiment(
    title="Does the exact minimiser of the loss memorise, and why does the network not?",
    source="",
    full=Form("10 minutes on 2 CPU cores", seeds=3),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "copies": "copies",
        "distance": "distance to training images",
        "held_out": "of held-out images",
        "last_train_loss": "loss, training images",
        "last_test_loss": "loss, held-out images",
    },
    draw=draw,
)
