"""The optimizer step, and the compiled loop that runs many steps in one program.

A step is a pure function of the state and the batch. The number of steps is an argument of the compiled loop and not a
constant in it. All stretches of training therefore run the same program, and a run that was stopped and resumed is
bitwise equal to an uninterrupted one.

A step uses only the loss of a method, and its metrics, limits and targets (`flowjax.methods.base`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from flowjax.batch import Batch
from flowjax.data.batches import GetBatch
from flowjax.methods.base import Context, Limit, Loss, Method
from flowjax.training.averages import ema_decay, gamma_of, update_ema, update_power
from flowjax.training.optimizers import global_norm
from flowjax.training.parameters import ParameterLayout, Stacks
from flowjax.training.sharding import replicated, shard_batch
from flowjax.training.state import RunningMetrics, TrainState
from flowjax.typing import Params, PRNGKey, PyTree

__all__ = ["LOOPS", "LoopState", "Metrics", "RunSteps", "Step", "StepReport", "exceeded", "make_run", "make_step"]

LOOPS: dict[str, Callable[[bool, str], bool]] = {
    "auto": lambda slow_in_cpu_loops, platform: slow_in_cpu_loops and platform == "cpu",
    "device": lambda slow_in_cpu_loops, platform: False,
    "host": lambda slow_in_cpu_loops, platform: True,
}
"""The values of `train.loop`, as functions of the trait `slow_in_cpu_loops` of the network and the platform, which
return whether the loop runs on the host.

`host` calls each step from the host; `device` runs many steps in one compiled program. `auto` is `host` on a CPU for
networks with the trait `slow_in_cpu_loops`, and `device` otherwise.
"""


class Metrics(NamedTuple):
    """The metrics that a call of the compiled loop returns.

    `loss` and `values` cover the steps since the last record and not only the steps of the call, because the number of
    steps per call depends on their speed.

    Attributes:
        loss: mean loss over the steps since the running metrics of the state were reset, () float32.
        grad_norm: global norm of the gradient before clipping at the last step, () float32.
        bad_step: the first step whose loss or gradient is not finite, or one of whose metrics exceeds its limit; 0 if
            there is none, () int32. Training stops there.
        values: the metrics of the method over the same steps as `loss`, by name: the mean, or the maximum for a metric
            with a limit, which includes the bad step.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    bad_step: Int[Array, ""]
    values: Mapping[str, Float[Array, ""]]


class StepReport(NamedTuple):
    """The metrics that a step returns.

    Attributes:
        loss: the loss with its metrics.
        grad_norm: global norm of the gradient before clipping, () float32.
    """

    loss: Loss
    grad_norm: Float[Array, ""]


Step = Callable[..., tuple[TrainState, StepReport]]
"""`step(state, key, batch, teacher=None) -> (state, report)`."""


def make_step(
    method: Method,
    tx: optax.GradientTransformation,
    batch_size: int,
    half_life: float,
    widths: tuple[float, ...] = (),
    accumulate: int = 1,
    loss_scale: float = 1.0,
    layout: ParameterLayout | None = None,
) -> Step:
    """Makes the optimizer step `step(state, key, batch, teacher=None) -> (state, StepReport)`.

    Args:
        method: the method whose loss is minimised.
        tx: the optimizer.
        batch_size: rows per batch.
        half_life: half-life of the exponential moving average in samples; 0 for no average.
        widths: widths (sigma_rel) of the power-function averages.
        accumulate: number of equal parts of a batch whose gradients are computed one after the other to save memory. A
            coupling pairs rows within a part.
        loss_scale: the factor of the loss during differentiation, by which the gradients are then divided.
        layout: converts between the parameters in the state and those in the loss; None if they are the same.
    """
    gammas = tuple(map(gamma_of, widths))
    to_network = layout.to_network if layout else lambda params: params
    to_stored = layout.to_stored if layout else lambda grads: grads

    def value(params: Params, context: Context, key: PRNGKey, batch: Batch) -> tuple[Array, Loss]:
        loss = method.loss(params, context, key, batch)
        return loss.value * loss_scale, loss

    gradient = _in_parts(jax.value_and_grad(value, has_aux=True), method, accumulate)

    def step(state: TrainState, key: PRNGKey, batch: Batch, teacher: PyTree = None) -> tuple[TrainState, StepReport]:
        targets = {name: to_network(target) for name, target in state.targets.items()}
        context = Context(state.step, targets, teacher, state.variables, training=True)
        loss, grads = gradient(to_network(state.params), context, key, batch)
        grads = to_stored(jax.tree.map(lambda g: g / loss_scale, grads))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        average = update_ema(state.ema, params, ema_decay(half_life, batch_size, done)) if half_life else params
        averages = update_power(state.averages, params, gammas, done)
        moved = {
            name: update_ema(state.targets[name], params, ema_decay(target_half_life, batch_size, done))
            for name, target_half_life in method.targets.items()
        }
        new = replace(
            state,
            step=done,
            params=params,
            variables=loss.state,
            opt_state=opt_state,
            ema=average,
            averages=averages,
            targets=moved,
        )
        return new, StepReport(loss, global_norm(grads))

    return step


def _in_parts(value_and_grad: Callable[..., Any], method: Method, parts: int) -> Callable[..., tuple[Loss, Params]]:
    """The means of the loss and of its gradient over equal parts of a batch, computed one after the other.

    A part has every `parts`-th row, so that every device computes an equal share of every part. Variables that are not
    parameters are passed from part to part.
    """

    def gradient(params: Params, context: Context, key: PRNGKey, batch: Batch) -> tuple[Loss, Params]:
        if parts == 1:
            (_, loss), grads = value_and_grad(params, context, key, batch)
            return loss, grads
        rows = jax.tree.map(lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), batch)

        def more(sums: tuple[Loss, Params], part: tuple[Array, Batch]) -> tuple[tuple[Loss, Params], None]:
            total = sums[0]
            updated = replace(context, state=total.state)
            (_, loss), grads = value_and_grad(params, updated, jax.random.fold_in(key, part[0]), part[1])
            metrics = {
                name: jnp.maximum(old, loss.metrics[name])
                if name in method.limits
                else old + loss.metrics[name] / parts
                for name, old in total.metrics.items()
            }
            total = Loss(total.value + loss.value / parts, metrics, loss.state)
            return (total, jax.tree.map(lambda s, g: s + g.astype(s.dtype) / parts, sums[1], grads)), None

        zeros = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
        none = Loss(jnp.zeros(()), {name: jnp.zeros(()) for name in method.metrics}, context.state)
        return lax.scan(more, (none, jax.tree.map(zeros, params)), (jnp.arange(parts), rows))[0]

    return gradient


class _Last(NamedTuple):
    """The attributes of `Metrics` for the last step only, which the loop carries in addition to the state."""

    grad_norm: Float[Array, ""]
    bad_step: Int[Array, ""]
    values: Mapping[str, Float[Array, ""]]


LoopState = tuple[TrainState, _Last]
"""The carry of the compiled loop."""

RunSteps = Callable[..., tuple[TrainState, Metrics]]
"""`run(state, arrays, n, teacher=None) -> (state, metrics)` takes n steps. The memory of the old state is donated."""


def make_run(
    step: Step,
    method: Method,
    get_batch: GetBatch,
    mesh: Mesh,
    shardings: TrainState,
    on_host: bool = False,
    stacks: Stacks | None = None,
) -> RunSteps:
    """Makes the compiled loop, which takes many steps in one program.

    If the loss or its gradient is not finite, or a metric exceeds its limit, the loop ends and returns the state before
    that step, which is therefore always finite.

    Args:
        step: from `make_step`.
        method: the method, which has the names and limits of the metrics.
        get_batch: draws or selects a batch inside the program.
        mesh: the devices.
        shardings: the sharding of each leaf of the state.
        on_host: compile a single step and loop on the host instead; see `LOOPS`.
        stacks: the stacks in which the loop holds the state if `step` expects them, or None. They cannot be used with
            `on_host`.

    Returns:
        A function of the type `RunSteps`.
    """
    everywhere, limits = replicated(mesh), method.limits
    none = _Last(jnp.zeros(()), jnp.zeros((), jnp.int32), {name: jnp.zeros(()) for name in method.metrics})

    def body(now: LoopState, arrays: PyTree, start: Int[Array, ""], teacher: PyTree) -> LoopState:
        state, _ = now
        key_batch, key_step = jax.random.split(jax.random.fold_in(state.key, state.step))
        batch = shard_batch(get_batch(arrays, key_batch, state.step - start), mesh)
        new, report = step(state, key_step, batch, teacher)
        value, values = report.loss.value, {name: report.loss.metrics[name] for name in method.metrics}
        sound = jnp.isfinite(value) & jnp.isfinite(report.grad_norm)
        for name, limit in limits.items():
            sound &= values[name] <= limit.largest
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old)
        since, loss_sum, seen = state.running
        combine = {name: jnp.maximum if name in limits else jnp.add for name in values}
        running = {name: keep(combine[name](seen[name], values[name]), seen[name]) for name in values}
        kept = TrainState(
            keep(new.step, state.step),
            keep(new.params, state.params),
            keep(new.variables, state.variables),
            keep(new.opt_state, state.opt_state),
            keep(new.ema, state.ema),
            keep(new.averages, state.averages),
            keep(new.targets, state.targets),
            state.key,
            RunningMetrics(since, keep(loss_sum + value, loss_sum), running),
        )
        kept = lax.with_sharding_constraint(kept, shardings if stacks is None else everywhere)
        bad = jnp.where(sound, 0, state.step + 1)
        return kept, _Last(report.grad_norm, bad, values)

    def report(state: TrainState, last: _Last) -> Metrics:
        running = state.running
        steps = jnp.maximum(state.step - running.since, 1)
        values = {
            name: jnp.maximum(seen, last.values[name]) if name in limits else seen / steps
            for name, seen in running.metrics.items()
        }
        return Metrics(running.loss_sum / steps, last.grad_norm, last.bad_step, values)

    def run(state: TrainState, arrays: PyTree, n: Int[Array, ""], teacher: PyTree = None) -> tuple[TrainState, Metrics]:
        start = state.step
        going = lambda now: (now[0].step - start < n) & (now[1].bad_step == 0)
        state = state if stacks is None else stacks.stack(state)
        state, last = lax.while_loop(going, lambda now: body(now, arrays, start, teacher), (state, none))
        state = state if stacks is None else stacks.unstack(state)
        return state, report(state, last)

    if not on_host:
        return jax.jit(run, donate_argnums=0, out_shardings=(shardings, everywhere))
    one = jax.jit(body, donate_argnums=0, out_shardings=(shardings, everywhere))

    def run_on_host(state: TrainState, arrays: PyTree, n: int, teacher: PyTree = None) -> tuple[TrainState, Metrics]:
        start, now = jnp.copy(state.step), (state, jax.device_put(none, everywhere))
        for _ in range(n):
            now = one(now, arrays, start, teacher)
            if int(now[1].bad_step):
                break
        state, last = now
        return state, report(state, last)

    return run_on_host


def exceeded(values: Mapping[str, Array], limits: Mapping[str, Limit], step: int) -> str | None:
    """The message of the first limit that a metric exceeds at this step; None if no metric exceeds its limit."""
    for name, limit in limits.items():
        if not (value := float(values[name])) <= limit.largest:
            return limit.message.format(step=step, value=value)
    return None
