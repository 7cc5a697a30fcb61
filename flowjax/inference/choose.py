"""What is sampled, and how: a solver with its time grid, another schedule and guidance, chosen for a run.

`choose` makes all checks, in one place, before anything is compiled. Its `Choice` builds the model that is sampled.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from flowjax import guidance
from flowjax.abilities import abilities_of
from flowjax.arguments import make
from flowjax.errors import ConfigError, unknown
from flowjax.inference.run import Run
from flowjax.names import make_schedule
from flowjax.paths import AffinePath
from flowjax.paths.transition import Variance
from flowjax.plugins import modules_of
from flowjax.ranges import Range
from flowjax.reschedule import Rescheduled
from flowjax.schedules import Schedule
from flowjax.solvers import Options, diffusions, grids, make_sampler
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.grids import GRIDS
from flowjax.solvers.names import check_abilities, check_solver, needs_of
from flowjax.solvers.names import interval as solver_interval
from flowjax.training.writers import say

__all__ = ["DEFAULT_SOLVER", "Arrays", "Choice", "Guide", "SampledModel", "SolverSettings", "choose"]

Arrays = tuple[Any, ...]
"""What `Run.model` takes: parameters and variables; or nothing, for those of the run."""

SampledModel = Any
"""What is sampled: the model of a run (`flowjax.abilities`), perhaps guided, or used on another schedule."""


@dataclass(frozen=True)
class SolverSettings:
    """How to integrate: see `flowjax.solvers.sample`.

    Attributes:
        name: of the solver; empty for that of the run's method, or for a likelihood `dopri5`.
        rtol, atol, steps: of the solver; adaptive where steps is None.
        grid: a name in `GRIDS`, or `learned`, for `steps` steps; empty for the sampler's own.
        eta, churn, g, variance: as in `flowjax.solvers.Options`, but churn is S_churn, the sum over all steps, and g
            a name in `DIFFUSIONS` with its arguments, or a number for a constant.
        schedule: another one than was trained, as in configs.
    """

    name: str = ""
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
        return {"solver": self.name or "dopri5", "rtol": self.rtol, "atol": self.atol, "steps": self.steps}

    def options(self) -> Options:
        """Raises ConfigError if g is not one."""
        churn = None if self.churn is None else min(self.churn / (self.steps or 1), 2**0.5 - 1)
        return Options(self.eta, churn, None if self.g is None else _diffusion(self.g), self.variance)

    def check(self) -> None:
        """Refuses what cannot be meant, before a run is opened.

        Raises:
            ValueError: one line.
        """
        if self.name:
            check_solver(self.name, self.steps, self.options())
        if self.schedule is not None:
            _schedule(self.schedule)
        if self.variance not in (None, "small", "large", "learned"):
            raise ValueError(f"variance: {unknown(self.variance, ('small', 'large', 'learned'))}")
        if self.grid not in ("", "learned"):
            make("grid", self.grid, {**GRIDS, "learned": lambda: None})
        if self.grid and self.steps is None:
            raise ValueError("grid: an adaptive solve chooses its own times: say how many with steps=N")


def _schedule(text: str) -> Schedule:
    """The schedule of that name, which the caller has given: naming an object of an own module allows the module."""
    return make_schedule(text, plugins=modules_of((text,)))


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


DEFAULT_SOLVER = SolverSettings()
"""The solver of the run's method, with default tolerances."""


_GRIDS_OF_RUNS: dict[str, grids.Grid] = {"edm": grids.EDM(7, 0.002, 80)}
"""Samplers whose default grid is another one for runs, because the data of a run are normalised: they have a standard
deviation near one, for which the published noise levels need fewer steps than all levels of the path."""


@dataclass(frozen=True)
class Choice:
    """A run with the solver and the guidance that it is sampled with, which fit together.

    Attributes:
        run, solver, guide: what was chosen.
        path: on which samples are drawn; another than the run's where the solver has its own schedule, and None where
            the method has no path.
        interval: the times (t0, t1) of the solve; None where the method has no path.
        source_scale: what multiplies the prior's samples at t0.
        grid: the time grid, or None for the sampler's own. A learned grid starts from it.
        options: of the sampler.
    """

    run: Run
    solver: SolverSettings
    guide: Guide | None
    path: AffinePath | None
    interval: tuple[float, float] | None
    source_scale: float
    grid: grids.Grid | None
    options: Options

    @property
    def arrays(self) -> tuple[Arrays, Arrays]:
        """The parameters and variables of the network, and of the weaker one of autoguidance, or nothing."""
        weak = None if self.guide is None else self.guide.weak
        return self.run.arrays, () if weak is None else weak.arrays

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for choices that differ in arrays alone; hashable."""
        guide = self.guide
        if guide is None:
            return self.run.identity, self.solver
        weak = None if guide.weak is None else guide.weak.identity
        return self.run.identity, self.solver, guide.name, guide.scale, guide.interval, guide.rescale, weak

    def without_arrays(self) -> "Choice":
        """The same choice, which keeps no parameters in memory."""
        guide = self.guide
        if guide is not None and guide.weak is not None:
            guide = dataclasses.replace(guide, weak=guide.weak.without_arrays())
        return dataclasses.replace(self, run=self.run.without_arrays(), guide=guide)

    def model(self, network: Arrays, weak: Arrays) -> SampledModel:
        """The model that is sampled, with these arrays of the network and of the weaker one."""
        return _model(self.run, self.guide, self.path, network, weak)


def choose(run: Run, solver: SolverSettings = DEFAULT_SOLVER, guide: Guide | None = None, show: bool = False) -> Choice:
    """Checks that a solver and guidance have a meaning for a run, and finds where and when the run is solved.

    Args:
        run: opened with `flowjax.load`.
        solver: how to integrate.
        guide: guidance, or None.
        show: say on stderr if the solve cannot cover the whole schedule.

    Raises:
        ConfigError: if the solver, the schedule or the guidance has no meaning for this run.
    """
    if not solver.name:
        steps = run.method.steps if solver.steps is None else solver.steps
        solver = dataclasses.replace(solver, name=run.method.sampler, steps=steps)
    options = _options(run, solver)
    if guide is not None:
        _check_guide(run, guide)
    trained, grid = run.path, _grid(solver)
    try:
        changes = guide is not None or solver.schedule is not None
        if changes and "ends" not in (offered := abilities_of(run.model())):
            raise ValueError(f"guidance and another schedule need ends, and this model offers {', '.join(offered)}")
        check_abilities(_model(run, guide, trained, (), ()), solver.name, needs_of(solver.name, options))
        if trained is None:
            return _choose_without_path(run, solver, guide, grid, options)
        path = trained
        if solver.schedule is not None:
            path = dataclasses.replace(trained, schedule=_schedule(solver.schedule))
        low, high = _model(run, guide, path, (), ()).interval
        if path != trained:
            path.prior(run.source)  # refuses a source that the schedule cannot start from
        ours = solver_interval(solver.name, path, options)
        low, high = max(low, ours[0], path.t_min), min(high, ours[1], path.t_max)
        if low >= high:
            raise ValueError(f"{path.schedule} has no noise levels in common with {trained.schedule}")
        sampler = make_sampler(solver.name, path, options)
        if sampler is not None and solver.steps is not None:
            grids.times_for(sampler, solver.steps, grid, low, high)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"solver {solver.name!r}: {error}") from None
    if solver.grid == "learned" and (sampler is None or solver.steps is None):
        raise ConfigError(f"grid 'learned' is for samplers with a fixed number of steps, not {solver.name}")
    if show and path != trained and (low > path.t_min + 1e-6 or high < path.t_max - 1e-6):
        say(
            f"sample: {path.schedule} reaches beyond the noise levels that the network has seen; the solve runs from "
            f"t = {low:.4g} to {high:.4g}, where it has"
        )
    # noise of the size it has where the solve starts; the prior's is that of t = 0 of the trained schedule
    first = float(trained.schedule.sigma(0.0)) if float(trained.schedule.alpha(0.0)) else 1.0
    return Choice(run, solver, guide, path, (low, high), float(path.schedule.sigma(low)) / first, grid, options)


def _choose_without_path(
    run: Run, solver: SolverSettings, guide: Guide | None, grid: grids.Grid | None, options: Options
) -> Choice:
    """The choice for a method without a path: its model knows the times at which it can be asked."""
    if solver.grid == "learned":
        raise ValueError("a learned grid needs a method with a path")
    return Choice(run, solver, guide, None, None, 1.0, grid, options)


def _model(run: Run, guide: Guide | None, path: AffinePath | None, network: Arrays, weak: Arrays) -> SampledModel:
    """The network, guided on the path it was trained on, then used on the path it is sampled on."""
    model = run.model(*network)
    if guide is not None and guide.weak is not None:
        model = guidance.Auto(model, guide.weak.model(*weak), guide.scale)
    elif guide is not None:
        model = guidance.ClassifierFree(model, guide.scale, run.fields, guide.interval, guide.rescale)
    return model if path is None or path == run.path else Rescheduled(model, path)


def _grid(solver: SolverSettings) -> grids.Grid | None:
    """The grid that the solver names; where it names none, or `learned`, the default for runs, if there is one."""
    if solver.grid in ("", "learned"):
        return _GRIDS_OF_RUNS.get(solver.name)
    return make("grid", solver.grid, GRIDS)


def _options(run: Run, solver: SolverSettings) -> Options:
    """The solver's options; `ddpm` takes the variance that the network has learned, if it has."""
    options = solver.options()
    if options.variance == "learned" and not run.learns_variance:
        raise ConfigError("variance 'learned' needs prediction 'noise_variance', and this run has another")
    if solver.name == "ddpm" and run.learns_variance and options.variance is None:
        return dataclasses.replace(options, variance="learned")
    return options


def _check_guide(run: Run, guide: Guide) -> None:
    """ConfigError if the guidance has no meaning for the run."""
    if guide.name == "auto":
        _check_weak(run, guide.weak)
        return
    if guide.name != "cfg":
        raise ConfigError(f"guidance: {unknown(guide.name, ('cfg', 'auto'))}")
    if guide.weak is not None:
        raise ConfigError("guidance 'cfg' takes no weaker network: leave weak out, or take guidance 'auto'")
    if not run.fields:
        raise ConfigError("guidance 'cfg' needs conditions, and this network has none: train with data.cond=label")
    if not any(field.dropout for field in run.fields):
        raise ConfigError(
            "guidance 'cfg' needs a network that was trained with data.cond_dropout above 0, and for this run it is 0"
        )


def _check_weak(run: Run, weak: Run | None) -> None:
    """ConfigError unless the weaker network of autoguidance was trained for the same as the run."""
    if weak is None:
        raise ConfigError("guidance 'auto' needs a weaker network: --weak WORKDIR or --weak_checkpoint STEP")
    # names and shares of classes, which runs of earlier versions do not know, make no other data
    spec = lambda run: dataclasses.replace(run.spec, class_names=(), class_shares=())
    fields = lambda run: tuple(dataclasses.replace(field, dropout=0.0) for field in run.fields)
    kinds = {
        "path": lambda run: run.path,
        "data": spec,
        "source": lambda run: run.config.get("source"),
        "coupling": lambda run: run.config.get("coupling"),
        "condition": fields,
    }
    if differs := [kind for kind, of in kinds.items() if of(weak) != of(run)]:
        raise ConfigError(f"--weak is a run of another {' and '.join(differs)}: guidance 'auto' needs the same")
