"""The error of every sampler with its default settings, on every schedule, at 10, 20 and 40 steps.

    python experiments/samplers_defaults/measure.py --out experiments/samplers_defaults

The denoisers are exact, so that all errors are those of the samplers. Deterministic samplers are compared with the
exact flow from the same start, by root mean square; stochastic ones with the data, by the 2-Wasserstein distance of
their samples. Writes results.json and samplers_defaults.png into --out, and prints the tables of the README.
"""

import argparse
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.scipy.special import ndtr
from scipy.optimize import linear_sum_assignment

from flowjax import schedules
from flowjax.data.densities import eight_gaussians
from flowjax.keys import fold_rows
from flowjax.oracles import Oracle
from flowjax.paths import GaussianPath
from flowjax.solvers import diffusions, grids, make_sampler, samplers
from flowjax.solvers.names import Options
from flowjax.sources import GaussianMixture

matplotlib.use("agg")
import matplotlib.pyplot as plt

STEPS = (10, 20, 40)
SEEDS, FLOORS = 3, 12  # sets of samples of a stochastic sampler, and of true samples
DRAWS = {1: 2000, 2: 1000}  # samples of a stochastic sampler, by dimension
SCHEDULES = {
    "condot": schedules.CondOT(),
    "shifted": schedules.Shifted(schedules.CondOT(), 3),
    "cosine": schedules.Cosine(),
    "polynomial": schedules.Polynomial(2),
    "vp": schedules.VP(),
    "subvp": schedules.SubVP(),
    "ve": schedules.VE(),
    "edm": schedules.EDM(),
    "ddpm_linear": schedules.ddpm_linear(1000),
    "nichol_cosine": schedules.nichol_cosine(1000),
}
ORACLES = {
    "normal": GaussianMixture(np.array([[1.0]]), 0.5),
    "two modes": GaussianMixture(np.array([[-1.0], [1.5]]), np.array([0.3, 0.15]), np.array([0.7, 0.3])),
    "gaussians8": eight_gaussians(),
}
DETERMINISTIC = ("euler", "midpoint", "heun", "rk4", "ab2", "ddim", "edm", "dpmpp_2m", "dpmpp_3m", "unipc")
STOCHASTIC = ("euler_maruyama", "stochastic_heun", "ddpm", "dpmpp_sde", "pc")
LISTED = tuple(SCHEDULES.values())


@dataclass(frozen=True)
class OneOf:
    """The schedule of that number, which may be traced: one program runs a sampler on all schedules."""

    number: Any

    def alpha(self, t):
        return jax.lax.switch(self.number, [s.alpha for s in LISTED], t)

    def sigma(self, t):
        return jax.lax.switch(self.number, [s.sigma for s in LISTED], t)

    def log_snr(self, t):
        return jax.lax.switch(self.number, [s.log_snr for s in LISTED], t)


STARTS_WITH_DATA = [float(s.alpha(0.0)) > 0 for s in LISTED]


@dataclass(frozen=True)
class DefaultNoise:
    """`diffusions.default`, of the schedule of that number."""

    def __call__(self, path, t):
        canonical = jnp.array(STARTS_WITH_DATA)[path.schedule.number]
        return jnp.where(canonical, diffusions.Canonical()(path, t), diffusions.Sigma()(path, t))


def padded(mixtures):
    """Means, scales and log-weights of several mixtures, filled up to one number of components with weight zero."""
    size = max(m.means.shape[0] for m in mixtures)
    fill = lambda a, value: jnp.concatenate([a, jnp.full((size - len(a), *a.shape[1:]), value, a.dtype)])
    rows = [
        (jnp.asarray(m.means, float), jnp.broadcast_to(m.scales, m.means.shape[:1]), m.log_weights) for m in mixtures
    ]
    return [jnp.stack([fill(r[i] + 0.0, v) for r in rows]) for i, v in enumerate((0.0, 1.0, -1e9))]


def cells(dim):
    """Every pair of a schedule and an oracle of that dimension, and the arrays that stand for them."""
    named = [(s, o) for s in SCHEDULES for o in ORACLES if ORACLES[o].shape == (dim,)]
    return named, jnp.array([list(SCHEDULES).index(s) for s, _ in named]), padded([ORACLES[o] for _, o in named])


def solve(name, steps, dim, starts, keys=None):
    """The ends of all cells of a dimension, (cells, rows, dim): `starts` times sigma at the start of each path."""
    named, numbers, mixtures = cells(dim)
    times = []
    for s, _ in named:
        sampler = make_sampler(name, GaussianPath(SCHEDULES[s]))
        times.append(grids.times_for(sampler, steps))

    @jax.jit
    def run(times, numbers, mixtures, starts, keys):
        def one(times, number, mixture, start):
            path = GaussianPath(OneOf(number))
            sampler = make_sampler(name, path, Options(g=DefaultNoise()) if hasattr(like, "g") else Options())
            x = start * path.schedule.sigma(times[0])
            return samplers.run.__wrapped__(sampler, Oracle(path, *mixture), x, times, keys=keys)

        return jax.vmap(one, (0, 0, 0, 0))(times, numbers, mixtures, starts)

    like = make_sampler(name, GaussianPath(SCHEDULES["condot"]))
    return named, run(jnp.stack(times), numbers, mixtures, starts, keys)


def exact(dim, z, steps=1000):
    """Where the flow carries z by t_max, and E[x1 | x] there, of every cell: RK4 in half log-SNR, in float64.

    In x / sqrt(alpha^2 + sigma^2) the flow depends on half log-SNR alone: dx/dl = a s (s D - a (x - a D) / s) with
    a = 1 / sqrt(1 + e^(-2 l)) and s = 1 / sqrt(1 + e^(2 l)). Where alpha = 0 the start is at l = -15.
    """
    with jax.enable_x64(True):
        named, _, mixtures = cells(dim)
        wide = [jnp.asarray(a, jnp.float64) for a in mixtures]
        ends = [0.5 * SCHEDULES[s].log_snr(jnp.array([SCHEDULES[s].t_min, SCHEDULES[s].t_max])) for s, _ in named]
        low, high = np.clip(np.array(ends), -15, 15).T

        def one(mixture, low, high):
            means, scales, weights = mixture
            rates = lambda half: (jax.nn.sigmoid(2 * half) ** 0.5, jax.nn.sigmoid(-2 * half) ** 0.5)

            def data(half, x):
                a, s = rates(half)
                variance = (a * scales) ** 2 + s**2
                gap = x[:, None] - a * means
                likely = weights - 0.5 * ((gap**2).sum(-1) / variance + dim * jnp.log(variance))
                pull = means + (a * scales**2 / variance)[:, None] * gap
                return (jax.nn.softmax(likely)[..., None] * pull).sum(1)

            def slope(half, x):
                (a, s), d = rates(half), data(half, x)
                return a * s * (s * d - a * (x - a * d) / s)

            def step(x, i):
                h = (high - low) / steps
                start = low + i * h
                k1 = slope(start, x)
                k2 = slope(start + h / 2, x + h / 2 * k1)
                k3 = slope(start + h / 2, x + h / 2 * k2)
                k4 = slope(start + h, x + h * k3)
                return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

            x = jax.lax.scan(step, jnp.asarray(z, jnp.float64) * rates(low)[1], jnp.arange(steps))[0]
            return x, data(high, x)

        flow, denoised = jax.jit(jax.vmap(one))(wide, jnp.asarray(low), jnp.asarray(high))
        size = [
            float(np.hypot(SCHEDULES[s].alpha(SCHEDULES[s].t_max), SCHEDULES[s].sigma(SCHEDULES[s].t_max)))
            for s, _ in named
        ]
        return np.asarray(flow) * np.array(size)[:, None, None], np.asarray(denoised)


@cache
def quantiles(oracle, n):
    """The n midpoint quantiles of an oracle's data on the line, by bisection."""
    mixture = ORACLES[oracle]
    target = (jnp.arange(n) + 0.5) / n
    low, high = jnp.full(n, -20.0), jnp.full(n, 20.0)
    weights = jnp.exp(mixture.log_weights)
    for _ in range(40):
        middle = 0.5 * (low + high)
        below = (weights * ndtr((middle[:, None] - mixture.means[:, 0]) / mixture.scales)).sum(-1) < target
        low, high = jnp.where(below, middle, low), jnp.where(below, high, middle)
    return np.asarray(low)


def distance(oracle, x, key):
    """The 2-Wasserstein distance of samples to the data: to its quantiles on the line, to as many samples in the
    plane."""
    x = np.asarray(x)
    if not np.isfinite(x).all():
        return float("nan")
    if x.shape[1] == 1:
        return float(np.sqrt(np.mean((np.sort(x[:, 0]) - quantiles(oracle, len(x))) ** 2)))
    true = np.asarray(ORACLES[oracle].sample(key, len(x)))
    cost = ((x[:, None] - true) ** 2).sum(-1)
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def measure_deterministic(rows):
    for dim in DRAWS:
        z = np.linspace(-2.5, 2.5, 101)[:, None] if dim == 1 else np.random.default_rng(0).standard_normal((256, 2))
        flow, denoised = exact(dim, z)
        starts = jnp.broadcast_to(jnp.asarray(z, jnp.float32), (len(cells(dim)[0]), *z.shape))
        for name in DETERMINISTIC:
            ends = denoised if make_sampler(name, GaussianPath(SCHEDULES["condot"])).denoise else flow
            for steps in STEPS:
                named, y = solve(name, steps, dim, starts)
                for (s, o), error in zip(named, np.sqrt(np.mean((np.asarray(y) - ends) ** 2, (1, 2))), strict=True):
                    rows.append({"sampler": name, "schedule": s, "oracle": o, "steps": steps, "rms": float(error)})


def measure_stochastic(rows, floors):
    for dim in DRAWS:
        names, n = cells(dim)[0], DRAWS[dim]
        root = jax.random.key(1)
        for oracle in {o for _, o in names}:
            true = [ORACLES[oracle].sample(jax.random.fold_in(root, i), n) for i in range(FLOORS)]
            found = [distance(oracle, x, jax.random.fold_in(root, 99)) for x in true]
            floors[oracle] = [float(np.mean(found)), float(np.std(found))]
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(2), i))(jnp.arange(SEEDS * n))
        starts = samplers.standard_normal(fold_rows(keys, 99), jnp.zeros((SEEDS * n, dim)))
        starts = jnp.broadcast_to(starts, (len(names), *starts.shape))
        for name in STOCHASTIC:
            for steps in STEPS:
                ends = np.asarray(solve(name, steps, dim, starts, keys)[1])
                for (s, o), x in zip(names, ends, strict=True):
                    parts = [distance(o, part, jax.random.fold_in(root, 99)) for part in np.split(x, SEEDS)]
                    row = {"sampler": name, "schedule": s, "oracle": o, "steps": steps, "w2": float(np.mean(parts))}
                    rows.append(row | {"w2_std": float(np.std(parts))})


PARTS = (("rms", DETERMINISTIC, "RMS to the exact flow"), ("w2", STOCHASTIC, "W2 to the data"))


def table(rows, floors):
    """Markdown: an oracle a table, with the errors at all steps in one cell."""
    known = {(r["sampler"], r["schedule"], r["oracle"], r["steps"]): r for r in rows}

    def cell(name, schedule, oracle, measure):
        values = [known[name, schedule, oracle, n][measure] for n in STEPS]
        return " / ".join(f"{v:.2g}".removeprefix("0") if v < 99.5 else f"{v:.0f}" for v in values)

    lines = []
    for measure, names, title in PARTS:
        for oracle in ORACLES:
            floor = "" if measure == "rms" else f"; {floors[oracle][0]:.3f} +- {floors[oracle][1]:.3f} for true samples"
            lines += [f"{title}, `{oracle}`, at {' / '.join(map(str, STEPS))} steps{floor}:", ""]
            lines += ["| | " + " | ".join(SCHEDULES) + " |", "|---" * (len(SCHEDULES) + 1) + "|"]
            for name in names:
                lines.append(f"| `{name}` | " + " | ".join(cell(name, s, oracle, measure) for s in SCHEDULES) + " |")
            if measure == "w2":
                spread = np.median([r["w2_std"] / r["w2"] for r in rows if "w2" in r and r["oracle"] == oracle])
                lines += ["", f"Standard deviation over {SEEDS} seeds: {spread:.0%} of the value in the median."]
            lines.append("")
    return "\n".join(lines)


def figure(path, rows):
    """Errors at 20 steps: a panel an oracle, a row a sampler, a column a schedule."""
    heights = [len(names) for _, names, _ in PARTS]
    fig, axes = plt.subplots(2, 3, figsize=(15, 8), constrained_layout=True, height_ratios=heights)
    for line, (measure, names, title) in zip(axes, PARTS, strict=True):
        for ax, oracle in zip(line, ORACLES, strict=True):
            chosen = [r for r in rows if measure in r and r["oracle"] == oracle and r["steps"] == 20]
            known = {(r["sampler"], r["schedule"]): r[measure] for r in chosen}
            values = np.array([[known[n, s] for s in SCHEDULES] for n in names])
            ax.imshow(np.log10(values), cmap="viridis_r", vmin=-3 if measure == "rms" else -2, vmax=0, aspect="auto")
            for (i, j), v in np.ndenumerate(values):
                ax.text(j, i, f"{v:.1g}", ha="center", va="center", fontsize=7, color="w" if v > 0.05 else "k")
            ax.set_xticks(range(len(SCHEDULES)), list(SCHEDULES), rotation=40, ha="right")
            ax.set_yticks(range(len(names)), names)
            ax.set_title(f"{title}, {oracle}, 20 steps")
    fig.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows, floors = time.process_time(), [], {}
    measure_deterministic(rows)
    print(f"deterministic samplers: {time.process_time() - began:.0f} CPU-seconds", flush=True)
    measure_stochastic(rows, floors)
    print(f"with the stochastic samplers: {time.process_time() - began:.0f} CPU-seconds", flush=True)
    rounded = json.loads(json.dumps(rows), parse_float=lambda s: float(f"{float(s):.4g}"))
    lines = ",\n  ".join(json.dumps(r) for r in rounded)
    (args.out / "results.json").write_text(f'{{"floors": {json.dumps(floors)},\n "rows": [\n  {lines}\n ]}}\n')
    print(table(rows, floors))
    figure(args.out / "samplers_defaults.png", rows)


if __name__ == "__main__":
    main()
