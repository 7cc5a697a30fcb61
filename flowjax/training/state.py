"""Everything that training changes, in one pytree."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding, SingleDeviceSharding

from flowjax.build import Problem
from flowjax.config import Config
from flowjax.training import hosts
from flowjax.training.averages import init_power
from flowjax.training.optimizers import optimizer
from flowjax.typing import Params


class RunningMetrics(NamedTuple):
    """What the next record of `metrics.jsonl` needs of the steps since the record before it.

    It is part of the state, so that a record is the same whether or not training was stopped and resumed before it.

    Attributes:
        since: the step at which it was last emptied, () int32.
        loss_sum: sum of the losses of the steps since then, added one after the other.
        violation: the largest marginal error of the coupling's plans since then.
    """

    since: Any
    loss_sum: Any
    violation: Any


def no_metrics() -> RunningMetrics:
    """Running metrics at step 0."""
    return RunningMetrics(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "ema", "averages", "key", "running"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """A run at one step. Saved and restored whole; a step is a pure function of it and of its batch.

    Leaves are arrays, or what a tree of the same structure holds for each: shapes (`abstract_state`), shardings.

    Attributes:
        step: optimizer steps taken, () int32.
        params: the network's parameters, a nested dict of arrays.
        opt_state: the optimizer's.
        ema: exponential moving average of the parameters.
        averages: those with a power of time as profile, one for each of `ema.widths` (`training.averages`).
        key: the run's typed key. It never changes: step i draws from `fold_in(key, i)`.
        running: metrics summed up since the last record.
    """

    step: Any
    params: Params
    opt_state: optax.OptState
    ema: Params
    averages: Any
    key: Any
    running: Any = field(default_factory=no_metrics)


def with_empty_metrics(state: TrainState) -> TrainState:
    """The state with its running metrics emptied, as the step after a record needs it.

    The new values have memory of their own, because the training loop reuses the memory of the state.
    """
    step, zero = np.array(state.step), np.zeros((), np.float32)  # copies
    empty = RunningMetrics(step, zero, zero.copy())
    placed = jax.tree.map(lambda new, old: hosts.put(new, old.sharding), empty, state.running)
    return replace(state, running=placed)


def init_state(config: Config, problem: Problem) -> TrainState:
    """The state at step 0. Pure: `jax.eval_shape` gives its shapes."""
    key_init, key_run = jax.random.split(jax.random.key(config.seed))
    params = problem.init(key_init)
    average = jax.tree.map(jnp.copy, params)  # a buffer of its own: the state's memory is donated to the next
    opt_state, averages = optimizer(config.train).init(params), init_power(params, len(config.ema.widths))
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, average, averages, key_run)


def abstract_state(config: Config, problem: Problem, sharding: Sharding | None = None) -> TrainState:
    """Shapes, types and places of the state, as restoring needs them; on this process's first device by default."""
    place = SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding
    shapes = jax.eval_shape(lambda: init_state(config, problem))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)
