"""What does noise in the sampler buy?

dX = (v + g^2/2 score) dt + g dW has the same marginals for every g >= 0 if the field is exact. With g^2 = 2 c sigma and
Euler-Maruyama steps, c goes from 0 (the ODE) upward, for the exact field of eight Gaussians and for networks that were
trained for few and for many steps.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from flowjax import metrics, oracles
from flowjax.data.densities import EIGHT_MODES, EIGHT_STD, eight_gaussians
from flowjax.paths import GaussianPath
from flowjax.plots import PALETTE
from flowjax.plots.style import frame, new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.schedules import CondOT
from flowjax.solvers import Options, sample
from flowjax.solvers.diffusions import Sigma

NOISES = (0.0, 0.25, 1.0, 4.0, 16.0)
BUDGETS, POINTS = (16, 64, 256), 10_000
FIELDS = {"exact field": 0, "network, 200 steps": 200, "network, 2,000 steps": 2_000}
"""Numbers of training steps; 0 for the exact field."""
DATA = eight_gaussians()
EXACT = oracles.mixture(GaussianPath(CondOT()), DATA)
MODES = len(EIGHT_MODES)


def model_of(study: Study, field: str, seed: int) -> Any:
    if not (steps := FIELDS[field]):
        return EXACT
    changes = {
        "seed": seed,
        "path.name": "gaussian",
        "train.steps": steps,
        "train.batch_size": 512,
        "train.warmup": 50.0 * 512,
        "train.log_every": steps,
        "train.save_every": steps,
        "ema.half_life": 50.0 * 512,
    }
    return study.train(f"steps{steps}_{seed}", "gaussians8", changes).model()


def draw_samples(model: Any, c: float, steps: int, seed: int, num: int) -> np.ndarray:
    x0 = jax.random.normal(jax.random.key(seed), (num, 2))
    options, key = Options(g=Sigma(c)), jax.random.key(100 + seed)
    return np.asarray(sample(model, x0, solver="euler_maruyama", steps=steps, key=key, options=options)[0])


def scores(study: Study, field: str, c: float, seed: int) -> dict[str, float]:
    """The KL at each number of steps, and statistics of the modes and W2^2 at the largest."""
    model, found = model_of(study, field, seed), {}
    for steps in BUDGETS:
        x = draw_samples(model, c, steps, seed, POINTS)
        found |= {f"kl_{steps}": binned_kl(x)} | (of_modes(x) if steps == BUDGETS[-1] else {})
    return found


EDGES = np.linspace(-8.0, 8.0, 33)


def binned_kl(x: np.ndarray) -> float:
    """KL(samples, data) in nats on squares of side 1/2, and the plane outside of [-8, 8]^2.

    The probabilities of the data are exact. The expectation of a finite sample's KL for well filled squares,
    (occupied squares - 1) / (2 n), is subtracted (Miller 1955). Squares that are nearly empty remain, so that true
    samples give about 0.005.
    """
    inside = np.asarray([np.diff(norm.cdf(EDGES[:, None], m, EIGHT_STD), axis=0) for m in EIGHT_MODES.T])  # (2, 32, 8)
    truth = np.einsum("ik,jk->ij", *inside).ravel() / MODES
    counts = np.histogram2d(*x.T, bins=[EDGES, EDGES])[0].ravel()
    truth, counts = np.append(truth, 1 - truth.sum()), np.append(counts, len(x) - counts.sum())
    used = counts > 0
    share = counts[used] / len(x)
    return float((share * np.log(share / truth[used])).sum() - (used.sum() - 1) / (2 * len(x)))


def of_modes(x: np.ndarray) -> dict[str, float]:
    """W2^2 to the data, the shares of the modes, and the distances of points from their modes.

    `width` is the mean squared distance from the nearest mode, and `outside` the share of points more than 3 standard
    deviations from any mode.
    """
    square = ((x[:, None] - EIGHT_MODES) ** 2).sum(-1)
    shares = np.bincount(square.argmin(1), minlength=MODES) / len(x)
    true = np.asarray(DATA.sample(jax.random.key(71), len(x)))
    return {
        "w2_squared": metrics.wasserstein2_squared_pairs(x, true, pairs=5),
        "smallest_share": float(shares.min()),
        "largest_share": float(shares.max()),
        "width": float(square.min(1).mean()),
        "outside": float((square.min(1) > (3 * EIGHT_STD) ** 2).mean()),
    }


def floor() -> dict[str, float]:
    """The same for true samples."""
    x = np.asarray(DATA.sample(jax.random.key(73), POINTS))
    return {f"kl_{steps}": binned_kl(x) for steps in BUDGETS} | of_modes(x)


def run(study: Study) -> None:
    for seed in study.seeds:
        for field in FIELDS:
            for c in NOISES:
                study.measure(f"{field}, c = {c:g}", partial(scores, study, field, c, seed), seed)
    study.measure("true samples", floor)


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 3, 3.0, 3.2, sharey=True)
    x = range(len(NOISES))
    for ax, field in zip(axes[0], FIELDS, strict=True):
        for steps, colour, marker in zip(BUDGETS, PALETTE, "os^", strict=False):
            of = lambda f: [f(f"{field}, c = {c:g}", f"kl_{steps}") for c in NOISES]  # noqa: B023
            mean, spread = of(results.mean), of(results.deviation)
            ax.errorbar(x, mean, spread, c=colour, marker=marker, ms=4, lw=1.3, capsize=2, label=f"{steps} steps")
        ax.axhline(results.mean("true samples", "kl_16"), c="0.3", ls=":", label="true samples")
        ax.set(yscale="log", ylim=(1e-3, 3), xlabel="noise $c$ in $g^2 = 2 c \\sigma$", title=field)
        ax.set_xticks(x, [f"{c:g}" for c in NOISES])
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("KL of the samples, nats")
    axes[0, 0].legend(fontsize=7)
    return {"sde_noise": figure, "samples": draw_clouds(study)}


def draw_clouds(study: Study) -> Figure:
    """Samples of the network with few training steps."""
    field, shown = "network, 200 steps", (0.0, 1.0, 16.0)
    figure, axes = new_figure(1, len(shown), 2.7, 2.9, sharey=True, layout="compressed")
    for ax, c in zip(axes[0], shown, strict=True):
        x = study.arrays(
            f"cloud{c:g}", lambda c=c: {"x": draw_samples(model_of(study, field, 0), c, BUDGETS[-1], 0, 3_000)}
        )["x"]
        ax.scatter(*x.T, s=2, lw=0, alpha=0.5, c=PALETTE[0])
        ax.scatter(*EIGHT_MODES.T, marker="+", s=50, c=PALETTE[1])
        frame(ax, ((-8, 8), (-8, 8)), f"c = {c:g}")
        ax.set_xlabel("$x_1$")
    axes[0, 0].set_ylabel("$x_2$")
    return figure


EXPERIMENT = Experiment(
    title="What does noise in the sampler buy?",
    source="",
    full=Form("4 minutes on 2 CPU cores", seeds=3),
    quick=Form("90 seconds on 2 CPU cores"),
    run=run,
    columns={f"kl_{steps}": f"KL, {steps} steps" for steps in BUDGETS}
    | {
        "w2_squared": "W2², 256 steps",
        "smallest_share": "smallest share",
        "largest_share": "largest share",
        "width": "width²",
        "outside": "outside all modes",
    },
    draw=draw,
)
