"""How straight are learned paths, and what do optimal transport and reflow change?

Flows from N(0, I) to eight Gaussians are learned with the independent coupling, with minibatch optimal transport, and
by one round of reflow on pairs from the first flow. With the energy E = mean of the integral of |v|^2 and the
displacement D = x_1 - x_0 of the learned flow, 1 + normalised path energy (if positive) is the product of

    1 + curvature = E / mean |D|^2      (1 if every trajectory is a straight line at constant speed)
    1 + detour    = mean |D|^2 / W2^2   (1 if the pairs of ends are optimal)
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from flowjax import metrics
from flowjax.data.densities import eight_gaussians
from flowjax.inference import Run
from flowjax.plots import PALETTE
from flowjax.plots.style import frame, new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.solvers import sample

DATA = eight_gaussians()
COUPLINGS = {"independent coupling": "independent", "minibatch optimal transport": "ot", "reflow, one round": "reflow"}
STEPS = (1, 2, 4, 8)
FINE = 100
"""Steps of RK4 that stand for the exact flow."""


def noise(seed: int, num: int) -> np.ndarray:
    return np.asarray(jax.random.normal(jax.random.key(seed), (num, 2)))


def changes(coupling: str, seed: int, quick: bool) -> dict[str, Any]:
    """The values of keys that differ from those of the config `gaussians8`."""
    steps = 2_000 if quick else 7_000
    return {
        "seed": seed,
        "coupling.name": coupling,
        "train.steps": steps,
        "train.batch_size": 256,
        "train.warmup": 250.0 * 256,
        "train.log_every": steps,
        "train.save_every": steps,
    }


def trained(study: Study, name: str, seed: int) -> Run:
    """The run of a coupling, or of reflow on pairs of noise and samples of the first flow."""
    if COUPLINGS[name] != "reflow":
        return study.train(f"{COUPLINGS[name]}{seed}", "gaussians8", changes(COUPLINGS[name], seed, study.quick))
    path = study.folder / f"pairs{seed}.npz"
    if not path.exists():
        z = noise(1000 + seed, 20_000 if study.quick else 50_000)
        np.savez(path, x=flow(trained(study, "independent coupling", seed), z, "rk4", FINE // 2), x0=z)
    pairs = {"data.name": "npz", "data.path": str(path), "data.pairs": "x0", "data.normalise": "global"}
    return study.train(f"reflow{seed}", "gaussians8", changes("independent", seed, study.quick) | pairs)


def flow(run: Run, x0: np.ndarray, solver: str, steps: int, save: bool = False) -> np.ndarray:
    """The flow from x0 to samples, both in the units of the data; the pairs of reflow are scaled together."""
    start = jnp.asarray(run.spec.to_model(x0), jnp.float32)
    y = np.asarray(sample(run.model(), start, solver=solver, steps=steps, save=save)[0])
    return np.asarray(run.spec.normalise.to_data(y))


def distance_to_data(x: np.ndarray, pairs: int) -> float:
    """W2^2 to the data."""
    return metrics.wasserstein2_squared_pairs(x, np.asarray(DATA.sample(jax.random.key(71), len(x))), pairs=pairs)


def scores(study: Study, name: str, seed: int) -> dict[str, float]:
    run, pairs = trained(study, name, seed), 5 if study.quick else 10
    x0 = noise(seed, pairs * 1000)
    x1 = flow(run, x0, "rk4", FINE)
    start = jnp.asarray(run.spec.to_model(x0), jnp.float32)
    unit = float(np.mean(np.square(run.spec.normalise.scale)))
    energy = unit * float(jax.jit(lambda x: metrics.path_energy(run.model().velocity, x))(start).mean())
    moved = float(((x1 - x0) ** 2).sum(-1).mean())
    best = distance_to_data(x0, pairs)
    found = {
        "npe": metrics.normalised_path_energy(energy, best),
        "curvature": energy / moved - 1,
        "detour": moved / best - 1,
    }
    few = {str(steps): flow(run, x0, "euler", steps) for steps in STEPS} | {"fine": x1}
    return found | {f"w2_squared_{steps}": distance_to_data(x, pairs) for steps, x in few.items()}


def floor(study: Study) -> dict[str, float]:
    """The distance between two sets of true samples."""
    pairs = 5 if study.quick else 10
    true = distance_to_data(np.asarray(DATA.sample(jax.random.key(73), pairs * 1000)), pairs)
    return {f"w2_squared_{steps}": true for steps in (*STEPS, "fine")}


def run(study: Study) -> None:
    for seed in study.seeds:
        for name in COUPLINGS:
            study.measure(name, partial(scores, study, name, seed), seed)
    study.measure("two true samples", partial(floor, study))


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(2, 3, 2.7, 2.9, sharex=True, sharey=True, layout="compressed")
    for i, name in enumerate(COUPLINGS):
        arrays = study.arrays(COUPLINGS[name], partial(drawn, study, name))
        lines, few = arrays["lines"], arrays["few"]
        axes[0, i].plot(lines[..., 0], lines[..., 1], c="0.6", lw=0.5)
        axes[0, i].scatter(*lines[0].T, s=5, lw=0, c="k", zorder=3, label="noise")
        axes[0, i].scatter(*lines[-1].T, s=5, lw=0, c=PALETTE[0], zorder=3, label="samples")
        axes[1, i].scatter(*few.T, s=2, lw=0, alpha=0.5, c=PALETTE[1], label="one Euler step")
        for ax in axes[:, i]:
            frame(ax, ((-8, 8), (-8, 8)))
        axes[0, i].set_title(name, fontsize=10)
        axes[1, i].set_xlabel("$x_1$")
    for ax, kind in zip(axes[:, 0], ("trajectories", "one Euler step"), strict=True):
        ax.set_ylabel(f"{kind}\n$x_2$")
    axes[0, 0].legend(fontsize=7, loc="upper right")
    return {"straightness": figure}


def drawn(study: Study, name: str) -> dict[str, np.ndarray]:
    run, x0 = trained(study, name, 0), noise(5, 1_000)
    return {"lines": flow(run, x0[:100], "rk4", 50, save=True), "few": flow(run, x0, "euler", 1)}


EXPERIMENT = Experiment(
    title="How straight are learned paths, and what do optimal transport and reflow change?",
    source="",
    full=Form("5 minutes on 2 CPU cores", seeds=3),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={"npe": "path energy, normalised", "curvature": "curvature", "detour": "detour"}
    | {f"w2_squared_{steps}": f"W2², {steps} Euler step{'s' * (steps > 1)}" for steps in STEPS}
    | {"w2_squared_fine": "W2², exact"},
    draw=draw,
)
