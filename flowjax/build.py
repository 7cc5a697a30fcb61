"""Builds the method that a config describes, and checks that its parts fit together."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
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
from flowjax.methods import METHODS, Components, Method, Network
from flowjax.methods.errors_of_rows import RowLoss
from flowjax.methods.teacher import AbsentTeacher
from flowjax.methods.times import Times
from flowjax.methods.weights import Weighting
from flowjax.models import functional
from flowjax.names import (
    COUPLING,
    COUPLINGS,
    IMAGE_MODELS,
    MODELS,
    NOISES,
    PATH,
    PATHS,
    PREDICTION,
    PREDICTIONS,
    ROW_LOSSES,
    SEQUENCE_MODELS,
    SOURCE,
    SOURCES,
    TIMES,
    WEIGHTS,
    SourceRequest,
    make_schedule,
)
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths.affine import is_standard_normal
from flowjax.paths.noise import Fading
from flowjax.plugins import Outside, is_outside
from flowjax.predictions import Prediction
from flowjax.ranges import MAX_COORDINATES, MAX_PARAMETERS, shown

__all__ = ["build", "data_arguments", "fields_of", "make_augmentation"]


_LEFT_OUT = ("key", "forward_mode")
"""Inputs that a network from outside flowjax need not accept: without dropout and fused kernels they change nothing."""


def build(config: Config, spec: DataSpec, plugins: Sequence[str] = (), teacher: Method | None = None) -> Method:
    """Builds the method of a config.

    Args:
        config: a resolved config.
        spec: the description of its data set.
        plugins: the modules that may be imported, with their submodules (`flowjax.plugins`).
        teacher: the method of the run that `method.teacher` names (`flowjax.inference.teachers`), which only training
            needs.

    Raises:
        ConfigError: on an unknown name, or if the parts do not fit together.
    """
    if spec.d > MAX_COORDINATES:
        raise ConfigError(
            f"data {spec.name!r}: an example of shape {spec.shape} has {spec.d:,} numbers, and at most "
            f"{MAX_COORDINATES:,} are possible"
        )
    chosen: Any = method_of(config.method.name, plugins)
    _check_takes(config, spec, chosen)
    source = config.get("source", {}).get("name", spec.paired_source)
    if spec.paired_source not in ("", source):
        raise ConfigError(
            f"source.name is {source!r}, but the pairs of data {spec.name!r} were made by a model with the source "
            f"{spec.paired_source!r}: use --config.source.name={spec.paired_source}"
        )
    method = chosen.from_config(_Components(config, spec, chosen, tuple(plugins), teacher))
    if not is_dataclass(method) or not isinstance(method, Method):
        raise ConfigError(
            f"method.name {config.method.name!r}: from_config must return a frozen dataclass with the attributes of "
            f"flowjax.methods.Method, not {shown(type(method).__name__)}"
        )
    return method


def _check_takes(config: Config, spec: DataSpec, method: Any) -> None:
    """Checks that the method uses the mask, the pairs and the noise of the data, and has pairs if it needs them.

    Raises:
        ConfigError: if it would ignore them, or they are missing.
    """
    learned = spec.dequantisation == "variational"
    for attribute, present, what in (
        ("takes_mask", spec.has_mask, f"data {spec.name!r} has a mask of absent elements"),
        ("takes_pairs", config.data.pairs, f"data.pairs is {config.data.pairs!r}"),
        ("learns_dequantisation", learned, "data.dequantisation is 'variational'"),
    ):
        if present and not getattr(method, attribute, False):
            able = ", ".join(repr(name) for name, other in METHODS.items() if getattr(other, attribute, False))
            raise ConfigError(
                f"method.name {config.method.name!r} would ignore that {what}; the methods that use it are {able}"
            )
    if getattr(method, "needs_pairs", False) and not config.data.pairs:
        raise ConfigError(
            f"method.name {config.method.name!r} learns from given pairs, and data.pairs is empty: make them with "
            "flowjax pairs, and set data.name=pairs, data.path to their folder and data.pairs=x0"
        )


def make_augmentation(config: Config, spec: DataSpec) -> Augmentation:
    """Returns the augmentation that `data.augment` names.

    Raises:
        ConfigError: on an unknown name, or if the data are not images, have pairs (`data.pairs`), or have a condition
            of the kind `image` in `data.cond`, because an augmentation changes only x.
    """
    name, pairs = config.data.augment, config.data.pairs
    if name != "none" and not spec.is_image:
        raise ConfigError(f"data.augment {name!r} is for images, and data {spec.name!r} has shape {spec.shape}")
    if name != "none" and pairs:
        raise ConfigError(
            f"data.augment {name!r} changes x and not its pair, and data.pairs is {pairs!r}: use data.augment 'none'"
        )
    asked = {request.name for request in field_requests(config.data.cond)}
    images = [field.name for field in spec.fields if field.kind == "image" and field.name in asked]
    if name != "none" and images:
        raise ConfigError(
            f"data.augment {name!r} changes x and not the image {images[0]!r} of data.cond: use data.augment 'none'"
        )
    return make("data.augment", name, AUGMENTATIONS)


def data_arguments(config: Config) -> tuple[str, str, tuple[str, ...], str, str, str, str, str]:
    """Returns the arguments of `flowjax.data.open_dataset` for a resolved config."""
    data = config.data
    plain = data.name, data.path, tuple(data.cond), data.pairs, data.normalise
    return *plain, data.simulator, data.degrade, data.dequantisation


def fields_of(config: Config, spec: DataSpec) -> tuple[Field, ...]:
    """Returns the conditions of the network: the fields that `data.cond` names, in that order, and then `augment`.

    The field `augment` describes how `data.augment` has changed an image, for augmentations that pass this to the
    network.

    Args:
        config: a resolved config.
        spec: the description of its data set.

    Raises:
        ConfigError: if the data have no such field, or it is of another kind.
    """
    offered = ", ".join(repr(f.name) for f in spec.fields) or "none"
    fields = []
    for request in field_requests(config.data.cond):
        field = conditions.named(spec.fields, request.name)
        if field is None:
            raise ConfigError(
                f"data.cond names {request.name!r} as a condition; of the fields that can be conditions, data "
                f"{spec.name!r} has {offered}"
            )
        if request.kind not in ("", field.kind):
            raise ConfigError(
                f"data.cond: the kind of {request.name!r} in the data is {field.kind!r}, not {request.kind!r}"
            )
        dropout = config.data.cond_dropout if request.dropout is None else request.dropout
        try:
            fields.append(replace(field, dropout=float(dropout), encoder=request.encoder))
        except ValueError as error:
            raise ConfigError(f"data.cond: {error}") from None
    if numbers := make_augmentation(config, spec).labels:
        fields.append(Field("augment", "vector", (numbers,), zero_is_null=True))
    return tuple(fields)


@dataclass(frozen=True)
class _Components(Components):
    """The parts of a method, each built when it is first read."""

    config: Config
    spec: DataSpec
    method: Any
    plugins: tuple[str, ...] = ()
    given_teacher: Method | None = None

    @property
    def teacher(self) -> Any:
        named = getattr(self.settings, "teacher", "")
        return self.given_teacher or (AbsentTeacher() if named else None)

    @cached_property
    def settings(self) -> Any:
        return self.method.Settings(**{key: value for key, value in self.config.method.items() if key != "name"})

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        return fields_of(self.config, self.spec)

    @cached_property
    def source(self) -> sources.Source:
        name = self.config.source.name
        outside = Outside(SOURCE, self.plugins, (self.spec.shape,))
        request = SourceRequest(self.spec, self.config.source.path)
        source = make("source.name", name, SOURCES, request, outside=outside)
        if tuple(source.shape) != tuple(self.spec.shape):
            raise ConfigError(
                f"source.name {name!r} has shape {source.shape}, and data {self.spec.name!r} has {self.spec.shape}"
            )
        return source

    @cached_property
    def _plain_path(self) -> AffinePath:
        chosen = self.config.path
        noise = make("path.noise", chosen.noise, NOISES) if chosen.noise else None
        if isinstance(noise, Fading) and not self.config.data.pairs:
            raise ConfigError(f"path.noise {chosen.noise!r} is noise in given source samples, so it needs data.pairs")
        return AffinePath(make_schedule(chosen.schedule, chosen.shift, self.plugins), noise)

    @cached_property
    def coupling(self) -> couplings.Coupling:
        if "coupling" not in self.config:
            return couplings.Independent()
        name = self.config.coupling.name
        outside = Outside(COUPLING, self.plugins)
        coupling = make("coupling.name", name, COUPLINGS, self._plain_path, outside=outside)
        weight = getattr(coupling, "condition_weight", 0.0)
        if math.isinf(weight) and conditions.named(self.fields, "label") is None:
            raise ConfigError(f"coupling.name {name!r} pairs samples of equal labels, so it needs data.cond=label")
        if weight and not self.fields:
            raise ConfigError(f"coupling.name {name!r} compares the conditions of samples, so it needs data.cond")
        if self.config.data.pairs and not isinstance(coupling, couplings.Independent):
            raise ConfigError(
                f"coupling.name {name!r} has no effect, because data.pairs {self.config.data.pairs!r} gives the pairs: "
                "use 'independent'"
            )
        if conditions.named(self.fields, "augment") is not None and not coupling.keeps_independence:
            raise ConfigError(
                f"data.augment {self.config.data.augment!r} is passed to the network as a condition: "
                "use coupling.name 'independent'"
            )
        return coupling

    @cached_property
    def path(self) -> AffinePath:
        plain, chosen = self._plain_path, self.config.path
        why = self._not_gaussian or ("" if plain.noise is None else f"path.noise is {chosen.noise!r}")
        outside = Outside(PATH, self.plugins, (plain.schedule, plain.noise))
        path = make("path.name", chosen.name, PATHS, plain.schedule, plain.noise, not why, outside=outside)
        if why and isinstance(path, GaussianPath):
            raise ConfigError(f"path.name {chosen.name!r} has no meaning here: {why}; use 'affine'")
        if path.schedule is not plain.schedule:
            raise ConfigError(f"path.name {chosen.name!r} must use the schedule that it is given, path.schedule")
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
                f"prediction {name!r} does not determine the velocity on a path with noise (path.noise {noise!r}): use "
                "'velocity', or 'velocity_score', which also gives the score for SDEs"
            )
        if not noise and prediction.noise == "required":
            raise ConfigError(f"prediction {name!r} needs a path with noise: set path.noise, for example 'bridge(1)'")
        return prediction

    @property
    def _not_gaussian(self) -> str:
        """Says why the path does not start from a Gaussian source that is independent of the data; empty if it does."""
        if pairs := self.config.data.pairs:
            return f"data.pairs {pairs!r} makes the source depend on the data"
        if not self.coupling.keeps_independence:
            return f"coupling.name {self.config.coupling.name!r} makes the source depend on the data"
        name = self.config.source.name
        return "" if is_standard_normal(self.source) else f"source.name {name!r} is not N(0, I)"

    def times(self, text: str) -> Times:
        return make("method.times", text, TIMES)

    def weighting(self, text: str) -> Weighting:
        return make("method.weight", text, WEIGHTS)

    def row_loss(self, text: str) -> RowLoss:
        return make("method.loss", text, ROW_LOSSES)

    def network(self, outputs: int = 1, two_times: bool = False) -> Network:
        model, spec = self.config.model, self.spec
        if is_outside(model.name):
            return self._outside_network(outputs, two_times)
        module = lookup("model.name", model.name, MODELS)
        if model.name in IMAGE_MODELS and not spec.is_image:
            raise ConfigError(
                f"model.name {model.name!r} needs images (H, W, C), and data {spec.name!r} has shape {spec.shape}"
            )
        if model.name in SEQUENCE_MODELS and len(spec.shape) not in (1, 2):
            raise ConfigError(
                f"model.name {model.name!r} needs sequences (L, C) or signals (L,), and data {spec.name!r} has shape "
                f"{spec.shape}"
            )
        given: dict[str, Any] = {key: model[key] for key in model_keys(model.name)}
        given |= {"fields": self.fields, "outputs": outputs} | ({"two_times": True} if two_times else {})
        network = self.network_of(lambda rngs: module(spec.shape, rngs=rngs, **given), bool(model.get("dropout", 0.0)))
        return replace(network, fused=True)

    def _outside_network(self, outputs: int, two_times: bool) -> Network:
        """Builds a network from outside flowjax, which is passed the arguments that its constructor accepts.

        Of the inputs of a call, `key` (of the dropout) and `forward_mode` are left out if the called method does not
        accept them. Any other input that it does not accept, such as `mask` or `s`, is an error unless it is None.
        `training` is never passed: it selects the module's training or evaluation mode (`flowjax.models.functional`).
        """
        model, spec = self.config.model, self.spec
        module: Any = model_of(model.name, self.plugins)
        given = {key: model[key] for key in model_keys(model.name, self.plugins)}
        needed = {"fields": self.fields, "outputs": outputs, "two_times": two_times}
        usual = {"fields": self.fields, "outputs": 1, "two_times": False}  # values that a network may take for granted
        for key, value in needed.items():
            if _accepts(module.__init__, key):
                given[key] = value
            elif value != usual[key]:
                raise ConfigError(
                    f"model.name {model.name!r}: this method needs a network with {key}={value}, and its constructor "
                    f"has no argument {key}"
                )
        construct = lambda rngs: module(spec.shape, rngs=rngs, **given)
        network = self.network_of(construct, _accepts(module.__call__, "key"))

        def apply(
            variables: Any, *arguments: Any, training: bool = False, method: str = "__call__", **inputs: Any
        ) -> tuple[Any, Any]:
            accepted = {key: value for key, value in inputs.items() if _accepts(getattr(module, method), key)}
            for key, value in inputs.items():
                if key not in accepted and key not in _LEFT_OUT and value is not None:
                    raise ConfigError(
                        f"model.name {model.name!r} is given the input {key!r}, which its {method} does not accept"
                    )
            return network.apply(variables, *arguments, training=training, method=method, **accepted)

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
    """Whether a function has a keyword argument of this name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
