"""What a coupling does to x0 given the class, and so to conditional samples: independent, plain OT, class-aware OT.

8 Gaussians in two classes of four neighbouring modes each. The same conditional MLP is trained under three couplings,
and each class is then sampled from N(0, I).
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from flowjax import couplings, methods, metrics, predictions
from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.data.densities import EIGHT_MODES, EIGHT_STD
from flowjax.models import MLP
from flowjax.models.functional import Variables, functional
from flowjax.paths import AffinePath
from flowjax.plots import DATA, SAMPLES
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.schedules import CondOT
from flowjax.solvers import solve_ode
from flowjax.sources import Normal

COUPLINGS = {
    "independent": couplings.Independent(),
    "plain OT": couplings.MinibatchOT("scipy"),
    "class-aware OT": couplings.MinibatchOT("scipy", condition_weight=float("inf")),
}
PATH, SOURCE, BATCH, POINTS, CLASSES = AffinePath(CondOT()), Normal((2,)), 256, 2000, 2
MODES, EACH = jnp.asarray(EIGHT_MODES, jnp.float32), 8 // CLASSES
distance = partial(metrics.wasserstein2_squared_pairs, size=1000)


def draw_data(key: Any, n: int, label: int | None = None) -> tuple[Any, Any]:
    """Points and labels: class c holds the modes EACH * c and after."""
    key_y, key_mode, key_z = jax.random.split(key, 3)
    y = jax.random.randint(key_y, (n,), 0, CLASSES) if label is None else jnp.full(n, label)
    mode = y * EACH + jax.random.randint(key_mode, (n,), 0, EACH)
    return MODES[mode] + EIGHT_STD * jax.random.normal(key_z, (n, 2)), y


@cache
def network() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Functions key -> parameters and (parameters, t, x, cond) -> velocity."""
    fields = (Field("label", "label", num_classes=CLASSES),)
    made = functional(lambda rngs: MLP((2,), width=64, depth=3, fields=fields, rngs=rngs))
    apply = lambda params, t, x, cond: made.apply(Variables(params, {}), t, x, cond)[0]
    return lambda key: made.init(key).params, apply


@partial(jax.jit, static_argnames=("coupling", "steps"))
def train(coupling: couplings.Coupling, steps: int, seed: int) -> Any:
    """The parameters after all steps, in one compiled scan."""
    init, apply = network()
    loss = methods.conditional(apply, PATH, SOURCE, coupling)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    key_init, key_run = jax.random.split(jax.random.key(seed))
    params = init(key_init)

    def step(state: Any, i: Any) -> tuple[Any, None]:
        params, moments = state
        key_data, key_loss = jax.random.split(jax.random.fold_in(key_run, i))
        x1, y = draw_data(key_data, BATCH)
        slope = jax.grad(loss)(params, key_loss, Batch(x1, {"label": y}))
        updates, moments = tx.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]


def paired_sources(coupling: couplings.Coupling, batches: int = 200) -> dict[str, np.ndarray]:
    """x0 and the label it was paired with, over many batches."""

    @jax.jit
    def one(i: Any) -> tuple[Any, Any]:
        key_data, key_x0, key_pair = jax.random.split(jax.random.fold_in(jax.random.key(91), i), 3)
        x1, y = draw_data(key_data, BATCH)
        x0 = SOURCE.sample(key_x0, BATCH)
        return x0[coupling(key_pair, x0, x1, y)], y

    x0, y = zip(*(one(i) for i in range(batches)), strict=True)
    return {"x0": np.concatenate(x0), "label": np.concatenate(y)}


def moments(paired: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean and variances of x0 given the class, each class turned so that its modes lie along (1, 0)."""
    turned = []
    for c in range(CLASSES):
        angle = 2 * np.pi * (c + 0.5 - CLASSES / 16) / CLASSES  # between the first and the last mode of the class
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        turned.append(paired["x0"][paired["label"] == c] @ turn.T)
    pooled = np.concatenate([t[: min(map(len, turned))] for t in turned])
    cov = np.cov(pooled.T)
    return {"mean_along": pooled[:, 0].mean(), "var_along": cov[0, 0], "var_across": cov[1, 1]}


@jax.jit
def solve(params: Any, x0: Any, label: int) -> tuple[Any, Any, Any]:
    """Samples, samples by 4 Euler steps, and the path energy."""
    field = predictions.read(partial(network()[1], params), PATH, predictions.velocity).velocity
    cond = {"label": jnp.full(len(x0), label)}
    flow = partial(solve_ode, field, x0, cond=cond, t0=0.0, t1=1.0)
    energy = metrics.path_energy(field, x0, cond=cond, steps=50).mean()
    return flow(solver="rk4", steps=50)[0], flow(solver="euler", steps=4)[0], energy


def of_class(params: Any, paired: Mapping[str, np.ndarray], label: int) -> dict[str, float]:
    """The metrics of one class."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(17), label), 3)
    x0 = SOURCE.sample(keys[0], POINTS)
    true, other = (np.asarray(draw_data(key, POINTS, label)[0]) for key in keys[1:])
    samples, euler, energy = (np.asarray(a) for a in solve(params, x0, label))
    from_paired = np.asarray(solve(params, jnp.asarray(paired["x0"][paired["label"] == label][:POINTS]), label)[0])
    squares = ((samples[:, None] - EIGHT_MODES) ** 2).sum(-1)
    between = distance(np.asarray(x0), true)
    return {
        "w2_squared": distance(samples, true),
        "w2_squared_floor": distance(other, true),
        "w2_squared_from_paired_x0": distance(from_paired, true),
        "w2_squared_4_euler_steps": distance(euler, true),
        "right_class": (squares.argmin(1) // EACH == label).mean(),
        "bend": energy - ((samples - np.asarray(x0)) ** 2).sum(1).mean(),
        "npe": metrics.normalised_path_energy(float(energy), between),
    }


def trained(study: Study, name: str, seed: int) -> Any:
    return train(COUPLINGS[name], 1_000 if study.quick else 3_000, seed)


def scores(study: Study, name: str, seed: int) -> dict[str, float]:
    """Averages over the classes, and the moments of x0 given the class."""
    paired = paired_sources(COUPLINGS[name], 50 if study.quick else 200)
    params = trained(study, name, seed)
    rows = [of_class(params, paired, label) for label in range(CLASSES)]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | moments(paired)


def run(study: Study) -> None:
    for name in COUPLINGS:
        for seed in study.seeds:
            study.measure(name, partial(scores, study, name, seed), seed)


def shown(study: Study, name: str) -> dict[str, np.ndarray]:
    """For one class: paired x0, and samples from N(0, I)."""
    paired, x0 = paired_sources(COUPLINGS[name], 50), SOURCE.sample(jax.random.key(5), 1500)
    return {
        "x0": paired["x0"][paired["label"] == 0][:1500],
        "samples": np.asarray(solve(trained(study, name, 0), x0, 0)[0]),
    }


def draw(study: Study, results: Results) -> dict[str, Figure]:
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    angle = np.linspace(0, 2 * np.pi, 200)
    true = np.asarray(draw_data(jax.random.key(6), 1500, 0)[0])
    for name, top, low in zip(COUPLINGS, *axes, strict=True):
        arrays = study.arrays(name.replace(" ", "_"), partial(shown, study, name))
        top.scatter(*arrays["x0"].T, s=2, alpha=0.5, color=SAMPLES, lw=0)
        for radius in (1, 2):
            top.plot(radius * np.cos(angle), radius * np.sin(angle), "k", lw=0.8)
        top.set(title=name, xlim=(-3.7, 3.7), ylim=(-3.7, 3.7), aspect="equal")
        low.scatter(*true.T, s=2, alpha=0.5, color=DATA, lw=0, label="true class")
        low.scatter(*arrays["samples"].T, s=2, alpha=0.5, color=SAMPLES, lw=0, label="samples")
        low.plot(*EIGHT_MODES.T, "k+", ms=5)
        low.set(xlim=(-7.5, 7.5), ylim=(-7.5, 7.5), aspect="equal")
    axes[0, 0].set_ylabel("x0 paired with one class\n(circles: 1 and 2 sigma of N(0, I))")
    axes[1, 0].set_ylabel("samples of that class from N(0, I)\n(crosses: all modes)")
    axes[1, 0].legend(markerscale=5, loc="lower left", fontsize=8)
    return {"class_aware_ot": figure}


EXPERIMENT = Experiment(
    title="What do plain and class-aware optimal transport do to conditional samples of 8 Gaussians in two classes?",
    source="",
    full=Form("1 minute on 2 CPU cores"),
    quick=Form("40 seconds on 2 CPU cores"),
    run=run,
    columns={
        "mean_along": "mean of x0 given the class, towards its modes",
        "var_along": "variance, towards",
        "var_across": "across",
        "w2_squared": "W2², samples to true class",
        "w2_squared_from_paired_x0": "started from x0 as paired in training",
        "w2_squared_4_euler_steps": "from N(0, I), with 4 Euler steps",
        "right_class": "share nearest to a mode of the right class",
        "bend": "bend",
        "npe": "normalised path energy",
    },
    draw=draw,
)
