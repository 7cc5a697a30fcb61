"""CIFAR-10 against the clock: FID after one short run, without guidance and with autoguidance by an early network.

The guide is the moving average of an early step of the same run, which the config keeps (`train.keep_at`), so it costs
no training.
"""

from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import flowjax
from flowjax.config import Config, changed, defaults
from flowjax.config_files import config_path, load_config
from flowjax.inference import Guide, Run, SolverSettings, evaluate_images, sample
from flowjax.inference.data_of_run import dataset_of
from flowjax.metrics.frechet import frechet_of_pixels
from flowjax.plots import image_grid
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.training.writers import read_metrics

SETTINGS = {"without guidance": (18, None), "autoguidance by an early step": (12, 1.4)}
"""Steps of Heun on EDM's grid (2 n - 1 evaluations), and the scale of autoguidance, which evaluates two networks."""


def config(quick: bool) -> Config:
    """The shipped config, or for the quick form an MLP on 8 x 8 digits by the same recipe."""
    if not quick:
        return load_config(config_path("cifar10_speedrun"))
    made = changed(load_config(config_path("cifar10_speedrun")), {"data.name": "digits", "data.augment": "none"})
    made.model = defaults("mlp").model
    made.model.width, made.model.features = 256, 32
    made.train.steps, made.train.batch_size, made.train.keep_at = 2_000, 256, (200,)
    made.train.warmup, made.ema.half_life = 100.0 * 256, 20_000.0
    made.train.log_every = made.train.save_every = 1_000
    return made


def trained(study: Study) -> Run:
    return study.train("run", config(study.quick))


def samples(study: Study, steps: int, scale: float | None, num: int) -> dict[str, Any]:
    """Samples, and the evaluations of networks that each took."""
    run = trained(study)
    weak = flowjax.load(run.workdir, checkpoint=run.config.train.keep_at[0])
    guide = None if scale is None else Guide("auto", scale, weak=weak)
    drawn = sample(run, num, solver=SolverSettings("edm", steps=steps), guide=guide, batch=1_000)
    return {"samples": drawn.samples, "nfe": drawn.nfe * (1 if guide is None else 2)}


def scores(study: Study, setting: str) -> dict[str, float]:
    """FID, or for digits the Frechet distance of pixels (0 to 16) to the training images."""
    steps, scale = SETTINGS[setting]
    num = 2_000 if study.quick else 50_000
    drawn, dataset = samples(study, steps, scale, num), dataset_of(trained(study))
    found: dict[str, float] = {"nfe": int(drawn["nfe"])}
    if study.quick:
        return found | {"pixel_distance": frechet_of_pixels(drawn["samples"], np.asarray(dataset.arrays().x1))}
    scored = evaluate_images(trained(study), dataset, ["fid"], samples=drawn["samples"], precision="default")
    return found | {"fid": scored["fid"]}


def training(study: Study) -> dict[str, float]:
    """Trains, and returns the last validation loss."""
    records = read_metrics(trained(study).workdir / "metrics.jsonl")
    return {"val_loss": records[-1]["val_loss"]}


def run(study: Study) -> None:
    study.measure("training", partial(training, study))
    for setting in SETTINGS:
        study.measure(setting, partial(scores, study, setting))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """64 samples without guidance and with it, not chosen, from the same noise."""
    figures = {}
    for setting, name in zip(SETTINGS, ("unguided", "guided"), strict=True):
        arrays = study.arrays(name, partial(samples, study, *SETTINGS[setting], 64))
        figures[name] = image_grid(arrays["samples"], levels=17 if study.quick else 256)
    return figures


EXPERIMENT = Experiment(
    title="CIFAR-10 against the clock: FID in 18 minutes of one H200.",
    source="",
    full=Form("30 minutes on one H200", accelerator=True, needs=("cifar10", "inception")),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "val_loss": "validation loss",
        "nfe": "network evaluations",
        "fid": "FID",
        "pixel_distance": "Frechet distance of pixels",
    },
    draw=draw,
)
