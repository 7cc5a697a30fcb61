"""The parts of a config, from which `Method.from_config` builds a method."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flowjax.methods.base import Network
from flowjax.sources import Source

if TYPE_CHECKING:
    from flowjax.conditions import Field
    from flowjax.couplings import Coupling
    from flowjax.data.spec import DataSpec
    from flowjax.methods.errors_of_rows import RowLoss
    from flowjax.methods.times import Times
    from flowjax.methods.weights import Weighting
    from flowjax.paths import AffinePath
    from flowjax.predictions import Prediction

__all__ = ["Components"]


class Components(ABC):
    """The parts of a config. Each part is built when a method reads it for the first time (`flowjax.build`).

    Attributes:
        spec: the specification of the data set.
    """

    spec: "DataSpec"

    @property
    @abstractmethod
    def teacher(self) -> Any:
        """The method of the run that the setting `teacher` names; an `AbsentTeacher` if the method is built without it,
        to be sampled; None if the method has no such setting or it is empty."""

    @cached_property
    @abstractmethod
    def settings(self) -> Any:
        """The method's section of the config, an instance of its `Settings`."""

    @cached_property
    @abstractmethod
    def fields(self) -> "tuple[Field, ...]":
        """The conditions that the network takes."""

    @cached_property
    @abstractmethod
    def source(self) -> Source:
        """The source distribution of the section `source`."""

    @cached_property
    @abstractmethod
    def path(self) -> "AffinePath":
        """The path of the section `path`: a `GaussianPath` if the source, the coupling and the noise allow it."""

    @cached_property
    @abstractmethod
    def coupling(self) -> "Coupling":
        """The coupling of the section `coupling`; the independent coupling if the method does not read that section."""

    @cached_property
    @abstractmethod
    def prediction(self) -> "Prediction":
        """The prediction that the key `prediction` names. It has been checked against the path."""

    @abstractmethod
    def times(self, text: str) -> "Times":
        """The distribution of training times that the setting `times` names."""

    @abstractmethod
    def weighting(self, text: str) -> "Weighting":
        """The loss weight that the setting `weight` names."""

    @abstractmethod
    def row_loss(self, text: str) -> "RowLoss":
        """The loss of an example as a function of its squared error, which the setting `loss` names."""

    @abstractmethod
    def network(self, outputs: int = 1, two_times: bool = False) -> Network:
        """The network of the section `model`.

        Args:
            outputs: number of arrays of the event's shape that it returns, concatenated along the last axis.
            two_times: whether it takes a second time `s`.
        """

    @abstractmethod
    def network_of(self, construct: Callable[[Any], Any], takes_key: bool = False) -> Network:
        """The network of an NNX module that the method makes, `construct(rngs) -> module`.

        Args:
            construct: makes the module.
            takes_key: whether a call of the module takes a `key` for dropout.
        """
