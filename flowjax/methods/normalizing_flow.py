"""Normalizing flows trained by maximum likelihood: invertible networks with exact densities in one evaluation.

A flow f maps the data to the source, and its inverse maps the source to the data. The loss is the negative
log-likelihood in nats per dimension:

    (1)  L = -E [log p_source(f(x)) + log |det df/dx|] / D

The architectures are in `flowjax.models.bijections.flows`.

With `data.dequantisation='variational'`, the noise u of integers is learned together with the flow (Ho et al. 2019,
arXiv:1902.00275; `flowjax.models.bijections.learned_noise`), and the loss is its bound, without a constant,

    (2)  L = -E [log p(edge + width u) - log q(u | x)] / D,   u ~ q(. | x)

in nats per dimension, with the edge and the width of each bin in model space.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch, check_floating
from flowjax.bits import Bins, Dequantised
from flowjax.errors import ConfigError, lookup
from flowjax.keys import RowKeys
from flowjax.methods.base import Context, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.models.bijections import FLOWS, Sizes, WithLearnedNoise
from flowjax.models.functional import Variables
from flowjax.precision import at_least_float32
from flowjax.sources import Source, Uniform, has_density
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["NormalizingFlow", "NormalizingFlowModel", "check_dequantised", "check_source"]


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


def check_dequantised(method: str, dequantisation: str) -> None:
    """Checks that the likelihood of the data has an upper bound.

    Raises:
        ConfigError: if integers are the centres of their bins, on which a density can be arbitrarily large.
    """
    if dequantisation == "none":
        learned = " or 'variational'" if method == "normalizing_flow" else ""
        raise ConfigError(
            f"method.name {method!r} has no noise of its own, so the likelihood of integers without dequantisation has "
            f"no upper bound: set data.dequantisation to 'uniform'{learned}"
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
        bins: the bins of the integers whose noise is learned; None if no noise is learned.
    """

    network: Network
    source: Source
    bins: Bins | None = None

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source",)
    metrics: ClassVar[tuple[str, ...]] = ("log_det", "z_square")
    learns_dequantisation: ClassVar[bool] = True
    sampler: ClassVar[str] = "push_forward"
    starts: ClassVar[tuple[str, ...]] = ()  # permutations and statistics of the first batch are not parameters

    @classmethod
    def from_config(cls, parts: Components) -> "NormalizingFlow":
        settings, source, fields = parts.settings, parts.source, parts.fields
        check_source("normalizing_flow", source)
        check_dequantised("normalizing_flow", parts.spec.dequantisation)
        if images := [field.name for field in fields if field.kind == "image"]:
            raise ConfigError(
                f"method.name 'normalizing_flow' takes no condition of the kind image ({images[0]!r}): use labels, "
                "vectors, sets or sequences, or another method"
            )
        build, shape = lookup("method.flow", settings.flow, FLOWS), parts.spec.shape
        kind, bins = parts.spec.dequantisation, parts.spec.bins
        if kind == "uniform":
            return cls(parts.network_of(lambda rngs: build(shape, fields, settings, rngs)), source)
        if bins is None or not bins.complete:
            raise ConfigError(
                "data.dequantisation 'variational' needs data that are integers in all entries: use 'uniform'"
            )
        both = lambda rngs: WithLearnedNoise(shape, build(shape, fields, settings, rngs), settings, rngs)
        return cls(parts.network_of(both), source, bins)

    @property
    def prior(self) -> Source:
        return self.source

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        x = batch.x1
        check_floating(x1=x)
        log_q = jnp.zeros(x.shape[0])
        if self.bins is not None:
            e = jax.random.normal(key, x.shape)
            (u, log_q), _ = self.network(params, context, e, x, method="noise")
            x = x + (u - 0.5) * self.bins.width
        (z, log_det), state = self.network(params, context, x, batch.cond, method="forward")
        nats = log_q - (self.source.log_prob(z) + log_det)
        metrics = {"log_det": jnp.mean(log_det), "z_square": jnp.mean(z**2)}
        return Loss(jnp.mean(nats) / x[0].size, metrics, state)

    def model(self, params: Params, state: PyTree) -> "NormalizingFlowModel":
        return NormalizingFlowModel(self.network, Variables(params, state), self.bins)


@dataclass(frozen=True, eq=False)
class NormalizingFlowModel:
    """A trained normalizing flow, a bijection between the source and the data.

    Its directions are those of `flowjax.abilities`, opposite to those of the layers.

    Attributes:
        network: a `Bijector` as pure functions.
        variables: its trained parameters and its other variables.
        bins: the bins of the integers whose noise was learned; None if none was.
    """

    network: Network
    variables: Variables
    bins: Bins | None = None

    def forward(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the source to the data. Returns (x, log|det dx / dz|)."""
        return self.network.apply(self.variables, at_least_float32(z), cond, method="inverse")[0]

    def inverse(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the data to the source. Returns (z, log|det dz / dx|)."""
        return self.network.apply(self.variables, at_least_float32(x), cond, method="forward")[0]

    def dequantise(self, keys: RowKeys, edges: Batched, cond: Cond = None) -> Dequantised:
        """Draws the noise that was learned for integers, as `flowjax.bits.Dequantisation` describes.

        Raises:
            ValueError: if no noise was learned.
        """
        if self.bins is None:
            raise ValueError("this flow has learned no noise: train it with data.dequantisation 'variational'")
        e = jax.vmap(lambda key: jax.random.normal(key, edges.shape[1:]))(keys)
        u, log_q = self.network.apply(self.variables, e, self.bins.centres(edges), method="noise")[0]
        return Dequantised(edges + u * self.bins.width, log_q)
