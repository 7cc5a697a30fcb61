"""Normalizing flows trained by maximum likelihood: invertible networks with exact densities in one evaluation.

A flow f maps the data to the source, and its inverse maps the source to the data. The loss is the negative
log-likelihood in nats per dimension:

    (1)  L = -E [log p_source(f(x)) + log |det df/dx|] / D

The architectures are in `flowjax.models.bijections.flows`.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch, check_floating
from flowjax.errors import ConfigError, lookup
from flowjax.methods.base import Context, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.models.bijections import FLOWS, Sizes
from flowjax.models.functional import Variables
from flowjax.precision import at_least_float32
from flowjax.sources import Source, Uniform, has_density
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["NormalizingFlow", "NormalizingFlowModel", "check_source"]


def check_source(method: str, source: Source) -> None:
    """Checks that maximum likelihood with this source is possible, wherever the flow maps the data.

    Raises:
        ConfigError: if the source has no density, or one that is 0 somewhere.
    """
    if not has_density(source) or isinstance(source, Uniform):
        raise ConfigError(
            f"method.name {method!r} needs a source with a density that is positive everywhere: use source.name "
            "'normal'"
        )


@dataclass(frozen=True)
class Settings(Sizes):
    """The keys of `config.method`.

    Attributes:
        flow: the architecture: couplings that are additive (`nice`), affine (`real_nvp`) or splines (`spline`),
            autoregressive layers (`maf`, `spline_maf`), or the steps of `glow`.
    """

    flow: str = "spline"


@dataclass(frozen=True)
class NormalizingFlow(MethodDefaults):
    """Maximum likelihood with a normalizing flow.

    Attributes:
        network: a `Bijector` as pure functions.
        source: the distribution to which the data are mapped; its density is positive everywhere.
    """

    network: Network
    source: Source

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source",)
    metrics: ClassVar[tuple[str, ...]] = ("log_det", "z_square")
    sampler: ClassVar[str] = "push_forward"
    starts: ClassVar[tuple[str, ...]] = ()  # permutations and statistics of the first batch are not parameters

    @classmethod
    def from_config(cls, parts: Components) -> "NormalizingFlow":
        settings, source, fields = parts.settings, parts.source, parts.fields
        check_source("normalizing_flow", source)
        if images := [field.name for field in fields if field.kind == "image"]:
            raise ConfigError(
                f"method.name 'normalizing_flow' takes no condition of the kind image ({images[0]!r}): use labels, "
                "vectors, sets or sequences, or another method"
            )
        build = lookup("method.flow", settings.flow, FLOWS)
        return cls(parts.network_of(lambda rngs: build(parts.spec.shape, fields, settings, rngs)), source)

    @property
    def prior(self) -> Source:
        return self.source

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        x = batch.x1
        check_floating(x1=x)
        (z, log_det), state = self.network(params, context, x, batch.cond, method="forward")
        nats = -(self.source.log_prob(z) + log_det)
        metrics = {"log_det": jnp.mean(log_det), "z_square": jnp.mean(z**2)}
        return Loss(jnp.mean(nats) / x[0].size, metrics, state)

    def model(self, params: Params, state: PyTree) -> "NormalizingFlowModel":
        return NormalizingFlowModel(self.network, Variables(params, state))


@dataclass(frozen=True, eq=False)
class NormalizingFlowModel:
    """A trained normalizing flow, a bijection between the source and the data.

    Its directions are those of `flowjax.abilities`, opposite to those of the layers.

    Attributes:
        network: a `Bijector` as pure functions.
        variables: its trained parameters and its other variables.
    """

    network: Network
    variables: Variables

    def forward(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the source to the data. Returns (x, log|det dx / dz|)."""
        return self.network.apply(self.variables, at_least_float32(z), cond, method="inverse")[0]

    def inverse(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the data to the source. Returns (z, log|det dz / dx|)."""
        return self.network.apply(self.variables, at_least_float32(x), cond, method="forward")[0]
