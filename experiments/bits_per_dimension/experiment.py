"""Bits per dimension of images: three dequantisations, one to twenty draws of the noise, with errors and convergence.

The same test images are scored in all rows of a data set, so that their bounds can be compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from flowjax import plots
from flowjax.build import build
from flowjax.config import Config, changed, defaults
from flowjax.config_files import config_path, load_config
from flowjax.inference import Run, SolverSettings, log_prob
from flowjax.inference.data_of_run import dataset_of
from flowjax.inference.standard_errors import standard_error_of_mean
from flowjax.likelihood import Divergence
from flowjax.reproduce import Experiment, Form, Results, Study, file_name
from flowjax.training.writers import read_metrics

CHECKED = 64
"""Images that are solved again with a tenth of the tolerances."""


class Noise(NamedTuple):
    """A dequantisation, and how many of its draws are scored.

    Attributes:
        name: as in the table.
        dequantisation: for `flowjax.inference.log_prob`.
        draws: the values of K.
        divergence: of the velocity; it plays no part in Glow, which has no solve.
    """

    name: str
    dequantisation: str
    draws: tuple[int, ...]
    divergence: Divergence = "hutchinson"


@dataclass(frozen=True)
class Model:
    """A trained model, and how it is scored.

    Attributes:
        config: returns the config.
        noises: the dequantisations with which it is scored.
        images: the number of test images, the first of the data set, which has them in a fixed random order.
        tolerance: the absolute and the relative tolerance of the solver.
        dtype: in which the network computes where it is scored; "" for that of training.
    """

    config: Callable[[], Config]
    noises: tuple[Noise, ...]
    images: int = 500
    tolerance: float = 1e-4
    dtype: str = ""


class Row(NamedTuple):
    """A row of the table: a model, a dequantisation and a number of draws."""

    model: str
    noise: Noise
    draws: int

    @property
    def setting(self) -> str:
        return f"{self.model}, {self.noise.name}, K = {self.draws}"


def fashion_flow() -> Config:
    config = defaults("unet")
    config.data.name, config.data.dequantisation = "fashion_mnist", "none"
    config.path.name = "gaussian"
    config.train.steps, config.train.batch_size = 8_000, 256
    config.train.warmup = 500.0 * 256
    config.train.log_every = config.train.save_every = 1_000
    config.train.keep_last = 1
    return config


def fashion_glow(dequantisation: str) -> Config:
    config = defaults(method="normalizing_flow")
    config.data.name, config.data.dequantisation = "fashion_mnist", dequantisation
    config.method.flow, config.method.layers, config.method.width = "glow", 4, 128
    config.train.steps, config.train.batch_size = 6_000, 256
    config.train.warmup = 500.0 * 256
    config.train.log_every = config.train.save_every = 1_000
    config.train.keep_last = 1
    return config


def cifar10_flow() -> Config:
    keys = {"train.steps": 9_200, "train.keep_at": (), "train.save_every": 1_000, "train.keep_last": 1}
    keys["model.time_scale"] = 8.0
    return changed(load_config(config_path("cifar10_hour")), keys)


def digits_flow() -> Config:
    config = defaults("mlp")
    config.data.name, config.data.dequantisation = "digits", "none"
    config.path.name = "gaussian"
    config.model.width = 256
    config.train.steps, config.train.batch_size = 1_500, 128
    config.train.warmup = 100.0 * 128
    config.train.log_every = config.train.save_every = 500
    config.ema.half_life = 10_000.0
    return config


def digits_glow(dequantisation: str) -> Config:
    config = load_config(config_path("glow_digits"))
    config.data.cond, config.data.dequantisation = (), dequantisation
    config.method.layers, config.method.width, config.train.steps = 3, 32, 400
    return config


ALL, FEW = (1, 5, 20), (1, 5)
FULL: dict[str, Model] = {
    "fashion_mnist, flow matching": Model(
        fashion_flow, (Noise("uniform", "uniform", ALL), Noise("truncated normal", "truncated_normal", ALL))
    ),
    "fashion_mnist, Glow": Model(partial(fashion_glow, "uniform"), (Noise("uniform", "uniform", ALL),)),
    "fashion_mnist, Glow with learned noise": Model(
        partial(fashion_glow, "variational"), (Noise("learned", "variational", ALL),)
    ),
    "cifar10, flow matching": Model(cifar10_flow, (Noise("uniform", "uniform", FEW),), dtype="float32"),
}
"""The models of the full form."""

QUICK: dict[str, Model] = {
    "digits, flow matching": Model(
        digits_flow,
        (
            Noise("uniform", "uniform", FEW, "exact"),
            Noise("truncated normal", "truncated_normal", FEW, "exact"),
            Noise("uniform with estimated divergence", "uniform", FEW),
        ),
        images=100,
        tolerance=1e-3,
    ),
    "digits, Glow": Model(partial(digits_glow, "uniform"), (Noise("uniform", "uniform", FEW),), images=100),
    "digits, Glow with learned noise": Model(
        partial(digits_glow, "variational"), (Noise("learned", "variational", FEW),), images=100
    ),
}
"""The models of the quick form."""


def models_of(study: Study) -> Mapping[str, Model]:
    return QUICK if study.quick else FULL


def trained(study: Study, name: str) -> Run:
    """The trained run of a model, with a network that computes in the dtype of scoring."""
    model = models_of(study)[name]
    run = study.train(file_name(name), model.config())
    if not model.dtype:
        return run
    config = changed(run.config, {"model.dtype": model.dtype})
    return replace(run, config=config, method=build(config, run.spec))


def training(study: Study, name: str) -> dict[str, float]:
    """Trains, and returns the images of training and the last validation loss, which differs in kind between models."""
    last = read_metrics(trained(study, name).workdir / "metrics.jsonl")[-1]
    return {"millions": last["samples_seen"] / 1e6, "val_loss": last["val_loss"]}


def scores(study: Study, row: Row) -> dict[str, Any]:
    """Scores the test images. Products of matrices are in float32, and not in TF32, where a GPU computes them."""
    model, run = models_of(study)[row.model], trained(study, row.model)
    tolerances = SolverSettings(rtol=model.tolerance, atol=model.tolerance)
    with jax.default_matmul_precision("highest"):
        found = log_prob(
            run,
            dataset_of(run).test[: model.images],
            divergence=row.noise.divergence,
            solver=tolerances,
            check=CHECKED if row.draws == 1 else 0,
            dequantisation=row.noise.dequantisation,
            importance_samples=row.draws,
            keep=study.folder / "densities" / file_name(row.setting),
        )
    bits = -found.log_prob.astype(np.float64) / (run.spec.d * np.log(2))
    checked = found.convergence
    report = (
        {}
        if checked is None
        else {
            "difference": checked.difference / run.spec.d,
            "largest": checked.largest / run.spec.d,
            "converged": int(checked.converged),
        }
    )
    return {
        "bits": bits.mean(),
        "standard_error": standard_error_of_mean(bits),
        **gain(study, row, bits),
        **report,
        "images": len(bits),
        "evaluations": found.nfe,
        "bits_of_images": bits,
    }


def gain(study: Study, row: Row, bits: np.ndarray) -> dict[str, Any]:
    """The mean by which the bits of the same images are lower than with the fewest draws, and its standard error."""
    first = row._replace(draws=row.noise.draws[0])
    kept = [m.metrics["bits_of_images"] for m in study.measurements() if m.setting == first.setting]
    if row == first or not kept:
        return {}
    lower = np.asarray(kept[0]) - bits
    return {"gain": lower.mean(), "gain_error": standard_error_of_mean(lower)}


def run(study: Study) -> None:
    for name, model in models_of(study).items():
        study.measure(f"{name}, training", partial(training, study, name))
        for noise in model.noises:
            for draws in noise.draws:
                row = Row(name, noise, draws)
                study.measure(row.setting, partial(scores, study, row))


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """Bits per dimension against K, with twice the standard error: a panel for each data set."""
    models = models_of(study)
    sets = list(dict.fromkeys(name.partition(", ")[0] for name in models))
    figure = Figure(figsize=(4.2 * len(sets), 3.6), layout="constrained")
    for ax, data in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        lines = [(n, noise) for n, model in models.items() if n.startswith(data) for noise in model.noises]
        for i, (name, noise) in enumerate(lines):
            rows = [r for k in noise.draws if (r := Row(name, noise, k)).setting in results.settings]
            x = [row.draws * 1.03 ** (i - len(lines) / 2) for row in rows]  # apart, so that no bar hides another
            y = [results.mean(row.setting, "bits") for row in rows]
            error = [2 * results.mean(row.setting, "standard_error") for row in rows]
            label = f"{name.removeprefix(f'{data}, ')}, {noise.name}"
            ax.errorbar(x, y, error, color=plots.PALETTE[i], marker="osD^v"[i], ms=4, capsize=2, label=label)
        draws = sorted({k for _, noise in lines for k in noise.draws})
        ax.set(xscale="log", xlabel="draws of the noise, K", title=data)
        ax.set_xticks(draws, [str(k) for k in draws], minor=False)
        ax.set_xticks([], minor=True)
        ax.set_ylabel("bits per dimension")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=6)
    return {"bits": figure}


EXPERIMENT = Experiment(
    title="Bits per dimension of images: three dequantisations, with K draws of the noise.",
    source="",
    full=Form(
        "80 minutes on an H200, estimated from the rows that were run",
        accelerator=True,
        needs=("fashion_mnist", "cifar10"),
    ),
    quick=Form("3 minutes on 2 CPU cores"),
    run=run,
    columns={
        "bits": "bits/dim",
        "standard_error": "standard error",
        "gain": "gain over K = 1",
        "gain_error": "its standard error",
        "difference": "change, nats/dim",
        "converged": "converged",
        "images": "test images",
        "evaluations": "evaluations of a point",
        "millions": "million images",
        "val_loss": "validation loss",
    },
    draw=draw,
)
