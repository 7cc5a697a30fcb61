"""The trainer of a config: it assembles the compiled training loop, the batches and the validation loss."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from flowjax import checksums
from flowjax.batch import Batch
from flowjax.build import build, fields_of, make_augmentation
from flowjax.config import Config, own_plugins, resolve
from flowjax.data import Dataset
from flowjax.data.batches import batch_like, condition_names, make_get_batch, prepared
from flowjax.errors import lookup
from flowjax.methods.base import Context, Method
from flowjax.models.functional import Variables
from flowjax.models.magnitude import is_weight
from flowjax.training import optimizers, parameters, processes, profiling
from flowjax.training.parameters import ParameterLayout, Stacks, network_over_rows
from flowjax.training.prefetcher import Prefetcher
from flowjax.training.sharding import make_mesh, replicated, rules_of, shardings
from flowjax.training.state import TrainState, init_state
from flowjax.training.step import LOOPS, Metrics, Step, make_run, make_step
from flowjax.typing import Params, PRNGKey, PyTree

__all__ = ["CompiledAhead", "Trainer"]

_VAL_ROWS = 1024


_pool = ThreadPoolExecutor(4, thread_name_prefix="compile")


class CompiledAhead:
    """A jitted function that can be compiled in a background thread.

    Several functions are compiled at the same time, so that the start of a run waits only for the longest compilation.

    Args:
        jitted: from `jax.jit`. If `start` is not called, it is compiled at the first call.
    """

    def __init__(self, jitted: Callable[..., Any]):
        self.jitted = jitted
        self._program: Future[Callable[..., Any]] | None = None

    def start(self, *like: Any) -> None:
        """Starts to compile for arguments of these shapes, types and shardings (arrays or `jax.ShapeDtypeStruct`s)."""
        jitted: Any = self.jitted
        self._program = _pool.submit(lambda: jitted.lower(*like).compile())

    def program(self) -> Any:
        """Waits for the compilation if it was started and returns the program; raises the errors of the compilation.

        If it was not started, the jitted function is returned.
        """
        return self.jitted if self._program is None else self._program.result()

    def __call__(self, *arguments: Any) -> Any:
        return self.program()(*arguments)


class Trainer:
    """Assembles the compiled training loop, the batches and the validation loss of a config.

    Args:
        config: a resolved config.
        method: the method of the config.
        dataset: the data set to train on.
        devices: see `sharding.make_mesh`.
        teacher: frozen variables that the loss reads from its context, or None.
        start: parameters of a network from which training starts, or None.

    Attributes:
        config, method, dataset, teacher: the arguments.
        mesh: the device mesh.
        schedule: the learning rate as a function of the step.
        shardings: the sharding of each leaf of the state.
        stacks: the stacks in which the loop holds the state, or None.
        loss_of: (params, state, key, batch, teacher) -> the validation loss, not compiled. The variables, the targets
            and the step in its context are those of the state.
        prefetcher: reads the batches of a streamed data set; None for a data set in the memory of the devices.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        dataset: Dataset,
        devices: Sequence[Any] | None = None,
        teacher: PyTree = None,
        start: Params | None = None,
    ):
        train = config.train
        self.config, self.method, self.dataset = config, method, dataset
        self._fields = fields_of(config, dataset.spec)
        self.mesh = make_mesh(config, devices)
        everywhere = lambda tree: None if tree is None else processes.put(tree, replicated(self.mesh))
        self.teacher, self._start = everywhere(teacher), everywhere(start)
        self.schedule = jax.jit(optimizers.learning_rate(train))
        self._shapes = jax.eval_shape(lambda: init_state(config, method))
        rules = rules_of(config, self._shapes.params, self.mesh)
        self.shardings = shardings(self._shapes, self.mesh, rules)
        self._whole = shardings(self._shapes.params, self.mesh, rules, whole=True)
        self._get_batch = make_get_batch(
            dataset, self._fields, make_augmentation(config, dataset.spec), train.batch_size
        )
        on_host = self._loops_on_host()
        stacks = self.stacks = None if on_host else self._make_stacks()
        run = make_run(self.make_step(stacks), method, self._get_batch, self.mesh, self.shardings, on_host, stacks)
        self._run = run if on_host else CompiledAhead(run)
        first_state = lambda start: init_state(config, method, start)
        self._init = CompiledAhead(jax.jit(first_state, out_shardings=self.shardings))
        constrain = jax.lax.with_sharding_constraint

        def loss_of(params: Params, state: TrainState, key: PRNGKey, batch: Batch, teacher: PyTree) -> Any:
            targets = {name: constrain(target, self._whole) for name, target in state.targets.items()}
            context = Context(state.step, targets, teacher, state.variables)
            return method.loss(constrain(params, self._whole), context, key, batch).value

        self.loss_of = loss_of
        self._val = CompiledAhead(jax.jit(lambda state, *others: loss_of(state.ema, state, *others)))
        rows, workers = dataset.rows, config.data.workers
        self.prefetcher = None if rows is None else Prefetcher(rows, config.seed, train.batch_size, self.mesh, workers)

    def make_step(self, stacks: Stacks | None = None) -> Step:
        """The optimizer step for a state whose parameters are in these stacks, or for a plain state."""
        config = self.config
        types = None if self.mesh.shape["fsdp"] == 1 else self._types
        layout = ParameterLayout(self._shapes.params, self.shardings.params, self._whole, stacks, types)
        return make_step(
            self._method_in_training(),
            optimizers.optimizer(config.train, optimizers.groups_of(self.method)),
            config.train.batch_size,
            config.ema.half_life,
            config.ema.widths,
            config.train.accumulate,
            config.train.loss_scale,
            layout,
        )

    def _method_in_training(self) -> Method:
        """The method, with its network in `network_over_rows` if training is data parallel on GPUs.

        Variables that are not parameters may depend on several rows, so a network that has any is left to the compiler.
        So is one with dropout that needs a single key.
        """
        method: Any = self.method
        single_key = method.network.takes_key and not method.network.traits.row_keys
        by_compiler = single_key or bool(jax.tree.leaves(self._shapes.variables))
        if self.mesh.size == 1 or not self._whole_on_gpus() or by_compiler:
            return method
        apply = method.network.apply
        plain = lambda params, *arguments, **inputs: apply(Variables(params, {}), *arguments, **inputs)[0]
        mapped = network_over_rows(plain, self.mesh, method.network.traits.types)

        def by_rows(variables: Variables, *arguments: Any, **inputs: Any) -> tuple[Any, PyTree]:
            return mapped(variables.params, *arguments, **inputs), {}

        return replace(method, network=replace(method.network, apply=by_rows))

    def _whole_on_gpus(self) -> bool:
        """Whether the devices are GPUs that hold every parameter whole."""
        whole = all(sharding.is_fully_replicated for sharding in jax.tree.leaves(self.shardings.params))
        return whole and self.mesh.devices.flat[0].platform in parameters.PLATFORMS

    def _make_stacks(self) -> Stacks | None:
        """Stacks of parameters that every GPU holds whole, if the optimizer treats every number alike; else None."""
        normalised = any(jax.tree.leaves(is_weight(self._shapes.params)))
        alike = not normalised and not optimizers.groups_of(self.method)
        elementwise = self.config.train.optimizer in optimizers.ELEMENTWISE and alike
        if not elementwise or not self._whole_on_gpus():
            return None
        return Stacks(self._shapes.params, parameters.largest_within(self._shapes.params, parameters.HELD))

    def compile_ahead(self, fresh: bool) -> None:
        """Starts to compile the training loop, the validation loss and, if `fresh`, the initial state."""
        like = self.like()
        if jax.process_count() > 1:
            return  # all processes must compile in the same order
        if isinstance(self._run, CompiledAhead):
            self._run.start(like, self.prefetcher.like() if self.prefetcher else self.arrays_like(), 1, self.teacher)
        if fresh:
            self._init.start(self._start)
        self._val.start(like, *self._validation, self.teacher)

    def run(self, state: TrainState, arrays: PyTree, n: int) -> tuple[TrainState, Metrics]:
        """Takes n steps. The memory of the state is donated.

        Args:
            state: a state with the shardings of this trainer.
            arrays: from `arrays`, or batches of the prefetcher.
            n: number of steps.

        Returns:
            The new state, and the metrics since the last record.
        """
        return self._run(state, arrays, n, self.teacher)

    def program(self) -> Any:
        """The training loop, compiled if `compile_ahead` has started that; None for a loop that runs on the host."""
        return self._run.program() if isinstance(self._run, CompiledAhead) else None

    def init(self) -> TrainState:
        """The state at step 0, with the shardings of this trainer."""
        return self._init(self._start)

    def forget_start(self) -> None:
        """Frees the parameters from which training starts, after `init`."""
        self._start = None

    def like(self) -> TrainState:
        """The shapes and shardings of the state, for `Checkpoints.restore`."""
        like = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
        return jax.tree.map(like, self._shapes, self.shardings)

    def arrays(self) -> PyTree:
        """The arrays of a data set that is not streamed, on the devices, from which the compiled loop takes batches."""
        loaded = self.__dict__.pop("_loaded", None) or self.dataset.arrays()  # keeps no second copy on the host
        return processes.put(loaded, replicated(self.mesh))

    def fingerprint(self) -> dict[str, Any]:
        """The identity of the data set: its name and shape, and checksums of its rows (three if it is streamed)."""
        data, spec = self.dataset, self.dataset.spec
        found: dict[str, Any] = {key: getattr(spec, key) for key in ("name", "num_classes", "levels")}
        found["shape"] = list(spec.shape)
        if (rows := data.rows) is not None:
            found["rows"] = len(rows)
            some = [rows[i] for i in (0, len(rows) // 2, len(rows) - 1)]
            found["checksum of its first, middle and last row"] = checksums.of_arrays(jax.tree.leaves(some))
        if data.draw is None:  # computed data may differ in the last bit between hosts
            found["checksum of its rows"] = checksums.of_arrays(jax.tree.leaves(self._loaded))
            test = jax.tree.leaves((data.test, data.test_cond, data.test_x0, data.test_mask))
            found["checksum of its test rows"] = checksums.of_arrays(test)
        return found

    @cached_property
    def _batch_like(self) -> Batch:
        """The shapes of a batch in model space."""
        return batch_like(self.dataset, self._fields, self.config.train.batch_size)

    @cached_property
    def _types(self) -> PyTree:
        """The type in which each parameter is gathered and its gradient summed, which is the one the network uses.

        A method may have parameters beside those of its network, which keep their type.
        """
        network: Any = self.method.network
        structure = jax.tree.structure(jax.eval_shape(network.init, self._shapes.key).params)
        is_network = lambda part: jax.tree.structure(part) == structure
        types = lambda part: network.traits.types(part) if is_network(part) else part.dtype
        return jax.tree.map(types, self._shapes.params, is_leaf=is_network)

    def arrays_like(self) -> PyTree:
        """The shapes and shardings of `arrays()`. The data set is loaded to find them."""
        like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(self.mesh))
        return jax.tree.map(like, self._loaded)

    @cached_property
    def _loaded(self) -> PyTree:
        return self.dataset.arrays()

    def val_loss(self, state: TrainState) -> float:
        """The mean loss of the moving average over test points, at the same times and noise in every call."""
        return float(self._val(state, *self._validation, self.teacher))

    @cached_property
    def _validation(self) -> tuple[PRNGKey, Batch]:
        validation = jax.jit(self.validation, out_shardings=replicated(self.mesh))
        return validation(np.uint32(self.config.seed), self.held_out())

    def _loops_on_host(self) -> bool:
        """Whether the host calls each step, as `train.loop` determines."""
        rule = lookup("train.loop", self.config.train.loop, LOOPS)
        return rule(self.method.network.traits.slow_in_cpu_loops, self.mesh.devices.flat[0].platform)

    @cached_property
    def flops_per_step(self) -> float:
        """Floating-point operations of the loss and gradient of one step (`training.profiling`).

        Recomputed operations (`model.remat`) do not count.
        """
        method: Any = self.method
        if self.config.get("model", {}).get("remat", "none") != "none":
            plugins = own_plugins(self.config)
            config = resolve(self.config.to_dict(), plugins)
            config.model.remat = "none"
            method = build(config, self.dataset.spec, plugins, getattr(method, "teacher", None))

        plain: Any = replace(method, network=method.network.with_forward_mode())  # fused kernels hide their operations

        def loss(params: Params, state: TrainState, batch: Batch, teacher: PyTree) -> Any:
            context = Context(state.step, state.targets, teacher, state.variables, training=True)
            return plain.loss(params, context, state.key, batch).value

        like = self.like()
        return profiling.count_flops(jax.grad(loss), like.params, like, self._batch_like, self.teacher)

    def parameters(self) -> int:
        """The number of parameters that are trained, of all networks."""
        return sum(math.prod(a.shape) for a in jax.tree.leaves(self.like().params))

    def held_out(self) -> Batch:
        """The test points of the validation loss with their conditions, encoded as `data.batches.prepared` expects."""
        return self.dataset.encoded_test(_VAL_ROWS, condition_names(self._fields))

    def validation(self, seed: Any, rows: Batch) -> tuple[PRNGKey, Batch]:
        """The key and the batch of the validation loss, made from the rows of `held_out` with this seed."""
        key_prepare, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31 - 1))
        return key_loss, prepared(self.dataset.spec, key_prepare, rows)
