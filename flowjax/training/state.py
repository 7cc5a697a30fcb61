"""The training state: everything that training changes, in one pytree."""

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
from flowjax.training import processes, start_from
from flowjax.training.averages import init_power
from flowjax.training.optimizers import groups_of, optimizer
from flowjax.typing import Params

__all__ = ["RunningMetrics", "TrainState", "abstract_state", "init_state", "no_metrics", "with_empty_metrics"]


class RunningMetrics(NamedTuple):
    """Sums over the steps since the last record of `metrics.jsonl`, for the next record.

    They are part of the state, so that a record is the same whether or not training was stopped and resumed before it.

    Attributes:
        since: the step at which the sums were last reset, () int32.
        loss_sum: sum of the losses since then, () float32.
        metrics: for each metric of the method the sum since then, or the maximum if the metric has a limit, () float32.
    """

    since: Any
    loss_sum: Any
    metrics: Any


def no_metrics(names: Iterable[str] = ()) -> RunningMetrics:
    """The running metrics at step 0, for a method with metrics of these names."""
    return RunningMetrics(jnp.zeros((), jnp.int32), jnp.zeros(()), {name: jnp.zeros(()) for name in names})


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "variables", "opt_state", "ema", "averages", "targets", "key", "running"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """The state of a run at one step.

    It is saved and restored as a whole, and a step is a pure function of the state and the batch. Trees of the same
    structure hold shapes (`abstract_state`) or shardings instead of arrays.

    Attributes:
        step: number of optimizer steps taken, () int32.
        params: the parameters of the network, a nested dictionary of arrays.
        variables: the other variables of the network, such as batch statistics; an empty dictionary for most networks.
        opt_state: the state of the optimizer.
        ema: exponential moving average of the parameters.
        averages: power-function averages of the parameters, one for each of `ema.widths` (`training.averages`).
        targets: moving averages of the parameters that the loss of the method reads, by name.
        key: the typed PRNG key of the run. It never changes: step i uses `fold_in(key, i)`.
        running: sums of metrics since the last record.
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
    """Resets the running metrics of a state, after a record.

    The new values share no memory with the state, because the training loop donates the memory of the state.
    """
    step, zero = np.array(state.step), np.zeros((), np.float32)  # copies
    empty = RunningMetrics(step, zero, {name: zero.copy() for name in state.running.metrics})
    placed = jax.tree.map(lambda new, old: processes.put(new, old.sharding), empty, state.running)
    return replace(state, running=placed)


def init_state(config: Config, method: Method, start: Params | None = None) -> TrainState:
    """The state at step 0 for the seed of the config. It is a pure function, so `jax.eval_shape` gives its shapes.

    Args:
        config: the config of the run.
        method: the method of the config.
        start: parameters of a network (`training.start_from`) from which training starts; None for the initial
            parameters of the method.
    """
    key_init, key_run = jax.random.split(jax.random.key(config.seed))
    params, variables = method.init(key_init)
    params = params if start is None else start_from.with_network(method, params, start)
    copy = lambda: jax.tree.map(jnp.copy, params)  # averages share no buffers with params, because these are donated
    return TrainState(
        jnp.zeros((), jnp.int32),
        params,
        variables,
        optimizer(config.train, groups_of(method)).init(params),
        copy(),
        init_power(params, len(config.ema.widths)),
        {name: copy() for name in method.targets},
        key_run,
        no_metrics(method.metrics),
    )


def abstract_state(config: Config, method: Method, sharding: Sharding | None = None) -> TrainState:
    """The shapes, types and shardings of the state, for `Checkpoints.restore`.

    Args:
        config: the config of the run.
        method: the method of the config.
        sharding: the sharding of all leaves, by default on the first local device.
    """
    sharding = SingleDeviceSharding(jax.local_devices()[0]) if sharding is None else sharding
    shapes = jax.eval_shape(lambda: init_state(config, method))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
