"""A workdir opened again: from a run to a notebook, or to the command line's sampling and scoring."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp

from flowjax import conditions
from flowjax.build import Problem, build, fields_of
from flowjax.config import Config, resolve
from flowjax.data import DataSpec
from flowjax.paths import AffinePath
from flowjax.predictions import Reading
from flowjax.sources import Source
from flowjax.training.averages import FOLDER, posthoc
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.state import abstract_state
from flowjax.training.workdir import read_config
from flowjax.typing import Params

__all__ = ["Run", "load"]


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        workdir, config, step: which run, and the step of its checkpoint.
        problem: path, source, coupling, prediction and network, as built from the config.
        params: the parameters that `model` uses: the moving average, or the raw ones.
    """

    workdir: Path
    config: Config
    step: int
    problem: Problem
    params: Params = field(repr=False)

    @property
    def spec(self) -> DataSpec:
        """Shape, normalisation and labels of the data."""
        return self.problem.spec

    @property
    def fields(self) -> tuple[conditions.Field, ...]:
        """The conditions of the network that a caller can give; none of an unconditional one.

        Not among them is `augment`, which is given in training alone.
        """
        return tuple(field for field in fields_of(self.config, self.spec) if field.name != "augment")

    @property
    def path(self) -> AffinePath:
        return self.problem.path

    @property
    def source(self) -> Source:
        return self.problem.source

    @property
    def prior(self) -> Source:
        """Where sampling starts: `path.prior(source)`."""
        return self.problem.prior

    @property
    def interval(self) -> tuple[float, float]:
        """(t0, t1) on which the model can be asked; (0, 1) for most."""
        return self.problem.interval

    @property
    def identity(self) -> int:
        """Equal for runs that differ in their parameters alone, as long as one of them is held."""
        return id(self.problem)

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance of ancestral steps too."""
        return self.problem.prediction.name == "noise_variance"

    def model(self, params: Params | None = None) -> Reading:
        """The trained network as a model, in model space: `velocity`, `ends` and `score`.

        Args:
            params: in place of the run's own. Without them each call returns the same object, for which solvers
                compile once.
        """
        return self._trained if params is None else self.problem.model(params)

    @cached_property
    def _trained(self) -> Reading:
        return self.problem.model(self.params)

    def without_params(self) -> "Run":
        """The same run without its parameters, for what shall not keep them in memory."""
        return replace(self, params=None)

    def with_class_shares(self, shares: tuple[float, ...]) -> "Run":
        """The same run, with these shares of the classes in its training data."""
        spec = replace(self.spec, class_shares=shares)
        return replace(self, problem=replace(self.problem, spec=spec))


def load(workdir: str | Path, ema: bool = True, checkpoint: str | int = "last", width: float | None = None) -> Run:
    """Opens a workdir that `flowjax train` wrote; its data set is not needed.

    Args:
        workdir: of the run.
        ema: take the moving average of the parameters, or the raw ones.
        checkpoint: "last", "best" (by validation loss), or a step.
        width: take the average of this width instead (`training.averages`), a share of the run like 0.1, made from the
            snapshots of a run with `ema.widths`.

    Raises:
        WorkdirError, ConfigError, CheckpointError, SnapshotError: one line each.
    """
    workdir = Path(workdir)
    raw, spec = read_config(workdir)
    config = resolve(raw)
    problem = build(config, spec)
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.choose(str(checkpoint))
    state = checkpoints.restore(step, abstract_state(config, problem))
    if width is not None:
        tracked = dict(zip(config.ema.widths, state.averages, strict=True))
        averaged = posthoc(workdir / FOLDER, width, step, tracked)
        return Run(workdir, config, step, problem, jax.tree.map(jnp.asarray, averaged))
    return Run(workdir, config, step, problem, state.ema if ema else state.params)
