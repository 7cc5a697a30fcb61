"""Trained runs: `load` opens the workdir of a run for sampling and scoring."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flowjax import conditions
from flowjax.build import build, fields_of
from flowjax.config import Config, resolve
from flowjax.data import DataSpec
from flowjax.errors import check_name
from flowjax.methods.base import has_comparable_loss, learns_interval
from flowjax.paths import AffinePath
from flowjax.sources import Source
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.snapshots import FOLDER, posthoc
from flowjax.training.state import abstract_state
from flowjax.training.workdir import read_config
from flowjax.typing import Params, PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Run", "at_step", "load"]


@dataclass(frozen=True, repr=False)
class Run:
    """A trained run.

    Attributes:
        workdir: folder of the run.
        config: resolved.
        step: of the checkpoint.
        spec: shape, normalisation, classes and conditions of the data.
        method: the method (`flowjax.methods`) that the config describes.
        params: the parameters of the network: their moving average, or the raw ones.
        variables: the variables of the network that are not parameters, such as batch statistics.
        plugins: the modules that may be imported for objects that the config names.
        averaged: whether `params` are the moving average that training kept.
        kept_interval: the interval of a run without its parameters (`without_arrays`).
    """

    workdir: Path
    config: Config
    step: int
    spec: DataSpec
    method: Any
    params: Params
    variables: PyTree = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    averaged: bool = True
    kept_interval: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return (
            f"Run({str(self.workdir)!r}, data={self.spec.name!r}, method={self.config.method.name!r}, step={self.step})"
        )

    def _repr_html_(self) -> str:
        """The representation in notebooks: a table, and a figure of samples."""
        from flowjax.inference.card import run_card  # which imports this module

        return run_card(self)

    @cached_property
    def fields(self) -> tuple[conditions.Field, ...]:
        """The conditions of the network that a caller can give; empty for an unconditional network.

        The condition `augment`, which is given in training only, is left out.
        """
        return tuple(field for field in fields_of(self.config, self.spec) if field.name != "augment")

    @property
    def given_source(self) -> str:
        """`data.pairs`, the name of the source samples that a caller gives; empty if samples start from the source.

        They do so also for a run on pairs that a model has made.
        """
        return "" if self.spec.paired_source else self.config.data.pairs

    @cached_property
    def path(self) -> AffinePath | None:
        """The path of the method; None for a method without one."""
        return getattr(self.method, "path", None)

    @cached_property
    def source(self) -> Source:
        """The source distribution of the method."""
        return self.method.source

    @property
    def prior(self) -> Source:
        """The distribution at the start of sampling: `path.prior(source)`."""
        return self.method.prior

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The times (t0, t1) between which the model is defined; (0, 1) for most."""
        if self.kept_interval is not None:
            return self.kept_interval
        return self.method.interval_of(self.params) if learns_interval(self.method) else self.method.interval

    @property
    def identity(self) -> tuple[int, DataSpec, tuple[float, float]]:
        """Equal for runs that differ only in their arrays, as long as one of them is kept alive; hashable.

        Runs of a method that learns its interval differ in that too.
        """
        return id(self.method), self.spec, self.interval

    @property
    def arrays(self) -> tuple[Params, PyTree]:
        """The arguments of `model`: the parameters, and the other variables of the network."""
        return self.params, self.variables

    @property
    def learns_variance(self) -> bool:
        """Whether the network also predicts the variance of ancestral steps."""
        prediction = getattr(self.method, "prediction", None)
        return prediction is not None and prediction.learns_variance

    def model(self, params: Params | None = None, variables: PyTree | None = None) -> Any:
        """The trained model in model space: an object with some of the abilities of `flowjax.abilities`.

        Args:
            params: parameters that replace those of the run. Without them each call returns the same object, for which
                solvers compile once. Under `jax.jit` the model is defined on the `interval` of this run, also if the
                interval is learned.
            variables: other variables that replace those of the run; used only together with `params`.
        """
        if params is None:
            return self._trained
        variables = self.variables if variables is None else variables
        if learns_interval(self.method) and any(isinstance(a, Tracer) for a in jax.tree.leaves(params)):
            return self.method.model(params, variables, interval=self.interval)
        return self.method.model(params, variables)

    @cached_property
    def _trained(self) -> Any:
        return self.method.model(self.params, self.variables)

    def sample(self, num: int, seed: int = 0, **options: Any) -> np.ndarray:
        """Draws samples in data space; `flowjax.inference.sample` also returns their conditions and the cost.

        Args:
            num: number of samples.
            seed: of the noise and the labels. Sample i depends only on the seed and i.
            options: other arguments of `flowjax.inference.sample`, such as `label`, `cond`, `guide`, or `steps` and the
                name of a `solver` in place of the default solver.

        Returns:
            (num, *event): 8-bit integers for images, 64-bit integers for other data of integers, otherwise
            floating-point numbers in the units of the data.
        """
        from flowjax.inference import sampling  # which imports this module

        return sampling.sample(self, num, seed, **_with_solver(options)).samples

    def log_prob(self, x: np.ndarray, **options: Any) -> np.ndarray:
        """Log-densities in nats of the data space; `flowjax.inference.log_prob` also returns the cost.

        Args:
            x: points, (N, *event), in the units of the data.
            options: other arguments of `flowjax.inference.log_prob`, such as `cond`, or `steps` and the name of a
                `solver` in place of the default solver, `rtol` and `atol`. With `check=64` a line says whether the
                first 64 values have converged.

        Returns:
            (N,).

        Raises:
            TypeError: under `jax.grad` or `jax.jit`; `flowjax.likelihood.log_prob(run.model(), ...)` can be
                differentiated, in model space.
        """
        from flowjax.inference import scoring

        if isinstance(x, Tracer):
            raise TypeError(
                "Run.log_prob works on NumPy arrays: differentiate or compile flowjax.likelihood.log_prob(run.model(), "
                "x, run.prior), with x in model space (run.spec.to_model)"
            )

        return scoring.log_prob(self, np.asarray(x), **_with_solver(options)).log_prob

    def plot(self, name: str = "samples", format: str | None = None, seed: int = 0) -> "Figure":
        """Draws a figure of the run, which a notebook shows; its data set is opened if the figure needs it.

        Args:
            name: of the figure, such as "loss", "samples", "trajectories", "density" or "likelihood". Which figures a
                run has depends on its data (`flowjax.inference.figures.fitting`).
            format: "png", "pdf" or "svg" also writes the figure into the folder `plots/` of the workdir. That folder
                holds figures of the last checkpoint with the moving average and seed 0; save other figures with
                `flowjax.plots.save`.
            seed: of the samples.

        Raises:
            ConfigError: if the run has no figure of this name; the message lists those that it has.
            ValueError: if the format is unknown, or the figure does not belong into `plots/`.
        """
        from flowjax import plots
        from flowjax.inference import figures

        if format is not None:
            check_name("format", format, plots.FORMATS)
            if not figures.of_the_end(self, seed):
                raise ValueError(f"{figures.NOT_OF_THE_END}: save this one with flowjax.plots.save(figure, FILE)")
        drawn = figures.draw(figures.FigureInputs(self, seed=seed), name)
        if format is not None:
            plots.save(drawn, self.workdir / "plots" / f"{name}.{format}")
        return drawn

    def without_arrays(self) -> "Run":
        """The same run without its parameters and variables, for objects that must not keep them in memory."""
        return replace(self, params=None, variables=None, kept_interval=self.interval)

    def with_class_shares(self, shares: tuple[float, ...]) -> "Run":
        """The same run, with these shares of the classes in its training data."""
        return replace(self, spec=replace(self.spec, class_shares=shares))


def _with_solver(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a `SolverSettings` in place of the name of a solver, its tolerances and a number of steps."""
    from flowjax.inference.choose import SolverSettings

    given = {name: options.pop(name) for name in ("steps", "rtol", "atol") if name in options}
    solver = options.get("solver", "")
    if isinstance(solver, str):
        options["solver"] = SolverSettings(solver, **given)
    elif given:
        raise ValueError(f"give {', '.join(given)} in the SolverSettings, or the solver by its name")
    return options


def load(
    workdir: str | Path,
    ema: bool = True,
    checkpoint: str | int = "last",
    width: float | None = None,
    plugins: Sequence[str] = (),
) -> Run:
    """Opens a workdir that `flowjax train` wrote; its data set is not needed.

    Args:
        workdir: of the run.
        ema: whether to use the moving average of the parameters instead of the raw ones.
        checkpoint: "last", "best" (by validation loss), or a step.
        width: use the average of this width instead (`flowjax.training.averages`), a share of the run such as 0.1,
            which is computed from the snapshots of a run with `ema.widths`.
        plugins: the modules that may be imported, with their submodules, such as ("my_package",). A run whose config
            names an object of another module is refused before anything is imported.

    Raises:
        WorkdirError: if there is no run in the workdir.
        ConfigError: if the config cannot be used.
        CheckpointError: if there is no such checkpoint, or it cannot be read.
        SnapshotError: if the snapshots that `width` needs are missing or cannot be read.
    """
    if isinstance(plugins, str):
        plugins = (plugins,)
    workdir = Path(workdir)
    raw, spec = read_config(workdir)
    config = resolve(raw, plugins)
    method = build(config, spec, plugins)
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.choose(str(checkpoint), has_comparable_loss(method))
    state = checkpoints.restore(step, abstract_state(config, method))
    if width is not None:
        tracked = dict(zip(config.ema.widths, state.averages, strict=True))
        params = jax.tree.map(jnp.asarray, posthoc(workdir / FOLDER, width, step, tracked))
    else:
        params = state.ema if ema else state.params
    averaged = ema and width is None
    return Run(workdir, config, step, spec, method, params, state.variables, tuple(plugins), averaged)


def at_step(run: Run, step: int) -> Run:
    """Returns a run at another of its checkpoints, with the moving average of the parameters.

    The method is the same object, so that what was compiled for the run is used again.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read.
    """
    state = Checkpoints(run.workdir / "checkpoints").restore(step, abstract_state(run.config, run.method))
    arrays = {"params": state.ema, "variables": state.variables, "kept_interval": None}
    return replace(run, step=step, averaged=True, **arrays)
