"""flowjax's half of the CPU comparison; the same tasks, line by line, as `torch_worker.py`.

Reads {"task": NAME, "seconds": S} a line on stdin, runs the task for about S seconds after its compilation, and
answers with {"task", "count", "wall", "cpu"} a line on stdout. Training goes through `Trainer`, as the command line's
does: moving average, finiteness guard and all. `icfm` draws its data in the step, `icfm_pooled` from 100,000 points
made once.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import defaults, resolve
from flowjax.data import open_dataset
from flowjax.data.dataset import sample_rows
from flowjax.solvers import solve_ode
from flowjax.training.trainer import Trainer

POINTS = 10_000
CHUNK = 500


def trainer(data: str, width: int, depth: int, activation: str, batch: int, coupling: str, pooled: bool) -> Trainer:
    """The setting of a tutorial as a config: Adam at 1e-3, no schedule, no clip, time appended to x as it is."""
    c = defaults("mlp")
    c.data.name, c.coupling.name, c.ema.half_life = data, coupling, 0.0
    c.model.width, c.model.depth, c.model.features, c.model.activation = width, depth, 0, activation
    c.train.batch_size, c.train.lr, c.train.schedule, c.train.clip = batch, 1e-3, "constant", 0.0
    config = resolve(c)
    dataset = open_dataset(data)
    if pooled:
        assert dataset.draw is not None
        pool = np.asarray(dataset.draw(jax.random.key(0), 100_000))
        dataset = dataclasses.replace(dataset, arrays=lambda: Batch(pool), sample=sample_rows)
    return Trainer(config, build(config, dataset.spec), dataset)


def training(t: Trainer) -> Callable[[int], Any]:
    """n -> runs n steps."""
    box, arrays = [t.init()], t.arrays()

    def go(n: int) -> None:
        box[0], _ = t.run(box[0], arrays, n)
        jax.block_until_ready(box[0])

    return go


def sampling() -> Callable[[int], Any]:
    """n -> draws n * 10,000 points with dopri5 at 1e-4 through the network of $BENCH_WEIGHTS."""
    weights = np.load(os.environ["BENCH_WEIGHTS"])
    layers = [(jnp.asarray(weights[f"w{i}"]), jnp.asarray(weights[f"b{i}"])) for i in range(4)]

    def field(t: Any, x: Any, cond: Any) -> Any:
        h = jnp.concatenate([x, jnp.broadcast_to(t, (x.shape[0], 1))], -1)
        for w, b in layers[:-1]:
            h = jax.nn.selu(h @ w + b)
        return h @ layers[-1][0] + layers[-1][1]

    @jax.jit
    def draw(key: Any) -> Any:
        x = jax.random.normal(key, (POINTS // CHUNK, CHUNK, 2))
        return jax.lax.map(lambda rows: solve_ode(field, rows, rtol=1e-4, atol=1e-4), x)

    def go(n: int) -> None:
        for i in range(n):
            jax.block_until_ready(draw(jax.random.key(i)))

    return go


TASKS: dict[str, tuple[Callable[[], Callable[[int], Any]], int]] = {
    "icfm": (lambda: training(trainer("gaussians8", 64, 3, "selu", 256, "independent", False)), 1),
    "icfm_pooled": (lambda: training(trainer("gaussians8", 64, 3, "selu", 256, "independent", True)), 1),
    "otcfm": (lambda: training(trainer("gaussians8", 64, 3, "selu", 256, "ot", False)), 1),
    "flow_matching": (lambda: training(trainer("checkerboard", 512, 4, "silu", 4096, "independent", False)), 1),
    "sample": (sampling, POINTS),
}


def train_weights(path: str, steps: int = 20_000) -> None:
    """The 3 x 64 network that both sides sample from, trained as `icfm`."""
    t = trainer("gaussians8", 64, 3, "selu", 256, "independent", False)
    state, _ = t.run(t.init(), t.arrays(), steps)
    p = state.params
    layers = [p["layers"][i] for i in range(3)] + [p["out"]]
    arrays = {
        f"{short}{i}": layer[long] for i, layer in enumerate(layers) for short, long in (("w", "kernel"), ("b", "bias"))
    }
    named: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
    np.savez(path, **named)


def main() -> None:
    ready: dict[str, Callable[[int], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        task, n = request["task"], 1
        make, unit = TASKS[task]
        if task not in ready:
            ready[task] = make()
            ready[task](1)
        go, count = ready[task], 0
        wall, cpu = time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - wall) < request["seconds"]:
            go(n)
            count += n
            n = max(1, min(2 * n, int(count / max(time.perf_counter() - wall, 1e-3) * 0.5), 10_000)) if unit == 1 else 1
        del elapsed
        answer = {
            "task": task,
            "count": count * unit,
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--weights"]:
        train_weights(sys.argv[2])
    else:
        main()
