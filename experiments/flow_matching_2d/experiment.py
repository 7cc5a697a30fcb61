"""Figure 4 of Lipman et al. 2023: flow matching with two paths, and score matching, on the checkerboard.

Each objective trains the same network. Samples of 4 to 64 evaluations by the midpoint rule, which that figure uses, are
compared with true samples, and log-densities with the true density.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from flowjax import plots
from flowjax.data.densities import DENSITIES
from flowjax.inference import Run
from flowjax.metrics import wasserstein2_squared_pairs
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.solvers import solve_ode

OBJECTIVES = {
    "FM, OT path": {"path.schedule": "condot", "prediction": "velocity"},
    "FM, diffusion path": {"path.schedule": "vp(0.1, 20)", "prediction": "velocity"},
    "score matching, diffusion path": {"path.schedule": "vp(0.1, 20)", "prediction": "score"},
}
BUDGETS = (4, 8, 16, 32, 64)
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
BOARD = DENSITIES["checkerboard"]()


def trained(study: Study, setting: str, seed: int) -> Run:
    """The trained network of one objective."""
    steps = 3_000 if study.quick else 20_000
    changes = {"seed": seed, "train.steps": steps, "train.log_every": steps // 4, "train.save_every": steps // 4}
    name = f"objective{list(OBJECTIVES).index(setting)}_seed{seed}"
    return study.train(name, "checkerboard", OBJECTIVES[setting] | changes)


def scores(study: Study, setting: str, seed: int) -> dict[str, float]:
    """Trains one network, and measures it."""
    run = trained(study, setting, seed)
    pairs = 5 if study.quick else 25
    true = np.asarray(BOARD.sample(jax.random.key(71), pairs * 1000))
    distance = partial(wasserstein2_squared_pairs, true, pairs=pairs)
    held_out = np.asarray(BOARD.sample(jax.random.key(72), 2_000 if study.quick else 20_000))
    gap = np.asarray(BOARD.log_prob(jnp.asarray(held_out))) - run.log_prob(held_out)
    found = {"kl": float(gap.mean())}
    for budget in BUDGETS:
        samples = run.sample(pairs * 1000, seed=seed, solver="midpoint", steps=budget // 2)
        found[f"w2_squared_{budget}"] = float(distance(samples))
    return found


def floor(study: Study) -> dict[str, float]:
    """The distance between two sets of true samples."""
    pairs = 5 if study.quick else 25
    draw = lambda seed: np.asarray(BOARD.sample(jax.random.key(seed), pairs * 1000))
    distance = wasserstein2_squared_pairs(draw(71), draw(73), pairs=pairs)
    return {f"w2_squared_{budget}": distance for budget in BUDGETS}


def trajectories(run: Run) -> dict[str, np.ndarray]:
    """Points at five times of the flow, and samples of 8 evaluations, in the units of the data."""
    t0, t1 = run.interval
    times = np.linspace(t0, t1, len(TIMES))
    x0 = run.prior.sample(jax.random.key(0), 4_000)
    points, _ = solve_ode(run.model().velocity, x0, t0=t0, t1=t1, solver="rk4", steps=100, save_at=times)
    return {
        "points": run.spec.finish(np.asarray(points)),
        "few": run.sample(4_000, solver="midpoint", steps=4),
    }


def run(study: Study) -> None:
    for seed in study.seeds:
        for setting in OBJECTIVES:
            study.measure(setting, partial(scores, study, setting, seed), seed)
    study.measure("two true samples", partial(floor, study))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    return {"trajectories": draw_trajectories(study), "quality": draw_quality(results)}


def draw_trajectories(study: Study) -> Figure:
    """A row for each objective: the flow at five times, and samples with 8 evaluations."""
    heads = [f"t = {t:g}" for t in TIMES] + ["8 evaluations"]
    figure = Figure(figsize=(2 * len(heads), 2.2 * len(OBJECTIVES)), layout="constrained")
    axes = figure.subplots(len(OBJECTIVES), len(heads), sharex=True, sharey=True)
    for i, setting in enumerate(OBJECTIVES):
        arrays = study.arrays(f"trajectories{i}", lambda setting=setting: trajectories(trained(study, setting, 0)))
        for ax, points in zip(axes[i], [*arrays["points"], arrays["few"]], strict=True):
            ax.scatter(*points.T, s=1, lw=0, alpha=0.4, c=plots.PALETTE[i])
            ax.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal", xticks=(-4, 0, 4), yticks=(-4, 0, 4))
        axes[i][0].set_ylabel(setting.replace(", ", "\n"))
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head)
    return figure


def draw_quality(results: Results) -> Figure:
    """The distance to the data against the number of evaluations."""
    metrics = [f"w2_squared_{budget}" for budget in BUDGETS]
    curves = {
        setting: (BUDGETS, np.transpose([results.values(setting, metric) for metric in metrics]))
        for setting in OBJECTIVES
    }
    floor = {"two true samples": results.mean("two true samples", metrics[0])}
    labels = "evaluations of the network", "squared W2 distance to the data"
    return plots.lines(curves, *labels, references=floor)


EXPERIMENT = Experiment(
    title="Flow matching with the OT path, with the diffusion path, and score matching on the checkerboard.",
    source="Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv:2210.02747, figure 4",
    full=Form("15 minutes on 2 CPU cores", seeds=3),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={"kl": "KL, nats"} | {f"w2_squared_{budget}": f"W2², {budget} evaluations" for budget in BUDGETS},
    draw=draw,
)
