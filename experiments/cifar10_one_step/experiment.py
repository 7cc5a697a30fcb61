"""CIFAR-10 in one and two steps against the clock: a flow, and consistency tuning of it.

The first stage is the recipe of `cifar10_hour` in fewer steps. The second starts from its moving average.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowjax.config import Config, changed, defaults
from flowjax.config_files import config_path, load_config
from flowjax.inference import Run, SolverSettings, evaluate_images, sample
from flowjax.inference.data_of_run import dataset_of
from flowjax.metrics.frechet import frechet_of_pixels
from flowjax.plots import image_grid
from flowjax.reproduce import Experiment, Form, Results, Study, file_name
from flowjax.training.writers import read_metrics

FLOW_STEPS = 9_200
"""Training steps of the flow, about half of those of `cifar10_hour`."""

SETTINGS: dict[str, tuple[str, SolverSettings]] = {
    "flow, 35 evaluations": ("flow", SolverSettings("edm", steps=18)),
    "flow, 2 evaluations": ("flow", SolverSettings("euler", steps=2)),
    "tuned, 1 evaluation": ("tuned", SolverSettings("consistency", steps=1)),
    "tuned, 2 evaluations": ("tuned", SolverSettings("consistency", steps=2)),
    "tuned, 4 evaluations": ("tuned", SolverSettings("consistency", steps=4)),
}
"""The rows of the table: the run and its sampler."""


def config(study: Study, name: str) -> Config:
    """The shipped config, or for the quick form an MLP on 8 x 8 digits by the same recipe."""
    made = load_config(config_path({"flow": "cifar10_hour", "tuned": "cifar10_one_step"}[name]))
    if not study.quick:
        return changed(made, {"train.steps": FLOW_STEPS, "train.keep_at": ()}) if name == "flow" else made
    made = changed(made, {"data.name": "digits", "data.augment": "none"})
    made.model = defaults("mlp").model
    made.model.width, made.model.features = 256, 32
    made.train.batch_size, made.train.steps, made.train.keep_at = 256, 2_000, ()
    made.train.warmup, made.ema.half_life = 100.0 * 256, 20_000.0
    made.train.log_every = made.train.save_every = 1_000
    if name == "tuned":
        made.method.doubling = 2_000 // 6
    return made


def trained(study: Study, name: str) -> Run:
    """The flow, or the model that was tuned from it."""
    start = {"train.start_from": str(trained(study, "flow").workdir)} if name == "tuned" else {}
    return study.train(name, config(study, name), start)


def training(study: Study, name: str) -> dict[str, float]:
    """Trains, and returns the images of training, and the validation loss of the flow; that of tuning ranks nothing."""
    last = read_metrics(Path(trained(study, name).workdir) / "metrics.jsonl")[-1]
    return {"millions": last["samples_seen"] / 1e6} | ({"val_loss": last["val_loss"]} if name == "flow" else {})


def scores(study: Study, setting: str) -> dict[str, float]:
    """FID of 50,000 samples, or for digits the Frechet distance of pixels (0 to 16) to the training images."""
    name, solver = SETTINGS[setting]
    made = trained(study, name)
    drawn, dataset = sample(made, 2_000 if study.quick else 50_000, solver=solver, batch=1_000), dataset_of(made)
    if study.quick:
        return {"pixel_distance": frechet_of_pixels(drawn.samples, np.asarray(dataset.arrays().x1))}
    scored = evaluate_images(made, dataset, ["fid"], samples=drawn.samples, precision="default")
    return {"fid": scored["fid"]}


def run(study: Study) -> None:
    for name in ("flow", "tuned"):
        study.measure(f"training of the {name if name == 'flow' else 'tuned model'}", partial(training, study, name))
    for setting in SETTINGS:
        study.measure(setting, partial(scores, study, setting))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """64 samples of each row from the same noise, not chosen."""
    figures: dict[str, Figure] = {}
    for i, (setting, (name, solver)) in enumerate(SETTINGS.items()):
        images: Any = study.arrays(
            f"samples_{i}", lambda name=name, solver=solver: {"x": sample(trained(study, name), 64, 0, solver).samples}
        )["x"]
        levels = 17 if study.quick else 256
        figures[file_name(setting)] = image_grid(images, levels, title=setting)
    return figures


EXPERIMENT = Experiment(
    title="CIFAR-10 in one and two steps against the clock: a flow, and consistency tuning of it.",
    source="arXiv:2406.14548",
    full=Form("30 minutes on an H200; not yet run as one command", accelerator=True, needs=("cifar10", "inception")),
    quick=Form("2 minutes on 2 CPU cores"),
    run=run,
    columns={
        "fid": "FID 50k",
        "pixel_distance": "pixel distance",
        "val_loss": "validation loss",
        "millions": "million images",
    },
    draw=draw,
)
