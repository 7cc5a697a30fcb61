"""How much does a seed change FID?

The same config is trained with several seeds, and each network is sampled with several seeds. The variance between the
values is split into that of trainings and that of samplings, by the mean squares of a one-way analysis of variance. The
full form computes the FID of Fashion-MNIST; the quick form the Frechet distance of the pixels of scikit-learn's digits.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from flowjax.config import Config
from flowjax.config_files import config_path, load_config
from flowjax.inference import Run, evaluate_images
from flowjax.inference.choose import SolverSettings
from flowjax.inference.data_of_run import open_data
from flowjax.metrics import Moments
from flowjax.metrics.frechet import between
from flowjax.plots import PALETTE
from flowjax.plots.style import new_figure
from flowjax.reproduce import Experiment, Form, Results, Study

TRAININGS, SAMPLINGS = 3, 3
SOLVER = SolverSettings("heun", steps=20)


def config(study: Study, seed: int) -> Config:
    made = load_config(config_path("digits" if study.quick else "fashion_mnist"))
    made.seed = seed
    if study.quick:
        made.model.width, made.train.steps, made.train.batch_size = 256, 1_500, 128
        made.train.warmup = 100.0 * 128
        made.ema.half_life = 100.0 * 128
    made.train.log_every = made.train.save_every = made.train.steps
    return made


def trained(study: Study, training: int) -> Run:
    return study.train(f"training{training}", config(study, training))


def score(study: Study, training: int, sampling: int) -> dict[str, float]:
    """The distance of one set of samples; all sets have different noise."""
    run, seed = trained(study, training), 1_000 + training * SAMPLINGS + sampling
    if study.quick:
        x = run.sample(5_000, seed=seed, solver=SOLVER)
        return {"distance": between(pixels(x), pixels(np.asarray(open_data(run.config, ()).arrays().x1)))}
    found = evaluate_images(run, open_data(run.config, ()), ("fid",), num=10_000, seed=seed, solver=SOLVER)
    return {"distance": float(found["fid"])}


def pixels(images: np.ndarray) -> Moments:
    return Moments.of(images.reshape(len(images), -1))


def setting(training: int) -> str:
    return f"training {training}"


def components(values: np.ndarray) -> dict[str, float]:
    """Standard deviations of trainings and of samplings, from values (trainings, samplings).

    The mean square within trainings estimates the variance of samplings, and that between trainings this variance plus
    the number of samplings times the variance of trainings. An estimate below 0 is reported as 0.
    """
    count = values.shape[1]
    within = float(values.var(1, ddof=1).mean())
    between_trainings = float(values.mean(1).var(ddof=1) - within / count)
    return {
        "distance": float(values.mean()),
        "sampling_std": within**0.5,
        "training_std": max(between_trainings, 0.0) ** 0.5,
        "range": float(np.ptp(values)),
    }


def run(study: Study) -> None:
    values = np.zeros((TRAININGS, SAMPLINGS))
    for training in range(TRAININGS):
        for sampling in range(SAMPLINGS):
            made = study.measure(setting(training), partial(score, study, training, sampling), sampling)
            values[training, sampling] = made.metrics["distance"]
    study.measure("components", partial(components, values))


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 1, 4.6, 3.4)
    ax = axes[0, 0]
    for training, colour in zip(range(TRAININGS), PALETTE, strict=False):
        values = results.values(setting(training), "distance")
        ax.scatter([training] * len(values), values, c=colour, s=40)
        ax.plot([training - 0.2, training + 0.2], [np.mean(values)] * 2, c=colour, lw=2)
    ax.set_xticks(range(TRAININGS), [setting(i) for i in range(TRAININGS)])
    ax.set_ylabel("Frechet distance of pixels" if study.quick else "FID, 10,000 samples")
    ax.set_title("points: seeds of sampling; lines: their means")
    ax.grid(alpha=0.3, axis="y")
    return {"seed_noise": figure}


EXPERIMENT = Experiment(
    title="How much does a seed change FID?",
    source="",
    full=Form("10 minutes on one H200", seeds=SAMPLINGS, accelerator=True, needs=("fashion_mnist", "inception")),
    quick=Form("1 minute on 2 CPU cores", seeds=SAMPLINGS),
    run=run,
    columns={
        "distance": "distance",
        "sampling_std": "standard deviation, samplings",
        "training_std": "standard deviation, trainings",
        "range": "largest difference",
    },
    draw=draw,
)
