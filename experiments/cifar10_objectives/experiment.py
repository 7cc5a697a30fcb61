"""Table 1 of Lipman et al. 2023: five objectives, with likelihood, FID and the cost of adaptive sampling.

FM-OT and FM-Diffusion are flow matching on the straight and on the variance-preserving path. The other three learn
the score on the variance-preserving path: SM with the weight sigma^2 on the error of the score, ScoreFlow with the
weight of the likelihood, and DDPM by the noise. The network, the optimizer and the number of images are the same.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowjax.build import build
from flowjax.config import Config, changed, defaults
from flowjax.data import open_dataset
from flowjax.files import written
from flowjax.inference import Run, SolverSettings, evaluate_images, log_prob, sample
from flowjax.inference.data_of_run import dataset_of
from flowjax.metrics.frechet import frechet_of_pixels
from flowjax.reproduce import Experiment, Form, Results, Study

OBJECTIVES = {
    "FM-OT": {"path.schedule": "condot", "prediction": "velocity"},
    "FM-Diffusion": {"path.schedule": "vp(0.1, 20)", "prediction": "velocity"},
    "SM": {"path.schedule": "vp(0.1, 20)", "prediction": "score"},
    "ScoreFlow": {"path.schedule": "vp(0.1, 20)", "prediction": "score", "method.weight": "likelihood"},
    "DDPM": {"path.schedule": "vp(0.1, 20)", "prediction": "noise"},
}
PUBLISHED = {  # table 1 of the paper, CIFAR-10
    "FM-OT": {"bits_per_dim": 2.99, "fid": 6.35, "nfe": 142},
    "FM-Diffusion": {"bits_per_dim": 3.10, "fid": 8.06, "nfe": 183},
    "SM": {"bits_per_dim": 3.16, "fid": 19.94, "nfe": 242},
    "ScoreFlow": {"bits_per_dim": 3.09, "fid": 20.78, "nfe": 428},
    "DDPM": {"bits_per_dim": 3.12, "fid": 7.48, "nfe": 274},
}
TIGHT = SolverSettings("dopri5", 1e-5, 1e-5)
DATA: dict[str, Any] = {"data.name": "cifar10"}
"""The data set of the full form."""
SCORED, DRAWN = {False: 500, True: 64}, {False: 10_000, True: 500}
"""Numbers of test images that are scored, and of samples for the Frechet distance."""


def data(study: Study) -> dict[str, Any]:
    """The config keys of the data: CIFAR-10, or Fashion-MNIST at half its resolution, 14 x 14 pixels."""
    if not study.quick:
        return DATA
    path = study.folder / "fashion_mnist_14.npz"
    if not path.exists():
        dataset = open_dataset("fashion_mnist")
        halved = lambda x: np.round(np.asarray(x, np.float32).reshape(-1, 14, 2, 14, 2, 1).mean((2, 4))).astype(
            np.uint8
        )
        with written(path) as part, part.open("wb") as file:
            np.savez(file, x=halved(dataset.arrays().x1), x_test=halved(dataset.test))
    return {"data.name": "npz", "data.path": str(path)}


def config(study: Study, changes: Mapping[str, Any]) -> Config:
    """The config of one objective."""
    made = defaults("mlp" if study.quick else "adm")
    if study.quick:
        made.model.width, made.model.features = 512, 32
        made.train.steps, made.train.batch_size, made.train.lr = 1_000, 128, 2e-3
        made.train.warmup, made.ema.half_life = 100.0 * 128, 5_000.0
    else:
        made.data.augment = "flip"
        made.model.film, made.model.dropout, made.model.time_scale = True, 0.0, 1000.0
        made.train.steps, made.train.batch_size = 1_500, 1_024
        made.train.optimizer, made.train.lr, made.train.beta2 = "muon", 2.5e-3, 0.99
        made.train.warmup, made.train.schedule = 100_000.0, "linear(0.3)"
        made.ema.half_life = 100_000.0
    made.train.log_every = made.train.save_every = made.train.steps // 4
    return changed(made, {**data(study), **changes})


def trained(study: Study, setting: str) -> Run:
    """The trained run."""
    return study.train(setting.lower(), config(study, OBJECTIVES[setting]))


def in_float32(run: Run) -> Run:
    """The run with a network that computes in float32: rounding to bfloat16 would add steps at a tolerance of 1e-5."""
    if "dtype" not in run.config.model:
        return run
    return dataclasses.replace(run, method=build(changed(run.config, {"model.dtype": "float32"}), run.spec))


def densities(study: Study, setting: str) -> dict[str, Any]:
    """Log-likelihoods of test images with one draw of the dequantisation, and the evaluations that samples take."""
    run = in_float32(trained(study, setting))
    images = dataset_of(run).test[: SCORED[study.quick]]
    scored = log_prob(run, images, divergence="hutchinson", solver=TIGHT, batch=len(images))
    drawn = sample(run, len(images), solver=TIGHT, batch=len(images))
    return {"log_prob": scored.log_prob, "nfe": drawn.nfe, "nfe_of_log_prob": scored.nfe}


def samples(study: Study, setting: str) -> dict[str, Any]:
    """Samples by an adaptive solver at tolerance 1e-3."""
    loose = SolverSettings("dopri5", 1e-3, 1e-3)
    return {"samples": sample(trained(study, setting), DRAWN[study.quick], solver=loose).samples}


def scores(study: Study, setting: str) -> dict[str, float]:
    """All metrics of an objective."""
    name = setting.lower()
    found = study.arrays(f"{name}_densities", partial(densities, study, setting))
    drawn = study.arrays(f"{name}_samples", partial(samples, study, setting))["samples"]
    dataset = dataset_of(trained(study, setting))
    bits = -found["log_prob"] / (np.log(2) * drawn[0].size)
    metrics = {"bits_per_dim": float(bits.mean()), "bits_per_dim_stderr": float(bits.std() / len(bits) ** 0.5)}
    metrics["nfe"] = int(found["nfe"])
    if study.quick:
        metrics["pixel_distance"] = frechet_of_pixels(drawn, dataset.test) / 255**2  # of pixels from 0 to 1
    else:
        scored = evaluate_images(trained(study, setting), dataset, ["fid"], samples=drawn, precision="default")
        metrics["fid"] = scored["fid"]
    return metrics


def run(study: Study) -> None:
    for setting in OBJECTIVES:
        study.measure(setting, partial(scores, study, setting))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """The first 16 samples of each objective, which start from the same noise."""
    figure = Figure(figsize=(10, 1.9 + 0.75 * len(OBJECTIVES)), layout="constrained")
    axes = figure.subplots(len(OBJECTIVES), 1)
    for ax, setting in zip(axes, OBJECTIVES, strict=True):
        images = study.arrays(f"{setting.lower()}_samples", partial(samples, study, setting))["samples"][:16]
        ax.imshow(np.concatenate(list(images), 1), cmap="gray")
        ax.set(xticks=(), yticks=(), ylabel=setting)
    return {"samples": figure}


EXPERIMENT = Experiment(
    title="Flow matching and score matching with equal networks: likelihood, FID and cost.",
    source="Lipman et al. 2023, Flow Matching for Generative Modeling, arXiv:2210.02747, table 1",
    full=Form("30 minutes on one H200", accelerator=True, needs=("cifar10", "inception"), published=PUBLISHED),
    quick=Form("2 minutes on 2 CPU cores", needs=("fashion_mnist",)),
    run=run,
    columns={
        "bits_per_dim": "bits/dim",
        "fid": "FID (ours of 10,000 samples)",
        "pixel_distance": "Frechet distance of pixels",
        "nfe": "evaluations at 1e-5",
    },
    draw=draw,
)
