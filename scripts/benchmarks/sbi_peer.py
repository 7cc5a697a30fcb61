"""Compares posterior estimation with the package sbi: the same simulations, observations and cores.

The commands run one after the other, in alternation, so that the load of the machine is similar for both:

    python scripts/benchmarks/sbi_peer.py data FOLDER              # simulations and observations, with flowjax
    python scripts/benchmarks/sbi_peer.py ours FOLDER TASK         # trains and samples, with flowjax
    python scripts/benchmarks/sbi_peer.py short FOLDER TASK        # half the width, fewer steps; Heun's method
    python scripts/benchmarks/sbi_peer.py FMPE FOLDER TASK         # the same with sbi's defaults, in its environment
    python scripts/benchmarks/sbi_peer.py NPSE FOLDER TASK
    python scripts/benchmarks/sbi_peer.py score FOLDER             # the table, with flowjax

Each samples from the posteriors of the first OBSERVATIONS observations of the benchmark. Seconds are those of the clock
and of the processor (all threads); those of sampling are for one observation. A training of sbi is stopped after LIMIT
seconds of the processor, and its table row says so; the network at that time is used.
"""

# pyright: reportMissingImports=false
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

TASKS = ("two_moons", "slcp", "gaussian_mixture", "bernoulli_glm")
NUM, SAMPLES, OBSERVATIONS, LIMIT = 10_000, 10_000, 3, 600.0
BOUND = {"two_moons": 1.0, "slcp": 3.0, "gaussian_mixture": 10.0}


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Timer:
    """Measures the seconds of the clock and of the processor."""

    def __enter__(self):
        self.start, self.cpu_start = time.perf_counter(), cpu_seconds()
        return self

    def __exit__(self, *error):
        self.seconds, self.cpu = time.perf_counter() - self.start, cpu_seconds() - self.cpu_start


def write(folder, name, samples, **values):
    np.savez(folder / f"{name}.npz", samples=np.asarray(samples, np.float32))
    (folder / f"{name}.json").write_text(json.dumps(values))
    print(name, values, flush=True)


def data(folder):
    from flowjax.data.simulated import keep_simulations, simulate
    from flowjax.inference.reference_posteriors import reference_posteriors
    from flowjax.simulators import BENCHMARK

    for task in TASKS:
        theta, obs = simulate(BENCHMARK[task](), NUM, 0)
        keep_simulations(folder / task, theta, obs)
        known = reference_posteriors(task)
        np.savez(folder / f"{task}.npz", observation=known.observation, reference=known.reference)


SHORT = {"model.width": 128, "train.steps": 1500, "train.lr": 2e-3}


def ours(folder, task, name="ours", changes=()):
    import flowjax
    from flowjax.inference import SolverSettings, sample_each

    config = "sbi_slcp" if task in ("slcp", "bernoulli_glm") else "sbi_two_moons"
    known = np.load(folder / f"{task}.npz")
    data = {"data.simulator": task, "data.path": str(folder / task), "data.name": f"simulator(num={NUM})"}
    workdir = folder / "runs" / f"{name}_{task}"
    with Timer() as training:
        flowjax.train(config, workdir, data | dict(changes), plots=False)
    run = flowjax.load(workdir, checkpoint="best")
    solver = SolverSettings("heun", steps=20) if changes else SolverSettings("dopri5", rtol=1e-4, atol=1e-4)
    with Timer() as sampling:
        obs = known["observation"][:OBSERVATIONS].astype(np.float32)
        drawn = sample_each(run, SAMPLES, {"obs": obs}, solver=solver)
    write(
        folder,
        f"{name}_{task}",
        drawn.samples,
        train_seconds=training.seconds,
        train_cpu=training.cpu,
        sample_seconds=sampling.seconds / OBSERVATIONS,
        sample_cpu=sampling.cpu / OBSERVATIONS,
    )


class _TimeIsUp(Exception):
    pass


def peer(folder, method, task):
    import sbi.inference
    import torch
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # such as one, with `taskset -c 0` before the command
    known, kept = np.load(folder / f"{task}.npz"), np.load(folder / task / "simulations.npz")
    theta, x = (torch.as_tensor(kept[name]) for name in ("x", "obs"))
    if task in BOUND:
        bound = BOUND[task] * torch.ones(theta.shape[1])
        prior = BoxUniform(-bound, bound)
    else:  # the prior of bernoulli_glm is normal, with the covariance of the simulations
        prior = torch.distributions.MultivariateNormal(torch.zeros(theta.shape[1]), torch.cov(theta.T))
    inference = getattr(sbi.inference, method)(prior)
    inference.append_simulations(theta, x)

    def stop(*_):
        raise _TimeIsUp

    signal.signal(signal.SIGPROF, stop)
    stopped = False
    with Timer() as training:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            inference.train()
        except _TimeIsUp:
            stopped = True
        signal.setitimer(signal.ITIMER_PROF, 0)
    inference._neural_net.eval()
    posterior = inference.build_posterior(inference._neural_net)
    with Timer() as sampling:
        samples = [
            posterior.sample((SAMPLES,), x=torch.as_tensor(o, dtype=torch.float32), show_progress_bars=False).numpy()
            for o in known["observation"][:OBSERVATIONS]
        ]
    write(
        folder,
        f"{method}_{task}",
        np.stack(samples),
        stopped=stopped,
        epochs=inference.epoch,
        train_seconds=training.seconds,
        train_cpu=training.cpu,
        sample_seconds=sampling.seconds / OBSERVATIONS,
        sample_cpu=sampling.cpu / OBSERVATIONS,
    )


def score(folder):
    import jax

    from flowjax.metrics import c2st

    print("| task | method | C2ST | worst | training, s | of the processor | 10,000 samples, s | of the processor |")
    print("|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        reference = np.load(folder / f"{task}.npz")["reference"]
        for method in ("ours", "short", "FMPE", "NPSE"):
            path = folder / f"{method}_{task}.npz"
            if not path.exists():
                continue
            v = json.loads(path.with_suffix(".json").read_text())
            found = [
                float(c2st(jax.random.key(1), y, x))
                for y, x in zip(reference[:OBSERVATIONS], np.load(path)["samples"][:OBSERVATIONS], strict=True)
            ]
            took = f"{v['train_seconds']:.0f}{' (stopped)' if v.get('stopped') else ''} | {v['train_cpu']:.0f}"
            print(
                f"| {task} | {method} | {np.mean(found):.3f} | {max(found):.3f} | {took} | {v['sample_seconds']:.0f} | "
                f"{v['sample_cpu']:.0f} |",
                flush=True,
            )


def main(what, folder, task=""):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if what in ("data", "score"):
        {"data": data, "score": score}[what](folder)
    elif what in ("ours", "short"):
        ours(folder, task, what, SHORT if what == "short" else ())
    else:
        peer(folder, what, task)


if __name__ == "__main__":
    main(*sys.argv[1:])
