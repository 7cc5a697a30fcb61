"""The 2D table of Tong et al. 2024 (table 2): I-CFM, OT-CFM, SB-CFM and FM on four pairs of distributions, five seeds.

All pairs and seeds of a method train in one compiled program (vmap); optimal transport runs on the device.
"""

import time
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from flowjax import couplings, methods, metrics, oracles, predictions
from flowjax.batch import Batch
from flowjax.data.densities import DENSITIES, eight_gaussians
from flowjax.models import MLP
from flowjax.models.functional import Variables, functional
from flowjax.paths import AffinePath, Bridge, Constant
from flowjax.plots import SAMPLES
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.schedules import CondOT
from flowjax.solvers import solve_ode
from flowjax.sources import GaussianMixture, Normal
from flowjax.training.state import TrainState, no_metrics
from flowjax.training.step import make_step
from flowjax.transport import assign, entropic_potentials, pairwise_cost

DRAW = {"normal": Normal((2,)).sample} | {name: DENSITIES[name]().sample for name in ("moons", "gaussians8", "s_curve")}
PAIRS = [("normal", "gaussians8"), ("moons", "gaussians8"), ("normal", "moons"), ("normal", "s_curve")]
SIGMA, BATCH, BLOCK = 0.1, 512, 1_000

INDEPENDENT = AffinePath(CondOT(), Constant(SIGMA))
METHODS = {
    "I-CFM": (INDEPENDENT, couplings.Independent()),
    "OT-CFM": (INDEPENDENT, couplings.MinibatchOT("auction", tolerance=0.05, max_rounds=400)),
    "SB-CFM": (AffinePath(CondOT(), Bridge(1.0)), couplings.Sinkhorn(eps=2.0)),
    "FM": (AffinePath(CondOT(sigma_min=SIGMA)), couplings.Independent()),
}
"""FM is defined from a normal source; the others take any."""


class Drawn:
    """A source whose distribution is chosen by an index, so that pairs can be vmapped."""

    shape = (2,)

    def __init__(self, index: Any, which: int):
        self.index, self.which = index, which

    def sample(self, key: Any, n: int) -> Any:
        branches = [partial(lambda draw, k: draw(k, n), DRAW[pair[self.which]]) for pair in PAIRS]
        return jax.lax.switch(self.index, branches, key)


def problems(study: Study, method: str) -> list[tuple[int, int]]:
    """The pairs, by their number, and the seeds of a method."""
    pairs = [0] if study.quick else [p for p, (source, _) in enumerate(PAIRS) if method != "FM" or source == "normal"]
    return [(p, seed) for p in pairs for seed in study.seeds]


@cache
def network() -> tuple[Any, Any]:
    """Functions key -> parameters and (parameters, t, x, cond) -> velocity."""
    made = functional(
        lambda rngs: MLP((2,), width=64, depth=3, features=0, activation="selu", zero_init=False, rngs=rngs)
    )
    apply = lambda params, t, x, cond: made.apply(Variables(params, {}), t, x, cond)[0]
    return lambda key: made.init(key).params, apply


def trained(study: Study, name: str) -> dict[str, Any]:
    """Trains all problems of a method, and draws samples: (P, N, 2), path energies, seconds, the marginal error."""
    (path, coupling), (init, apply) = METHODS[name], network()
    steps, stretch, batch_size = (3_000, 500, 256) if study.quick else (20_000, 500, BATCH)
    if study.quick and name == "OT-CFM":
        coupling = couplings.MinibatchOT("scipy")  # exact, and faster on a CPU than the auction
    tx = optax.adamw(1e-3, weight_decay=1e-5)

    def one_step(state: Any, pair: Any) -> Any:
        source: Any = Drawn(pair, 0)  # without log_prob, which training does not need
        method = methods.FlowMatching(methods.Network.from_function(apply), path, source, coupling)
        key_data, key_step = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = Batch(Drawn(pair, 1).sample(key_data, batch_size))
        return make_step(method, tx, batch_size, 0.0)(state, key_step, batch)

    @jax.jit
    @jax.vmap
    def start(seed: Any) -> TrainState:
        key_init, key_run = jax.random.split(jax.random.key(seed))
        params = init(key_init)
        running = no_metrics(methods.FlowMatching.metrics)
        return TrainState(jnp.zeros((), jnp.int32), params, {}, tx.init(params), params, (), {}, key_run, running)

    @partial(jax.jit, donate_argnums=0)
    def run(state: Any, pairs: Any) -> Any:
        def body(state: Any, _: None) -> Any:
            state, report = jax.vmap(one_step)(state, pairs)
            return state, report.loss

        return jax.lax.scan(body, state, None, length=stretch)

    pairs = jnp.array([p for p, _ in problems(study, name)])
    state = start(jnp.array([1000 * p + seed for p, seed in problems(study, name)]))
    marginal_error, began, first = 0.0, time.perf_counter(), 0.0
    for _ in range(0, steps, stretch):
        state, losses = run(state, pairs)
        marginal_error = max(marginal_error, float(losses.metrics["marginal_error"].max()))
        first = first or time.perf_counter() - began
    seconds = time.perf_counter() - began
    keys = jax.random.split(jax.random.key(5), len(pairs))
    samples, energy = jax.vmap(partial(sample, path, 5_000 if study.quick else 10_000))(state.params, pairs, keys)
    return {"samples": samples, "energy": energy, "times": [seconds, first], "marginal_error": marginal_error}


@partial(jax.jit, static_argnums=(0, 1))
def sample(path: AffinePath, num: int, params: Any, pair: Any, key: Any) -> tuple[Any, Any]:
    """Samples by Euler with 100 steps, and the mean path energy."""
    field = predictions.read(partial(network()[1], params), path, predictions.velocity).velocity

    def rate(t: Any, state: Any, cond: Any) -> Any:
        v = field(t, state[0], None)
        return v, (v**2).sum(-1)

    start = (Drawn(pair, 0).sample(key, num), jnp.zeros(num))
    (x, energy), _ = solve_ode(rate, start, t0=path.t_min, t1=path.t_max, solver="euler", steps=100)
    return x, energy.mean()


def training(study: Study, name: str) -> dict[str, Any]:
    """What the training of all problems of a method took."""
    arrays = study.arrays(name, partial(trained, study, name))
    seconds, first = arrays["times"]
    found = {"runs": len(arrays["energy"]), "training_seconds": seconds, "first_seconds": first}
    found["marginal_error"] = float(arrays["marginal_error"])
    checked = name == "OT-CFM" and not study.quick
    return found | ({"cost_ratio": [cost_ratio(pair) for pair in range(len(PAIRS))]} if checked else {})


def cost_ratio(pair: int, batches: int = 8) -> float:
    """How much more the pairs of OT-CFM cost than SciPy's exact ones."""
    solve = jax.jit(lambda a, b: METHODS["OT-CFM"][1].pairs(None, a, b)[0])
    ratios = []
    for i in range(batches):
        keys = [jax.random.fold_in(jax.random.key(77 + j), i) for j in range(2)]
        x0, x1 = (DRAW[name](key, BATCH) for key, name in zip(keys, PAIRS[pair], strict=True))
        exact = assign(x0, x1, *entropic_potentials(pairwise_cost(x0, x1)))
        cost = lambda rows, x0=x0, x1=x1: float(((x0[rows] - x1) ** 2).sum(-1).mean())
        ratios.append(cost(solve(x0, x1)) / cost(exact))
    return float(np.mean(ratios))


def points(name: str, seed: int, n: int) -> np.ndarray:
    return np.asarray(DRAW[name](jax.random.key(seed), n), np.float32)


@cache
def known(pair: int) -> tuple[float, float]:
    """W2 squared between the source and the data, and between two samples of the data."""
    source, target = PAIRS[pair]
    between = metrics.wasserstein2_squared_pairs(points(source, 31, 16_000), points(target, 32, 16_000), 2000, 8)
    return between, metrics.wasserstein2_squared_pairs(points(target, 33, 10_000), points(target, 34, 10_000), BLOCK)


def scores(study: Study, name: str, pair: int, seed: int) -> dict[str, float]:
    """The metrics of one network."""
    arrays, row = study.arrays(name, partial(trained, study, name)), problems(study, name).index((pair, seed))
    (between, floor), energy = known(pair), float(arrays["energy"][row])
    w2 = metrics.wasserstein2_squared_pairs(arrays["samples"][row], points(PAIRS[pair][1], 900 + seed, 10_000), BLOCK)
    found = {"w2_squared": w2, "w2": w2**0.5, "w2_squared_floor": floor, "path_energy": energy}
    return found | {"w2_squared_source": between, "npe": metrics.normalised_path_energy(energy, between)}


def mixture(name: str) -> GaussianMixture:
    """A distribution as normals; a curve as so many normals of its own blur."""
    if name == "normal":
        return GaussianMixture(jnp.zeros((1, 2)), 1.0)
    if name == "gaussians8":
        return eight_gaussians()
    density, number = DENSITIES[name](), {"moons": 96, "s_curve": 400}[name]
    return GaussianMixture(density.curve((jnp.arange(number) + 0.5) / number), density.std)


def exact(study: Study, pair: int, rows: int = 4096) -> dict[str, float]:
    """The path energy of the exact marginal velocity of I-CFM, which a perfect network would reach."""
    source, target = (mixture(name) for name in PAIRS[pair])
    oracle = oracles.mixture(INDEPENDENT, target, source)

    @jax.jit
    def energy(key: Any) -> Any:
        key_t, key_0, key_1, key_z = jax.random.split(key, 4)
        t = (jnp.arange(rows) + jax.random.uniform(key_t, (rows,))) / rows
        x_t = INDEPENDENT.sample(key_z, t, source.sample(key_0, rows), target.sample(key_1, rows)).x_t
        return (oracle.velocity(t, x_t) ** 2).sum(-1).mean()

    values = np.array([float(energy(jax.random.key(i))) for i in range(5 if study.quick else 30)])
    mean, between = float(values.mean()), known(pair)[0]
    found = {"path_energy": mean, "path_energy_stderr": float(values.std() / len(values) ** 0.5)}
    return found | {"w2_squared_source": between, "npe": metrics.normalised_path_energy(mean, between)}


def label(pair: int, name: str) -> str:
    return f"{' → '.join(PAIRS[pair])}, {name}"


def run(study: Study) -> None:
    names = ("I-CFM", "OT-CFM") if study.quick else tuple(METHODS)
    for name in names:
        study.measure(f"{name}, training of all runs", partial(training, study, name))
    for pair in range(1 if study.quick else len(PAIRS)):
        for name in names:
            for seed in [seed for p, seed in problems(study, name) if p == pair]:
                study.measure(label(pair, name), partial(scores, study, name, pair, seed), seed)
        study.measure(label(pair, "exact velocity of I-CFM"), partial(exact, study, pair))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """Samples of the first seed: a row for each method, a column for each pair."""
    names = [name for name in METHODS if any(setting.endswith(f", {name}") for setting in results.settings)]
    pairs = [p for p in range(len(PAIRS)) if label(p, "I-CFM") in results.settings]
    figure = Figure(figsize=(2.25 * len(pairs), 2.25 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(pairs), sharex="col", sharey="col", squeeze=False)
    for line, name in zip(axes, names, strict=True):
        samples = study.arrays(name, partial(trained, study, name))["samples"]
        for ax, pair in zip(line, pairs, strict=True):
            ax.set_axis_off()
            if (pair, 0) in problems(study, name):
                ax.scatter(
                    *samples[problems(study, name).index((pair, 0))][:2000].T, s=1, alpha=0.4, lw=0, color=SAMPLES
                )
                ax.set_aspect("equal")
                ax.text(0.02, 0.98, name, transform=ax.transAxes, va="top", fontsize=8)
    for ax, pair in zip(axes[0], pairs, strict=True):
        ax.set_title(" → ".join(PAIRS[pair]), fontsize=9)
    return {"minibatch_ot": figure}


PUBLISHED = {
    label(0, "I-CFM"): {"npe": 0.222},
    label(0, "OT-CFM"): {"npe": 0.018},
    label(1, "I-CFM"): {"npe": 2.738},
    label(1, "OT-CFM"): {"npe": 0.053},
}

EXPERIMENT = Experiment(
    title="Does pairing by minibatch optimal transport straighten the paths between 2D distributions?",
    source="Tong et al. 2024, Improving and generalizing flow-based generative models with minibatch optimal "
    "transport, arXiv:2302.00482, table 2",
    full=Form("6 minutes on one H200", seeds=5, accelerator=True, published=PUBLISHED),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "w2_squared": "W2²",
        "w2": "W2",
        "w2_squared_floor": "floor of W2²",
        "npe": "NPE",
        "path_energy": "path energy",
        "runs": "runs",
        "first_seconds": "first 500 steps, s",
    },
    draw=draw,
)
