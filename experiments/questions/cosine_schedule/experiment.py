"""Is the cosine schedule the same as linear interpolation?

The two paths differ by a change of time and a scale, in closed form. Networks trained on either are sampled on both,
and the samples are compared with the exact solution of the same network's flow, in units of the data's standard
deviation.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from flowjax import oracles
from flowjax.data.densities import EIGHT_MODES, EIGHT_STD, eight_gaussians
from flowjax.inference import Run
from flowjax.paths import AffinePath, GaussianPath
from flowjax.plots import PALETTE
from flowjax.plots.style import frame, new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.reschedule import Rescheduled
from flowjax.schedules import CondOT, Cosine, Schedule
from flowjax.solvers import sample
from flowjax.sources import GaussianMixture

SCHEDULES: dict[str, Schedule] = {"linear": CondOT(), "cosine": Cosine()}
NAMES = {"linear": "condot", "cosine": "cosine"}
BUDGETS = (2, 4, 8, 16, 64, 256)
FINE = 200
"""Steps of RK4 that stand for the exact solution: 800 evaluations."""
POINTS = 2_000
STD = float(np.sqrt((EIGHT_MODES**2).mean() + EIGHT_STD**2))
EXACT = oracles.mixture(
    GaussianPath(CondOT()), GaussianMixture(jnp.asarray(EIGHT_MODES / STD, jnp.float32), EIGHT_STD / STD)
)
"""The exact field of eight Gaussians, scaled to variance 1, on the linear path."""
LEVEL_GAP = (0.01, 0.99)
"""The times of the cosine path between which the two exact fields are compared."""


def trained(study: Study, schedule: str, seed: int) -> Run:
    """A network on one schedule, for points scaled to variance 1."""
    path, steps = study.folder / "points.npz", 2_000 if study.quick else 7_000
    if not path.exists():
        np.savez(path, x=np.asarray(eight_gaussians().sample(jax.random.key(70), 100_000)))
    changes = {
        "seed": seed,
        "data.name": "npz",
        "data.path": str(path),
        "data.normalise": "global",
        "path.name": "gaussian",
        "path.schedule": NAMES[schedule],
        "train.steps": steps,
        "train.batch_size": 512,
        "train.warmup": 250.0 * 512,
        "train.log_every": steps,
        "train.save_every": steps,
    }
    return study.train(f"{schedule}{seed}", "gaussians8", changes)


def on(model: Any, schedule: str) -> Any:
    """The model on the path with that schedule."""
    path: AffinePath = replace(model.path, schedule=SCHEDULES[schedule])
    return model if path == model.path else Rescheduled(model, path)


def rms(x: jax.Array, y: jax.Array) -> float:
    """The root of the mean squared distance between paired points."""
    return float(jnp.sqrt(((x - y) ** 2).sum(-1).mean()))


def scores(model: Any, schedule: str, seed: int) -> dict[str, float]:
    """Errors of Euler's method on a schedule, by number of steps, and of RK4 with many steps."""
    x0 = jax.random.normal(jax.random.key(seed), (POINTS, 2))
    exact, _ = sample(model, x0, solver="rk4", steps=FINE)
    here = on(model, schedule)
    fine, _ = sample(here, x0, solver="rk4", steps=FINE)
    found = {"fine": rms(fine, exact)}
    for steps in BUDGETS:
        found[f"error_{steps}"] = rms(sample(here, x0, solver="euler", steps=steps)[0], exact)
    return found


def closed_form() -> dict[str, float]:
    """The difference between the fields of the two paths after a change of schedule, relative to the field."""
    path = replace(EXACT.path, schedule=SCHEDULES["cosine"])
    direct, changed = replace(EXACT, path=path), Rescheduled(EXACT, path)
    t = jax.random.uniform(jax.random.key(0), (POINTS,), minval=LEVEL_GAP[0], maxval=LEVEL_GAP[1])
    x = direct.sample(jax.random.key(1), t, POINTS, (2,))
    size = rms(direct.velocity(t, x), jnp.zeros_like(x))
    x0 = jax.random.normal(jax.random.key(2), (POINTS, 2))
    times = jnp.linspace(0.0, 1.0, 9)
    matched = path.schedule.time_of_log_snr(EXACT.path.schedule.log_snr(times))
    few = [sample(model, x0, solver="ddim", grid=grid)[0] for model, grid in ((EXACT, times), (direct, matched))]
    return {"field": rms(direct.velocity(t, x), changed.velocity(t, x)) / size, "ddim": rms(*few)}


def run(study: Study) -> None:
    study.measure("closed form", closed_form)
    for schedule in SCHEDULES:
        study.measure(f"exact field, sampled on {schedule}", partial(scores, EXACT, schedule, 0))
    for seed in study.seeds:
        for learned in SCHEDULES:
            for schedule in SCHEDULES:
                study.measure(
                    f"trained on {learned}, sampled on {schedule}",
                    lambda learned=learned, schedule=schedule, seed=seed: scores(
                        trained(study, learned, seed).model(), schedule, seed
                    ),
                    seed,
                )


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 2, 4.2, 3.9)
    draw_trajectories(axes[0, 0])
    ax = axes[0, 1]
    for learned, marker in zip(SCHEDULES, "os", strict=True):
        for schedule, colour in zip(SCHEDULES, PALETTE, strict=False):
            setting = f"trained on {learned}, sampled on {schedule}"
            mean, spread = (
                [of(setting, f"error_{steps}") for steps in BUDGETS] for of in (results.mean, results.deviation)
            )
            dash = "-" if learned == "linear" else "--"
            ax.errorbar(BUDGETS, mean, spread, c=colour, marker=marker, ms=4, lw=1.3, ls=dash, capsize=2, label=setting)
    ax.set(xscale="log", yscale="log", xlabel="steps of Euler's method", ylabel="RMS error (standard deviations)")
    ax.set_title("networks, against their exact flow")
    ax.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)
    return {"cosine_schedule": figure}


def draw_trajectories(ax: Any) -> None:
    """Trajectories of the exact field from the same noise on both schedules."""
    x0 = jax.random.normal(jax.random.key(4), (12, 2))
    lines = np.zeros((1, 12, 2))
    for schedule, colour in zip(SCHEDULES, PALETTE, strict=False):
        lines = np.asarray(sample(on(EXACT, schedule), x0, solver="rk4", steps=100, save=True)[0])
        ax.plot(lines[..., 0], lines[..., 1], c=colour, lw=1.2, label=[schedule] + [None] * 11)
    ax.scatter(*np.asarray(x0).T, s=14, c="k", zorder=3, label="noise")
    ax.scatter(*lines[-1].T, s=22, marker="D", c=PALETTE[2], zorder=3, label="samples")
    frame(ax, ((-2.7, 2.7), (-2.7, 2.7)), "exact field, same noise")
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    ax.legend(fontsize=7, loc="upper right")


EXPERIMENT = Experiment(
    title="Is the cosine schedule the same as linear interpolation?",
    source="",
    full=Form("2 minutes on 2 CPU cores", seeds=3),
    quick=Form("40 seconds on 2 CPU cores"),
    run=run,
    columns={
        "field": "difference of the fields",
        "ddim": "difference of DDIM, 8 steps",
        "fine": "error, many steps",
    }
    | {f"error_{steps}": f"error, {steps} Euler steps" for steps in BUDGETS},
    draw=draw,
)
