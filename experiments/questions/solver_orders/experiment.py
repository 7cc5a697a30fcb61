"""Euler, Heun or a higher order at each number of network evaluations?

Fixed-step solvers integrate the exact field of eight Gaussians and trained networks from the same noise. Errors are the
root mean squared distances to an exact solve of the same field, in units of the data's standard deviation.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from flowjax import oracles
from flowjax.data.densities import EIGHT_MODES, EIGHT_STD, eight_gaussians
from flowjax.paths import GaussianPath
from flowjax.plots import PALETTE
from flowjax.plots.style import new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.schedules import CondOT
from flowjax.solvers import sample

SOLVERS = {"euler": 1, "heun": 2, "rk4": 4, "dopri5": 5, "ab2": 2, "unipc": 2}
"""The order of convergence that theory gives for smooth fields."""
BUDGETS = (4, 8, 16, 32, 64, 128, 256)
POINTS = 2_000
FITTED = (1e-5, 0.05)
"""The errors between which orders are fitted: above the rounding of float32, and below the errors of few steps."""
EXACT = oracles.mixture(GaussianPath(CondOT()), eight_gaussians())
STD = float(np.sqrt((EIGHT_MODES**2).mean() + EIGHT_STD**2))
FIELDS = {"exact field": EXACT, "network": None}


def changes(quick: bool, seed: int) -> dict[str, Any]:
    """The values of keys that differ from those of the config `gaussians8`."""
    steps = 2_000 if quick else 7_000
    return {
        "seed": seed,
        "train.steps": steps,
        "train.batch_size": 512,
        "train.warmup": 250.0 * 512,
        "train.log_every": steps,
        "train.save_every": steps,
    }


def fine(model: Any, x0: jax.Array) -> jax.Array:
    """The solution by 200 steps of RK4, whose error is that of float32."""
    return sample(model, x0, solver="rk4", steps=200)[0]


def rms(x: jax.Array, y: jax.Array) -> float:
    """The root of the mean squared distance between paired points, in standard deviations of the data."""
    return float(jnp.sqrt(((x - y) ** 2).sum(-1).mean())) / STD


def noise(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (POINTS, 2))


def scores(model: Any, solver: str, seed: int, exact: jax.Array) -> dict[str, Any]:
    """Errors at each budget of evaluations that the solver can spend, and the fitted order."""
    found, evaluations, errors = {}, [], []
    for budget in BUDGETS:
        per_step = {"heun": 2, "rk4": 4, "dopri5": 6}.get(solver, 1)
        if budget < per_step:
            continue
        y, stats = sample(model, noise(seed), solver=solver, steps=budget // per_step)
        error = rms(y, exact)
        evaluations.append(int(stats.nfe[0]))
        errors.append(error)
        found[f"error_{budget}"] = error
    return found | {"order": order(evaluations, errors), "evaluations": evaluations, "errors": errors}


def order(evaluations: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the slope of log error against log evaluations, by least squares over the errors in `FITTED`."""
    x, y = np.log(np.asarray(evaluations, float)), np.log(np.asarray(errors))
    used = (y > np.log(FITTED[0])) & (y < np.log(FITTED[1]))
    return float(-np.polyfit(x[used], y[used], 1)[0])


def run(study: Study) -> None:
    exact = fine(EXACT, noise(0))
    for solver in SOLVERS:
        study.measure(f"exact field, {solver}", partial(scores, EXACT, solver, 0, exact))
    for seed in study.seeds:
        model = study.train(f"seed{seed}", "gaussians8", changes(study.quick, seed)).model()
        flow = fine(model, noise(seed))
        for solver in SOLVERS:
            study.measure(f"network, {solver}", partial(scores, model, solver, seed, flow), seed)
        study.measure(
            "network, exact solve, against the exact field",
            lambda flow=flow, seed=seed: {"error_256": rms(flow, fine(EXACT, noise(seed)))},
            seed,
        )


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 2, 4.2, 3.9, sharey=True)
    for ax, field in zip(axes[0], FIELDS, strict=True):
        for solver, colour, marker in zip(SOLVERS, PALETTE, "os^Dvx", strict=False):
            setting = f"{field}, {solver}"
            x, y = (results.series(setting, metric) for metric in ("evaluations", "errors"))
            label = f"{solver}, slope {results.mean(setting, 'order'):.1f}"
            ax.plot(x, y, c=colour, marker=marker, ms=5, lw=1.3, label=label)
        ax.set(xscale="log", yscale="log", xlabel="evaluations of the field", title=field)
        ax.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    network = results.mean("network, exact solve, against the exact field", "error_256")
    axes[0, 1].axhline(network, c="0.4", ls=":", lw=1.4, label="error of the network itself")
    for ax in axes[0]:
        ax.legend(fontsize=7, loc="lower left")
    axes[0, 0].set_ylabel("RMS error (standard deviations)")
    return {"solver_orders": figure}


EXPERIMENT = Experiment(
    title="Euler, Heun or a higher order at each number of network evaluations?",
    source="",
    full=Form("3 minutes on 2 CPU cores", seeds=3),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={"order": "fitted order"} | {f"error_{budget}": f"error, {budget} evaluations" for budget in BUDGETS},
    draw=draw,
)
