"""Several seeds of one config trained in one program: a state has an axis of seeds before all others.

A small network leaves an accelerator idle between one short kernel and the next; `jax.vmap` over the seeds makes each
kernel do the work of all. A seed's run is what it would be alone, but for the order of sums in the kernels.
"""

from collections.abc import Sequence
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.training.ahead import Ahead
from flowjax.training.sharding import replicated
from flowjax.training.state import TrainState, init_state
from flowjax.training.trainer import Trainer
from flowjax.typing import Params, PyTree

_SMALL = 5e10
"""Floating-point operations of a step: a tenth of a millisecond's work on an H200, as long as its kernels' launches."""

_MOST = 2**26
"""Parameters of all seeds: about a gigabyte with Adam's moments and an average."""


class Together:
    """A trainer of several seeds, as `loop.train` takes it.

    Args:
        trainer: of the config, whose own seed does not count.
        seeds: one a lane.

    Raises:
        ValueError: if `alone(trainer)` says that it cannot be.
    """

    def __init__(self, trainer: Trainer, seeds: Sequence[int]):
        if reason := alone(trainer):
            raise ValueError(f"seeds cannot be trained together: {reason}")
        assert isinstance(trainer.run, Ahead)
        self.one = trainer
        self.config, self.mesh, self.schedule = trainer.config, trainer.mesh, trainer.schedule
        self.feed, self.arrays = None, trainer.arrays
        self._seeds = np.array(seeds, np.uint32)  # OverflowError outside [0, 2^32)
        vmapped = jax.vmap(trainer.run.jitted, in_axes=(0, None, None))
        self.run = jax.jit(vmapped, donate_argnums=0, out_shardings=replicated(self.mesh))
        self._val = jax.jit(jax.vmap(trainer.loss_of))
        self._validation = jax.jit(jax.vmap(trainer.validation, (0, None, None)))(self._seeds, *trainer.held_out())
        self._apart = jax.jit(lambda tree: [jax.tree.map(itemgetter(i), tree) for i in range(len(seeds))])

    @property
    def flops_per_step(self) -> float:
        """Of one seed."""
        return self.one.flops_per_step

    def init(self) -> TrainState:
        """The states at step 0."""
        init = jax.vmap(lambda seed: init_state(self.config, self.one.problem, seed))
        # placed as `run` returns it, or the loop would be compiled once for its first call and once for the others
        return jax.jit(init, out_shardings=replicated(self.mesh))(self._seeds)

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """The states of all seeds, at one step, as one."""
        stack = lambda *states: jax.tree.map(lambda *rows: jnp.stack(rows), *states)
        return jax.jit(stack, out_shardings=replicated(self.mesh))(*states)

    def apart(self, tree: PyTree) -> list[PyTree]:
        """What each seed has of a tree whose leaves have an axis of seeds."""
        return self._apart(tree)

    def val_losses(self, params: Params) -> list[float]:
        """Each seed's loss at its own fixed set of (t, noise, test points)."""
        return np.asarray(self._val(params, *self._validation)).tolist()


def alone(trainer: Trainer) -> str | None:
    """Why seeds of this config cannot be trained together; None if they can."""
    if trainer.feed is not None:
        return "the data are streamed, each seed in an order of its own"
    if trainer.mesh.size > 1:
        return "each step is spread over several devices"
    return None if isinstance(trainer.run, Ahead) else "convolutions are slow in a compiled loop on a CPU"


def worthwhile(trainer: Trainer, seeds: int) -> bool:
    """Whether one seed alone would leave an accelerator idle, and all find place there.

    A CPU is never idle; see `flowjax sweep`.
    """
    fits = seeds * trainer.parameters() <= _MOST
    return jax.default_backend() != "cpu" and trainer.flops_per_step <= _SMALL and fits
