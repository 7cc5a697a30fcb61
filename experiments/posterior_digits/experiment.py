"""Inpainting and deblurring of 8 x 8 digits by posterior sampling with an unconditional network.

Measures test images (their upper half, or a 3 x 3 binomial blur, with noise), and draws samples of the posterior with
`flowjax.guidance.Posterior`, by a deterministic and a stochastic sampler. All numbers are in model space, pixels in
[-1, 1]. A control repeats the inpainting for normal data with the exact denoiser, where the method is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from flowjax import solvers
from flowjax.data.digits import open_digits
from flowjax.guidance import Posterior, linear_measurement
from flowjax.inference import Run
from flowjax.oracles import gaussian
from flowjax.reproduce import Experiment, Form, Results, Study

NOISE_STD, DATA_STD = 0.05, 0.54
SAMPLERS = {"heun": 50, "euler_maruyama": 200}
TUNING = [(0.35, 1), (DATA_STD, 1), (1.0, 1), (DATA_STD, 2), (DATA_STD, 3)]
"""Of `Posterior`: (data_std, scale)."""


def upper_half(x: Any) -> Any:
    return x[:, :4]


def blur(x: Any) -> Any:
    """(1 2 1) / 4 along both axes, the edge repeated."""
    for axis in (1, 2):
        x = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        left, middle, right = (jax.lax.slice_in_dim(x, i, i + 8, axis=axis) for i in range(3))
        x = (left + 2 * middle + right) / 4
    return x


OPERATORS: dict[str, Callable[[Any], Any]] = {"inpainting": upper_half, "deblurring": blur}


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@dataclass(frozen=True)
class Task:
    """Images, and noisy measurements of them.

    Attributes:
        operator: from images (N, 8, 8, 1) to measurements.
        truth: (N, 8, 8, 1).
        y: measurements.
        each: the number of samples for each measurement.
    """

    operator: Callable[[Any], Any]
    truth: np.ndarray
    y: np.ndarray
    each: int

    def draw(self, model: Any, prior: Any, sampler: str, steps: int, data_std: float, scale: float) -> np.ndarray:
        """Samples of the posterior, (each, N, 8, 8, 1)."""
        rows = jnp.tile(self.y, (self.each, 1, 1, 1))
        guided = Posterior(model, linear_measurement(self.operator, rows, NOISE_STD), data_std, scale)
        x0 = prior.sample(jax.random.key(4), len(rows))
        x, _ = solvers.sample(guided, x0, solver=sampler, steps=steps, key=jax.random.key(5))
        return np.asarray(x).reshape(self.each, *self.truth.shape)

    def scores(self, model: Any, prior: Any, sampler: str, steps: int, data_std: float, scale: float) -> dict[str, Any]:
        """How well samples fit the measurement, how far their mean is from the truth, how much they differ."""
        samples = self.draw(model, prior, sampler, steps, data_std, scale)
        residual = np.stack([np.asarray(self.operator(s)) for s in samples]) - self.y
        miss, spread = samples.mean(0) - self.truth, samples.std(0, ddof=1)
        return {
            "residual": rms(residual) / NOISE_STD,
            "error": rms(miss),
            "error_upper": rms(miss[:, :4]),
            "error_lower": rms(miss[:, 4:]),
            "spread_upper": rms(spread[:, :4]),
            "spread_lower": rms(spread[:, 4:]),
            "ratio": rms(miss) / (rms(spread) * (1 + 1 / self.each) ** 0.5),
        }

    def errors(self, guess: np.ndarray) -> dict[str, float]:
        """The errors of one guess of each image."""
        miss = guess - self.truth
        return {"error": rms(miss), "error_upper": rms(miss[:, :4]), "error_lower": rms(miss[:, 4:])}


def measured(operator: Callable[[Any], Any], truth: np.ndarray, key: Any, each: int) -> Task:
    clean = np.asarray(operator(truth))
    return Task(operator, truth, clean + NOISE_STD * np.asarray(jax.random.normal(key, clean.shape)), each)


def digits_task(run: Run, name: str, images: np.ndarray, each: int) -> Task:
    key_truth, key_noise, _ = jax.random.split(jax.random.key(3), 3)
    return measured(OPERATORS[name], np.asarray(run.spec.prepare(key_truth, jnp.asarray(images))), key_noise, each)


def control_task(images: int, each: int) -> Task:
    """Independent normal pixels: here the guided sampler with the exact denoiser draws from the true posterior."""
    key_truth, key_noise = jax.random.split(jax.random.key(6))
    truth = DATA_STD * np.asarray(jax.random.normal(key_truth, (images, 8, 8, 1)))
    return measured(upper_half, truth, key_noise, each)


def plain_guess(task: Task, mean: np.ndarray) -> dict[str, float]:
    """The measurement, and where nothing is measured the mean of the data."""
    filled = np.tile(mean.reshape(8, 8, 1), (len(task.y), 1, 1, 1))
    filled[:, : task.y.shape[1]] = task.y
    return task.errors(filled)


def normal_prior(task: Task, mean: np.ndarray, cov: np.ndarray) -> dict[str, float]:
    """The posterior mean of a normal prior."""
    a = np.asarray(task.operator(jnp.eye(64).reshape(64, 8, 8, 1))).reshape(64, -1).T
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + NOISE_STD**2 * np.eye(len(a)))
    wiener = mean + (task.y.reshape(len(task.y), -1) - mean @ a.T) @ gain.T
    return task.errors(wiener.reshape(task.truth.shape))


def train(study: Study) -> Run:
    """The unconditional network of the digits; that of the quick form is smaller."""
    small = {"model.width": 128, "train.steps": 1_500, "train.lr": 3e-3} if study.quick else {}
    return study.train("digits", "digits", {"data.cond": ()} | small)


def run(study: Study) -> None:
    trained, data = train(study), open_digits()
    _, _, key_train = jax.random.split(jax.random.key(3), 3)
    rows = np.asarray(trained.spec.prepare(key_train, jnp.asarray(data.arrays().x1))).reshape(-1, 64)
    mean, cov = rows.astype(np.float64).mean(0), np.cov(rows.T, dtype=np.float64)
    images, each = (8, 8) if study.quick else (24, 16)
    samplers = {"heun": 25, "euler_maruyama": 50} if study.quick else SAMPLERS
    model, prior = trained.model(), trained.prior
    for name in OPERATORS:
        task = digits_task(trained, name, data.test[:images], each)
        study.measure(f"{name}: y, else the data mean", partial(plain_guess, task, mean))
        study.measure(f"{name}: posterior mean of a normal prior", partial(normal_prior, task, mean, cov))
        for sampler, steps in samplers.items():
            for scale in (1, 2):
                scores = partial(task.scores, model, prior, sampler, steps, DATA_STD, scale)
                study.measure(f"{name}: {sampler} {steps}, scale {scale}", scores)
        tuning = digits_task(trained, name, data.test[-images:], 8)
        for data_std, scale in [] if study.quick else TUNING:
            scores = partial(tuning.scores, model, prior, "heun", 25, data_std, scale)
            study.measure(f"tuning of {name}: heun 25, data_std {data_std:g}, scale {scale}", scores)
    assert trained.path is not None
    exact, task = gaussian(trained.path, jnp.zeros((8, 8, 1)), DATA_STD), control_task(images, each)
    for sampler, steps in samplers.items():
        study.measure(f"control: {sampler} {steps}", partial(task.scores, exact, prior, sampler, steps, DATA_STD, 1))


def shown(study: Study, name: str) -> dict[str, np.ndarray]:
    """Images, measurements and samples by the stochastic sampler."""
    trained = train(study)
    task = digits_task(trained, name, open_digits().test[:6], 16)
    steps = 50 if study.quick else 200
    samples = task.draw(trained.model(), trained.prior, "euler_maruyama", steps, DATA_STD, 1)
    return {"truth": task.truth, "y": task.y, "samples": samples}


def draw(study: Study, results: Results) -> dict[str, Figure]:
    """For each task: truth, measurement, four samples, posterior mean."""
    names, columns = ["truth", "measurement", *[f"sample {i}" for i in range(1, 5)], "mean"], 6
    figure = Figure(figsize=(9.2, 5.4))
    axes = figure.subplots(len(names), 2 * columns + 1)
    for j, name in enumerate(OPERATORS):
        arrays = study.arrays(name, partial(shown, study, name))
        measurement = np.full(arrays["truth"].shape, np.nan)
        measurement[:, : arrays["y"].shape[1]] = arrays["y"]
        rows = [arrays["truth"], measurement, *arrays["samples"][:4], arrays["samples"].mean(0)]
        for line, row in zip(axes[:, j * (columns + 1) :], rows, strict=True):
            for ax, image in zip(line, row, strict=False):
                ax.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1)
        axes[0, j * (columns + 1) + columns // 2].set_title(name, fontsize=10)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], facecolor="#cfe3f5")
    for line, name in zip(axes, names, strict=True):
        line[columns].axis("off")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(left=0.115, right=0.995, bottom=0.01, top=0.95, wspace=0.06, hspace=0.06)
    return {"posterior_digits": figure}


EXPERIMENT = Experiment(
    title="Does posterior sampling with an unconditional network restore digits that are cut or blurred?",
    source="",
    full=Form("4 minutes on 2 CPU cores"),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "residual": "residual",
        "error": "error",
        "error_upper": "upper half",
        "error_lower": "lower half",
        "spread_upper": "spread, upper",
        "spread_lower": "lower",
        "ratio": "ratio",
    },
    draw=draw,
)
