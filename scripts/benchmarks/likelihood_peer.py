"""Log-densities of flowjax and of flow_matching's `ODESolver.compute_likelihood`, in one run and in turns.

    python -m venv .bench && .bench/bin/pip install --no-deps -r scripts/benchmarks/requirements.txt
    taskset -c 0 python scripts/benchmarks/likelihood_peer.py --torch .bench/bin/python

The network is an MLP with three hidden layers for points in the plane, trained by flow matching on a checkerboard; both
sides have its weights. The peer takes the midpoint rule with step 0.05 on 10,000 points. flowjax takes the same steps,
and also the solver and the steps that are at least as accurate with the fewest evaluations. Rates are points per
CPU-second of one thread, without compilation, whose seconds are given beside them (0 if the search for that solver has
compiled it). Errors are the mean of |log p - true| by the exact divergence, where the truth is a solve in float64 with
the tolerance 1e-10. With Hutchinson's estimator both sides take one probe per point.
"""

# pyright: reportMissingImports=false
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

POINTS, STEPS = 10_000, 20


def train(path: Path, width: int, steps: int) -> None:
    """Writes weights and points, and log p of the first 1,000 points in float64."""
    import jax
    import jax.numpy as jnp
    import optax

    from flowjax.data import densities

    density, keys = densities.Checkerboard(), jax.random.split(jax.random.key(0), 6)
    sizes = (3, width, width, width, 2)
    params = [
        (jax.random.normal(key, (a, b)) * (1 / a) ** 0.5, jnp.zeros(b))
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]
    rule = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params: Any, key: Any) -> Any:
        k1, k2, k3 = jax.random.split(key, 3)
        x0, t = jax.random.normal(k1, (512, 2)), jax.random.uniform(k2, (512, 1))
        x1 = density.sample(k3, 512)
        return ((mlp(params, t, (1 - t) * x0 + t * x1) - (x1 - x0)) ** 2).mean()

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            updates, state = rule.update(jax.grad(loss)(carry[0], key), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, state), jax.random.split(keys[4], steps))[0]

    params = jax.tree.map(np.asarray, run(params, rule.init(params))[0])
    x = np.asarray(density.sample(keys[5], POINTS), np.float32)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        known = ours(wide, jnp.asarray(x[:1000], jnp.float64), "exact", rtol=1e-10, atol=1e-10)
    flat = {f"{kind}{i}": a for i, layer in enumerate(params) for kind, a in zip("wb", layer, strict=True)}
    np.savez(path, x=x, known=np.asarray(known), **flat)


def mlp(params: Any, t: Any, x: Any) -> Any:
    import jax
    import jax.numpy as jnp

    h = jnp.concatenate([x, jnp.broadcast_to(t, (len(x), 1)).astype(x.dtype)], -1)
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b)
    return h @ params[-1][0] + params[-1][1]


def ours(params: Any, x: Any, divergence: Any, rows: int = 0, **options: Any) -> Any:
    """log p, in chunks of `rows` points; 0 for all at once."""
    import jax

    from flowjax import likelihood
    from flowjax.sources import Normal

    keys = jax.random.split(jax.random.key(1), len(x))

    def chunk(x: Any, keys: Any) -> Any:
        field = lambda t, x, cond: mlp(params, t, x)
        return likelihood.log_prob(field, x, Normal((2,)), divergence=divergence, key=keys, **options).log_prob

    if not rows:
        return chunk(x, keys)
    parts = jax.lax.map(lambda part: chunk(*part), (x.reshape(-1, rows, 2), keys.reshape(-1, rows)))
    return parts.reshape(-1)


def jax_worker(path: Path) -> Any:
    import jax

    with np.load(path) as kept:
        x = jax.numpy.asarray(kept["x"])
        params = [(kept[f"w{i}"], kept[f"b{i}"]) for i in range(4)]
    compiled: dict[str, Any] = {}

    def task(request: dict[str, Any]) -> tuple[Any, float]:
        name, seconds = json.dumps(request), 0.0
        if name not in compiled:
            start = time.perf_counter()
            compiled[name] = jax.jit(partial(ours, **request)).lower(params, x).compile()
            seconds = time.perf_counter() - start
        return partial(lambda f: np.asarray(f(params, x)), compiled[name]), seconds

    return task


def torch_worker(path: Path) -> Any:
    import torch
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Network(ModelWrapper):
        def __init__(self, kept: Any):
            super().__init__(torch.nn.Identity())
            self.layers = torch.nn.ParameterList(
                torch.nn.Parameter(torch.as_tensor(kept[f"{kind}{i}"]), requires_grad=False)
                for i in range(4)
                for kind in "wb"
            )

        def forward(self, x: Any, t: Any, **extras: Any) -> Any:
            h = torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], -1)
            for i in range(0, 6, 2):
                h = torch.nn.functional.silu(torch.addmm(self.layers[i + 1], h, self.layers[i]))
            return torch.addmm(self.layers[7], h, self.layers[6])

    with np.load(path) as kept:
        x, solver = torch.as_tensor(kept["x"]), ODESolver(Network(kept))
    log_p0 = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1).log_prob

    def task(request: dict[str, Any]) -> tuple[Any, float]:
        exact = request["divergence"] == "exact"
        score = lambda: solver.compute_likelihood(
            x, log_p0, method="midpoint", step_size=1 / STEPS, exact_divergence=exact
        )
        return lambda: score()[1].numpy(), 0.0

    return task


def serve(make: Any, path: Path) -> None:
    """Answers requests, one a line: points per CPU-second, seconds of compilation, and the error of log p."""
    task = make(path)
    known = np.load(path)["known"]
    for line in sys.stdin:
        request = json.loads(line)
        seconds = request.pop("seconds")
        call, compilation = task(request)
        values, count = call(), 0
        start = time.process_time()
        while (used := time.process_time() - start) < seconds or count == 0:
            call()
            count += 1
        error = np.abs(values[: len(known)] - known)
        answer = {"rate": count * POINTS / used, "compilation": compilation, "error": float(error.mean())}
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that answers requests; it is pinned to the first core of this process."""

    def __init__(self, python: str, side: str, path: Path):
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        self._process = subprocess.Popen(
            [python, __file__, side, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | one | {"JAX_PLATFORMS": "cpu"},
        )
        os.sched_setaffinity(self._process.pid, {min(os.sched_getaffinity(0))})

    def ask(self, **request: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def compare(theirs: Worker, mine: Worker, args: argparse.Namespace) -> None:
    """Prints the table."""
    same = {"solver": "midpoint", "steps": STEPS, "rows": args.rows}
    bound = theirs.ask(divergence="exact", seconds=0)["error"]
    less = next(
        one for one in _by_evaluations(args.rows) if mine.ask(divergence="exact", seconds=0, **one)["error"] <= bound
    )
    title = f"width {args.width}: points per CPU-second"
    print(f"{title:<49}{'rate':>9}{'ratio':>8}{'range':>16}{'error':>10}{'compile':>9}")
    for divergence in ("exact", "hutchinson"):
        sides = {
            "flow_matching, midpoint, 20 steps": (theirs, {}),
            "flowjax, midpoint, 20 steps": (mine, same),
            f"flowjax, {less['solver']}, {less['steps']} steps": (mine, less),
        }
        first = {name: w.ask(divergence=divergence, seconds=0.5, **o) for name, (w, o) in sides.items()}
        turns = [
            {name: w.ask(divergence=divergence, seconds=args.seconds, **o)["rate"] for name, (w, o) in sides.items()}
            for _ in range(args.rounds)
        ]
        peer = next(iter(sides))
        for name, found in first.items():
            ratios = sorted(turn[name] / turn[peer] for turn in turns)
            rate = statistics.median(turn[name] for turn in turns)
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            error = f"{found['error']:.1e}"
            print(
                f"{divergence:<11}{name:<38}{rate:>9.0f}{statistics.median(ratios):>8.2f}{spread:>16}{error:>10}"
                f"{found['compilation']:>8.1f}s",
                flush=True,
            )


def _by_evaluations(rows: int) -> list[dict[str, Any]]:
    """Solvers with up to 40 evaluations, the cheapest first."""
    from flowjax.solvers.ode import SOLVERS

    pairs = [(name, n) for name, tableau in SOLVERS.items() for n in range(1, 2 * STEPS // tableau.stages + 1)]
    pairs.sort(key=lambda pair: SOLVERS[pair[0]].stages * pair[1])
    return [{"solver": name, "steps": n, "rows": rows} for name, n in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", required=True, help="Python of the environment with requirements.txt")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rows", type=int, default=500, help="points that flowjax takes at once; 0 for all")
    parser.add_argument("--training", type=int, default=3000, help="steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        train(path, args.width, args.training)
        compare(Worker(args.torch, "torch", path), Worker(sys.executable, "jax", path), args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["torch"] or sys.argv[1:2] == ["jax"]:
        serve({"torch": torch_worker, "jax": jax_worker}[sys.argv[1]], Path(sys.argv[2]))
    else:
        main()
