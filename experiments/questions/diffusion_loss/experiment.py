"""How different is the loss of diffusion models from that of flow matching?

Both are weighted mean squared errors of the noise, with different weights over log-SNR. The weights, the equality of
the losses with matched weights, and networks trained with each loss are compared on eight Gaussians.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from flowjax import oracles, predictions
from flowjax.batch import Batch
from flowjax.data.densities import EIGHT_MODES, EIGHT_STD, eight_gaussians
from flowjax.inference import Run
from flowjax.methods import conditional, weights
from flowjax.methods.times import UNIFORM, Drawn
from flowjax.models import MLP
from flowjax.paths import AffinePath, GaussianPath
from flowjax.plots import PALETTE
from flowjax.plots.style import new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.reschedule import Rescheduled
from flowjax.schedules import VP, CondOT, Cosine
from flowjax.schedules.base import log_snr_slope
from flowjax.sources import GaussianMixture, Normal

LINEAR, DDPM = GaussianPath(CondOT()), GaussianPath(VP())
DATA = eight_gaussians()
EXACT = oracles.mixture(LINEAR, DATA)
INSIDE = (0.02, 0.98)
"""The times of the linear path at which losses are compared."""

NETWORKS = {
    "velocity network, velocity loss (flow matching)": ("velocity", "native", "condot"),
    "velocity network, noise loss": ("velocity", "noise", "condot"),
    "noise network, velocity loss": ("noise", "velocity", "condot"),
    "noise network, noise loss (diffusion)": ("noise", "native", "condot"),
    "noise network, noise loss, VP path (DDPM)": ("noise", "native", "vp"),
}


def weights_of_losses() -> dict[str, float]:
    """The largest relative difference of the weight of flow matching over log-SNR from e^(-log SNR / 2) / 2."""
    t = jnp.linspace(*INSIDE, 1001)
    level = LINEAR.schedule.log_snr(t)
    weight = over_levels(LINEAR, weights.uniform(predictions.velocity), t)
    return {"difference": float(jnp.abs(weight / (0.5 * jnp.exp(-level / 2)) - 1).max())}


def over_levels(path: AffinePath, weighting: weights.Weighting, t: jax.Array) -> jax.Array:
    """The weight of the squared error of the noise, per unit of log-SNR, of a loss whose times are uniform."""
    return weighting(path, predictions.noise, t) / log_snr_slope(path.schedule, t)


@dataclass(frozen=True)
class Inside:
    """Uniform times in `INSIDE`, whatever the interval of the prediction."""

    def __call__(self, key: Any, n: int, path: Any, interval: Any, profile: Any = None) -> Drawn:
        return UNIFORM(key, n, path, INSIDE)


def one_loss() -> dict[str, float]:
    """A network of the noise, and the same network read as a velocity: their losses and gradients on one batch."""
    graph, state = nnx.split(MLP((2,), width=64, zero_init=False, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    noise = lambda params, t, x, cond: nnx.merge(graph, params)(t, x, cond)

    def velocity(params: Any, t: Any, x: Any, cond: Any) -> jax.Array:
        ends = predictions.noise.to_ends(LINEAR, t, x, noise(params, t, x, cond))
        return predictions.velocity.from_ends(LINEAR, t, x, ends)

    batch, key = Batch(DATA.sample(jax.random.key(1), 4096)), jax.random.key(2)
    common: Any = {"times": Inside()}
    as_noise = conditional(
        noise,
        LINEAR,
        Normal((2,)),
        prediction=predictions.noise,
        weighting=weights.uniform(predictions.velocity),
        **common,
    )
    as_velocity = conditional(velocity, LINEAR, Normal((2,)), **common)
    (loss, gradient), (loss_v, gradient_v) = (
        jax.jit(jax.value_and_grad(f))(params, key, batch) for f in (as_noise, as_velocity)
    )
    a, b = ravel_pytree(gradient)[0], ravel_pytree(gradient_v)[0]
    return {
        "difference": float(abs(loss / loss_v - 1)),
        "gradient": float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)),
    }


def one_expectation(rows: int) -> dict[str, float]:
    """The loss of flow matching on the linear path, and that of the noise with matched weight on the VP path."""
    wrong = oracles.mixture(LINEAR, GaussianMixture(0.9 * jnp.asarray(EIGHT_MODES, jnp.float32), 1.2 * EIGHT_STD))
    levels = [LINEAR.schedule.log_snr(t) for t in INSIDE]
    low, high = (float(DDPM.schedule.time_of_log_snr(level)) for level in levels)
    t = jax.random.uniform(jax.random.key(0), (rows,), minval=INSIDE[0], maxval=INSIDE[1])
    flow = squared_errors(wrong, t, jax.random.key(1)) * weights.uniform(predictions.velocity)(
        LINEAR, predictions.noise, t
    )
    t = jax.random.uniform(jax.random.key(2), (rows,), minval=low, maxval=high)
    matched = 0.5 * jnp.exp(-DDPM.schedule.log_snr(t) / 2) * log_snr_slope(DDPM.schedule, t)
    scale = (high - low) / (INSIDE[1] - INSIDE[0])
    diffusion = scale * matched * squared_errors(Rescheduled(wrong, DDPM), t, jax.random.key(3))
    error = float(jnp.sqrt((flow.var() + diffusion.var()) / rows))
    return {
        "loss": float(flow.mean()),
        "matched": float(diffusion.mean()),
        "standard_errors": float(flow.mean() - diffusion.mean()) / error,
    }


@partial(jax.jit, static_argnums=0)
def squared_errors(model: Any, t: jax.Array, key: jax.Array) -> jax.Array:
    """The squared errors of the predicted noise at these times, (B,)."""
    keys = jax.random.split(key, 3)
    x0, x1 = jax.random.normal(keys[0], (len(t), 2)), DATA.sample(keys[1], len(t))
    p = model.path.sample(keys[2], t, x0, x1)
    return ((x0 - model.ends(t, p.x_t).x0) ** 2).mean(-1)


def trained(study: Study, setting: str, seed: int) -> Run:
    prediction, weight, schedule = NETWORKS[setting]
    steps = 2_000 if study.quick else 7_000
    changes = {
        "seed": seed,
        "prediction": prediction,
        "method.weight": weight,
        "path.name": "gaussian",
        "path.schedule": schedule,
        "train.steps": steps,
        "train.batch_size": 512,
        "train.warmup": 250.0 * 512,
        "train.log_every": steps,
        "train.save_every": steps,
    }
    return study.train(f"{list(NETWORKS).index(setting)}_{seed}", "gaussians8", changes)


def scores(study: Study, setting: str, seed: int) -> dict[str, float]:
    """KL to the truth, and the squared errors of the network's velocity and noise from the exact ones."""
    run = trained(study, setting, seed)
    held_out = np.asarray(DATA.sample(jax.random.key(71), 2_000 if study.quick else 10_000))
    gap = np.asarray(DATA.log_prob(jnp.asarray(held_out))) - run.log_prob(held_out)
    _, noise_error, velocity_error = errors(run)
    return {
        "kl": float(gap.mean()),
        "velocity_error": float(velocity_error.mean()),
        "noise_error": float(noise_error.mean()),
    }


def errors(run: Run, rows: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, and the squared errors of the noise and of the velocity there, on the linear path."""
    t = jnp.linspace(*INSIDE, rows)
    x = EXACT.sample(jax.random.key(5), t, rows, (2,))
    model = run.model() if run.path == LINEAR else Rescheduled(run.model(), LINEAR)
    noise = ((model.ends(t, x).x0 - EXACT.ends(t, x).x0) ** 2).mean(-1)
    velocity = ((model.velocity(t, x) - EXACT.velocity(t, x)) ** 2).mean(-1)
    return np.asarray(t), np.asarray(noise), np.asarray(velocity)


def run(study: Study) -> None:
    study.measure("weights over log-SNR", weights_of_losses)
    study.measure("one network, matched weight", one_loss)
    study.measure("two paths, matched weight", partial(one_expectation, 100_000 if study.quick else 1_000_000))
    for seed in study.seeds:
        for setting in NETWORKS:
            study.measure(setting, partial(scores, study, setting, seed), seed)


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 2, 4.4, 3.9)
    draw_weights(axes[0, 0])
    ax = axes[0, 1]
    for setting, colour in zip(NETWORKS, PALETTE, strict=False):
        t, noise, _ = study.arrays(
            f"errors{list(NETWORKS).index(setting)}",
            lambda setting=setting: dict(zip("tnv", errors(trained(study, setting, 0)), strict=True)),
        ).values()
        level = np.asarray(LINEAR.schedule.log_snr(t)).reshape(20, -1).mean(1)
        ax.plot(level, noise.reshape(20, -1).mean(1), c=colour, lw=1.4, marker="o", ms=3, label=setting)
    ax.set(yscale="log", xlabel="log-SNR", ylabel="squared error of the noise", title="trained networks")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=6.5)
    return {"diffusion_loss": figure}


def draw_weights(ax: Any) -> None:
    losses = {
        "flow matching: velocity, linear path": (LINEAR, weights.uniform(predictions.velocity), "-"),
        "noise, linear path": (LINEAR, weights.uniform(predictions.noise), "-"),
        "noise, cosine path": (replace(LINEAR, schedule=Cosine()), weights.uniform(predictions.noise), "--"),
        "noise, VP path (DDPM)": (DDPM, weights.uniform(predictions.noise), "-"),
    }
    level = jnp.linspace(-9, 9, 300)
    for (name, (path, weighting, dash)), colour in zip(losses.items(), PALETTE, strict=False):
        t = path.schedule.time_of_log_snr(level)
        ax.plot(level, over_levels(path, weighting, t), c=colour, ls=dash, lw=1.6, label=name)
    ax.set(yscale="log", ylim=(1e-3, 1e2), xlabel="log-SNR", ylabel="weight of the squared error of the noise")
    ax.set_title("losses, times uniform")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


EXPERIMENT = Experiment(
    title="How different is the loss of diffusion models from that of flow matching?",
    source="",
    full=Form("4 minutes on 2 CPU cores", seeds=3),
    quick=Form("1 minute on 2 CPU cores"),
    run=run,
    columns={
        "difference": "relative difference",
        "gradient": "of the gradient",
        "loss": "velocity loss, linear path",
        "matched": "matched noise loss, VP path",
        "standard_errors": "difference, standard errors",
        "kl": "KL, nats",
        "velocity_error": "error of the velocity",
        "noise_error": "error of the noise",
    },
    draw=draw,
)
