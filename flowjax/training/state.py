"""Everything that training changes, in one pytree."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding, SingleDeviceSharding

from flowjax.config import Config
from flowjax.methods.base import Method
from flowjax.training import processes
from flowjax.training.averages import init_power
from flowjax.training.optimizers import optimizer
from flowjax.typing import Params

__all__ = ["RunningMetrics", "TrainState", "abstract_state", "init_state", "no_metrics", "with_empty_metrics"]


class RunningMetrics(NamedTuple):
    """What the next record of `metrics.jsonl` needs of the steps since the record before it.

    It is part of the state, so that a record is the same whether or not training was stopped and resumed before it.

    Attributes:
        since: the step at which it was last emptied, () int32.
        loss_sum: sum of the losses of the steps since then, added one after the other.
        metrics: of each of the method's metrics the sum since then, or the largest value of one that has a limit.
    """

    since: Any
    loss_sum: Any
    metrics: Any


def no_metrics(names: Iterable[str] = ()) -> RunningMetrics:
    """Running metrics at step 0, of a method with metrics of these names."""
    return RunningMetrics(jnp.zeros((), jnp.int32), jnp.zeros(()), {name: jnp.zeros(()) for name in names})


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "variables", "opt_state", "ema", "averages", "targets", "key", "running"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """A run at one step. Saved and restored whole; a step is a pure function of it and of its batch.

    Leaves are arrays, or what a tree of the same structure holds for each: shapes (`abstract_state`), shardings.

    Attributes:
        step: optimizer steps taken, () int32.
        params: the network's parameters, a nested dict of arrays.
        variables: its other variables, such as batch statistics; an empty dict for most networks.
        opt_state: the optimizer's.
        ema: exponential moving average of the parameters.
        averages: those with a power of time as profile, one for each of `ema.widths` (`training.averages`).
        targets: moving averages of the parameters that the method's loss reads, by name.
        key: the run's typed key. It never changes: step i draws from `fold_in(key, i)`.
        running: metrics summed up since the last record.
    """

    step: Any
    params: Params
    variables: Any
    opt_state: optax.OptState
    ema: Params
    averages: Any
    targets: Any
    key: Any
    running: Any = field(default_factory=no_metrics)


def with_empty_metrics(state: TrainState) -> TrainState:
    """The state with its running metrics emptied, as the step after a record needs it.

    The new values have memory of their own, because the training loop reuses the memory of the state.
    """
    step, zero = np.array(state.step), np.zeros((), np.float32)  # copies
    empty = RunningMetrics(step, zero, {name: zero.copy() for name in state.running.metrics})
    placed = jax.tree.map(lambda new, old: processes.put(new, old.sharding), empty, state.running)
    return replace(state, running=placed)


def init_state(config: Config, method: Method) -> TrainState:
    """The state at step 0, by the config's seed. Pure: `jax.eval_shape` gives its shapes."""
    key_init, key_run = jax.random.split(jax.random.key(config.seed))
    params, variables = method.init(key_init)
    copy = lambda: jax.tree.map(jnp.copy, params)  # a buffer of its own: the state's memory is donated to the next
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        variables,
        optimizer(config.train).init(params),
        copy(),
        init_power(params, len(config.ema.widths)),
        {name: copy() for name in method.targets},
        key_run,
        no_metrics(method.metrics),
    )


def abstract_state(config: Config, method: Method, sharding: Sharding | None = None) -> TrainState:
    """Shapes, types and places of the state, as restoring needs them; on this process's first device by default."""
    place = SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding
    shapes = jax.eval_shape(lambda: init_state(config, method))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes)
