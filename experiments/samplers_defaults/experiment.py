"""The error of every sampler with its default settings, on every schedule, at 10, 20 and 40 steps.

The denoisers are exact, so that all errors are those of the samplers. Deterministic samplers are compared with the
exact flow from the same start, by root mean square; stochastic ones with the data, by the 2-Wasserstein distance of
their samples.
"""

import inspect
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from matplotlib.figure import Figure

from flowjax import schedules
from flowjax.data.densities import eight_gaussians
from flowjax.keys import fold_rows
from flowjax.metrics import wasserstein2_squared
from flowjax.oracles import Oracle
from flowjax.paths import GaussianPath
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.solvers import diffusions, grids, make_sampler, samplers
from flowjax.solvers.names import Options
from flowjax.sources import GaussianMixture

STEPS = (10, 20, 40)
SEEDS, FLOORS = 3, 12  # sets of samples of a stochastic sampler, and of true samples
DRAWS = {1: 2000, 2: 1000}  # samples of a stochastic sampler, by dimension
SCHEDULES: dict[str, Any] = {
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
ORACLES: dict[str, Any] = {
    "normal": GaussianMixture(np.array([[1.0]]), 0.5),
    "two modes": GaussianMixture(np.array([[-1.0], [1.5]]), np.array([0.3, 0.15]), np.array([0.7, 0.3])),
    "gaussians8": eight_gaussians(),
}
QUICK = ("heun", "ddim", "unipc", "dpmpp_sde")
DETERMINISTIC = ("euler", "midpoint", "heun", "rk4", "ab2", "ddim", "edm", "dpmpp_2m", "dpmpp_3m", "unipc")
STOCHASTIC = ("euler_maruyama", "stochastic_heun", "ddpm", "dpmpp_sde", "pc")
LISTED = tuple(SCHEDULES.values())


@dataclass(frozen=True)
class OneOf:
    """The schedule of that number, which may be traced: one program runs a sampler on all schedules."""

    number: Any

    def alpha(self, t: Any) -> Any:
        return jax.lax.switch(self.number, [s.alpha for s in LISTED], t)

    def sigma(self, t: Any) -> Any:
        return jax.lax.switch(self.number, [s.sigma for s in LISTED], t)

    def log_snr(self, t: Any) -> Any:
        return jax.lax.switch(self.number, [s.log_snr for s in LISTED], t)


run_sampler: Any = inspect.unwrap(samplers.run)  # inside of jit, where its schedule may be traced
STARTS_WITH_DATA = [float(s.alpha(0.0)) > 0 for s in LISTED]


@dataclass(frozen=True)
class DefaultNoise:
    """`diffusions.default`, of the schedule of that number."""

    def __call__(self, path: Any, t: Any) -> Any:
        canonical = jnp.array(STARTS_WITH_DATA)[path.schedule.number]
        return jnp.where(canonical, diffusions.Canonical()(path, t), diffusions.Sigma()(path, t))


def padded(mixtures: list[Any]) -> list[Any]:
    """Means, scales and log-weights of several mixtures, filled up to one number of components with weight zero."""
    size = max(m.means.shape[0] for m in mixtures)
    fill = lambda a, value: jnp.concatenate([a, jnp.full((size - len(a), *a.shape[1:]), value, a.dtype)])
    rows = [
        (jnp.asarray(m.means, float), jnp.broadcast_to(m.scales, m.means.shape[:1]), m.log_weights) for m in mixtures
    ]
    return [jnp.stack([fill(r[i] + 0.0, v) for r in rows]) for i, v in enumerate((0.0, 1.0, -1e9))]


def cells(dim: int) -> tuple[list[tuple[str, str]], Any, list[Any]]:
    """Every pair of a schedule and an oracle of that dimension, and the arrays that stand for them."""
    named = [(s, o) for s in SCHEDULES for o in ORACLES if ORACLES[o].shape == (dim,)]
    return named, jnp.array([list(SCHEDULES).index(s) for s, _ in named]), padded([ORACLES[o] for _, o in named])


def sampler_of(name: str, schedule: str) -> Any:
    return make_sampler(name, GaussianPath(SCHEDULES[schedule]))


def solve(name: str, steps: int, dim: int, starts: Any, keys: Any = None) -> tuple[list[tuple[str, str]], Any]:
    """The ends of all cells of a dimension, (cells, rows, dim): `starts` times sigma at the start of each path."""
    named, numbers, mixtures = cells(dim)
    times = [grids.times_for(sampler_of(name, schedule), steps) for schedule, _ in named]

    @jax.jit
    def run(times: Any, numbers: Any, mixtures: Any, starts: Any, keys: Any) -> Any:
        def one(times: Any, number: Any, mixture: Any, start: Any) -> Any:
            schedule: Any = OneOf(number)
            path = GaussianPath(schedule)
            noise = Options(g=DefaultNoise()) if hasattr(sampler_of(name, "condot"), "g") else Options()
            sampler = make_sampler(name, path, noise)
            x = start * path.schedule.sigma(times[0])
            return run_sampler(sampler, Oracle(path, *mixture), x, times, keys=keys)

        return jax.vmap(one, (0, 0, 0, 0))(times, numbers, mixtures, starts)

    return named, run(jnp.stack(times), numbers, mixtures, starts, keys)


def starts_of(dim: int) -> np.ndarray:
    """Points of the source that deterministic samplers start from, (N, dim)."""
    return np.linspace(-2.5, 2.5, 101)[:, None] if dim == 1 else np.random.default_rng(0).standard_normal((256, 2))


@cache
def exact(dim: int, steps: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Where the flow carries z by t_max, and E[x1 | x] there, of every cell: RK4 in half log-SNR, in float64.

    In x / sqrt(alpha^2 + sigma^2) the flow depends on half log-SNR alone: dx/dl = a s (s D - a (x - a D) / s) with
    a = 1 / sqrt(1 + e^(-2 l)) and s = 1 / sqrt(1 + e^(2 l)). Where alpha = 0 the start is at l = -15.
    """
    z = starts_of(dim)
    with jax.enable_x64(True):
        named, _, mixtures = cells(dim)
        wide = [jnp.asarray(a, jnp.float64) for a in mixtures]
        ends = [0.5 * SCHEDULES[s].log_snr(jnp.array([SCHEDULES[s].t_min, SCHEDULES[s].t_max])) for s, _ in named]
        low, high = np.clip(np.array(ends), -15, 15).T

        def one(mixture: Any, low: Any, high: Any) -> tuple[Any, Any]:
            means, scales, weights = mixture
            rates = lambda half: (jax.nn.sigmoid(2 * half) ** 0.5, jax.nn.sigmoid(-2 * half) ** 0.5)

            def data(half: Any, x: Any) -> Any:
                a, s = rates(half)
                variance = (a * scales) ** 2 + s**2
                gap = x[:, None] - a * means
                likely = weights - 0.5 * ((gap**2).sum(-1) / variance + dim * jnp.log(variance))
                pull = means + (a * scales**2 / variance)[:, None] * gap
                return (jax.nn.softmax(likely)[..., None] * pull).sum(1)

            def slope(half: Any, x: Any) -> Any:
                (a, s), d = rates(half), data(half, x)
                return a * s * (s * d - a * (x - a * d) / s)

            def step(x: Any, i: Any) -> tuple[Any, None]:
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
def quantiles(oracle: str, n: int) -> np.ndarray:
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


def distance(oracle: str, x: Any, key: Any) -> float:
    """The 2-Wasserstein distance of samples to the data: to its quantiles on the line, to as many samples in the
    plane."""
    x = np.asarray(x)
    if not np.isfinite(x).all():
        return float("nan")
    if x.shape[1] == 1:
        return float(np.sqrt(np.mean((np.sort(x[:, 0]) - quantiles(oracle, len(x))) ** 2)))
    return wasserstein2_squared(x, np.asarray(ORACLES[oracle].sample(key, len(x)))) ** 0.5


@cache
def rms_errors(name: str, dim: int, steps: int) -> dict[tuple[str, str], float]:
    """The errors of a deterministic sampler by schedule and oracle."""
    z = starts_of(dim)
    flow, denoised = exact(dim)
    starts = jnp.broadcast_to(jnp.asarray(z, jnp.float32), (len(cells(dim)[0]), *z.shape))
    named, y = solve(name, steps, dim, starts)
    ends = denoised if sampler_of(name, "condot").denoise else flow
    return dict(zip(named, np.sqrt(np.mean((np.asarray(y) - ends) ** 2, (1, 2))).tolist(), strict=True))


@cache
def w2_errors(name: str, dim: int, steps: int) -> dict[tuple[str, str], tuple[float, float]]:
    """The mean and the standard deviation over the seeds of the distances of a stochastic sampler's samples."""
    names, n = cells(dim)[0], DRAWS[dim]
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(2)))(jnp.arange(SEEDS * n))
    starts = samplers.standard_normal(fold_rows(keys, 99), jnp.zeros((SEEDS * n, dim)))
    ends = np.asarray(solve(name, steps, dim, jnp.broadcast_to(starts, (len(names), *starts.shape)), keys)[1])
    found = {}
    for cell, x in zip(names, ends, strict=True):
        parts = [distance(cell[1], part, jax.random.fold_in(jax.random.key(1), 99)) for part in np.split(x, SEEDS)]
        found[cell] = float(np.mean(parts)), float(np.std(parts))
    return found


def scores(name: str, oracle: str, all_steps: tuple[int, ...]) -> dict[str, float]:
    """The errors by schedule and steps, such as `vp_20`, and their standard deviations for stochastic samplers."""
    found, dim = {}, ORACLES[oracle].shape[0]
    for steps in all_steps:
        for schedule in SCHEDULES:
            if name in DETERMINISTIC:
                found[f"{schedule}_{steps}"] = rms_errors(name, dim, steps)[schedule, oracle]
            else:
                value, spread = w2_errors(name, dim, steps)[schedule, oracle]
                found |= {f"{schedule}_{steps}": value, f"{schedule}_{steps}_std": spread}
    return found


def floor(oracle: str) -> dict[str, float]:
    """The distance of as many true samples as each sampler draws."""
    root, n = jax.random.key(1), DRAWS[ORACLES[oracle].shape[0]]
    true = [ORACLES[oracle].sample(jax.random.fold_in(root, i), n) for i in range(FLOORS)]
    values = [distance(oracle, x, jax.random.fold_in(root, 99)) for x in true]
    return {"floor": float(np.mean(values)), "floor_std": float(np.std(values))}


def label(oracle: str, name: str) -> str:
    return f"{oracle}: {name}, {'RMS' if name in DETERMINISTIC else 'W2'}"


def run(study: Study) -> None:
    oracles = ("normal", "two modes") if study.quick else tuple(ORACLES)
    for oracle in oracles:
        for name in QUICK if study.quick else DETERMINISTIC + STOCHASTIC:
            steps = (20,) if study.quick else STEPS
            study.measure(label(oracle, name), partial(scores, name, oracle, steps))
        study.measure(f"{oracle}: true samples, W2", partial(floor, oracle))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """Errors at 20 steps: a panel for each oracle, a row for each sampler, a column for each schedule."""
    parts = [
        [name for name in names if label("normal", name) in results.settings] for names in (DETERMINISTIC, STOCHASTIC)
    ]
    oracles = [oracle for oracle in ORACLES if label(oracle, "ddim") in results.settings]
    figure = Figure(figsize=(5 * len(oracles), 2 + 0.42 * sum(map(len, parts))), layout="constrained")
    axes = figure.subplots(2, len(oracles), height_ratios=[len(names) + 1 for names in parts], squeeze=False)
    for line, names, title in zip(axes, parts, ("RMS to the exact flow", "W2 to the data"), strict=True):
        for ax, oracle in zip(line, oracles, strict=True):
            values = np.array([[results.mean(label(oracle, n), f"{s}_20") for s in SCHEDULES] for n in names])
            ax.imshow(np.log10(values), cmap="viridis_r", vmin=-3 if "RMS" in title else -2, vmax=0, aspect="auto")
            for (i, j), v in np.ndenumerate(values):
                ax.text(j, i, f"{v:.1g}", ha="center", va="center", fontsize=7, color="w" if v > 0.05 else "k")
            ax.set_xticks(range(len(SCHEDULES)), list(SCHEDULES), rotation=40, ha="right")
            ax.set_yticks(range(len(names)), names)
            ax.set_title(f"{title}, {oracle}, 20 steps")
    return {"samplers_defaults": figure}


EXPERIMENT = Experiment(
    title="Is each sampler accurate with its default settings, whatever the schedule?",
    source="",
    full=Form("8 minutes on 2 CPU cores"),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={"floor": "true samples"} | {f"{schedule}_20": schedule for schedule in SCHEDULES},
    draw=draw,
)
