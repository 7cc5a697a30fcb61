"""The compiled loop: a step is a pure function of (state, batch); many run in one program.

The trip count is an argument of the program, not a constant in it, so every stretch of training, however long, is the same
compiled code: a run that is cut anywhere and resumed takes bitwise the same steps as one that never stopped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from flowjax.models.embeddings import NO_LABEL
from flowjax.objectives import Batch, Loss
from flowjax.training import ema
from flowjax.training.sharding import replicated, shard_batch
from flowjax.training.state import TrainState
from flowjax.typing import PRNGKey, PyTree

GetBatch = Callable[[PyTree, PRNGKey, Int[Array, ""]], Batch]
"""(arrays, key, position in this stretch) -> the batch in model space."""


class Metrics(NamedTuple):
    """Of one stretch of steps.

    Attributes:
        loss: mean over the stretch.
        grad_norm: global norm of the gradient before clipping, at the last step.
        bad_step: the first step whose loss or gradient was not finite; 0 if none. Training stops there.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    bad_step: Int[Array, ""]


def drop_labels(key: PRNGKey, labels: Int[Array, " B"], rate: float) -> Int[Array, " B"]:
    """Each label is replaced by `NO_LABEL` with this probability, independently of the others."""
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), NO_LABEL, labels)


def make_step(
    loss: Loss, tx: optax.GradientTransformation, batch_size: int, half_life: float
) -> Callable[[TrainState, PRNGKey, Batch], tuple[TrainState, Float[Array, ""], Float[Array, ""]]]:
    """One optimizer step: `step(state, key, batch) -> (state, loss, gradient norm)`."""

    def step(state: TrainState, key: PRNGKey, batch: Batch) -> tuple[TrainState, Array, Array]:
        value, grads = jax.value_and_grad(loss)(state.params, key, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        average = ema.update(state.ema, params, ema.decay(half_life, batch_size, done))
        return TrainState(done, params, opt_state, average, state.key), value, optax.global_norm(grads)

    return step


def make_run(
    step: Callable[[TrainState, PRNGKey, Batch], tuple[TrainState, Array, Array]], get_batch: GetBatch, mesh: Mesh
) -> Callable[[TrainState, Any, int], tuple[TrainState, Metrics]]:
    """`run(state, arrays, n)`: n steps in one compiled loop over the mesh; the old state's memory is reused.

    A step whose loss or gradient is not finite is not taken, and the loop ends there, so the state returned is always sound.
    """

    def run(state: TrainState, arrays: PyTree, n: Int[Array, ""]) -> tuple[TrainState, Metrics]:
        start = state.step

        def running(carry: tuple[TrainState, Metrics]) -> Array:
            state, metrics = carry
            return (state.step - start < n) & (metrics.bad_step == 0)

        def body(carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            key_batch, key_step = jax.random.split(jax.random.fold_in(state.key, state.step))
            batch = shard_batch(get_batch(arrays, key_batch, state.step - start), mesh)
            new, value, norm = step(state, key_step, batch)
            sound = jnp.isfinite(value) & jnp.isfinite(norm)
            kept = jax.tree.map(lambda a, b: jnp.where(sound, a, b) if a.dtype != state.key.dtype else b, new, state)
            bad = jnp.where(sound, 0, state.step + 1)
            return kept, Metrics(metrics.loss + jnp.where(sound, value, 0.0), norm, bad)

        zero = Metrics(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), state.step.dtype))
        state, metrics = lax.while_loop(running, body, (state, zero))
        return state, metrics._replace(loss=metrics.loss / jnp.maximum(state.step - start, 1))

    everywhere = replicated(mesh)
    return jax.jit(run, donate_argnums=0, out_shardings=everywhere)
