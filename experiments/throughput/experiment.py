"""What a training step and an evaluation during sampling of torchcfm's CIFAR-10 network take on one accelerator.

Images are random. The training step is that of `flowjax train`: the data are drawn, flipped and dequantised in it, and
the optimizer and the moving average are part of it. Sampling is Heun on EDM's grid, without the way to the host.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from flowjax import solvers
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import Config, defaults
from flowjax.data import Dataset, DataSpec
from flowjax.data.affine import image_scale
from flowjax.data.dataset import sample_rows
from flowjax.reproduce import Experiment, Form, Study
from flowjax.training.trainer import Trainer


def config(quick: bool) -> Config:
    """torchcfm's network without dropout, with Adam and flips; the quick form has a small one."""
    made = defaults("unet" if quick else "adm")
    made.data.augment, made.train.clip, made.ema.half_life = "flip", 1.0, 500_000.0
    made.train.batch_size = 32 if quick else 512
    if quick:
        made.model.channels, made.model.multipliers, made.model.blocks, made.model.patch = 16, (1, 2), 1, 2
    else:
        made.model.dropout = 0.0
    return made


def images() -> Dataset:
    x = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), np.uint8)
    spec = DataSpec("random", x.shape[1:], image_scale(256), levels=256)
    return Dataset(spec, x[:8].astype(np.float32), arrays=lambda: Batch(x), sample=sample_rows)


def timed(call: Callable[[], Any], rounds: int = 3) -> list[float]:
    """The seconds of each call, after one to compile and one to warm up."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def training(study: Study) -> dict[str, float]:
    """The median of three stretches of steps."""
    made, dataset, steps = config(study.quick), images(), 5 if study.quick else 30
    trainer = Trainer(made, build(made, dataset.spec), dataset)
    trainer.compile_ahead(fresh=True)
    state, arrays = trainer.init(), trainer.arrays()

    def stretch() -> Any:
        nonlocal state
        state, found = trainer.run(state, arrays, steps)
        return found

    seconds = timed(stretch)
    median = statistics.median(seconds)
    return {
        "parameters": trainer.parameters(),
        "gflops": (trainer.flops_per_step or float("nan")) / 1e9,
        "milliseconds": 1e3 * median / steps,
        "images_per_second": made.train.batch_size * steps / median,
        "slowest_over_fastest": max(seconds) / min(seconds),
    }


def sampling(study: Study) -> dict[str, float]:
    """The median of three batches of samples."""
    made, steps, batch = config(study.quick), *((5, 32) if study.quick else (18, 1_000))
    method = build(made, images().spec)
    params = jax.tree.map(lambda a: a + 0.01, method.init(jax.random.key(0)).params)

    @jax.jit
    def draw(params: Any) -> Any:
        x0 = method.prior.sample(jax.random.key(1), batch)
        x, stats = solvers.sample(method.model(params, {}), x0, solver="edm", steps=steps)
        return x, stats.nfe

    nfe = int(np.max(draw(params)[1]))
    median = statistics.median(timed(partial(draw, params)))
    return {"nfe": nfe, "evaluations_per_second": batch * nfe / median}


def run(study: Study) -> None:
    study.measure("training", partial(training, study))
    study.measure("sampling", partial(sampling, study))


EXPERIMENT = Experiment(
    title="How fast does torchcfm's CIFAR-10 U-Net (35.7M parameters) train and sample on one accelerator?",
    source="",
    full=Form("5 minutes on one H200", accelerator=True),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "parameters": "parameters",
        "gflops": "GFLOPs a step",
        "milliseconds": "ms a step",
        "images_per_second": "images/s",
        "nfe": "evaluations a sample",
        "evaluations_per_second": "evaluations/s",
    },
)
