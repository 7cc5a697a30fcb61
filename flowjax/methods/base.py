"""The contract of a method: what is trained, and what the trained network can do.

A method is a frozen object of pure functions. The training step calls `loss` and differentiates it with respect to the
parameters; it knows nothing of paths, couplings or predictions. A new method is one file in this folder and one line in
`flowjax.methods.METHODS`, or a class in a module of your own.
"""

from abc import ABC, abstractmethod
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
    from flowjax.conditions import Field
    from flowjax.couplings import Coupling
    from flowjax.data.spec import DataSpec
    from flowjax.methods.times import Times
    from flowjax.methods.weights import Weighting
    from flowjax.paths import AffinePath
    from flowjax.predictions import Prediction

__all__ = [
    "BoundNetwork",
    "Components",
    "Context",
    "Limit",
    "Loss",
    "Method",
    "MethodDefaults",
    "Network",
    "PathMethod",
]

_DROPOUT = 2**31 - 3
"""Folded into a step's key for the dropout, so that the other random numbers are those of a network without it."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "targets", "teacher", "state"],
    meta_fields=["training"],
)
@dataclass(frozen=True)
class Context:
    """What a loss may read beside the parameters. No gradient flows into it.

    Attributes:
        step: optimizer steps taken before this one, () int32.
        targets: moving averages of the parameters, by the names in the method's `targets`.
        teacher: frozen parameters, which are an argument of the compiled program and not a constant in it; None
            without a teacher.
        state: variables of the network that are not parameters, such as batch statistics.
        training: whether the loss is that of a training step: with dropout, and with new batch statistics.
    """

    step: Int[Array, ""] | int = 0
    targets: Mapping[str, Params] = field(default_factory=dict)
    teacher: PyTree = None
    state: PyTree = field(default_factory=dict)
    training: bool = False


class Loss(NamedTuple):
    """What a loss returns.

    Attributes:
        value: the scalar to minimise.
        metrics: scalars by the names in the method's `metrics`. A record of `metrics.jsonl` holds the mean of each over
            the steps since the record before it, or the largest value of those that have a limit.
        state: the variables that are not parameters, after the step.
    """

    value: Float[Array, ""]
    metrics: Mapping[str, Array]
    state: PyTree


class Limit(NamedTuple):
    """The largest value of a metric that training accepts. A step that is above it is not taken, and training stops.

    Attributes:
        largest: the limit.
        message: for the user; `{value}` and `{step}` in it stand for the metric and the number of the step.
    """

    largest: float
    message: str


@dataclass(frozen=True)
class Network:
    """A network as pure functions.

    Attributes:
        init: key -> `Variables`: parameters, and all other variables.
        apply: (variables, *arguments, training=False, **inputs) -> (output, state after the call).
        takes_key: whether it draws dropout from the input `key` in training.
        fused: whether it may use fused kernels, which the input `forward_mode=True` replaces by plain operations.
        traits: what the network declares about itself.
    """

    init: Callable[[PRNGKey], Variables]
    apply: Callable[..., tuple[Any, PyTree]]
    takes_key: bool = False
    fused: bool = False
    traits: Traits = field(default_factory=Traits)

    @classmethod
    def of(cls, functional: Functional, takes_key: bool = False, fused: bool = False) -> "Network":
        """The network of an NNX module (`flowjax.models.functional`)."""
        return cls(functional.init, functional.apply, takes_key, fused, functional.traits)

    @classmethod
    def from_function(cls, apply: Callable[[Params, Any, Any, Any], Output]) -> "Network":
        """The network of a plain function `apply(params, t, x, cond) -> output`, whose parameters are the caller's.

        A likelihood needs its forward derivative, so it must have no rule of its own for reverse mode alone.
        """

        def initialised_elsewhere(key: PRNGKey) -> Variables:
            raise ValueError("this network is a plain function: its caller makes the parameters")

        def call(variables: Variables, *arguments: Any, training: bool = False, **inputs: Any) -> tuple[Any, PyTree]:
            return apply(variables.params, *arguments, **inputs), variables.state

        return cls(initialised_elsewhere, call)

    def __call__(
        self, params: Params, context: Context, *arguments: Any, key: PRNGKey | None = None, **inputs: Any
    ) -> tuple[Any, PyTree]:
        """The output, and the state after the call.

        Args:
            params: parameters.
            context: holds the state, and whether this is a training step.
            arguments: of the module, usually t, x and the condition.
            key: of the step; dropout takes a key of its own from it.
            inputs: further inputs by name, such as `s` or `mask`; those that are None are left out.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        if self.takes_key and context.training and key is not None:
            given["key"] = jax.random.fold_in(key, _DROPOUT)
        variables = Variables(params, context.state)
        return self.apply(variables, *arguments, training=context.training, **given)

    def in_forward_mode(self) -> "Network":
        """The same network made of operations that JAX can differentiate in forward mode."""
        return replace(self, apply=partial(self.apply, forward_mode=True), fused=False) if self.fused else self

    def bind(self, params: Params, state: PyTree) -> "BoundNetwork":
        """The network with these variables, as sampling calls it."""
        return BoundNetwork(self, Variables(params, state))


@dataclass(frozen=True, eq=False)
class BoundNetwork:
    """A network with its variables: `network(t, x, cond, **inputs) -> output`."""

    network: Network
    variables: Variables

    def __call__(self, *arguments: Any, **inputs: Any) -> Any:
        return self.network.apply(self.variables, *arguments, **inputs)[0]

    def with_forward_mode(self) -> "BoundNetwork":
        """The same network made of operations that JAX can differentiate in forward mode."""
        return self._forward

    @cached_property
    def _forward(self) -> "BoundNetwork":
        return replace(self, network=self.network.in_forward_mode())


@runtime_checkable
class Method(Protocol):
    """What the training step, the sampler and the likelihood ask of a method.

    Class attributes:
        Settings: a frozen dataclass, the method's own keys in the section `method` of a config, with their defaults.
            Numbers may be annotated with a `flowjax.ranges.Range`.
        sections: the other sections of a config that the method reads: of "source", "path", "coupling", "prediction"
            and "model". The others do not exist in its configs.
        metrics: names of the metrics that `loss` returns.
        limits: the metrics that stop training when they are too large.
        sampler: name of the solver with which `flowjax sample` draws by default.
        steps: number of steps of that solver; None where it takes none or adapts them.

    Attributes:
        network: the network that is trained. Training may replace it by the same function computed in another way, such
            as in data parallel.
        prior: the distribution that sampling starts from.
        interval: the times at which the model can be asked.
        targets: half-lives, in samples, of the moving averages of the parameters that `loss` finds in
            `Context.targets`, by name.
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
        """The method of a config.

        Raises:
            ConfigError: if parts do not fit together.
        """
        ...

    def init(self, key: PRNGKey) -> Variables:
        """Initial parameters, and all other variables."""
        ...

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        """The loss of a batch; its value is differentiated with respect to `params`."""
        ...

    def model(self, params: Params, state: PyTree) -> Any:
        """What the trained network can do: an object with some of the abilities of `flowjax.abilities`."""
        ...


@dataclass(frozen=True)
class _NoSettings:
    """Of a method without keys of its own."""


class MethodDefaults:
    """Defaults of the contract, for methods to inherit: no metrics, no targets, and the variables of one network."""

    Settings: ClassVar[type] = _NoSettings
    sections: ClassVar[tuple[str, ...]] = ("source", "model")
    metrics: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Mapping[str, Limit]] = {}
    sampler: ClassVar[str] = "dopri5"
    steps: ClassVar[int | None] = None
    network: Network

    @property
    def interval(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def targets(self) -> Mapping[str, float]:
        return {}

    def init(self, key: PRNGKey) -> Variables:
        return self.network.init(key)


class PathMethod(MethodDefaults):
    """Defaults of a method whose samples move along a path: it starts from the path's prior, at the path's times."""

    path: Any
    source: Source

    @property
    def prior(self) -> Source:
        return self.path.prior(self.source)

    @property
    def interval(self) -> tuple[float, float]:
        return self.path.t_min, self.path.t_max


class Components(ABC):
    """The parts of a config, each built when a method asks for it (`flowjax.build`).

    Attributes:
        spec: of the data set.
    """

    spec: "DataSpec"

    @cached_property
    @abstractmethod
    def settings(self) -> Any:
        """The method's own keys, an instance of its `Settings`."""

    @cached_property
    @abstractmethod
    def fields(self) -> "tuple[Field, ...]":
        """The conditions of the network."""

    @cached_property
    @abstractmethod
    def source(self) -> Source:
        """What `source.name` stands for."""

    @cached_property
    @abstractmethod
    def path(self) -> "AffinePath":
        """What the section `path` stands for: a Gaussian path wherever it can be one."""

    @cached_property
    @abstractmethod
    def coupling(self) -> "Coupling":
        """What `coupling.name` stands for; the independent coupling of a method without that section."""

    @cached_property
    @abstractmethod
    def prediction(self) -> "Prediction":
        """What `prediction` stands for, checked against the path."""

    @abstractmethod
    def times(self, text: str) -> "Times":
        """The times that a name stands for, of a setting `times`."""

    @abstractmethod
    def weighting(self, text: str) -> "Weighting":
        """The loss weight that a name stands for, of a setting `weight`."""

    @abstractmethod
    def network(self, outputs: int = 1, two_times: bool = False) -> Network:
        """The network of the section `model`: `outputs` arrays of the event's shape side by side."""

    @abstractmethod
    def network_of(self, construct: Callable[[Any], Any], takes_key: bool = False) -> Network:
        """The network of an NNX module that the method makes itself: `construct(rngs) -> module`."""
