"""Posterior estimation by flow matching on the eight tasks of the benchmark of simulation-based inference.

Quality is the accuracy of a classifier that tells samples from a reference posterior (C2ST, 0.5 is perfect), the mean
over the ten observations of the benchmark, with 10,000 samples for each; and the log-density of the true parameters.
"""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from flowjax import plots
from flowjax.inference import SolverSettings, load, log_prob, sample_each
from flowjax.inference.reference_posteriors import ReferencePosteriors, reference_posteriors
from flowjax.inference.run import Run
from flowjax.metrics import c2st
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.simulators import BENCHMARK

OVERFITTING = ("slcp", "bernoulli_glm", "gaussian_linear", "gaussian_linear_uniform")
"""Tasks whose posteriors are wide, so that 10,000 simulations are soon learned by heart: those of the config sbi_slcp.
The others, whose posteriors are narrow and need long training, have that of sbi_two_moons. It was chosen by the
validation loss of seed 0."""

SOLVER = SolverSettings("dopri5", rtol=1e-4, atol=1e-4)
LARGE = {
    "train.steps": 20_000,
    "train.batch_size": 512,
    "model.width": 256,
    "model.dropout": 0.0,
    "train.optimizer": "adamw",
    "train.weight_decay": 0.01,
}
"""The settings for 100,000 simulations, equal for all tasks."""


def trained(study: Study, task: str, num: int, seed: int) -> Run:
    """A network that has learned the posterior of a task from `num` simulations; the best by validation loss."""
    config = "sbi_slcp" if task in OVERFITTING else "sbi_two_moons"
    changes = {"data.simulator": task, "data.name": f"simulator(num={num}, seed={seed})", "seed": seed}
    if study.quick:
        changes |= {"train.steps": 1000, "train.lr": 3e-3, "model.width": 64, "model.depth": 2}
    elif num > 10_000:
        changes |= LARGE
    elif task not in OVERFITTING:
        changes |= {"model.width": 256, "train.steps": 12_000}
    study.train(name := f"{task}_{num}_{seed}", config, changes)
    return load(study.folder / "runs" / name, checkpoint="best")


def measured(study: Study, task: str, num: int, seed: int) -> dict[str, Any]:
    """Trains on `num` simulations, and compares samples with the reference posteriors."""
    known = exact_gaussian() if study.quick else reference_posteriors(task)  # missing files are reported at once
    start = time.perf_counter()
    run = trained(study, task, num, seed)
    seconds = time.perf_counter() - start
    obs, reference = {"obs": known.observation.astype(np.float32)}, known.reference
    start = time.perf_counter()
    samples = sample_each(run, reference.shape[1], obs, seed, solver=SOLVER, batch=0 if study.quick else 50_000).samples
    sampling = time.perf_counter() - start
    if seed == 0:
        study.arrays(f"{task}_{num}", lambda: {"samples": samples[0, :2000], "reference": reference[0, :2000]})
    scores = [float(c2st(jax.random.key(1), x, y)) for x, y in zip(reference, samples, strict=True)]
    densities = log_prob(run, known.true_parameters.astype(np.float32), obs, solver=SOLVER).log_prob
    return {
        "c2st": float(np.mean(scores)),
        "c2st_worst": max(scores),
        "log_prob": float(densities.mean()),
        "training_seconds": seconds,
        "sampling_seconds": sampling,
        "scores": scores,
    }


def exact_gaussian() -> ReferencePosteriors:
    """Two observations of `gaussian_linear`, with 1,000 samples of each posterior in closed form.

    Prior and noise have variance 0.1, so that the posterior is normal with mean x / 2 and variance 0.05.
    """
    rng = np.random.default_rng(0)
    theta = rng.normal(0, 0.1**0.5, (2, 10))
    obs = theta + rng.normal(0, 0.1**0.5, (2, 10))
    return ReferencePosteriors(obs, theta, obs[:, None] / 2 + rng.normal(0, 0.05**0.5, (2, 1000, 10)))


def setting(task: str, num: int) -> str:
    return f"{task}, {num:,} simulations"


def run(study: Study) -> None:
    tasks = [("gaussian_linear", 2_000)] if study.quick else [(task, 10_000) for task in BENCHMARK]
    for task, num in tasks:
        for seed in study.seeds:
            study.measure(setting(task, num), partial(measured, study, task, num, seed), seed)
    for task in [] if study.quick else BENCHMARK:
        study.measure(setting(task, 100_000), partial(measured, study, task, 100_000, 0))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    task, num = ("gaussian_linear", 2_000) if study.quick else ("slcp", 10_000)
    kept = study.arrays(f"{task}_{num}", dict)
    return {"corner": plots.corner(kept["samples"][:, :5], reference=kept["reference"][:, :5])}


EXPERIMENT = Experiment(
    title="How near are posteriors of flow matching to the references of the benchmark of simulation-based inference?",
    source="Lueckmann et al. 2021, arXiv:2101.04653",
    full=Form(
        "40 minutes on one H200, or 15 with four trainings at a time",
        seeds=3,
        accelerator=True,
        published={
            setting("two_moons", 100_000): {"c2st": 0.509},
            setting("gaussian_mixture", 100_000): {"c2st": 0.509},
            setting("bernoulli_glm", 100_000): {"c2st": 0.553},
            setting("slcp", 100_000): {"c2st": "0.687 to 0.825"},
        },
    ),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "c2st": "C2ST",
        "c2st_worst": "C2ST of the worst observation",
        "log_prob": "log-density of the true parameters",
        "training_seconds": "training, s",
        "sampling_seconds": "100,000 samples, s",
    },
    draw=draw,
)
