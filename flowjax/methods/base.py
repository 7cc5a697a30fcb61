"""The interface of a training method, which defines the loss and the model that a trained network becomes.

A method is a frozen object of pure functions. The training step differentiates `loss` with respect to the parameters
and knows nothing about paths, couplings or predictions. To add a method, write one file in this folder and one line in
`flowjax.methods.METHODS`, or a class in your own module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int

from flowjax.batch import Batch
from flowjax.models.functional import Functional, Traits, Variables
from flowjax.sources import Source
from flowjax.typing import Output, Params, PRNGKey, PyTree

if TYPE_CHECKING:
    from flowjax.methods.components import Components

__all__ = [
    "BoundNetwork",
    "Context",
    "Group",
    "Limit",
    "Loss",
    "Method",
    "MethodDefaults",
    "Network",
    "PathMethod",
    "has_comparable_loss",
    "learns_interval",
]

_DROPOUT = 2**31 - 3
"""Folded into the key of a step to make the key of the dropout. All other random numbers of a step are therefore the
same with and without dropout."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "targets", "teacher", "state"],
    meta_fields=["training"],
)
@dataclass(frozen=True)
class Context:
    """The inputs of a loss in addition to the parameters and the batch. No gradient flows into them.

    Attributes:
        step: number of optimizer steps taken so far, () int32.
        targets: moving averages of the parameters, by the names in the method's `targets`.
        teacher: frozen variables of the method's `teacher` (`Variables`), or None. They are an argument of the compiled
            program, not a constant in it.
        state: variables of the network that are not parameters, such as batch statistics.
        training: whether the loss is computed for a training step, with dropout and updates of the batch statistics.
    """

    step: Int[Array, ""] | int = 0
    targets: Mapping[str, Params] = field(default_factory=dict)
    teacher: PyTree = None
    state: PyTree = field(default_factory=dict)
    training: bool = False


class Loss(NamedTuple):
    """The result of `Method.loss`.

    Attributes:
        value: the scalar to minimise.
        metrics: scalars by the names in the method's `metrics`. Each record of `metrics.jsonl` holds their means over
            the steps since the previous record, or their maxima for metrics that have a limit.
        state: the variables that are not parameters, after the step.
    """

    value: Float[Array, ""]
    metrics: Mapping[str, Array]
    state: PyTree


class Limit(NamedTuple):
    """The largest value of a metric that training accepts.

    A step whose metric is above the limit is not applied, and training stops.

    Attributes:
        largest: the limit.
        message: the error message, in which `{value}` and `{step}` are replaced by the metric and the step number.
    """

    largest: float
    message: str


class Group(NamedTuple):
    """How a group of parameters is trained, where it differs from the config.

    Attributes:
        rate: the learning rate divided by that of the config.
        every: the number of steps from one update to the next. Steps between them leave the parameters and the state of
            their optimizer unchanged.
    """

    rate: float = 1.0
    every: int = 1


@dataclass(frozen=True)
class Network:
    """A network as pure functions.

    Attributes:
        init: `init(key) -> Variables`, the initial parameters and all other variables.
        apply: `apply(variables, *arguments, training=False, **inputs) -> (output, state after the call)`.
        takes_key: whether training passes it the input `key`, for dropout.
        fused: whether it may use fused kernels, which the input `forward_mode=True` replaces by plain operations.
        traits: properties that the module declares (`flowjax.models.functional.Traits`).
    """

    init: Callable[[PRNGKey], Variables]
    apply: Callable[..., tuple[Any, PyTree]]
    takes_key: bool = False
    fused: bool = False
    traits: Traits = field(default_factory=Traits)

    @classmethod
    def of(cls, functional: Functional, takes_key: bool = False, fused: bool = False) -> "Network":
        """Makes the network of an NNX module from its pure functions (`flowjax.models.functional`)."""
        return cls(functional.init, functional.apply, takes_key, fused, functional.traits)

    @classmethod
    def from_function(cls, apply: Callable[[Params, Any, Any, Any], Output]) -> "Network":
        """Makes a network from a plain function `apply(params, t, x, cond) -> output`.

        The caller initialises the parameters. Likelihoods differentiate the function in forward mode, so it must not
        use `jax.custom_vjp`.
        """

        def initialised_elsewhere(key: PRNGKey) -> Variables:
            raise ValueError("a network made from a plain function has no init: initialise its parameters yourself")

        def call(variables: Variables, *arguments: Any, training: bool = False, **inputs: Any) -> tuple[Any, PyTree]:
            return apply(variables.params, *arguments, **inputs), variables.state

        return cls(initialised_elsewhere, call)

    def __call__(
        self, params: Params, context: Context, *arguments: Any, key: PRNGKey | None = None, **inputs: Any
    ) -> tuple[Any, PyTree]:
        """Applies the network.

        Args:
            params: the parameters.
            context: provides the state, and whether this is a training step.
            arguments: positional arguments of the module, usually t, x and the condition.
            key: key of the step, from which the key of the dropout is derived.
            inputs: further inputs by name, such as `s` or `mask`. Those that are None are left out.

        Returns:
            The output, and the state after the call.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        if self.takes_key and context.training and key is not None:
            given["key"] = jax.random.fold_in(key, _DROPOUT)
        variables = Variables(params, context.state)
        return self.apply(variables, *arguments, training=context.training, **given)

    def with_forward_mode(self) -> "Network":
        """The same network made of operations that JAX can differentiate in forward mode."""
        return replace(self, apply=partial(self.apply, forward_mode=True), fused=False) if self.fused else self

    def bind(self, params: Params, state: PyTree) -> "BoundNetwork":
        """Binds the network to its variables, for sampling."""
        return BoundNetwork(self, Variables(params, state))


@dataclass(frozen=True, eq=False)
class BoundNetwork:
    """A network bound to its variables: `network(t, x, cond, **inputs) -> output`."""

    network: Network
    variables: Variables

    def __call__(self, *arguments: Any, **inputs: Any) -> Any:
        return self.network.apply(self.variables, *arguments, **inputs)[0]

    def with_forward_mode(self) -> "BoundNetwork":
        """The same network made of operations that JAX can differentiate in forward mode."""
        return self._forward

    @cached_property
    def _forward(self) -> "BoundNetwork":
        return replace(self, network=self.network.with_forward_mode())


@runtime_checkable
class Method(Protocol):
    """The interface of a method, which training, sampling and likelihoods use.

    Class attributes:
        Settings: a frozen dataclass of the method's keys in the section `method` of a config, with their defaults.
            Numbers may be annotated with a `flowjax.ranges.Range`.
        sections: the other sections of a config that the method reads, among "source", "path", "coupling", "prediction"
            and "model". Its configs have no other sections among these. Further names have no effect: keys that only
            this method reads belong in `Settings`. A new section for several methods needs its defaults in
            `flowjax.config_keys.SECTIONS`, the ranges of its numbers in `flowjax.ranges`, and a property of
            `Components` that `flowjax.build` implements.
        limits: the limits of metrics that stop training when they are too large.
        takes_mask: whether `loss` uses the mask of a batch, so that data with a mask are allowed; False if absent.
        takes_pairs: whether `loss` uses the x0 of a batch, so that `data.pairs` is allowed; False if absent.
        learns_dequantisation: whether `loss` learns the noise of integers, so that `data.dequantisation` can be
            'variational'; False if absent.
        needs_pairs: whether `loss` needs the x0 of a batch, so that `data.pairs` must be set; False if absent.
        comparable_loss: whether a lower validation loss means a better model, so that the checkpoint `best` can be
            chosen by it; True if absent. It is False where the loss depends on a second network that is trained, on
            weights or targets that follow the network, or on a scale that changes during training.

    Class attributes or properties. Where they are properties, they are read only from an object, and type checkers need
    a comment, because a protocol cannot declare both:
        sampler: name of the default solver of `flowjax sample`.
        steps: default number of steps of that solver; None if the solver has no number of steps or adapts it.
        metrics: names of the metrics that `loss` returns.

    Attributes:
        network: the network that is trained. Training may replace it by the same function computed in another way, for
            example with data parallelism.
        prior: the distribution from which sampling starts.
        interval: the smallest and the largest time at which the model can be evaluated.
        targets: half-lives, in samples, of the moving averages of the parameters in `Context.targets`, by name.

    Optional attributes, which sampling reads if a method has them:
        path: the path of its model. Time grids in noise levels, other schedules and SDE solvers need it.
        source: the distribution of x0. A method with a path needs it for sampling on another schedule.
        prediction: the quantity that the network predicts; it says whether the model has a learned variance.
        bound: the variational bound on the log-probabilities of integers that `flowjax evaluate` also computes if
            `data.dequantisation` is none, such as "vdm(20)".
        trained_steps: the numbers of steps of its default solver for which the network was trained; empty for any.
        learns_interval: whether the interval depends on the parameters; False if absent. Then `interval_of(params)`
            returns it, and `model` takes it as `interval`, for parameters whose values are not known under `jit`.

    Optional attributes, which training reads if a method has them:
        groups: for methods that train several networks: how each of the groups of parameters is trained, by the first
            key of its parameters. Each group has an optimizer of its own. Empty for one optimizer.
        starts: the groups that `train.start_from` replaces by the parameters of a trained network; by default all that
            have the structure of the network. Empty if none can be replaced, because the parameters have no meaning
            without variables that are not parameters.
        teacher: the method of a trained run, whose variables the loss finds in `Context.teacher`
            (`flowjax.methods.teacher`); None without one.

    `MethodDefaults` and `PathMethod` give defaults for most of them. `build` checks that a method is a frozen dataclass
    with all attributes that are not optional.
    """

    Settings: ClassVar[type]
    sections: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    limits: ClassVar[Mapping[str, Limit]]
    sampler: ClassVar[str]
    steps: ClassVar[int | None]

    @property
    def network(self) -> Network: ...

    @property
    def prior(self) -> Source: ...

    @property
    def interval(self) -> tuple[float, float]: ...

    @property
    def targets(self) -> Mapping[str, float]: ...

    @classmethod
    def from_config(cls, parts: "Components") -> "Method":
        """Builds the method from the parts of a config.

        Raises:
            ConfigError: if the parts do not fit together.
        """
        ...

    def init(self, key: PRNGKey) -> Variables:
        """Returns the initial parameters and all other variables."""
        ...

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        """Computes the loss of a batch. Training differentiates its value with respect to `params`."""
        ...

    def model(self, params: Params, state: PyTree) -> Any:
        """Returns the model of trained parameters: an object with some of the abilities of `flowjax.abilities`."""
        ...


@dataclass(frozen=True)
class _NoSettings:
    """The settings of a method without settings."""


class MethodDefaults:
    """Defaults of `Method`, for methods to inherit: no metrics, no targets, and the variables of one network."""

    Settings: ClassVar[type] = _NoSettings
    sections: ClassVar[tuple[str, ...]] = ("source", "model")
    metrics: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Mapping[str, Limit]] = {}
    sampler: ClassVar[str] = "dopri5"
    steps: ClassVar[int | None] = None
    takes_mask: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    learns_dequantisation: ClassVar[bool] = False
    comparable_loss: ClassVar[bool] = True
    network: Network

    @property
    def interval(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def learns_interval(self) -> bool:
        return False

    def interval_of(self, params: Params) -> tuple[float, float]:
        """The smallest and the largest time at which a model with these parameters can be evaluated."""
        return self.interval

    @property
    def targets(self) -> Mapping[str, float]:
        return {}

    @property
    def groups(self) -> Mapping[str, Group]:
        return {}

    @property
    def trained_steps(self) -> tuple[int, ...]:
        return ()

    def init(self, key: PRNGKey) -> Variables:
        return self.network.init(key)


class PathMethod(MethodDefaults):
    """Defaults for a method with a path: sampling starts from the prior of the path and covers its times."""

    path: Any
    source: Source

    @property
    def prior(self) -> Source:
        return self.path.prior(self.source)

    @property
    def interval(self) -> tuple[float, float]:
        return self.path.t_min, self.path.t_max


def has_comparable_loss(method: Any) -> bool:
    """Whether a lower validation loss means a better model (`Method.comparable_loss`).

    Args:
        method: the method, or its class.
    """
    return getattr(method, "comparable_loss", True)


def learns_interval(method: Any) -> bool:
    """Whether the interval of a method depends on its parameters (`Method.learns_interval`)."""
    return getattr(method, "learns_interval", False)
