"""From a config to the objects it names; every name a config may use is bound in a table here.

Adding a schedule, source, path, coupling, prediction or model is one file (or class) and one line below.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from flowjax import couplings, predictions, schedules, sources
from flowjax.config import MODEL_DEFAULTS, Config, ConfigError, lookup
from flowjax.data import DataSpec
from flowjax.data.densities import DENSITIES
from flowjax.models import MLP, UNet
from flowjax.objectives.flow_matching import ParametricApply
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths.affine import is_standard_normal
from flowjax.predictions import Denoiser, Prediction
from flowjax.typing import Field, Params, PRNGKey

SCHEDULES: dict[str, Callable[..., Any]] = {
    "condot": schedules.CondOT,
    "cosine": schedules.Cosine,
    "polynomial": schedules.Polynomial,
    "vp": schedules.VP,
}
"""With arguments in brackets where they take any: `polynomial(2)`, `vp(0.1, 20)`."""

SOURCES: dict[str, Callable[[tuple[int, ...]], sources.Source]] = {
    "normal": sources.Normal,
    "uniform": lambda shape: sources.Uniform(shape, -(3.0**0.5), 3.0**0.5),  # unit variance, as the normal
    **{name: lambda shape, make=make: make() for name, make in DENSITIES.items()},
}

PATHS: dict[str, Callable[[schedules.Schedule], AffinePath]] = {"affine": AffinePath, "gaussian": GaussianPath}

COUPLINGS: dict[str, Callable[[], couplings.Coupling]] = {
    "independent": couplings.Independent,
    "ot": couplings.MinibatchOT,
}

PREDICTIONS: dict[str, Prediction] = {
    p.name: p for p in (predictions.velocity, predictions.noise, predictions.data, predictions.score)
}

MODELS: dict[str, Callable[..., nnx.Module]] = {"mlp": MLP, "unet": UNet}


@dataclass(frozen=True)
class Problem:
    """What a config describes, apart from its data and its training.

    Attributes:
        spec: of the data set.
        path, source, coupling, prediction: the regression problem.
        init: key -> parameters, jitted.
        apply: (params, t, x, cond) -> output.
    """

    spec: DataSpec
    path: AffinePath
    source: sources.Source
    coupling: couplings.Coupling
    prediction: Prediction
    init: Callable[[PRNGKey], Params]
    apply: ParametricApply

    @property
    def interval(self) -> tuple[float, float]:
        """The times of training and solving."""
        return self.prediction.interval(self.path)

    @property
    def prior(self) -> sources.Source:
        """Where sampling starts and likelihood ends."""
        return self.path.prior(self.source)

    def denoiser(self, params: Params) -> Denoiser:
        return predictions.read(lambda t, x, cond: self.apply(params, t, x, cond), self.path, self.prediction)

    def field(self, params: Params) -> Field:
        return predictions.field(self.denoiser(params), self.path)


def build(config: Config, spec: DataSpec) -> Problem:
    """Binds the names of a resolved config.

    Raises:
        ConfigError: on an unknown name, or parts that do not fit together.
    """
    path = lookup("path.name", config.path.name, PATHS)(make_schedule(config.path.schedule))
    source = lookup("source.name", config.source.name, SOURCES)(spec.shape)
    coupling = lookup("coupling.name", config.coupling.name, COUPLINGS)()
    prediction = lookup("prediction", config.prediction, PREDICTIONS)
    if tuple(source.shape) != tuple(spec.shape):
        raise ConfigError(
            f"source.name {config.source.name!r} has shape {source.shape}, data {spec.name!r} {spec.shape}"
        )
    _check_gaussian(config, path, source, coupling, prediction)
    try:
        path.prior(source)
    except ValueError as error:
        raise ConfigError(f"source.name {config.source.name!r}: {error}") from None
    if config.model.conditional and not spec.num_classes:
        raise ConfigError(f"model.conditional needs labels, and data {spec.name!r} has none")
    init, apply = _make_model(config, spec)
    return Problem(spec, path, source, coupling, prediction, init, apply)


def make_schedule(text: str) -> schedules.Schedule:
    """`condot`, `polynomial(2)`, `vp(0.1, 20)`: a name in `SCHEDULES`, with literal arguments in brackets."""
    name, bracket, rest = text.partition("(")
    make = lookup("path.schedule", name.strip(), SCHEDULES)
    try:
        arguments = ast.literal_eval(f"({rest[:-1]},)") if bracket and rest.strip(") ") else ()
        return make(*arguments)
    except (TypeError, SyntaxError, ValueError) as error:
        raise ConfigError(f"path.schedule {text!r}: {error}; write it like polynomial(2) or vp(0.1, 20)") from None


def _check_gaussian(config: Config, path: AffinePath, source: Any, coupling: Any, prediction: Prediction) -> None:
    """Scores and noise exist only for N(0, I) kept independent of the data: elsewhere asking for them is an error."""
    gaussian = is_standard_normal(source) and coupling.keeps_independence
    why = (
        f"source.name {config.source.name!r} is not N(0, I)"
        if coupling.keeps_independence
        else f"coupling.name {config.coupling.name!r} makes the source depend on the data"
    )
    if isinstance(path, GaussianPath) and not gaussian:
        raise ConfigError(f"path.name 'gaussian' has no meaning here: {why}; use 'affine'")
    if prediction.gaussian_only and not gaussian:
        raise ConfigError(f"prediction {prediction.name!r} has no meaning here: {why}; use 'velocity' or 'data'")


def _make_model(config: Config, spec: DataSpec) -> tuple[Callable[[PRNGKey], Params], ParametricApply]:
    """The network as two pure functions over a plain dict of arrays."""
    make = lookup("model.name", config.model.name, MODELS)
    own = {key: config.model[key] for key in MODEL_DEFAULTS[config.model.name]}
    if config.model.name == "unet" and not spec.is_image:
        raise ConfigError(f"model.name 'unet' needs images (H, W, C), and data {spec.name!r} has shape {spec.shape}")

    def construct(rngs: nnx.Rngs) -> nnx.Module:
        return make(spec.shape, num_classes=spec.num_classes if config.model.conditional else 0, rngs=rngs, **own)

    try:
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: construct(nnx.Rngs(0))))
    except ValueError as error:
        raise ConfigError(f"model: {str(error).splitlines()[0]}") from None
    init = jax.jit(lambda key: nnx.to_pure_dict(nnx.split(construct(nnx.Rngs(key)))[1]))
    return init, lambda params, t, x, cond: nnx.merge(graphdef, params)(t, x, cond)
