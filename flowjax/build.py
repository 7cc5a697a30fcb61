"""From a config to the method that it describes: the objects that its names stand for, checked to fit together."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
from flax import nnx

from flowjax import conditions, couplings, sources
from flowjax.arguments import make
from flowjax.conditions import Field
from flowjax.config import Config
from flowjax.config_keys import method_of, model_keys, model_of
from flowjax.data import DataSpec
from flowjax.data.augment import AUGMENTATIONS, Augmentation
from flowjax.data.requests import field_requests
from flowjax.errors import ConfigError, lookup
from flowjax.methods import Components, Method, Network
from flowjax.methods.times import Times
from flowjax.methods.weights import Weighting
from flowjax.models import functional
from flowjax.names import (
    COUPLING,
    COUPLINGS,
    MODELS,
    NOISES,
    PATHS,
    PREDICTION,
    PREDICTIONS,
    SOURCE,
    SOURCES,
    TIMES,
    WEIGHTS,
    make_schedule,
)
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths.affine import is_standard_normal
from flowjax.plugins import Outside, is_outside
from flowjax.predictions import Prediction
from flowjax.ranges import MAX_COORDINATES, MAX_PARAMETERS

__all__ = ["build", "fields_of", "make_augmentation"]


def build(config: Config, spec: DataSpec, plugins: Sequence[str] = ()) -> Method:
    """The method of a resolved config.

    Args:
        config: resolved.
        spec: of the data set.
        plugins: the modules that may be imported, with their submodules (`flowjax.plugins`).

    Raises:
        ConfigError: on an unknown name, or parts that do not fit together.
    """
    if spec.d > MAX_COORDINATES:
        raise ConfigError(
            f"data {spec.name!r}: an example of shape {spec.shape} has {spec.d:,} numbers, and at most "
            f"{MAX_COORDINATES:,} are possible"
        )
    chosen: Any = method_of(config.method.name, plugins)
    return chosen.from_config(_Components(config, spec, chosen, tuple(plugins)))


def make_augmentation(config: Config, spec: DataSpec) -> Augmentation:
    """What `data.augment` names; anything but `none` is for images."""
    if config.data.augment != "none" and not spec.is_image:
        raise ConfigError(
            f"data.augment {config.data.augment!r} is for images, and data {spec.name!r} has {spec.shape}"
        )
    if config.data.augment != "none" and config.data.pairs:
        raise ConfigError(
            f"data.augment {config.data.augment!r} changes x and not its pair, and data.pairs is "
            f"{config.data.pairs!r}: take data.augment 'none'"
        )
    return make("data.augment", config.data.augment, AUGMENTATIONS)


def data_arguments(config: Config) -> tuple[str, str, tuple[str, ...], str, str]:
    """What `flowjax.data.open_dataset` takes, from a resolved config."""
    data = config.data
    return data.name, data.path, tuple(data.cond), data.pairs, data.normalise


def fields_of(config: Config, spec: DataSpec) -> tuple[Field, ...]:
    """The conditions of the network: those that `data.cond` names, in its order, then `augment`.

    The field `augment` holds what `data.augment` has done to an image, where that is a condition of the network.

    Args:
        config: resolved.
        spec: of the data set.

    Raises:
        ConfigError: one line, if the data have no such field.
    """
    offered = ", ".join(repr(f.name) for f in spec.fields) or "none"
    fields = []
    for request in field_requests(config.data.cond):
        field = conditions.named(spec.fields, request.name)
        if field is None:
            raise ConfigError(
                f"data.cond names {request.name!r} as a condition; of the fields that can be one, data {spec.name!r} "
                f"has {offered}"
            )
        if request.kind not in ("", field.kind):
            raise ConfigError(
                f"data.cond: {request.name!r} is of kind {field.kind!r} in the data, not {request.kind!r}"
            )
        dropout = config.data.cond_dropout if request.dropout is None else request.dropout
        fields.append(replace(field, dropout=float(dropout)))
    if numbers := make_augmentation(config, spec).labels:
        fields.append(Field("augment", "vector", (numbers,), zero_is_null=True))
    return tuple(fields)


@dataclass(frozen=True)
class _Components(Components):
    """The parts of a config, made by its names."""

    config: Config
    spec: DataSpec
    method: Any
    plugins: tuple[str, ...] = ()

    @cached_property
    def settings(self) -> Any:
        own = {key: value for key, value in self.config.method.items() if key != "name"}
        return self.method.Settings(**own)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        return fields_of(self.config, self.spec)

    @cached_property
    def source(self) -> sources.Source:
        name = self.config.source.name
        outside = Outside(SOURCE, self.plugins, (self.spec.shape,))
        source = make("source.name", name, SOURCES, self.spec, outside=outside)
        if tuple(source.shape) != tuple(self.spec.shape):
            raise ConfigError(
                f"source.name {name!r} has shape {source.shape}, data {self.spec.name!r} {self.spec.shape}"
            )
        return source

    @cached_property
    def _plain_path(self) -> AffinePath:
        chosen = self.config.path
        noise = make("path.noise", chosen.noise, NOISES) if chosen.noise else None
        return AffinePath(make_schedule(chosen.schedule, chosen.shift, self.plugins), noise)

    @cached_property
    def coupling(self) -> couplings.Coupling:
        if "coupling" not in self.config:
            return couplings.Independent()
        name = self.config.coupling.name
        outside = Outside(COUPLING, self.plugins)
        coupling = make("coupling.name", name, COUPLINGS, self._plain_path, outside=outside)
        labelled = conditions.named(self.fields, "label") is not None
        if getattr(coupling, "condition_weight", 0.0) and not labelled:
            raise ConfigError(f"coupling.name {name!r} pairs within labels: it needs data.cond=label")
        if conditions.named(self.fields, "augment") is not None and name != "independent":
            raise ConfigError(
                f"data.augment {self.config.data.augment!r} is passed to the network as a condition: "
                "take coupling.name 'independent'"
            )
        return coupling

    @cached_property
    def path(self) -> AffinePath:
        plain, chosen = self._plain_path, self.config.path
        lookup("path.name", chosen.name, PATHS)
        why = self._not_gaussian
        if chosen.name == "gaussian" and (why or plain.noise is not None):
            why = why or f"path.noise is {chosen.noise!r}"
            raise ConfigError(f"path.name 'gaussian' has no meaning here: {why}; use 'affine'")
        path = plain if why or plain.noise is not None else GaussianPath(plain.schedule)
        try:
            path.prior(self.source)
        except ValueError as error:
            raise ConfigError(f"source.name {self.config.source.name!r}: {error}") from None
        return path

    @cached_property
    def prediction(self) -> Prediction:
        name, noise = self.config.prediction, self.config.path.noise
        prediction = make("prediction", name, PREDICTIONS, outside=Outside(PREDICTION, self.plugins))
        if prediction.gaussian_only and (why := self._not_gaussian):
            raise ConfigError(f"prediction {name!r} has no meaning here: {why}; use 'velocity' or 'data'")
        if noise and prediction.noise == "refused":
            raise ConfigError(
                f"prediction {name!r} does not determine the flow on a path with noise (path.noise {noise!r}): use "
                "'velocity', or 'velocity_score' for the SDE too"
            )
        if not noise and prediction.noise == "required":
            raise ConfigError(f"prediction {name!r} needs a path with noise: set path.noise, for example 'bridge(1)'")
        return prediction

    @property
    def _not_gaussian(self) -> str:
        """Why the ends are not a Gaussian source and independent data; empty if they are."""
        if not self.coupling.keeps_independence:
            return f"coupling.name {self.config.coupling.name!r} makes the source depend on the data"
        name = self.config.source.name
        return "" if is_standard_normal(self.source) else f"source.name {name!r} is not N(0, I)"

    def times(self, text: str) -> Times:
        return make("method.times", text, TIMES)

    def weighting(self, text: str) -> Weighting:
        return make("method.weight", text, WEIGHTS)

    def network(self, outputs: int = 1, two_times: bool = False) -> Network:
        model, spec = self.config.model, self.spec
        if is_outside(model.name):
            return self._outside_network(outputs, two_times)
        module = lookup("model.name", model.name, MODELS)
        if model.name != "mlp" and not spec.is_image:
            raise ConfigError(
                f"model.name {model.name!r} needs images (H, W, C), and data {spec.name!r} has shape {spec.shape}"
            )
        given: dict[str, Any] = {key: model[key] for key in model_keys(model.name)}
        given |= {"fields": self.fields, "outputs": outputs} | ({"two_times": True} if two_times else {})
        network = self.network_of(lambda rngs: module(spec.shape, rngs=rngs, **given), bool(model.get("dropout", 0.0)))
        return replace(network, fused=True)

    def _outside_network(self, outputs: int, two_times: bool) -> Network:
        """The network of the caller's own module, which gets the arguments and the inputs that it accepts."""
        model, spec = self.config.model, self.spec
        module: Any = model_of(model.name, self.plugins)
        given = {key: model[key] for key in model_keys(model.name, self.plugins)}
        asked = {"fields": self.fields, "outputs": outputs, "two_times": two_times}
        usual = {"fields": self.fields, "outputs": 1, "two_times": False}  # which a network need not be told
        for key, value in asked.items():
            if _accepts(module.__init__, key):
                given[key] = value
            elif value != usual[key]:
                raise ConfigError(
                    f"model.name {model.name!r}: this method needs a network with {key}={value}, and the constructor "
                    f"takes no {key}"
                )
        construct = lambda rngs: module(spec.shape, rngs=rngs, **given)
        network = self.network_of(construct, _accepts(module.__call__, "key"))

        def apply(variables: Any, *arguments: Any, training: bool = False, **inputs: Any) -> tuple[Any, Any]:
            accepted = {name: value for name, value in inputs.items() if _accepts(module.__call__, name)}
            return network.apply(variables, *arguments, training=training, **accepted)

        return replace(network, apply=apply, fused=_accepts(module.__call__, "forward_mode"))

    def network_of(self, construct: Callable[[nnx.Rngs], nnx.Module], takes_key: bool = False) -> Network:
        try:
            module = functional(construct)
        except ValueError as error:
            raise ConfigError(f"model: {str(error).splitlines()[0]}") from None
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(module.abstract.params))
        if count > MAX_PARAMETERS:
            raise ConfigError(
                f"model: the network has {count:,} parameters, and at most {MAX_PARAMETERS:,} are possible"
            )
        return Network.of(module, takes_key)


def _accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes a keyword argument of that name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
