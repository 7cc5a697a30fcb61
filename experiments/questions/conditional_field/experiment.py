"""Why regress the conditional field, and not the marginal field that is sampled?

The two losses have the same gradient in expectation. Here both are computed on the same batches of eight Gaussians,
whose marginal field is known: the mean difference of the gradients, their variances during training, what a network
learns from each, and what the marginal target costs as a function of the number of data points.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from flowjax import oracles
from flowjax.batch import Batch
from flowjax.data.densities import eight_gaussians
from flowjax.methods import conditional, marginal
from flowjax.models import MLP
from flowjax.paths import GaussianPath
from flowjax.plots import PALETTE
from flowjax.plots.style import new_figure
from flowjax.reproduce import Experiment, Form, Results, Study
from flowjax.schedules import CondOT
from flowjax.sources import Normal

PATH, DATA, SOURCE, BATCH = GaussianPath(CondOT()), eight_gaussians(), Normal((2,)), 256
EXACT = oracles.mixture(PATH, DATA)
STAGES = (0, 100, 1_000, 5_000)
"""Numbers of training steps after which the gradients are measured."""
SIZES = (100, 1_000, 10_000)
"""Numbers of data points for which the cost of the marginal target is counted."""
GRAPH = nnx.split(nnx.eval_shape(lambda: MLP((2,), width=64, zero_init=False, rngs=nnx.Rngs(0))))[0]


def initial(seed: int) -> Any:
    return nnx.to_pure_dict(nnx.split(MLP((2,), width=64, zero_init=False, rngs=nnx.Rngs(seed)))[1])


def network(params: Any, t: Any, x: Any, cond: Any) -> jax.Array:
    return nnx.merge(GRAPH, params)(t, x, cond)


LOSSES: dict[str, Callable[..., Any]] = {
    "conditional": conditional(network, PATH, SOURCE),
    "marginal": marginal(network, PATH, SOURCE, EXACT),
}


def stages(quick: bool) -> tuple[int, ...]:
    return STAGES[:3] if quick else STAGES


def train(target: str, seed: int, quick: bool) -> dict[int, Any]:
    """Trains a network with one of the losses, and returns its parameters at each stage."""
    optimiser = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 4e-3, 100, stages(quick)[-1]))

    @jax.jit
    def advance(params: Any, state: Any, first: Any, last: Any) -> Any:
        def step(i: Any, carry: Any) -> Any:
            params, state = carry
            key_data, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
            gradient = jax.grad(LOSSES[target])(params, key, Batch(DATA.sample(key_data, BATCH)))
            updates, state = optimiser.update(gradient, state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(first, last, step, (params, state))

    params = initial(seed)
    state, kept, done = optimiser.init(params), {}, 0
    for stage in stages(quick):
        params, state = advance(params, state, done, stage)
        kept[stage], done = params, stage
    return kept


@partial(jax.jit, static_argnums=1)
def gradients(params: Any, batches: int) -> dict[str, jax.Array]:
    """Sums over batches of the gradients of both losses, of their difference, and of their squares."""

    def one(total: Any, i: Any) -> Any:
        key_data, key = jax.random.split(jax.random.fold_in(jax.random.key(9), i))
        batch = Batch(DATA.sample(key_data, BATCH))
        found = {}
        for name, loss in LOSSES.items():
            value, gradient = jax.value_and_grad(loss)(params, key, batch)
            found[name], found[f"{name}_loss"] = ravel_pytree(gradient)[0], value
        found["difference"] = found["conditional"] - found["marginal"]
        found["offset"] = found["conditional_loss"] - found["marginal_loss"]
        both = {name: jnp.stack([value, value**2]) for name, value in found.items()}
        return jax.tree.map(jnp.add, total, both), None

    zero = {name: jnp.zeros((2, ravel_pytree(params)[0].size)) for name in (*LOSSES, "difference")}
    zero |= {name: jnp.zeros(2) for name in ("conditional_loss", "marginal_loss", "offset")}
    return jax.lax.scan(one, zero, jnp.arange(batches))[0]


def scores(params: Any, batches: int) -> dict[str, float]:
    """Statistics of the gradients of both losses at some parameters.

    If the two gradients have the same expectation, `excess` has expectation 1 and a standard deviation of about
    sqrt(2 / d), where d is the effective number of directions in which the difference varies.
    """
    sums = gradients(params, batches)
    mean = {name: np.asarray(value[0]) / batches for name, value in sums.items()}
    variance = {
        name: (np.asarray(value[1]) / batches - mean[name] ** 2) * batches / (batches - 1)
        for name, value in sums.items()
    }
    noise = {name: float(variance[name].sum()) for name in (*LOSSES, "difference")}
    return {
        "excess": float((mean["difference"] ** 2).sum() / (noise["difference"] / batches)),
        "gradient": float(np.sqrt((mean["marginal"] ** 2).sum())),
        "noise_conditional": float(np.sqrt(noise["conditional"])),
        "noise_marginal": float(np.sqrt(noise["marginal"])),
        "loss": float(mean["conditional_loss"]),
        "offset": float(mean["offset"]),
        "offset_error": float(np.sqrt(variance["offset"] / batches)),
    }


def learned(target: str, seed: int, quick: bool) -> dict[str, Any]:
    """The squared error of the velocity after each stage of training with one of the losses."""
    errors = [velocity_error(params) for params in train(target, seed, quick).values()]
    return {"velocity_error": errors[-1], "curve": errors}


@jax.jit
def _velocity_error(params: Any) -> jax.Array:
    t = jnp.linspace(0.0, 1.0, 20_000)
    x = EXACT.sample(jax.random.key(5), t, len(t), (2,))
    return ((network(params, t, x, None) - EXACT.velocity(t, x)) ** 2).mean()


def velocity_error(params: Any) -> float:
    return float(_velocity_error(params))


def cost(points: int) -> dict[str, float]:
    """Floating-point operations of a training step on a data set of that many points, per row of the batch."""
    data = jax.random.normal(jax.random.key(0), (points, 2))
    # an argument, so that the points are not constants of the program, from which XLA would compute in advance
    step = lambda name: (
        lambda data, params, key: jax.grad(
            LOSSES["conditional"]
            if name == "conditional"
            else marginal(network, PATH, SOURCE, oracles.dataset(PATH, data))
        )(params, key, Batch(data[:BATCH] if points >= BATCH else jnp.resize(data, (BATCH, 2))))
    )
    found = {}
    for name in LOSSES:
        compiled = jax.jit(step(name)).lower(data, initial(0), jax.random.key(0)).compile()
        analysis: Any = compiled.cost_analysis()
        found[f"flops_{name}"] = float(analysis["flops"]) / BATCH
    return found


def run(study: Study) -> None:
    batches = 500 if study.quick else 4_000
    kept = train("conditional", 0, study.quick)
    for stage, params in kept.items():
        study.measure(f"gradients after {stage:,} steps", partial(scores, params, batches))
    for seed in study.seeds:
        for target in LOSSES:
            study.measure(f"trained on the {target} field", partial(learned, target, seed, study.quick), seed)
    for points in SIZES:
        study.measure(f"a step with {points:,} data points", partial(cost, points))


def draw(study: Study, results: Results) -> Mapping[str, Figure]:
    figure, axes = new_figure(1, 3, 3.3, 3.3)
    steps = stages(study.quick)
    settings = [f"gradients after {stage:,} steps" for stage in steps]
    of = lambda metric: [results.mean(setting, metric) for setting in settings]
    for name, colour in zip(LOSSES, PALETTE, strict=False):
        axes[0, 0].plot(range(len(steps)), of(f"noise_{name}"), c=colour, marker="o", ms=4, label=f"noise, {name}")
    axes[0, 0].plot(range(len(steps)), of("gradient"), c="0.3", ls="--", marker="s", ms=4, label="mean, both")
    axes[0, 0].set(yscale="log", xlabel="training steps", ylabel="norm of the gradient", title="gradients")
    for name, colour in zip(LOSSES, PALETTE, strict=False):
        curve = results.series(f"trained on the {name} field", "curve")
        axes[0, 1].plot(range(len(steps)), curve, c=colour, marker="o", ms=4, label=f"{name} target")
    axes[0, 1].set(yscale="log", xlabel="training steps", ylabel="squared error of the velocity", title="networks")
    for ax in axes[0, :2]:
        ax.set_xticks(range(len(steps)), [f"{stage:,}" for stage in steps])
    for name, colour in zip(LOSSES, PALETTE, strict=False):
        flops = [results.mean(f"a step with {points:,} data points", f"flops_{name}") for points in SIZES]
        axes[0, 2].plot(SIZES, flops, c=colour, marker="o", ms=4, label=f"{name} target")
    axes[0, 2].set(xscale="log", yscale="log", xlabel="data points", ylabel="FLOPs per row", title="cost of a step")
    for ax, limits in zip(axes[0], ((0.1, 10), (5e-4, 20), (1e4, 1e6)), strict=True):
        ax.set_ylim(*limits)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return {"conditional_field": figure}


EXPERIMENT = Experiment(
    title="Why regress the conditional field, and not the marginal field that is sampled?",
    source="",
    full=Form("3 minutes on 2 CPU cores", seeds=3),
    quick=Form("30 seconds on 2 CPU cores"),
    run=run,
    columns={
        "excess": "squared mean difference / expected",
        "gradient": "norm of the mean gradient",
        "noise_conditional": "noise, conditional",
        "noise_marginal": "noise, marginal",
        "offset": "difference of the losses",
        "offset_error": "its standard error",
        "velocity_error": "error of the velocity",
        "flops_conditional": "FLOPs, conditional",
        "flops_marginal": "FLOPs, marginal",
    },
    draw=draw,
)
