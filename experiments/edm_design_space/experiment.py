"""Table 2 of Karras et al. 2022: training configurations A to F with the same network and the same sampler.

A and B learn the noise, with a uniform weight on its error and uniform times, on the variance-preserving (VP) and the
variance-exploding (VE) path. They differ in their hyperparameters. D replaces the prediction by EDM's preconditioned
output, E also the weight of the loss and the distribution of the noise levels, and F also the augmentation. From E on,
VP and VE differ only in the networks of the paper, so there is a single row. C changes the network and is left out.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowjax.config import Config, changed, defaults
from flowjax.inference import Run, SolverSettings, evaluate_images, sample
from flowjax.inference.data_of_run import dataset_of
from flowjax.metrics.frechet import frechet_of_pixels
from flowjax.reproduce import Experiment, Form, Results, Study

CONFIGURATIONS = ("A, VP", "A, VE", "B, VP", "B, VE", "D, VP", "D, VE", "E", "F")
PUBLISHED = {  # table 2 of the paper, unconditional CIFAR-10
    "A, VP": {"fid": 3.01},
    "A, VE": {"fid": 3.77},
    "B, VP": {"fid": 2.51},
    "D, VP": {"fid": 2.29},
    "E": {"fid": 2.05},
    "F": {"fid": 1.97},
}
PATHS = {"VP": "vp(0.1, 20)", "VE": "ve(0.02, 100)"}
DATA: dict[bool, dict[str, Any]] = {False: {"data.name": "cifar10"}, True: {"data.name": "digits"}}
"""The data set of the full form (False) and of the quick form (True)."""
SIGMA_DATA = {False: 0.5, True: 0.75}
"""The standard deviation of the data in model space."""
TIMES = {False: "log_normal(-1.2, 1.2)", True: "log_normal(-0.4, 1.2)"}
"""The noise levels of E and F."""
AUGMENT = {False: "flip", True: "none"}
"""The augmentation of A to E; the mirror image of a digit is not a digit."""
STEPS, BATCH = {False: 1_200, True: 800}, {False: 1_024, True: 256}
"""Steps and images per step of B to F. A takes four times the steps, with a quarter of the images in each."""
DRAWN = {False: 10_000, True: 2_000}
"""Number of samples for the Frechet distance."""
SAMPLER = SolverSettings("edm", steps=18)
"""EDM's deterministic Heun sampler with its published noise levels: 35 evaluations."""
METRIC = {False: ("fid", "FID of 10,000 samples"), True: ("fd", "Frechet distance of pixels to the training digits")}

OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": "small"}
"""How the numbers are written beside the points of the figure."""


def hyperparameters(quick: bool, letter: str) -> dict[str, Any]:
    """Those of the baselines for A, and a larger batch and learning rate without clipping for the others.

    The ratios of the batch sizes and learning rates of Adam are those of the paper. In the full form B to F use the
    optimizer of the config `cifar10_speedrun`, because the budget is a small part of the paper's.
    """
    if letter == "A":
        steps, batch, tuned = 4 * STEPS[quick], BATCH[quick] // 4, {"train.lr": 2e-4, "train.clip": 1.0}
    else:
        steps, batch, tuned = STEPS[quick], BATCH[quick], {"train.lr": 1e-3, "train.clip": 0.0}
        if not quick:
            tuned |= {"train.optimizer": "muon", "train.lr": 2.5e-3, "train.beta2": 0.99}
    every = {"train.log_every": steps // 4, "train.save_every": steps}
    return {"train.steps": steps, "train.batch_size": batch, **tuned, **every}


def objective(quick: bool, setting: str) -> dict[str, Any]:
    """The path, the prediction, the weight of the loss and the noise levels of a configuration."""
    letter, _, path = setting.partition(", ")
    edm, baseline = f"edm({SIGMA_DATA[quick]})", {"method.weight": "noise", "method.times": "uniform"}
    if letter in "AB":
        return {"path.schedule": PATHS[path], "prediction": "noise", **baseline}
    if letter == "D":
        return {"path.schedule": PATHS[path], "prediction": edm, **baseline}
    made = {"path.schedule": "edm(0.002, 80)", "prediction": edm, "method.weight": edm, "method.times": TIMES[quick]}
    return made | ({"data.augment": "edm(0.12)"} if letter == "F" else {})


def config(quick: bool, setting: str) -> Config:
    """The config of one configuration, such as "A, VP"."""
    made = defaults("mlp" if quick else "adm")
    if quick:
        made.model.width, made.model.features = 256, 32
        made.train.warmup, made.ema.half_life = 100.0 * 256, 10_000.0
    else:
        made.model.film, made.model.dropout, made.model.time_scale = True, 0.0, 1000.0
        made.train.warmup, made.train.schedule = 100_000.0, "linear(0.3)"
        made.ema.half_life = 100_000.0
    changes: Mapping[str, Any] = {"data.augment": AUGMENT[quick], **DATA[quick]}
    return changed(made, {**changes, **hyperparameters(quick, setting[0]), **objective(quick, setting)})


def trained(study: Study, setting: str) -> Run:
    """The trained run."""
    return study.train(name_of(setting), config(study.quick, setting))


def name_of(setting: str) -> str:
    """The name of the run and of its arrays, such as `a_vp`."""
    return setting.lower().replace(", ", "_")


def samples(study: Study, setting: str) -> dict[str, Any]:
    """Samples, and the number of evaluations of the network for each."""
    drawn = sample(trained(study, setting), DRAWN[study.quick], solver=SAMPLER)
    return {"samples": drawn.samples, "nfe": drawn.nfe}


def scores(study: Study, setting: str) -> dict[str, float]:
    """The Frechet distance, of pixels in the quick form and of Inception features in the full form."""
    found = study.arrays(name_of(setting), partial(samples, study, setting))
    dataset = dataset_of(trained(study, setting))
    if study.quick:
        distance = frechet_of_pixels(found["samples"], np.asarray(dataset.arrays().x1))
        return {"fd": distance, "nfe": int(found["nfe"])}
    run = trained(study, setting)
    scored = evaluate_images(run, dataset, ["fid"], samples=found["samples"], precision="default")
    return {"fid": scored["fid"], "nfe": int(found["nfe"])}


def run(study: Study) -> None:
    for setting in CONFIGURATIONS:
        study.measure(setting, partial(scores, study, setting))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """The Frechet distance of each configuration, and beside it its first 16 samples, from the same noise."""
    rows = range(len(CONFIGURATIONS))
    figure = Figure(figsize=(11, 0.8 + 0.45 * len(rows)), layout="constrained")
    points, strip = figure.subplots(1, 2, width_ratios=(1, 2))
    metric, label = METRIC[study.quick]
    distances = [results.mean(setting, metric) for setting in CONFIGURATIONS]
    points.plot(distances, rows, "o")
    for row, distance in zip(rows, distances, strict=True):
        points.annotate(f"{distance:.3g}" if distance < 100 else f"{distance:.0f}", (distance, row), (6, 5), **OFFSET)
    points.set(yticks=rows, yticklabels=CONFIGURATIONS, ylabel="configuration", xlabel=label, xscale="log")
    points.set(xlim=(0.7 * min(distances), 2 * max(distances)), ylim=(len(rows) - 0.5, -0.5))
    points.grid(axis="y", alpha=0.3)
    drawn = [study.arrays(name_of(setting), partial(samples, study, setting))["samples"] for setting in CONFIGURATIONS]
    framed = [np.pad(images[:16], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=images.max()) for images in drawn]
    strip.imshow(np.concatenate([np.concatenate(list(images), 1) for images in framed]), cmap="gray", aspect="auto")
    strip.set(xticks=(), yticks=(), xlabel="16 samples of each configuration")
    return {"edm_design_space": figure}


EXPERIMENT = Experiment(
    title="Training configurations A to F of EDM with one network: what does each change bring?",
    source="Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, arXiv:2206.00364, "
    "table 2",
    full=Form("25 minutes on one H200", accelerator=True, needs=("cifar10", "inception"), published=PUBLISHED),
    quick=Form("2 minutes on 2 CPU cores"),
    run=run,
    columns={"fid": "FID", "fd": "Frechet distance of pixels", "nfe": "evaluations"},
    draw=draw,
)
