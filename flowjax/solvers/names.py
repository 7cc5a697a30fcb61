"""The solvers of `flowjax.solvers.sample` by name: what each needs of a model, and how it is made for a path.

A name is a sampler of `SAMPLERS`, a Runge-Kutta method or another explicit ODE solver of diffrax on a grid, the same
with adaptive steps, an SDE solver of diffrax, or `push_forward`, the map of a bijection. `g` turns `euler` and `heun`
into their stochastic forms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from flowjax.abilities import abilities_of, missing_from
from flowjax.arguments import make
from flowjax.errors import check_name
from flowjax.paths.affine import AffinePath
from flowjax.paths.transition import Variance
from flowjax.plugins import Kind, Outside, find, is_outside, modules_of
from flowjax.solvers import deterministic, diffusions, exponential, flow_map, samplers, sde, stochastic
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, MULTISTEP_SOLVERS, SOLVERS, check_steps
from flowjax.solvers.samplers import Sampler

__all__ = [
    "DEFAULT_OPTIONS",
    "PUSH_FORWARD",
    "SAMPLERS",
    "NamedSampler",
    "Options",
    "check_abilities",
    "check_solver",
    "diffusion_of",
    "interval",
    "known_solvers",
    "like_diffrax",
    "make_sampler",
    "needs_of",
    "plain_name",
]

SAMPLER = Kind("a sampler", ("init", "step", "needs", "evaluations"), makes=Sampler, functions=False)
"""A sampler from outside, a class that is called with the path of the model and the arguments in brackets. Its name is
always one that the caller gives, so it allows its module."""

PUSH_FORWARD = "push_forward"
"""The name of the solver that applies the map of a bijection; it takes no steps."""


@dataclass(frozen=True)
class Options:
    """What some samplers can be told; None for a sampler's own default.

    Attributes:
        eta: of `ddim`, between 0 and 1: the share of DDPM's noise.
        churn: of `edm`: S_churn over the number of steps, at most sqrt(2) - 1.
        g: the diffusion of an SDE: one of `flowjax.solvers.diffusions`, a function (path, t) -> g^2, or a number.
        variance: of `ddpm`: small, large or learned.
    """

    eta: float | None = None
    churn: float | None = None
    g: Diffusion | float | int | None = None
    variance: Variance | None = None

    @property
    def diffusion(self) -> Diffusion | None:
        return diffusions.Constant(self.g) if isinstance(self.g, int | float) else self.g


DEFAULT_OPTIONS = Options()
"""Each sampler's own defaults."""


def _ddim(path: AffinePath, o: Options) -> Sampler:
    return stochastic.Ancestral(path, o.eta) if o.eta else deterministic.DDIM(path)


def diffusion_of(path: AffinePath, options: Options) -> Diffusion:
    """The diffusion that was asked for, or the path's default."""
    return options.diffusion or diffusions.default(path)


class NamedSampler(NamedTuple):
    """A sampler that has a name: its class, which says what it needs, and how it is made for a path and options."""

    kind: type[Any]
    make: Callable[[Any, Options], Sampler]


SAMPLERS: dict[str, NamedSampler] = {
    "ab2": NamedSampler(deterministic.AdamsBashforth, lambda path, o: deterministic.AdamsBashforth(path)),
    "ddim": NamedSampler(deterministic.DDIM, _ddim),
    "ddpm": NamedSampler(
        stochastic.Ancestral, lambda path, o: stochastic.Ancestral(path, variance=o.variance or "small")
    ),
    "edm": NamedSampler(deterministic.EDMHeun, lambda path, o: deterministic.EDMHeun(path, o.churn or 0.0)),
    "dpmpp_2m": NamedSampler(exponential.DPMSolverPP2M, lambda path, o: exponential.DPMSolverPP2M(path)),
    "dpmpp_3m": NamedSampler(exponential.DPMSolverPP3M, lambda path, o: exponential.DPMSolverPP3M(path)),
    "dpmpp_sde": NamedSampler(exponential.DPMSolverPP2M, lambda path, o: exponential.DPMSolverPP2M(path, sde=True)),
    "unipc": NamedSampler(exponential.UniPC, lambda path, o: exponential.UniPC(path)),
    "euler_maruyama": NamedSampler(
        stochastic.EulerMaruyama, lambda path, o: stochastic.EulerMaruyama(path, diffusion_of(path, o))
    ),
    "stochastic_heun": NamedSampler(
        stochastic.StochasticHeun, lambda path, o: stochastic.StochasticHeun(path, diffusion_of(path, o))
    ),
    "pc": NamedSampler(
        stochastic.PredictorCorrector, lambda path, o: stochastic.PredictorCorrector(path, diffusion_of(path, o))
    ),
    "langevin": NamedSampler(stochastic.AnnealedLangevin, lambda path, o: stochastic.AnnealedLangevin(path)),
    "flow_map": NamedSampler(flow_map.FlowMapSteps, lambda path, o: flow_map.FlowMapSteps(path)),
}
"""Samplers by name."""

_STOCHASTIC_FORM = {"euler": "euler_maruyama", "heun": "stochastic_heun"}
_TAKES = {
    "eta": ("ddim",),
    "churn": ("edm",),
    "variance": ("ddpm",),
    "g": ("euler", "heun", "euler_maruyama", "stochastic_heun", "pc", *sde.SDE_SOLVERS),
}


_FIRST_NAMED = ("dopri5", "euler", "heun", "unipc", "ddim", "flow_map", PUSH_FORWARD)
"""Solvers that an error message names before the others."""


def known_solvers() -> list[str]:
    """The names that `sample` knows."""
    return sorted({*SAMPLERS, *SOLVERS, *MULTISTEP_SOLVERS, *ADAPTIVE_SOLVERS, *sde.SDE_SOLVERS, PUSH_FORWARD})


def plain_name(name: str) -> str:
    """The name in lower case, as the tables have it; a name from outside, `my_package.samplers:Mine`, as it is."""
    return name if is_outside(name) else name.lower()


def needs_of(name: str, options: Options = DEFAULT_OPTIONS) -> tuple[str, ...]:
    """The abilities (`flowjax.abilities.ABILITIES`) that the solver of that name asks of a model."""
    if is_outside(name):
        return find("solver", name.partition("(")[0].strip(), SAMPLER, modules_of((name,))).needs
    name = _STOCHASTIC_FORM.get(name, name) if options.g is not None else name
    if name in SAMPLERS:
        return SAMPLERS[name].kind.needs
    if name == PUSH_FORWARD:
        return ("bijection",)
    return samplers.StochasticSampler.needs if name in sde.SDE_SOLVERS else deterministic.RungeKutta.needs


def check_abilities(model: Any, name: str, needs: Sequence[str]) -> None:
    """Refuses a model that lacks what a solver needs.

    Raises:
        ValueError: one line that names what is missing, and the solvers that would do.
    """
    offered = abilities_of(model)
    lacking = [ability for ability in needs if ability not in offered]
    if not lacking:
        return
    if lacking == ["score"] and (reason := missing_from(model).get("score")):
        raise ValueError(f"{name} follows an SDE: {reason}; or take an ODE sampler, such as heun")
    fit = [other for other in (*_FIRST_NAMED, *known_solvers()) if set(needs_of(other)) <= set(offered)]
    fit = list(dict.fromkeys(fit))
    advice = "take " + ", ".join(fit[:6]) + (", ..." if len(fit) > 6 else "")
    if not fit:
        advice = "no solver takes it; a function that returns the ends becomes a model by flowjax.predictions.model"
    raise ValueError(
        f"{name} needs {' and '.join(lacking)}, and this model offers {', '.join(offered) or 'nothing'}: {advice}"
    )


def check_solver(name: str, steps: int | None, options: Options = DEFAULT_OPTIONS) -> None:
    """ValueError, in one line, unless `sample` knows this solver and it takes these steps (None: adaptive) and
    options.
    """
    name = plain_name(name)
    if not is_outside(name):
        check_name("solver", name, sorted(known_solvers()))
    for option, takers in _TAKES.items():
        if getattr(options, option) is not None and name not in takers:
            raise ValueError(f"{name} takes no {option}; it is for {', '.join(takers)}")
    if is_outside(name):
        find("solver", name.partition("(")[0].strip(), SAMPLER, modules_of((name,)))
        if steps is None:
            raise ValueError(f"{name} takes a number of steps: say how many with steps=N")
        return
    if name == PUSH_FORWARD:
        if steps is not None:
            raise ValueError(f"{name} applies the model's map at once, so it takes no steps or grid: leave them out")
        return
    check_steps(name, steps, name in ADAPTIVE_SOLVERS and options.g is None)
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), not {options.eta}")


def make_sampler(name: str, path: AffinePath | None, options: Options = DEFAULT_OPTIONS) -> Sampler | None:
    """The sampler of that name on a path.

    Args:
        name: of the solver.
        path: of the model; None for a model without one, whose solvers need none.
        options: what some samplers can be told.

    Returns:
        The sampler; None for what does not run in `samplers.run`: SDE solvers of diffrax, its multistep ODE solvers,
        its adaptive ones that have no tableau, and `push_forward`.

    Raises:
        ValueError: if the path cannot give it what it needs.
    """
    name = plain_name(name)
    if is_outside(name):
        sampler = make("solver", name, {}, outside=Outside(SAMPLER, modules_of((name,)), (path,)))
        samplers.check(sampler)
        return sampler
    if options.g is not None:
        name = _STOCHASTIC_FORM.get(name, name)
    if name in sde.SDE_SOLVERS:
        assert path is not None  # as the model has ends
        samplers.check(like_diffrax(path, options))
        return None
    if name in SAMPLERS:
        sampler = SAMPLERS[name].make(path, options)
        samplers.check(sampler)
        return sampler
    return deterministic.RungeKutta(path, SOLVERS[name]) if name in SOLVERS else None


def interval(name: str, path: AffinePath | None, options: Options = DEFAULT_OPTIONS) -> tuple[float, float]:
    """The times on which that solver can be used on that path; (0, 1) without a path."""
    sampler = make_sampler(name, path, options)
    if path is None:
        return 0.0, 1.0
    if name.lower() in sde.SDE_SOLVERS:
        sampler = like_diffrax(path, options)
    return (path.t_min, path.t_max) if sampler is None else samplers.interval(sampler)


def like_diffrax(path: AffinePath, options: Options) -> Sampler:
    """What asks of a path and a grid what diffrax's SDE solvers do."""
    return stochastic.EulerMaruyama(path, diffusion_of(path, options))
