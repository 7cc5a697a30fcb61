"""The solvers of `flowjax.solvers.sample` by name: which abilities of a model each one needs, and how it is made.

A name stands for a sampler in `SAMPLERS`, an explicit ODE solver with fixed or adaptive steps, an SDE solver of
diffrax, or `push_forward`, which applies a map from the source to the data once. With the option `g`, `euler` and
`heun` are the SDE solvers `euler_maruyama` and `stochastic_heun`.
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
    "takes",
]

SAMPLER = Kind("a sampler", ("init", "step", "needs", "evaluations"), makes=Sampler, functions=False)
"""A sampler from outside the library: a class that is called with the path of the model and the arguments in brackets.
The caller always gives its name, so its module may be imported."""

PUSH_FORWARD = "push_forward"
"""The name of the solver that applies a map from the source to the data once: the forward map of a bijection, or the
ability `to_data` at the first time. Its number of steps is 1 or left out, and it has no grid."""


@dataclass(frozen=True)
class Options:
    """Options of single samplers. None is the default of the sampler.

    Attributes:
        eta: for `ddim`: the noise relative to DDPM, between 0 and 1.
        churn: for `edm`: S_churn divided by the number of steps, at most sqrt(2) - 1.
        g: for SDE solvers: the diffusion, which is one of `flowjax.solvers.diffusions`, a function (path, t) -> g^2, or
            a number.
        variance: for `ddpm`: "small", "large" or "learned".
    """

    eta: float | None = None
    churn: float | None = None
    g: Diffusion | float | int | None = None
    variance: Variance | None = None

    @property
    def diffusion(self) -> Diffusion | None:
        """g as a function; None if it is not given."""
        return diffusions.Constant(self.g) if isinstance(self.g, int | float) else self.g


DEFAULT_OPTIONS = Options()
"""The defaults of each sampler."""


def _ddim(path: AffinePath, o: Options) -> Sampler:
    return stochastic.Ancestral(path, o.eta) if o.eta else deterministic.DDIM(path)


def _consistency(path: AffinePath | None, o: Options) -> Sampler:
    if path is None:
        raise ValueError("consistency adds the noise of the model's path, and this model has none: use push_forward")
    return flow_map.ConsistencySteps(path)


def diffusion_of(path: AffinePath, options: Options) -> Diffusion:
    """The diffusion of the options, or the default of the path if they have none."""
    return options.diffusion or diffusions.default(path)


class NamedSampler(NamedTuple):
    """An entry of `SAMPLERS`.

    Attributes:
        kind: the class, whose `needs` are the abilities that the sampler needs.
        make: a function that makes the sampler from a path and options.
    """

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
    "consistency": NamedSampler(flow_map.ConsistencySteps, _consistency),
}
"""Samplers by name."""

_STOCHASTIC_FORM = {"euler": "euler_maruyama", "heun": "stochastic_heun"}
_TAKES = {
    "eta": ("ddim",),
    "churn": ("edm",),
    "variance": ("ddpm",),
    "g": ("euler", "heun", "euler_maruyama", "stochastic_heun", "pc", *sde.SDE_SOLVERS),
}


_FIRST_NAMED = ("dopri5", "euler", "heun", "unipc", "ddim", "flow_map", "consistency", PUSH_FORWARD)
"""Solvers that an error message names before the others."""


def known_solvers() -> list[str]:
    """The sorted names of all solvers that `sample` accepts."""
    return sorted({*SAMPLERS, *SOLVERS, *MULTISTEP_SOLVERS, *ADAPTIVE_SOLVERS, *sde.SDE_SOLVERS, PUSH_FORWARD})


def plain_name(name: str) -> str:
    """The name in lower case; a name from outside the library, `my_package.samplers:Mine`, is not changed."""
    return name if is_outside(name) else name.lower()


def takes(name: str, option: str) -> bool:
    """Whether the solver of that name takes an option, which is the name of a field of `Options`."""
    return name in _TAKES[option]


def needs_of(name: str, options: Options = DEFAULT_OPTIONS) -> tuple[str, ...]:
    """The abilities (`flowjax.abilities.ABILITIES`) that the solver of that name needs of a model."""
    if is_outside(name):
        return find("solver", name.partition("(")[0].strip(), SAMPLER, modules_of((name,))).needs
    name = _STOCHASTIC_FORM.get(name, name) if options.g is not None else name
    if name in SAMPLERS:
        return SAMPLERS[name].kind.needs
    if name == PUSH_FORWARD:
        return ("bijection",)
    return samplers.StochasticSampler.needs if name in sde.SDE_SOLVERS else deterministic.RungeKutta.needs


def check_abilities(model: Any, name: str, needs: Sequence[str]) -> None:
    """Checks that a model has the abilities that a solver needs.

    Raises:
        ValueError: if it does not; the message names the missing abilities and solvers that can be used instead.
    """
    offered = abilities_of(model)
    lacking = _lacking(name, needs, offered)
    if not lacking:
        return
    if lacking == ["score"] and (reason := missing_from(model).get("score")):
        raise ValueError(f"{name} follows an SDE: {reason}; or use an ODE sampler, such as heun")
    fit = [other for other in dict.fromkeys((*_FIRST_NAMED, *known_solvers())) if _can_sample(other, model)]
    advice = "use " + ", ".join(fit[:6]) + (", ..." if len(fit) > 6 else "")
    if not fit:
        advice = "no solver can use it; make a function that returns the ends a model with flowjax.predictions.model"
    raise ValueError(
        f"{name} needs {' and '.join(lacking)}, and this model offers {', '.join(offered) or 'nothing'}: {advice}"
    )


def _can_sample(name: str, model: Any) -> bool:
    """Whether a solver has the abilities that it needs, and can be used on the path of the model."""
    if _lacking(name, needs_of(name), abilities_of(model)):
        return False
    try:
        make_sampler(name, getattr(model, "path", None))
    except ValueError:
        return False
    return True


def _lacking(name: str, needs: Sequence[str], offered: Sequence[str]) -> list[str]:
    """The abilities that a model lacks for a solver. For `push_forward`, `to_data` replaces a bijection."""
    if name == PUSH_FORWARD and "to_data" in offered:
        return []
    return [ability for ability in needs if ability not in offered]


def check_solver(name: str, steps: int | None, options: Options = DEFAULT_OPTIONS) -> None:
    """Checks that `sample` has this solver and that it accepts these steps (None: adaptive) and options.

    Raises:
        ValueError: if it does not.
    """
    name = plain_name(name)
    if not is_outside(name):
        check_name("solver", name, sorted(known_solvers()))
    for option, takers in _TAKES.items():
        if getattr(options, option) is not None and name not in takers:
            raise ValueError(f"{name} does not accept {option}, which is an option of {', '.join(takers)}")
    if is_outside(name):
        find("solver", name.partition("(")[0].strip(), SAMPLER, modules_of((name,)))
        if steps is None:
            raise ValueError(f"{name} needs a number of steps: pass steps=N")
        return
    if name == PUSH_FORWARD:
        if steps not in (None, 1):
            raise ValueError(f"{name} evaluates the model's map once: use 1 step, not {steps}, or leave the steps out")
        return
    check_steps(name, steps, name in ADAPTIVE_SOLVERS and options.g is None)
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), not {options.eta}")


def make_sampler(name: str, path: AffinePath | None, options: Options = DEFAULT_OPTIONS) -> Sampler | None:
    """Makes the sampler of that name for a path.

    Args:
        name: the name of the solver.
        path: the path of the model; None for a model without a path.
        options: options of single samplers.

    Returns:
        The sampler, or None for a solver that `samplers.run` does not run: diffrax's SDE solvers, multistep ODE solvers
        and adaptive solvers without a tableau, and `push_forward`.

    Raises:
        ValueError: if the sampler cannot be used on this path.
    """
    name = plain_name(name)
    if is_outside(name):
        sampler = make("solver", name, {}, outside=Outside(SAMPLER, modules_of((name,)), (path,)))
        samplers.check(sampler)
        return sampler
    if options.g is not None:
        name = _STOCHASTIC_FORM.get(name, name)
    if name in sde.SDE_SOLVERS:
        assert path is not None  # because the model has ends
        samplers.check(like_diffrax(path, options))
        return None
    if name in SAMPLERS:
        sampler = SAMPLERS[name].make(path, options)
        samplers.check(sampler)
        return sampler
    return deterministic.RungeKutta(path, SOLVERS[name]) if name in SOLVERS else None


def interval(name: str, path: AffinePath | None, options: Options = DEFAULT_OPTIONS) -> tuple[float, float]:
    """The interval of times on which the solver of that name can be used on a path; (0, 1) without a path."""
    sampler = make_sampler(name, path, options)
    if path is None:
        return 0.0, 1.0
    if name.lower() in sde.SDE_SOLVERS:
        sampler = like_diffrax(path, options)
    return (path.t_min, path.t_max) if sampler is None else samplers.interval(sampler)


def like_diffrax(path: AffinePath, options: Options) -> Sampler:
    """A sampler with the same requirements on the path and the grid as diffrax's SDE solvers."""
    return stochastic.EulerMaruyama(path, diffusion_of(path, options))
