"""The 2D table of Tong et al. 2024 (table 2): I-CFM, OT-CFM, SB-CFM and FM on four pairs of distributions, five seeds.

All pairs and seeds of a method train in one compiled program (vmap); optimal transport runs on the device.

    python experiments/minibatch_ot/table.py --out experiments/minibatch_ot/results [--methods i_cfm,fm] [--steps 20000]

writes results.json and samples.npz into --out, and appends a line a method to log.jsonl.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flowjax import couplings, methods, metrics, predictions
from flowjax.batch import Batch
from flowjax.data.densities import DENSITIES
from flowjax.models import MLP
from flowjax.paths import AffinePath, Bridge, Constant
from flowjax.schedules import CondOT
from flowjax.solvers import solve_ode
from flowjax.sources import Normal
from flowjax.training.state import TrainState, no_metrics
from flowjax.training.step import make_step
from flowjax.transport import assign, entropic_potentials, pairwise_cost

NORMAL = Normal((2,))
DRAW = {"normal": NORMAL.sample} | {name: DENSITIES[name]().sample for name in ("moons", "gaussians8", "s_curve")}
PAIRS = [("normal", "gaussians8"), ("moons", "gaussians8"), ("normal", "moons"), ("normal", "s_curve")]
SIGMA, BATCH, TEST, BLOCK = 0.1, 512, 10_000, 1_000

METHODS = {
    "i_cfm": (AffinePath(CondOT(), Constant(SIGMA)), couplings.Independent()),
    "ot_cfm": (AffinePath(CondOT(), Constant(SIGMA)), couplings.MinibatchOT("auction", tolerance=0.05, max_rounds=400)),
    "sb_cfm": (AffinePath(CondOT(), Bridge(1.0)), couplings.Sinkhorn(eps=2.0)),
    "fm": (AffinePath(CondOT(sigma_min=SIGMA)), couplings.Independent()),
}
"""FM is defined from a normal source; the others take any."""


class Drawn:
    """A source whose distribution is chosen by an index, so that pairs can be vmapped."""

    shape = (2,)

    def __init__(self, index, which):
        self.index, self.which = index, which

    def sample(self, key, n):
        branches = [partial(lambda f, k: f(k, n), DRAW[PAIRS[i][self.which]]) for i in range(len(PAIRS))]
        return jax.lax.switch(self.index, branches, key)


def network():
    make = lambda rngs: MLP((2,), width=64, depth=3, features=0, activation="selu", zero_init=False, rngs=rngs)
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    init = lambda key: nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)))[1])
    return init, lambda params, t, x, cond: nnx.merge(graph, params)(t, x, cond)


def train(method, problems, steps):
    """Parameters of every problem (a pair and a seed), and the largest marginal_error and the mean loss of the last
    tenth.
    """
    path, coupling = METHODS[method]
    init, apply = network()
    tx = optax.adamw(1e-3, weight_decay=1e-5)

    def one_step(state, pair):
        method = methods.FlowMatching(methods.Network.from_function(apply), path, Drawn(pair, 0), coupling)
        key_data, key_step = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = Batch(Drawn(pair, 1).sample(key_data, BATCH))
        return make_step(method, tx, BATCH, 0.0)(state, key_step, batch)

    @jax.jit
    def start(seeds):
        def one(seed):
            key_init, key_run = jax.random.split(jax.random.key(seed))
            params = init(key_init)
            running = no_metrics(methods.FlowMatching.metrics)
            return TrainState(jnp.zeros((), jnp.int32), params, {}, tx.init(params), params, (), {}, key_run, running)

        return jax.vmap(one)(seeds)

    @partial(jax.jit, donate_argnums=0)
    def run(state, pairs):
        def body(state, _):
            state, report = jax.vmap(one_step)(state, pairs)
            return state, report.loss

        return jax.lax.scan(body, state, None, length=min(steps, 500))

    pairs = jnp.array([p for p, _ in problems])
    state = start(jnp.array([1000 * p + s for p, s in problems]))
    marginal_error, loss, began, compiled = 0.0, None, time.perf_counter(), None
    for done in range(0, steps, min(steps, 500)):
        state, losses = run(state, pairs)
        marginal_error = max(marginal_error, float(losses.metrics["marginal_error"].max()))
        loss = np.asarray(losses.value).mean(0)
        compiled = compiled or time.perf_counter() - began
        if done % 5000 == 0:
            print(f"{method} {done + min(steps, 500)} of {steps}: {time.perf_counter() - began:.0f} s", flush=True)
    return state.params, loss, marginal_error, time.perf_counter() - began, compiled


def cost_ratio(batches=8):
    """How much more the device's pairs cost than SciPy's exact ones, the mean for each pair of distributions."""
    solver = METHODS["ot_cfm"][1]
    pairs = jax.jit(lambda a, b: solver.pairs(None, a, b))
    ratios, left = [], []
    for source, target in PAIRS:
        found = []
        for i in range(batches):
            x0, x1 = (
                DRAW[n](jax.random.fold_in(jax.random.key(77 + j), i), BATCH) for j, n in enumerate((source, target))
            )
            rows, share = pairs(x0, x1)
            exact = assign(x0, x1, *entropic_potentials(pairwise_cost(x0, x1)))
            cost = lambda r, x0=x0, x1=x1: float(((x0[r] - x1) ** 2).sum(-1).mean())
            found.append(cost(rows) / cost(exact))
            left.append(float(share))
        ratios.append(float(np.mean(found)))
    return {"ratio": ratios, "left_mean": float(np.mean(left)), "left_max": float(np.max(left))}


def evaluate(method, params, problems):
    """W2 between samples and data, the floor between two samples of the data, and the normalised path energy."""
    path, _ = METHODS[method]
    _, apply = network()

    @jax.jit
    def one(params, pair, key):
        field = predictions.read(lambda t, x, c: apply(params, t, x, c), path, predictions.velocity).velocity
        x0 = Drawn(pair, 0).sample(key, TEST)

        def rate(t, state, cond):
            v = field(t, state[0], None)
            return v, (v**2).sum(-1)

        (x, energy), _ = solve_ode(rate, (x0, jnp.zeros(TEST)), t0=path.t_min, t1=path.t_max, solver="euler", steps=100)
        return x, energy.mean()

    keys = jax.random.split(jax.random.key(5), len(problems))
    return jax.vmap(one)(params, jnp.array([p for p, _ in problems]), keys)


def distances(problems, samples, energy):
    """One record a problem."""
    draw = lambda name, seed, n: np.asarray(DRAW[name](jax.random.key(seed), n), np.float32)
    records, known = [], {}
    for (p, seed), x, e in zip(problems, np.asarray(samples), np.asarray(energy), strict=True):
        source, target = PAIRS[p]
        true = draw(target, 900 + seed, TEST)
        if p not in known:
            big = partial(metrics.wasserstein2_squared_pairs, size=2000, pairs=8)
            between = big(draw(source, 31, 16_000), draw(target, 32, 16_000))
            floor = metrics.wasserstein2_squared_pairs(draw(target, 33, TEST), draw(target, 34, TEST), BLOCK)
            known[p] = (between, floor)
        w2 = metrics.wasserstein2_squared_pairs(x, true, BLOCK)
        records.append(
            {
                "source": source,
                "target": target,
                "seed": seed,
                "w2_squared": w2,
                "w2": w2**0.5,
                "w2_squared_floor": known[p][1],
                "path_energy": float(e),
                "w2_squared_source": known[p][0],
                "npe": metrics.normalised_path_energy(float(e), known[p][0]),
            }
        )
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0].device_kind
    for method in args.methods.split(","):
        usable = [p for p, (source, _) in enumerate(PAIRS) if method != "fm" or source == "normal"]
        problems = [(p, s) for p in usable for s in range(args.seeds)]
        params, _, marginal_error, seconds, compiled = train(method, problems, args.steps)
        samples, energy = evaluate(method, params, problems)
        result = {
            "method": method,
            "device": device,
            "jax": jax.__version__,
            "steps": args.steps,
            "problems": len(problems),
            "seconds": seconds,
            "seconds_first_stretch": compiled,
            "marginal_error": marginal_error,
            "pairs_cost": cost_ratio() if method == "ot_cfm" else None,
            "records": distances(problems, samples, energy),
        }
        (args.out / f"{method}.json").write_text(json.dumps(result, indent=1))
        np.savez_compressed(
            args.out / f"{method}.npz", samples=np.asarray(samples)[:: args.seeds, :2000].astype(np.float16)
        )
        line = {k: v for k, v in result.items() if k != "records"}
        with (args.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        for r in result["records"][:: args.seeds]:
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()}, flush=True)


if __name__ == "__main__":
    main()
