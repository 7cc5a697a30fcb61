"""The main job, `configs/gaussians8.py`, with several seeds: is the learned flow right?"""

from functools import partial

import jax
import numpy as np
from matplotlib.figure import Figure

from flowjax.data.densities import DENSITIES
from flowjax.inference import evaluate
from flowjax.inference.data_of_run import dataset_of
from flowjax.plots import samples_against_data
from flowjax.reproduce import Experiment, Form, Results, Study


def train(study: Study, seed: int):
    """The run of one seed; the quick form has 2,000 of the 7,000 steps."""
    return study.train(f"seed{seed}", "gaussians8", {"seed": seed} | ({"train.steps": 2_000} if study.quick else {}))


def scores(study: Study, seed: int) -> dict[str, float]:
    """All metrics of `flowjax evaluate`, which draws 50,000 samples."""
    run = train(study, seed)
    return evaluate(run, dataset_of(run))


def run(study: Study) -> None:
    for seed in study.seeds:
        study.measure("gaussians8", partial(scores, study, seed), seed)


def draw(study: Study, results: Results) -> dict[str, Figure]:
    arrays = study.arrays("samples", lambda: {"samples": train(study, 0).sample(5_000)})
    data = np.asarray(DENSITIES["gaussians8"]().sample(jax.random.key(71), 5_000))
    return {"samples": samples_against_data(arrays["samples"], data)}


EXPERIMENT = Experiment(
    title="8 Gaussians: KL divergence, distances and shares of the modes of a trained flow.",
    source="",
    full=Form("4 minutes on 2 CPU cores", seeds=3),
    quick=Form("40 seconds on 2 CPU cores"),
    run=run,
    columns={
        "kl": "KL, nats",
        "w2_squared": "W2²",
        "w2_squared_true": "W2² of true samples",
        "mode_share_min": "smallest share of a mode",
        "mode_share_max": "largest",
        "mmd": "MMD²",
        "npe": "normalised path energy",
    },
    draw=draw,
)
