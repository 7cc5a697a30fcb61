"""From a config to the objects that it names (`names`), checked to fit together: the problem that it describes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowjax import conditions, couplings, predictions, sources
from flowjax.arguments import make
from flowjax.batch import Batch
from flowjax.config import MODEL_DEFAULTS, Config
from flowjax.data import DataSpec
from flowjax.data.augment import AUGMENTATIONS, Augmentation
from flowjax.data.requests import field_requests
from flowjax.errors import ConfigError, lookup
from flowjax.methods import Diagnosed, DiagnosedLoss, diagnosed, times
from flowjax.methods import variational as bound
from flowjax.methods.flow_matching import ParametricApply
from flowjax.names import COUPLINGS, LOSSES, MODELS, NOISES, PATHS, PREDICTIONS, SOURCES, TIMES, WEIGHTS, make_schedule
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths.affine import is_standard_normal
from flowjax.predictions import Prediction
from flowjax.ranges import MAX_COORDINATES, MAX_PARAMETERS
from flowjax.typing import Params, PRNGKey

_DROPOUT = 2**31 - 3
"""Folded into a step's key for the dropout, so that the other draws are those of a network without it."""


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of network(params, t, x, cond, **key) the same function, computed in another way."""


@dataclass(frozen=True)
class Problem:
    """What a config describes, apart from its data and its training.

    Attributes:
        spec: of the data set.
        path, source, coupling, prediction: the regression problem.
        init: key -> parameters, jitted.
        apply: (params, t, x, cond) -> output.
        loss: (params, key, batch) -> the loss, diagnosed; without dropout.
        make_train_loss: the same with dropout, where the network has it, of a network that is wrapped.
    """

    spec: DataSpec
    path: AffinePath
    source: sources.Source
    coupling: couplings.Coupling
    prediction: Prediction
    init: Callable[[PRNGKey], Params]
    apply: ParametricApply
    loss: DiagnosedLoss
    make_train_loss: Callable[[Wrap], DiagnosedLoss]

    @cached_property
    def train_loss(self) -> DiagnosedLoss:
        """The loss with dropout, where the network has it."""
        return self.make_train_loss(lambda network: network)

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which the network can be read: those of solving."""
        return self.prediction.interval(self.path)

    @property
    def prior(self) -> sources.Source:
        """Where sampling starts and likelihood ends."""
        return self.path.prior(self.source)

    def model(self, params: Params) -> predictions.Reading:
        """The network with these parameters as a model: its ends, velocity and score (`flowjax.abilities`)."""
        return predictions.read(lambda t, x, cond: self.apply(params, t, x, cond), self.path, self.prediction)


def build(config: Config, spec: DataSpec) -> Problem:
    """Binds the names of a resolved config.

    Raises:
        ConfigError: on an unknown name, or parts that do not fit together.
    """
    if spec.d > MAX_COORDINATES:
        raise ConfigError(
            f"data {spec.name!r}: an example of shape {spec.shape} has {spec.d:,} numbers, and at most "
            f"{MAX_COORDINATES:,} are possible"
        )
    schedule = make_schedule(config.path.schedule, config.path.shift)
    noise = make("path.noise", config.path.noise, NOISES) if config.path.noise else None
    source = make("source.name", config.source.name, SOURCES, spec)
    coupling = make("coupling.name", config.coupling.name, COUPLINGS, AffinePath(schedule, noise))
    prediction = make("prediction", config.prediction, PREDICTIONS)
    if tuple(source.shape) != tuple(spec.shape):
        raise ConfigError(
            f"source.name {config.source.name!r} has shape {source.shape}, data {spec.name!r} {spec.shape}"
        )
    path = _make_path(config, AffinePath(schedule, noise), source, coupling)
    _check_fit(config, path, source, coupling, prediction)
    fields = fields_of(config, spec)
    if getattr(coupling, "condition_weight", 0.0) and conditions.named(fields, "label") is None:
        raise ConfigError(f"coupling.name {config.coupling.name!r} pairs within labels: it needs data.cond=label")
    init, network = _make_model(config, spec, prediction.heads)
    drawn = make("loss.times", config.loss.times, TIMES)
    learned = config.loss.uncertainty or getattr(drawn, "needs_profile", False)
    if learned:
        init = _with_profile(init)
    own = (lambda params: params["network"]) if learned else (lambda params: params)
    bind = lambda network: lambda params, t, x, cond, **key: network(own(params), t, x, cond, **key)
    make_loss = lambda apply: _make_loss(config, apply, path, source, coupling, prediction, drawn, learned)
    apply: ParametricApply = bind(network)

    def make_train_loss(wrap: Wrap) -> DiagnosedLoss:
        wrapped = bind(wrap(network))

        def with_dropout(params: Params, key: PRNGKey, batch: Batch) -> Diagnosed:
            return make_loss(partial(wrapped, key=jax.random.fold_in(key, _DROPOUT)))(params, key, batch)

        return with_dropout if config.model.get("dropout", 0.0) else make_loss(wrapped)

    return Problem(spec, path, source, coupling, prediction, init, apply, make_loss(apply), make_train_loss)


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


def fields_of(config: Config, spec: DataSpec) -> tuple[conditions.Field, ...]:
    """The conditions of the network: those that `data.cond` names, in its order, then `augment`.

    The field `augment` holds what `data.augment` has done to an image, where the network is told of it.

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
    if told := make_augmentation(config, spec).labels:
        fields.append(conditions.Field("augment", "vector", (told,), zero_is_null=True))
    return tuple(fields)


def _make_path(config: Config, plain: AffinePath, source: Any, coupling: Any) -> AffinePath:
    lookup("path.name", config.path.name, PATHS)
    why = _not_gaussian(config, source, coupling)
    if config.path.name == "gaussian" and (why or plain.noise is not None):
        why = why or f"path.noise is {config.path.noise!r}"
        raise ConfigError(f"path.name 'gaussian' has no meaning here: {why}; use 'affine'")
    return plain if why or plain.noise is not None else GaussianPath(plain.schedule)


def _not_gaussian(config: Config, source: Any, coupling: Any) -> str:
    """Why the ends are not a Gaussian source and independent data; empty if they are."""
    if not coupling.keeps_independence:
        return f"coupling.name {config.coupling.name!r} makes the source depend on the data"
    return "" if is_standard_normal(source) else f"source.name {config.source.name!r} is not N(0, I)"


def _check_fit(config: Config, path: AffinePath, source: Any, coupling: Any, prediction: Prediction) -> None:
    """Scores and noise exist only for N(0, I) kept independent of the data, or with noise on the path."""
    name, noise = config.prediction, config.path.noise
    if prediction.gaussian_only and (why := _not_gaussian(config, source, coupling)):
        raise ConfigError(f"prediction {name!r} has no meaning here: {why}; use 'velocity' or 'data'")
    if path.noise is not None and prediction.noise == "refused":
        raise ConfigError(
            f"prediction {name!r} does not determine the flow on a path with noise (path.noise {noise!r}): use "
            "'velocity', or 'velocity_score' for the SDE too"
        )
    if path.noise is None and prediction.noise == "required":
        raise ConfigError(f"prediction {name!r} needs a path with noise: set path.noise, for example 'bridge(1)'")
    try:
        path.prior(source)
    except ValueError as error:
        raise ConfigError(f"source.name {config.source.name!r}: {error}") from None


def _make_loss(
    config: Config,
    apply: ParametricApply,
    path: AffinePath,
    source: Any,
    coupling: Any,
    prediction: Prediction,
    drawn: times.Times,
    learned: bool,
) -> DiagnosedLoss:
    weighting = make("loss.weight", config.loss.weight, WEIGHTS)
    chain = make("loss.name", config.loss.name, LOSSES)
    if chain is None:
        if prediction.name == "noise_variance":
            raise ConfigError("prediction 'noise_variance' is trained by the variational bound: set loss.name='hybrid'")
        if weighting.of is not None and (prediction.heads > 1 or path.noise is not None):
            raise ConfigError(f"loss.weight {config.loss.weight!r} is for one head and a path without noise: use 'own'")
        profile = (lambda params: params["profile"]) if learned else None
        return diagnosed(apply, path, source, coupling, prediction, drawn, weighting, profile, config.loss.uncertainty)
    variance, levels, hybrid = chain
    if not isinstance(path, GaussianPath):
        why = _not_gaussian(config, source, coupling) or f"path.noise is {config.path.noise!r}"
        raise ConfigError(f"loss.name {config.loss.name!r} is the bound of a Gaussian chain: {why}")
    if variance not in ("small", "large", "learned"):
        raise ConfigError(f"loss.name {config.loss.name!r}: the variance is small, large or learned")
    if (variance == "learned") != (prediction.name == "noise_variance"):
        raise ConfigError("a learned variance goes with prediction 'noise_variance', and that with loss.name 'hybrid'")
    if (config.loss.weight, config.loss.times, learned) != ("own", "uniform", False):
        raise ConfigError(f"loss.name {config.loss.name!r} has its own weights and times: leave loss.weight and .times")
    try:
        return bound(apply, path, source, prediction, levels, variance, hybrid)
    except ValueError as error:
        raise ConfigError(f"loss.name {config.loss.name!r}: {error}") from None


def _with_profile(init: Callable[[PRNGKey], Params]) -> Callable[[PRNGKey], Params]:
    """The network's parameters beside a learned profile of the loss over time."""
    return lambda key: {"network": init(key), "profile": jnp.zeros(times.BINS)}


def _make_model(config: Config, spec: DataSpec, outputs: int) -> tuple[Callable[[PRNGKey], Params], Callable[..., Any]]:
    """The network as two pure functions over a plain dict of arrays; the second takes a key where there is dropout."""
    module = lookup("model.name", config.model.name, MODELS)
    own = {key: config.model[key] for key in MODEL_DEFAULTS[config.model.name]}
    if config.model.name != "mlp" and not spec.is_image:
        raise ConfigError(
            f"model.name {config.model.name!r} needs images (H, W, C), and data {spec.name!r} has shape {spec.shape}"
        )
    fields = fields_of(config, spec)
    told = make_augmentation(config, spec).labels
    if told:
        if config.coupling.name != "independent":
            raise ConfigError(
                f"data.augment {config.data.augment!r} is passed to the network as a condition: "
                "take coupling.name 'independent'"
            )
        if config.model.name in ("mlp", "unet"):
            raise ConfigError(
                f"data.augment {config.data.augment!r} is passed to the network as a condition: "
                "take model.name 'adm', 'edm2' or 'dit'"
            )
        own["augment"] = told

    def construct(rngs: nnx.Rngs) -> nnx.Module:
        label = conditions.named(fields, "label")
        return module(spec.shape, num_classes=label.num_classes if label else 0, outputs=outputs, rngs=rngs, **own)

    try:
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: construct(nnx.Rngs(0))))
    except ValueError as error:
        raise ConfigError(f"model: {str(error).splitlines()[0]}") from None
    if (count := sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))) > MAX_PARAMETERS:
        raise ConfigError(f"model: the network has {count:,} parameters, and at most {MAX_PARAMETERS:,} are possible")
    init = jax.jit(lambda key: nnx.to_pure_dict(nnx.split(construct(nnx.Rngs(key)))[1]))
    return init, lambda params, t, x, cond, **kwargs: nnx.merge(graphdef, params)(t, x, cond, **kwargs)
