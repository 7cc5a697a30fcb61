"""What a coupling does to x0 given the class, and so to conditional samples: independent, plain OT, class-aware OT.

    python experiments/class_aware_ot/compare.py --out experiments/class_aware_ot [--classes 2] [--steps 3000]

8 Gaussians, each class some neighbouring modes. Trains the same conditional MLP under three couplings, then samples
each class from N(0, I). Writes results.json and class_aware_ot.png into --out and prints a table.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx

from flowjax import couplings, methods, metrics, predictions
from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.data.densities import EIGHT_MODES, EIGHT_STD
from flowjax.models import MLP
from flowjax.paths import AffinePath
from flowjax.schedules import CondOT
from flowjax.solvers import solve_ode
from flowjax.sources import Normal

matplotlib.use("agg")
import matplotlib.pyplot as plt

PATH, SOURCE, BATCH, POINTS = AffinePath(CondOT()), Normal((2,)), 256, 2000
MODES = jnp.asarray(EIGHT_MODES, jnp.float32)
distance = partial(metrics.wasserstein2_squared_pairs, size=1000)


def table_of(solver):
    return {
        "independent": couplings.Independent(),
        "plain OT": couplings.MinibatchOT(solver),
        "class-aware OT": couplings.MinibatchOT(solver, condition_weight=float("inf")),
    }


def draw_data(key, n, classes, label=None):
    """Points and labels: class c holds the modes 8 c / classes and after."""
    key_y, key_mode, key_z = jax.random.split(key, 3)
    y = jax.random.randint(key_y, (n,), 0, classes) if label is None else jnp.full(n, label)
    each = 8 // classes
    mode = y * each + jax.random.randint(key_mode, (n,), 0, each)
    return MODES[mode] + EIGHT_STD * jax.random.normal(key_z, (n, 2)), y


def draw_batch(key, classes):
    x1, y = draw_data(key, BATCH, classes)
    return Batch(x1, {"label": y})


def network(classes):
    fields = (Field("label", "label", num_classes=classes),)
    make = lambda rngs: MLP((2,), width=64, depth=3, fields=fields, rngs=rngs)
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    init = lambda key: nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)))[1])
    return init, lambda params, t, x, cond: nnx.merge(graph, params)(t, x, cond)


def make_training(coupling, classes, steps):
    """seed -> parameters: one compiled scan."""
    init, apply = network(classes)
    loss = methods.conditional(apply, PATH, SOURCE, coupling)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def run(seed):
        key_init, key_run = jax.random.split(jax.random.key(seed))
        params = init(key_init)

        def step(state, i):
            params, moments = state
            key_data, key_loss = jax.random.split(jax.random.fold_in(key_run, i))
            value, slope = jax.value_and_grad(loss)(params, key_loss, draw_batch(key_data, classes))
            updates, moments = tx.update(slope, moments)
            return (optax.apply_updates(params, updates), moments), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
        return params, values[-steps // 10 :].mean()

    return run


def paired_sources(coupling, classes, batches=200):
    """x0 and the label it was paired with, over many batches."""

    @jax.jit
    def one(i):
        key_data, key_x0, key_pair = jax.random.split(jax.random.fold_in(jax.random.key(91), i), 3)
        x1, y = draw_data(key_data, BATCH, classes)
        x0 = SOURCE.sample(key_x0, BATCH)
        return x0[coupling(key_pair, x0, x1, y)], y

    x0, y = zip(*(one(i) for i in range(batches)), strict=True)
    return np.concatenate(x0), np.concatenate(y)


def moments(x0, y, classes):
    """Mean and covariance of x0 given each class; and pooled, each class turned so that its modes lie along (1, 0)."""
    turned = []
    each = []
    for c in range(classes):
        own = x0[y == c]
        angle = 2 * np.pi * (c + 0.5 - classes / 16) / classes  # between the first and the last mode of the class
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        turned.append(own @ turn.T)
        each.append({"mean": own.mean(0).tolist(), "covariance": np.cov(own.T).tolist()})
    turned = np.concatenate([t[: min(map(len, turned))] for t in turned])
    cov = np.cov(turned.T)
    pooled = {"mean_along": turned[:, 0].mean(), "var_along": cov[0, 0], "var_across": cov[1, 1]}
    return {k: float(v) for k, v in pooled.items()}, each


def make_draw(classes):
    """(params, x0, label) -> samples, samples by 4 Euler steps, path energy: compiled once."""
    _, apply = network(classes)

    @jax.jit
    def draw(params, x0, label):
        field = predictions.read(partial(apply, params), PATH, predictions.velocity).velocity
        cond = {"label": jnp.full(len(x0), label)}
        solve = partial(solve_ode, field, x0, cond=cond, t0=0.0, t1=1.0)
        energy = metrics.path_energy(field, x0, cond=cond, steps=50).mean()
        return solve(solver="rk4", steps=50)[0], solve(solver="euler", steps=4)[0], energy

    return draw


def references(classes):
    """For each class N(0, I), true points, W2^2 between the two, and W2^2 between two draws of true points."""
    found = []
    for c in range(classes):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(17), c), 3)
        x0 = SOURCE.sample(keys[0], POINTS)
        true, other = (np.asarray(draw_data(k, POINTS, classes, c)[0]) for k in keys[1:])
        found.append((x0, true, distance(np.asarray(x0), true), distance(other, true)))
    return found


def score(draw, params, classes, paired, known):
    """One record: averages over the classes."""
    rows = []
    for c, (x0, true, w2_source, floor) in enumerate(known):
        ours, euler, energy = (np.asarray(a) for a in draw(params, x0, c))
        from_paired = np.asarray(draw(params, jnp.asarray(paired[0][paired[1] == c][:POINTS]), c)[0])
        squares = ((ours[:, None] - EIGHT_MODES) ** 2).sum(-1)
        rows.append(
            {
                "w2_squared": distance(ours, true),
                "w2_squared_floor": floor,
                "w2_squared_from_paired_x0": distance(from_paired, true),
                "w2_squared_4_euler_steps": distance(euler, true),
                "right_class": (squares.argmin(1) * classes // 8 == c).mean(),
                "beyond_4_std_of_all_modes": (squares.min(1) > (4 * EIGHT_STD) ** 2).mean(),
                "path_energy": energy,
                "bend": energy - ((ours - np.asarray(x0)) ** 2).sum(1).mean(),
                "w2_squared_source": w2_source,
                "npe": metrics.normalised_path_energy(float(energy), w2_source),
            }
        )
    return {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}


def figure(out, paired, samples, true, shown):
    fig, axes = plt.subplots(2, 3, figsize=(9, 6.2), constrained_layout=True)
    angle = np.linspace(0, 2 * np.pi, 200)
    for j, name in enumerate(paired):
        x0, y = paired[name]
        top, low = axes[0, j], axes[1, j]
        top.scatter(*x0[y == shown][:1500].T, s=2, alpha=0.5, color="C0", linewidths=0)
        for radius in (1, 2):
            top.plot(radius * np.cos(angle), radius * np.sin(angle), "k", lw=0.8)
        top.set(title=name, xlim=(-3.7, 3.7), ylim=(-3.7, 3.7), aspect="equal")
        low.scatter(*true[:1500].T, s=2, alpha=0.5, color="0.6", linewidths=0, label="true class")
        low.scatter(*samples[name][:1500].T, s=2, alpha=0.5, color="C1", linewidths=0, label="samples")
        low.plot(*EIGHT_MODES.T, "k+", ms=5)
        low.set(xlim=(-7.5, 7.5), ylim=(-7.5, 7.5), aspect="equal")
    axes[0, 0].set_ylabel("x0 paired with one class\n(circles: 1 and 2 sigma of N(0, I))")
    axes[1, 0].set_ylabel("samples of that class from N(0, I)\n(crosses: all modes)")
    axes[1, 0].legend(markerscale=5, loc="lower left", fontsize=8)
    fig.savefig(out / "class_aware_ot.png", dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=2, choices=(2, 4, 8))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--solver", default="scipy", choices=("scipy", "auction"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw, known, shown = make_draw(args.classes), references(args.classes), 0
    records, all_paired, samples = {}, {}, {}
    for name, coupling in table_of(args.solver).items():
        run = make_training(coupling, args.classes, args.steps)
        all_paired[name] = paired_sources(coupling, args.classes)
        pooled, each = moments(*all_paired[name], args.classes)
        scores, seconds = [], []
        for seed in range(args.seeds):
            began = time.perf_counter()
            params, loss = jax.block_until_ready(run(seed))
            seconds.append(time.perf_counter() - began)
            scores.append(score(draw, params, args.classes, all_paired[name], known) | {"loss": float(loss)})
            if not seed:
                x0 = SOURCE.sample(jax.random.key(5), 1500)
                samples[name] = np.asarray(draw(params, x0, shown)[0])
        spread = {k: [float(f([s[k] for s in scores])) for f in (np.mean, np.std)] for k in scores[0]}
        records[name] = {
            "x0_given_class": pooled,
            "each_class": each,
            "mean_std_over_seeds": spread,
            "seconds": seconds,
        }
        print(name, json.dumps({k: round(v, 3) for k, v in pooled.items()}), [round(s, 1) for s in seconds])
        print(" ", {k: f"{m:.3f} ± {s:.3f}" for k, (m, s) in spread.items()}, flush=True)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    (args.out / "results.json").write_text(json.dumps({"settings": settings, "couplings": records}, indent=1) + "\n")
    true = np.asarray(draw_data(jax.random.key(6), 1500, args.classes, shown)[0])
    figure(args.out, all_paired, samples, true, shown)


if __name__ == "__main__":
    main()
