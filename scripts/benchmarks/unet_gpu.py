"""Speed of the image networks on one accelerator: the training step as `flowjax train` runs it, and sampling.

    python scripts/benchmarks/unet_gpu.py train  --npz cifar10.npz [--set model.dropout=0.1 ...] [--profile DIR]
    python scripts/benchmarks/unet_gpu.py sample --npz cifar10.npz [--set ...] [--batch 1000] [--steps 18]
    python scripts/benchmarks/unet_gpu.py compare --npz cifar10.npz [--set ...] --case train.clip=0 --case '...;...'

`train` times the compiled run of a config (random images where there is no file): the median of three stretches after
a warm-up, data drawn, flipped and dequantised in the step, moving average and optimizer in it. `sample` times Heun on
EDM's grid, 2 steps - 1 evaluations, without the way to the host. `compare` is `train` of the config as it is and of
each case, compiled side by side and timed in turns. One JSON line on stdout; of `compare` one a case. `temporary_gib`
is the memory that a program takes beside its arguments and results.

A case may name another method, so that the cost of a step of a few-step method is compared with that of flow matching:

    python scripts/benchmarks/unet_gpu.py compare --case method.name=mean_flow --case method.name=consistency

The case `forward_mode=1` is the same method with the plain attention and norms that JAX can differentiate in forward
mode, as the methods with a Jacobian-vector product use them.
"""

import argparse
import dataclasses
import gzip
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.build import build
from flowjax.config import Config, changed, defaults, literal
from flowjax.data.arrays import open_npz
from flowjax.data.dataset import Dataset
from flowjax.data.requests import DataRequest
from flowjax.solvers import sample
from flowjax.training.trainer import Trainer

FORWARD_MODE = "forward_mode=1"
"""The case of plain attention and norms."""


def setting(overrides: list[str], npz: str) -> Config:
    """torchcfm's CIFAR-10 network without dropout, Adam, flips; then the overrides."""
    values = {key: literal(value) for key, _, value in (o.partition("=") for o in overrides)}
    config = defaults(values.get("model.name", "adm"), values.get("method.name", "flow_matching"))
    config.data.name, config.data.path, config.data.augment = "npz", npz, "flip"
    config.train.batch_size, config.train.clip, config.ema.half_life = 512, 1.0, 500_000.0
    if config.model.name == "adm":
        config.model.dropout = 0.0
    return changed(config, values)


def images(npz: str) -> Dataset:
    """The file's data set; random ones of CIFAR-10's size without a file."""
    if not npz:
        npz = str(Path(tempfile.mkdtemp()) / "random.npz")
        np.savez(npz, x=np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), np.uint8))
    return open_npz(DataRequest(npz))


def timed(go: Callable[[int], Any], n: int, rounds: int = 3) -> list[float]:
    """Seconds of each of `rounds` calls go(n), after one to compile and one to warm up."""
    start = time.perf_counter()
    go(2)
    first = time.perf_counter() - start
    go(n)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        go(n)
        seconds.append(time.perf_counter() - start)
    return [first, *seconds]


class Training:
    """A config's compiled run, to be called again and again from where it stands."""

    def __init__(self, overrides: list[str], npz: str):
        plain = [o for o in overrides if o != FORWARD_MODE]
        config, dataset = setting(plain, npz), images(npz)
        self.batch = config.train.batch_size
        method: Any = build(config, dataset.spec)
        if FORWARD_MODE in overrides:
            method = dataclasses.replace(method, network=method.network.with_forward_mode())
        self.trainer = Trainer(config, method, dataset)
        self.trainer.compile_ahead(fresh=True)

    def __call__(self, n: int) -> None:
        if not hasattr(self, "state"):
            self.state, self.arrays = self.trainer.init(), self.trainer.arrays()
        self.state, metrics = self.trainer.run(self.state, self.arrays, n)
        jax.block_until_ready(self.state)
        assert not int(metrics.bad_step), "the loss is not finite"

    def temporary_gib(self) -> float | None:
        """The memory of the compiled loop beside its arguments and results; None for a loop on the host."""
        program = self.trainer.program()
        memory = None if program is None else program.memory_analysis()
        return None if memory is None else round(memory.temp_size_in_bytes / 2**30, 3)

    def speed(self, steps: int, seconds: list[float]) -> dict[str, Any]:
        return {
            "milliseconds": 1e3 * statistics.median(seconds) / steps,
            "range": [round(1e3 * s / steps, 2) for s in (min(seconds), max(seconds))],
            "images_per_second": self.batch * steps / statistics.median(seconds),
            "parameters": self.trainer.parameters(),
            "temporary_gib": self.temporary_gib(),
        }


def train(args: argparse.Namespace) -> list[dict[str, Any]]:
    go = Training(args.set, args.npz)
    first, *seconds = timed(go, args.steps)
    if args.profile:
        profile(lambda: go(5), args.profile)
    return [go.speed(args.steps, seconds) | {"compile_seconds": first, "gib": memory()}]


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    cases = ["", *args.case]
    runs = [Training(args.set + list(filter(None, case.split(";"))), args.npz) for case in cases]
    seconds: list[list[float]] = [[] for _ in runs]
    for go in runs:
        go(2)  # the last of them waits for all that is compiled beside
    for turn in range(5):  # the first one warms up
        for go, mine in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            go(args.steps)
            if turn:
                mine.append(time.perf_counter() - start)
    if args.profile:
        profile(lambda: runs[-1](5), args.profile)
    return [{"case": c, **go.speed(args.steps, s)} for c, go, s in zip(cases, runs, seconds, strict=True)]


def sampling(args: argparse.Namespace) -> list[dict[str, Any]]:
    config, dataset = setting(args.set, args.npz), images(args.npz)
    method = build(config, dataset.spec)
    params = jax.tree.map(lambda a: a + 0.01 * jnp.ones_like(a), method.init(jax.random.key(0)).params)

    @jax.jit
    def draw(params: Any, key: Any) -> Any:
        x0 = method.prior.sample(key, args.batch)
        return sample(method.model(params, {}), x0, solver="edm", steps=args.steps)[0]

    def go(n: int) -> None:
        jax.block_until_ready([draw(params, jax.random.key(i)) for i in range(n)])

    first, *seconds = timed(go, 2)
    if args.profile:
        profile(lambda: go(1), args.profile)
    rate = 2 * args.batch * (2 * args.steps - 1) / statistics.median(seconds)
    return [{"evaluations_per_second": rate, "compile_seconds": first, "gib": memory()}]


def memory() -> float | None:
    """Largest device memory in use so far, GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return round(stats["peak_bytes_in_use"] / 2**30, 2) if "peak_bytes_in_use" in stats else None


def profile(go: Callable[[], None], folder: str) -> None:
    """A trace of `go` in `folder`, and the kernels that take longest, summed by name, in `kernels.json`."""
    with jax.profiler.trace(folder):
        go()
    total, count = Counter(), Counter()
    for path in Path(folder).rglob("*.trace.json.gz"):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        device = {e["pid"] for e in events if e.get("name") == "process_name" and "GPU" in e["args"]["name"]}
        lanes = {
            (e["pid"], e["tid"])
            for e in events
            if e.get("name") == "thread_name" and "Stream" in e["args"]["name"] and e["pid"] in device
        }
        for e in events:
            if e.get("ph") == "X" and (e["pid"], e["tid"]) in lanes:
                name = e.get("args", {}).get("hlo_op", "") + " | " + e["name"]
                total[name] += e["dur"]
                count[name] += 1
    rows = [(name, round(us / 1e3, 3), count[name]) for name, us in total.most_common()]
    Path(folder, "kernels.json").write_text(json.dumps({"ms": sum(total.values()) / 1e3, "kernels": rows}, indent=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "sample", "compare"))
    parser.add_argument("--npz", default="")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
    parser.add_argument("--case", action="append", default=[], help="KEY=VALUE;KEY=VALUE on top of --set")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--profile", default="")
    args = parser.parse_args()
    args.steps = args.steps or {"train": 30, "sample": 18, "compare": 30}[args.what]
    device = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    for result in {"train": train, "sample": sampling, "compare": compare}[args.what](args):
        print(json.dumps({"what": args.what, "set": args.set, **device, **result}))


if __name__ == "__main__":
    main()
