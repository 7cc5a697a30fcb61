"""How a run is solved: a solver with its grid, another schedule and guidance, checked and bound to the run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flowjax import guidance
from flowjax.arguments import make
from flowjax.conditions import NO_LABEL, named
from flowjax.errors import ConfigError, unknown
from flowjax.inference.run import Run
from flowjax.names import make_schedule
from flowjax.paths import AffinePath
from flowjax.paths.transition import Variance
from flowjax.predictions import Reading
from flowjax.ranges import Range
from flowjax.reschedule import Rescheduled
from flowjax.solvers import Options, diffusions, grids, make_sampler
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.grids import GRIDS
from flowjax.solvers.names import check_solver
from flowjax.solvers.names import interval as solver_interval
from flowjax.training.writers import say
from flowjax.typing import Cond, Params


@dataclass(frozen=True)
class Solver:
    """How to integrate: see `flowjax.solvers.sample`.

    Attributes:
        name, rtol, atol, steps: of the solver; adaptive where steps is None.
        grid: a name in `GRIDS`, or `learned`, for `steps` steps; empty for the sampler's own.
        eta, churn, g, variance: as in `flowjax.solvers.Options`, but churn is S_churn, the sum over all steps, and g
            a name in `DIFFUSIONS` with its arguments, or a number for a constant.
        schedule: another one than was trained, as in configs.
    """

    name: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int | None = None
    grid: str = ""
    eta: float | None = None
    churn: float | None = None
    g: str | None = None
    variance: Variance | None = None
    schedule: str | None = None

    @property
    def tolerances(self) -> dict[str, Any]:
        """What `likelihood.log_prob` takes."""
        return {"solver": self.name, "rtol": self.rtol, "atol": self.atol, "steps": self.steps}

    def options(self) -> Options:
        """Raises ConfigError if g is not one."""
        churn = None if self.churn is None else min(self.churn / (self.steps or 1), 2**0.5 - 1)
        return Options(self.eta, churn, None if self.g is None else _diffusion(self.g), self.variance)

    def check(self) -> None:
        """Refuses what cannot be meant, before a run is opened.

        Raises:
            ValueError: one line.
        """
        check_solver(self.name, self.steps, self.options())
        if self.schedule is not None:
            make_schedule(self.schedule)
        if self.variance not in (None, "small", "large", "learned"):
            raise ValueError(f"variance: {unknown(self.variance, ('small', 'large', 'learned'))}")
        if self.grid not in ("", "learned"):
            make("grid", self.grid, {**GRIDS, "learned": lambda: None})
        if self.grid and self.steps is None:
            raise ValueError("grid: an adaptive solve chooses its own times: say how many with steps=N")


def _diffusion(text: str) -> Diffusion:
    try:
        constant = float(text)
    except ValueError:
        return make("g", text, diffusions.DIFFUSIONS)
    if told := Range(0, 1e9).fault(constant):
        raise ConfigError(f"g {told}")
    return diffusions.Constant(constant)


@dataclass(frozen=True)
class Guide:
    """How to guide: see `flowjax.guidance`.

    Attributes:
        name: `cfg`, or `auto`, against `weak`.
        scale: 1 for none.
        interval: times outside which `cfg` is off.
        rescale: of `cfg`.
        weak: a run of the same path.
    """

    name: str
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    weak: Run | None = None


DOPRI5 = Solver()

SampledModel = Reading | guidance.Auto | guidance.ClassifierFree | Rescheduled
"""What is sampled: the network of a run, guided, or used on another schedule."""


def bind(
    run: Run, solver: Solver, options: Options, guide: Guide | None, show: bool
) -> tuple[AffinePath, tuple[float, float], float]:
    """The path to sample on, the times of the solve, and what multiplies the prior's samples at its start.

    Raises:
        ConfigError: if the solver, the schedule or the guidance has no meaning for this run.
    """
    path = run.path
    try:
        if solver.schedule is not None:
            path = dataclasses.replace(run.path, schedule=make_schedule(solver.schedule))
        low, high = model_of(run, run.params, path, guide).interval
        if path != run.path:
            path.prior(run.source)  # refuses a source that the schedule cannot start from
        ours = solver_interval(solver.name, path, options)
        low, high = max(low, ours[0], path.t_min), min(high, ours[1], path.t_max)
        if low >= high:
            raise ValueError(f"{path.schedule} has no noise levels in common with {run.path.schedule}")
        sampler = make_sampler(solver.name, path, options)
        if sampler is not None and solver.steps is not None:
            grids.times_for(sampler, solver.steps, grid_of(solver), low, high)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"solver {solver.name!r}: {error}") from None
    if show and path != run.path and (low > path.t_min + 1e-6 or high < path.t_max - 1e-6):
        say(
            f"sample: {path.schedule} reaches beyond the noise levels that the network has seen; the solve runs from "
            f"t = {low:.4g} to {high:.4g}, where it has"
        )
    # noise of the size it has where the solve starts; the prior's is that of t = 0 of the trained schedule
    first = float(run.path.schedule.sigma(0.0)) if float(run.path.schedule.alpha(0.0)) else 1.0
    return path, (low, high), float(path.schedule.sigma(low)) / first


def model_of(run: Run, params: Params, path: AffinePath, guide: Guide | None) -> SampledModel:
    """The network, guided on the path it was trained on, then used on the path it is sampled on."""
    plain = _guided(run, run.problem.model(params), guide)
    return plain if path == run.path else Rescheduled(plain, path)


_GRIDS_OF_RUNS: dict[str, grids.Grid] = {"edm": grids.EDM(7, 0.002, 80)}
"""Samplers whose default grid is another one for runs, because the data of a run are normalised: they have a standard
deviation near one, for which the published noise levels need fewer steps than all levels of the path."""


def grid_of(solver: Solver) -> grids.Grid | None:
    """The time grid of a solver of a run.

    Returns:
        The grid that `solver.grid` names. Where it names none, or `learned`, which needs a grid to start from: the
        default for runs, or None for the default of the sampler.
    """
    if solver.grid in ("", "learned"):
        return _GRIDS_OF_RUNS.get(solver.name)
    return make("grid", solver.grid, GRIDS)


def options_of(run: Run, solver: Solver) -> Options:
    """The solver's options; `ddpm` takes the variance that the network has learned, if it has."""
    options = solver.options()
    learned = run.problem.prediction.name == "noise_variance"
    if options.variance == "learned" and not learned:
        raise ConfigError(f"variance 'learned' needs prediction 'noise_variance', not {run.config.prediction!r}")
    if solver.name == "ddpm" and learned and options.variance is None:
        return dataclasses.replace(options, variance="learned")
    return options


def _guided(run: Run, model: Reading, guide: Guide | None) -> SampledModel:
    if guide is None:
        return model
    if guide.name == "auto":
        weak = guide.weak
        # names and shares of classes, which runs of earlier versions do not know, make no other data
        spec = lambda run: dataclasses.replace(run.spec, class_names=(), class_shares=())
        same = lambda run: (run.path, spec(run), run.config.source, run.config.coupling, run.fields)
        if weak is None:
            raise ConfigError("guidance 'auto' needs a weaker network: --weak WORKDIR or --weak_checkpoint STEP")
        kinds = ("path", "data", "source", "coupling", "condition")
        if differs := [kind for kind, a, b in zip(kinds, same(weak), same(run), strict=True) if a != b]:
            raise ConfigError(f"--weak is a run of another {' and '.join(differs)}: guidance 'auto' needs the same")
        return guidance.Auto(model, weak.model, guide.scale)
    if guide.name != "cfg":
        raise ConfigError(f"guidance: {unknown(guide.name, ('cfg', 'auto'))}")
    label = named(run.fields, "label")
    if label is None:
        raise ConfigError("guidance 'cfg' needs labels, and this network has none: train with data.cond=label")
    if not label.dropout:
        raise ConfigError(
            "guidance 'cfg' needs a network that was trained with data.cond_dropout above 0, and for this run it is 0"
        )
    return guidance.ClassifierFree(model, guide.scale, run.fields, guide.interval, guide.rescale, uncond=_no_label)


def _no_label(cond: Cond) -> Cond:
    return jax.tree.map(lambda labels: jnp.full_like(labels, NO_LABEL), cond)
