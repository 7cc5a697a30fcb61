"""The compiled loop: a step is a pure function of (state, batch); many run in one program.

The trip count is an argument of the program, not a constant in it, so every stretch of training, however long, is the
same compiled code: a run that is cut anywhere and resumed takes bitwise the same steps as one that never stopped.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from flowjax.batch import Batch
from flowjax.conditions import NO_LABEL
from flowjax.couplings import LARGEST_VIOLATION
from flowjax.methods import Diagnosed, DiagnosedLoss
from flowjax.training.averages import ema_decay, gamma_of, update_ema, update_power
from flowjax.training.optimizers import global_norm
from flowjax.training.sharding import replicated, shard_batch
from flowjax.training.stacked import Stacks
from flowjax.training.state import RunningMetrics, TrainState
from flowjax.typing import Params, PRNGKey, PyTree

GetBatch = Callable[[PyTree, PRNGKey, Int[Array, ""]], Batch]
"""(arrays, key, position in this stretch) -> the batch in model space."""


class Metrics(NamedTuple):
    """What a call of the compiled loop reports.

    `loss` and `violation` cover the steps since the last record, not those of the call: how many steps a call takes
    depends on their speed, and metrics must not.

    Attributes:
        loss: mean over the steps since the running metrics of the state were emptied.
        grad_norm: global norm of the gradient before clipping, at the last step.
        bad_step: the first step whose loss or gradient was not finite, or whose coupling had not converged; 0 if none.
            Training stops there.
        violation: the largest marginal error of the coupling's plans (`flowjax.couplings`) over the same steps as
            `loss`, and at the bad step if there is one.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    bad_step: Int[Array, ""]
    violation: Float[Array, ""]


def drop_labels(key: PRNGKey, labels: Int[Array, " B"], rate: float) -> Int[Array, " B"]:
    """Each label is replaced by `NO_LABEL` with this probability, independently of the others."""
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), NO_LABEL, labels)


class Taken(NamedTuple):
    """What a step reports: the loss with its diagnosis, and the gradient's norm before clipping."""

    loss: Diagnosed
    grad_norm: Float[Array, ""]


Step = Callable[[TrainState, PRNGKey, Batch], tuple[TrainState, Taken]]


def make_step(
    loss: DiagnosedLoss,
    tx: optax.GradientTransformation,
    batch_size: int,
    half_life: float,
    widths: tuple[float, ...] = (),
    accumulate: int = 1,
    gather: Callable[[Params], Params] = lambda params: params,
    scatter: Callable[[Params], Params] = lambda grads: grads,
) -> Step:
    """One optimizer step: `step(state, key, batch) -> (state, Taken)`.

    Args:
        loss: of a batch.
        tx: the optimizer.
        batch_size: rows of a batch.
        half_life: of the moving average, in samples; 0 for none.
        widths: of the averages with a power of time as profile.
        accumulate: parts of a batch whose gradients are computed one after the other, in a part of the memory. A
            coupling pairs the rows of a part.
        gather, scatter: make of the state's parameters those of the loss, elsewhere, in a narrower type or in another
            tree; and of its gradient that of the optimizer, in the state's types.
    """
    gammas = tuple(map(gamma_of, widths))

    def value(params: Params, key: PRNGKey, batch: Batch) -> tuple[Array, Diagnosed]:
        diagnosed = loss(params, key, batch)
        return diagnosed.value, diagnosed

    gradient = _in_parts(jax.value_and_grad(value, has_aux=True), accumulate)

    def step(state: TrainState, key: PRNGKey, batch: Batch) -> tuple[TrainState, Taken]:
        diagnosed, grads = gradient(gather(state.params), key, batch)
        grads = scatter(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        average = update_ema(state.ema, params, ema_decay(half_life, batch_size, done)) if half_life else params
        averages = update_power(state.averages, params, gammas, done)
        new = replace(state, step=done, params=params, opt_state=opt_state, ema=average, averages=averages)
        return new, Taken(diagnosed, global_norm(grads))

    return step


def _in_parts(
    value_and_grad: Callable[..., tuple[tuple[Array, Diagnosed], Params]], parts: int
) -> Callable[[Params, PRNGKey, Batch], tuple[Diagnosed, Params]]:
    """Means over equal parts of a batch, each with every `parts`-th row: every device has its share of every part."""

    def gradient(params: Params, key: PRNGKey, batch: Batch) -> tuple[Diagnosed, Params]:
        if parts == 1:
            (_, diagnosed), grads = value_and_grad(params, key, batch)
            return diagnosed, grads
        rows = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

        def more(sums: tuple[Diagnosed, Params], part: tuple[Array, Batch]) -> tuple[tuple[Diagnosed, Params], None]:
            (_, diagnosed), grads = value_and_grad(params, jax.random.fold_in(key, part[0]), part[1])
            value, violation = sums[0]
            seen = Diagnosed(value + diagnosed.value / parts, jnp.maximum(violation, diagnosed.violation))
            return (seen, jax.tree.map(lambda s, g: s + g.astype(s.dtype) / parts, sums[1], grads)), None

        zeros = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
        none = Diagnosed(jnp.zeros(()), jnp.zeros(())), jax.tree.map(zeros, params)
        return lax.scan(more, none, (jnp.arange(parts), rows))[0]

    return gradient


class _Last(NamedTuple):
    """What the loop carries of its last step beside the state: the attributes of `Metrics`, of that step alone."""

    grad_norm: Float[Array, ""]
    bad_step: Int[Array, ""]
    violation: Float[Array, ""]


Carry = tuple[TrainState, _Last]

Run = Callable[[TrainState, Any, int], tuple[TrainState, Metrics]]
"""`run(state, arrays, n)`: n steps; the old state's memory is reused."""


def make_run(
    step: Step,
    get_batch: GetBatch,
    mesh: Mesh,
    places: TrainState,
    on_host: bool = False,
    stacks: Stacks | None = None,
) -> Run:
    """Many steps in one compiled loop over the mesh.

    A step whose loss or gradient is not finite, or whose coupling has not converged, is not taken, and the loop ends
    there, so the state returned is always sound.

    Args:
        step: from `make_step`.
        get_batch: draws or picks the batch inside the program.
        mesh: of the devices.
        places: a sharding for each leaf of the state.
        on_host: compile one step and loop on the host instead; see `loops_badly`.
        stacks: what the state is inside the loop, where the step is one of stacks; not on the host.
    """
    everywhere = replicated(mesh)

    def body(carry: Carry, arrays: PyTree, start: Int[Array, ""]) -> Carry:
        state, _ = carry
        key_batch, key_step = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = shard_batch(get_batch(arrays, key_batch, state.step - start), mesh)
        new, taken = step(state, key_step, batch)
        value, violation = taken.loss
        sound = jnp.isfinite(value) & jnp.isfinite(taken.grad_norm) & (violation <= LARGEST_VIOLATION)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old)
        since, loss_sum, largest = state.running
        kept = TrainState(
            keep(new.step, state.step),
            keep(new.params, state.params),
            keep(new.opt_state, state.opt_state),
            keep(new.ema, state.ema),
            keep(new.averages, state.averages),
            state.key,
            RunningMetrics(since, keep(loss_sum + value, loss_sum), keep(jnp.maximum(largest, violation), largest)),
        )
        kept = lax.with_sharding_constraint(kept, places if stacks is None else everywhere)
        bad = jnp.where(sound, 0, state.step + 1)
        return kept, _Last(taken.grad_norm, bad, violation)

    def run(state: TrainState, arrays: PyTree, n: Int[Array, ""]) -> tuple[TrainState, Metrics]:
        start = state.step
        going = lambda carry: (carry[0].step - start < n) & (carry[1].bad_step == 0)
        state = state if stacks is None else stacks.stack(state)
        state, last = lax.while_loop(going, lambda carry: body(carry, arrays, start), (state, _no_step()))
        state = state if stacks is None else stacks.unstack(state)
        return state, _report(state, last)

    if not on_host:
        return jax.jit(run, donate_argnums=0, out_shardings=(places, everywhere))
    one = jax.jit(body, donate_argnums=0, out_shardings=(places, everywhere))

    def run_on_host(state: TrainState, arrays: PyTree, n: int) -> tuple[TrainState, Metrics]:
        start, carry = jnp.copy(state.step), (state, jax.device_put(_no_step(), everywhere))
        for _ in range(n):
            carry = one(carry, arrays, start)
            if int(carry[1].bad_step):
                break
        state, last = carry
        return state, _report(state, last)

    return run_on_host


def loops_badly(step: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a CPU's compiled loop around this step would be slow: if there are convolutions with gradients in it.

    XLA's CPU compiler brings convolutions into the form of its fast kernels only outside loops; inside one the
    gradients of a U-Net ran 17 times slower (9.9 s a step against 0.58 s, batch 64 of Fashion-MNIST, 2 cores, jaxlib
    0.10.2).
    """
    return "conv_general_dilated" in str(jax.make_jaxpr(step)(*arguments))


def _no_step() -> _Last:
    return _Last(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros(()))


def _report(state: TrainState, last: _Last) -> Metrics:
    running = state.running
    mean = running.loss_sum / jnp.maximum(state.step - running.since, 1)
    return Metrics(mean, last.grad_norm, last.bad_step, jnp.maximum(running.violation, last.violation))
