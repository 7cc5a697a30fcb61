"""What is sampled and how: a run with a solver, a time grid, a schedule and guidance.

`choose` checks that these fit together before anything is compiled. Its result, a `Choice`, builds the model that is
sampled.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from flowjax import guidance
from flowjax.abilities import abilities_of
from flowjax.arguments import make
from flowjax.errors import ConfigError, lookup, unknown
from flowjax.inference.run import Run
from flowjax.names import make_schedule
from flowjax.paths import AffinePath
from flowjax.paths.transition import Variance
from flowjax.plugins import modules_of
from flowjax.ranges import Range
from flowjax.reschedule import Rescheduled
from flowjax.schedules import Schedule
from flowjax.solvers import Options, Sampler, diffusions, grids, make_sampler, samplers
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.grids import GRIDS
from flowjax.solvers.names import PUSH_FORWARD, check_abilities, check_solver, needs_of, plain_name, takes
from flowjax.solvers.names import interval as solver_interval
from flowjax.solvers.ode import ADAPTIVE_SOLVERS
from flowjax.training.writers import say

__all__ = ["DEFAULT_SOLVER", "GUIDES", "Arrays", "Choice", "Guide", "NamedGuide", "SolverSettings", "choose"]

Arrays = tuple[Any, ...]
"""Arguments of `Run.model`: the parameters and the other variables of a network, or () for those of the run."""

_LEARNED = "learned"
"""The grid whose times are optimised on samples."""

_VARIANCES = ("small", "large", "learned")

_GRIDS_OF_RUNS: dict[str, grids.Grid] = {"edm": grids.EDM(7, 0.002, 80)}
"""Samplers whose default grid differs for runs. The data of a run are normalised to a standard deviation near one, for
which the published noise levels need fewer steps than all noise levels of the path."""


@dataclass(frozen=True)
class SolverSettings:
    """How the differential equation is integrated: see `flowjax.solvers.sample`.

    Attributes:
        name: of the solver; the default, "", is the solver of the run's method, and `dopri5` for likelihoods.
        rtol, atol: tolerances of an adaptive solver.
        steps: number of steps; None for adaptive steps.
        grid: a name in `flowjax.solvers.grids.GRIDS`, or `learned`, for `steps` steps; "" for the sampler's default.
        eta, variance: as in `flowjax.solvers.Options`.
        churn: S_churn of Karras et al. 2022, the sum over all steps.
        g: the diffusion of an SDE: a name in `flowjax.solvers.diffusions.DIFFUSIONS` with its arguments, or a number.
        schedule: a schedule that replaces the trained one, written as in configs.
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
    def learns_grid(self) -> bool:
        """Whether the time grid is optimised on samples."""
        return self.grid == _LEARNED

    @property
    def tolerances(self) -> dict[str, Any]:
        """The arguments of `flowjax.likelihood.log_prob`."""
        return {"solver": self.name or "dopri5", "rtol": self.rtol, "atol": self.atol, "steps": self.steps}

    @property
    def of_densities(self) -> "SolverSettings":
        """The solver of densities that are computed beside samples: one with adaptive steps, and these tolerances.

        Few steps can give good samples and wrong densities, so a fixed number of steps is for the samples only.
        """
        name = self.name if self.name.lower() in ADAPTIVE_SOLVERS else ""
        return SolverSettings(name, self.rtol, self.atol)

    def options(self) -> Options:
        """The options of the sampler.

        Raises:
            ConfigError: if `g` is neither a known diffusion nor a number in its range.
        """
        churn = None if self.churn is None else min(self.churn / (self.steps or 1), 2**0.5 - 1)
        return Options(self.eta, churn, None if self.g is None else _diffusion(self.g), self.variance)

    def check_no_grid(self) -> None:
        """Raises ValueError if a grid is given for a solver that has none."""
        if self.grid and plain_name(self.name) == PUSH_FORWARD:
            raise ValueError("grid: push_forward evaluates a map once, so it has no grid: leave the grid out")

    def check(self) -> None:
        """Checks all that can be checked without a run.

        Raises:
            ValueError: one line that names the setting.
        """
        if self.name:
            check_solver(self.name, self.steps, self.options())
        if self.schedule is not None:
            _schedule(self.schedule)
        if self.variance not in (None, *_VARIANCES):
            raise ValueError(f"variance: {unknown(self.variance, _VARIANCES)}")
        self.check_no_grid()
        if self.grid:
            make("grid", self.grid, {**GRIDS, _LEARNED: lambda: None})
            if self.steps is None:
                raise ValueError("grid: an adaptive solve chooses its own times: say how many with steps=N")


DEFAULT_SOLVER = SolverSettings()
"""The solver of the run's method with default tolerances."""


def _schedule(text: str) -> Schedule:
    """The schedule of that name. The caller wrote the name, so the module that it names may be imported."""
    return make_schedule(text, plugins=modules_of((text,)))


def _diffusion(text: str) -> Diffusion:
    try:
        constant = float(text)
    except ValueError:
        return make("g", text, diffusions.DIFFUSIONS)
    if fault := Range(0, 1e9).fault(constant):
        raise ConfigError(f"g {fault}")
    return diffusions.Constant(constant)


@dataclass(frozen=True)
class Guide:
    """How samples are guided: see `flowjax.guidance`.

    Attributes:
        name: in `GUIDES`: `cfg` for classifier-free guidance, `auto` for autoguidance.
        scale: 1 leaves the model unchanged.
        interval: of `cfg`: the times in [0, 1] between which it applies.
        rescale: of `cfg`: see `flowjax.guidance.ClassifierFree`.
        fields: of `cfg`: the names of the conditions towards which samples are guided; () for all.
        weak: of `auto`: a run with the same path and data whose network is weaker.
    """

    name: str
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    weak: Run | None = None
    fields: tuple[str, ...] = ()


class NamedGuide(NamedTuple):
    """A kind of guidance that has a name.

    Attributes:
        check: (run, guide) -> None; raises ConfigError if the guidance cannot be used with the run.
        wrap: (model, model of the weaker network or None, run, guide) -> the guided model.
        settings: the attributes of `Guide` that belong to this kind only.
    """

    check: Callable[[Run, Guide], None]
    wrap: Callable[[Any, Any, Run, Guide], Any]
    settings: tuple[str, ...]


def _check_classifier_free(run: Run, guide: Guide) -> None:
    if guide.weak is not None:
        raise ConfigError("guidance 'cfg' takes no weaker network: leave weak out, or take guidance 'auto'")
    if not run.fields:
        raise ConfigError("guidance 'cfg' needs conditions, and this network has none: train with data.cond=label")
    known = {field.name: field for field in run.fields}
    for name in guide.fields:
        lookup("guidance 'cfg', fields", name, known)
    if not any(known[name].dropout for name in guide.fields or known):
        raise ConfigError(
            "guidance 'cfg' needs a network that was trained with data.cond_dropout above 0, and for this run it is 0"
        )


def _check_auto(run: Run, guide: Guide) -> None:
    if guide.weak is None:
        raise ConfigError("guidance 'auto' needs a weaker network: --weak WORKDIR or --weak_checkpoint STEP")
    # another sample of the same data may have other shares of the classes
    kinds: dict[str, Callable[[Run], Any]] = {
        "path": lambda run: run.path,
        "data": lambda run: dataclasses.replace(run.spec, class_shares=()),
        "source": lambda run: run.config.get("source"),
        "coupling": lambda run: run.config.get("coupling"),
        "condition": lambda run: [dataclasses.replace(field, dropout=0.0) for field in run.fields],
    }
    if differs := [kind for kind, of in kinds.items() if of(guide.weak) != of(run)]:
        raise ConfigError(f"--weak is a run of another {' and '.join(differs)}: guidance 'auto' needs the same")


GUIDES: dict[str, NamedGuide] = {
    "cfg": NamedGuide(
        _check_classifier_free,
        lambda model, weak, run, guide: guidance.ClassifierFree(
            model, guide.scale, run.fields, guide.interval, guide.rescale, guide.fields
        ),
        ("interval", "rescale", "fields"),
    ),
    "auto": NamedGuide(_check_auto, lambda model, weak, run, guide: guidance.Auto(model, weak, guide.scale), ("weak",)),
}
"""Guidance by name."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A run with a solver and guidance that fit together.

    Attributes:
        identity: hashable; choices with equal identities can share a compiled program.
        run, guide: without parameters, so that a compiled program does not keep these in memory.
        solver: with the name and the steps of the method's solver where the caller named none.
        options: of the sampler.
        sampler: None for solvers without a `Sampler` (see `flowjax.solvers.make_sampler`) and methods without a path.
        grid: the time grid; None for the sampler's default.
        path: the path on which samples are drawn, with the solver's schedule; None for a method without a path.
        interval: the times (t0, t1) of the solve; None for a method without a path.
        source_scale: the factor by which samples of the prior are multiplied at t0.
        arrays: the parameters and variables of the network, and of the weaker one of autoguidance or ().
    """

    identity: tuple[Any, ...]
    run: Run
    guide: Guide | None
    solver: SolverSettings
    options: Options
    sampler: Sampler | None
    grid: grids.Grid | None
    path: AffinePath | None
    interval: tuple[float, float] | None
    source_scale: float
    arrays: tuple[Arrays, Arrays] | None = field(repr=False)

    @property
    def start_scale(self) -> float:
        """The factor by which samples of the source are multiplied at the start of the solve: sigma at its first time.

        It is 1 for a method without a path.
        """
        if self.path is None or self.interval is None:
            return 1.0
        with jax.ensure_compile_time_eval():
            return float(self.path.schedule.sigma(self.interval[0]))

    def model(self, network: Arrays, weak: Arrays) -> Any:
        """The model that is sampled, with these arrays of the network and of the weaker one."""
        return _on_path(_guided(self.run, self.guide, network, weak), self.run.path, self.path)


def choose(run: Run, solver: SolverSettings = DEFAULT_SOLVER, guide: Guide | None = None, show: bool = False) -> Choice:
    """Checks that a solver and guidance can be used with a run, and finds the path and the times of the solve.

    Args:
        run: opened with `flowjax.load`.
        solver: how to integrate.
        guide: guidance, or None.
        show: print a line on stderr if the solve cannot cover the whole schedule.

    Raises:
        ConfigError: if the solver, the schedule or the guidance cannot be used with this run.
    """
    # What is checked without a path: the solver and its options, the guidance, the grid, the abilities of the model.
    is_default = not solver.name
    if is_default:
        steps = run.method.steps if solver.steps is None else solver.steps
        solver = dataclasses.replace(solver, name=run.method.sampler, steps=steps)
    solver = dataclasses.replace(solver, name=plain_name(solver.name))
    options = _options(run, solver)
    if guide is not None:
        lookup("guidance", guide.name, GUIDES).check(run, guide)
    is_named = solver.grid and not solver.learns_grid
    grid = make("grid", solver.grid, GRIDS) if is_named else _GRIDS_OF_RUNS.get(solver.name)
    trained = run.path
    path, interval, source_scale, sampler = None, None, 1.0, None
    try:
        check_solver(solver.name, solver.steps, options)
        solver.check_no_grid()
        _check_ends(run, guide, solver.schedule)
        model = _guided(run, guide)
        check_abilities(model, solver.name, needs_of(solver.name, options))
        if trained is None and solver.learns_grid:
            raise ValueError("a learned grid needs a method with a path")
        if trained is None and solver.steps is not None:
            grids.without_path(grid, *run.interval, solver.steps)
            make_sampler(solver.name, None, options)  # refuses a sampler that needs a path
        # What is found on a path: the times of the solve, the scale of the source, and the sampler with its grid.
        if trained is not None:
            new = None if solver.schedule is None else _schedule(solver.schedule)
            path = trained if new is None else dataclasses.replace(trained, schedule=new)
            of_model = _on_path(model, trained, path).interval
            if path != trained:
                path.prior(run.source)  # refuses a source that the schedule cannot start from
            of_solver = solver_interval(solver.name, path, options)
            interval = max(of_model[0], of_solver[0], path.t_min), min(of_model[1], of_solver[1], path.t_max)
            if interval[0] >= interval[1]:
                raise ValueError(f"{path.schedule} has no noise levels in common with {trained.schedule}")
            # the prior has the noise of t = 0 on the trained schedule, and the solve needs that of its first time
            first = float(trained.schedule.sigma(0.0)) if float(trained.schedule.alpha(0.0)) else 1.0
            source_scale = float(path.schedule.sigma(interval[0])) / first
            sampler = make_sampler(solver.name, path, options)
            if sampler is not None and solver.steps is not None:
                grids.times_for(sampler, solver.steps, grid, *interval)
            elif solver.learns_grid:
                raise ConfigError(f"grid 'learned' is for samplers with a fixed number of steps, not {solver.name}")
            if show and path != trained and (interval[0] > path.t_min + 1e-6 or interval[1] < path.t_max - 1e-6):
                say(
                    f"sample: {path.schedule} reaches beyond the noise levels that the network was trained on; the "
                    f"solve runs from t = {interval[0]:.4g} to {interval[1]:.4g}, within these levels"
                )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"solver {solver.name!r}: {error}") from None
    if show:
        _describe_steps(run, solver, sampler if is_default else None)
    weak = None if guide is None else guide.weak
    settings = None if guide is None else (guide.name, guide.scale, guide.interval, guide.rescale, guide.fields)
    identity = run.identity, solver, settings, None if weak is None else weak.identity
    arrays = run.arrays, () if weak is None else weak.arrays
    if guide is not None and weak is not None:
        guide = dataclasses.replace(guide, weak=weak.without_arrays())
    bare = run.without_arrays()
    return Choice(identity, bare, guide, solver, options, sampler, grid, path, interval, source_scale, arrays)


def _check_ends(run: Run, guide: Guide | None, schedule: str | None) -> None:
    """Checks that the model has the ends that guidance and another schedule need.

    Raises:
        ConfigError: if it has not.
    """
    if guide is None and schedule is None:
        return
    offered = abilities_of(run.model())
    if "ends" in offered:
        return
    what, name = "another schedule" if guide is None else f"guidance {guide.name!r}", run.config.method.name
    reason = f"{what} needs the ends, and a model of method.name {name!r} offers {', '.join(offered)}"
    learns = guide is not None and "guidance" in run.config.method
    learned = "it learns guidance in training: set method.guidance when you train it, and sample without guidance"
    raise ConfigError(f"{reason}: {learned if learns else 'leave it out'}")


def _describe_steps(run: Run, solver: SolverSettings, default: Sampler | None) -> None:
    """Prints a line on stderr if steps of the default sampler take several evaluations, or are not those of training.

    Args:
        run: the run.
        solver: with the name and the steps that are used.
        default: the sampler if it is the default of the method; None if the caller has named it.
    """
    steps, trained = solver.steps, getattr(run.method, "trained_steps", ())
    if steps is None:
        return
    if default is not None and (count := samplers.evaluations(default, steps)) > steps:
        say(
            f"sample: steps={steps} of {solver.name}, the default solver of this run, takes {count} evaluations of the "
            f"network; the solver euler takes {steps}"
        )
    if trained and solver.name == run.method.sampler and steps not in trained:
        say(
            f"sample: warning: the network was trained for {', '.join(map(str, trained))} steps of {solver.name}, and "
            f"steps={steps} is an extrapolation"
        )


def _options(run: Run, solver: SolverSettings) -> Options:
    """The options of the sampler; by default it takes the variance that the network has learned, if both know one."""
    options = solver.options()
    if options.variance == "learned" and not run.learns_variance:
        raise ConfigError("variance 'learned' needs prediction 'noise_variance', and this run has another")
    if options.variance is None and run.learns_variance and takes(solver.name, "variance"):
        return dataclasses.replace(options, variance="learned")
    return options


def _guided(run: Run, guide: Guide | None, network: Arrays = (), weak: Arrays = ()) -> Any:
    """The model of the run on the path that it was trained on, with guidance."""
    model = run.model(*network)
    if guide is None:
        return model
    return GUIDES[guide.name].wrap(model, None if guide.weak is None else guide.weak.model(*weak), run, guide)


def _on_path(model: Any, trained: AffinePath | None, path: AffinePath | None) -> Any:
    return model if path is None or path == trained else Rescheduled(model, path)
