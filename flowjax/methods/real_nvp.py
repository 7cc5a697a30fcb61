"""RealNVP: a normalizing flow of affine coupling layers, trained by maximum likelihood (Dinh et al. 2017,
arXiv:1605.08803).

With a binary mask b, a layer keeps the coordinates where b = 1, and scales and shifts the others by functions of them:

    (1)  y = b x + (1 - b) (x e^s + m),   s, m = network(b x)
    (2)  log |det dy / dx| = sum of (1 - b) s

Each layer first applies a fixed random permutation of the coordinates, and the layers alternate between b and 1 - b.
The layers map the data to the source; their exact inverses in reverse order map the source to the data. The log scale
is s = a tanh(s' / a) with a = 3, which keeps the layers invertible in float32.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.batch import Batch, check_floating
from flowjax.conditions import Field
from flowjax.errors import ConfigError
from flowjax.methods.base import Context, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.models.functional import Variables
from flowjax.models.mlp import MLP
from flowjax.precision import at_least_float32
from flowjax.ranges import Range
from flowjax.sources import Source, has_density
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["AffineCouplings", "RealNVP", "RealNVPModel"]

_LARGEST_LOG_SCALE = 3.0


class AffineCouplings(nnx.Module):
    """A stack of affine coupling layers.

    Masks and permutations are variables that are not parameters: checkpoints contain them, and training leaves them
    unchanged.

    Args:
        shape: shape of one example, with at least 2 numbers.
        fields: the conditions of the network of every layer.
        layers: number of coupling layers.
        width: width of the hidden layers of each coupling layer's network.
        depth: number of hidden layers of each coupling layer's network.
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if an example has fewer than 2 numbers.
    """

    def __init__(
        self, shape: tuple[int, ...], *, fields: tuple[Field, ...], layers: int, width: int, depth: int, rngs: nnx.Rngs
    ):
        self.d = d = math.prod(shape)
        if d < 2:
            raise ValueError(f"affine couplings need examples of at least 2 numbers, not of shape {shape}")
        order = [jax.random.permutation(rngs.params(), d) for _ in range(layers)]
        self.order = nnx.Variable(jnp.stack(order))
        self.mask = nnx.Variable(jnp.stack([(jnp.arange(d) % 2 == i % 2) for i in range(layers)]))
        make = lambda: MLP((d,), width=width, depth=depth, features=0, fields=fields, outputs=2, rngs=rngs)
        self.networks = nnx.List([make() for _ in range(layers)])

    def __call__(self, x: Float[Array, "B *event"], cond: Cond = None) -> tuple[Array, Array]:
        """Maps the data to the source by equations (1) and (2). Returns (z, log|det dz / dx|)."""
        y, log_det = x.reshape(x.shape[0], self.d), jnp.zeros(x.shape[0], x.dtype)
        for i, network in enumerate(self.networks):
            y = y[:, self.order[i]]
            scale, shift = self._read(network, i, y, cond)
            y, log_det = y * jnp.exp(scale) + shift, log_det + scale.sum(-1)
        return y.reshape(x.shape), log_det

    def invert(self, z: Float[Array, "B *event"], cond: Cond = None) -> tuple[Array, Array]:
        """Maps the source to the data. Returns (x, log|det dx / dz|)."""
        y, log_det = z.reshape(z.shape[0], self.d), jnp.zeros(z.shape[0], z.dtype)
        for i, network in reversed(list(enumerate(self.networks))):
            scale, shift = self._read(network, i, y, cond)
            y, log_det = (y - shift) * jnp.exp(-scale), log_det - scale.sum(-1)
            y = y[:, jnp.argsort(self.order[i])]
        return y.reshape(z.shape), log_det

    def _read(self, network: MLP, i: int, y: Float[Array, "B D"], cond: Cond) -> tuple[Array, Array]:
        """Returns the log scale and the shift of layer i, which are zero where the mask keeps the coordinate."""
        kept = self.mask[i].astype(y.dtype)
        scale, shift = jnp.split(network(0.0, y * kept, cond), 2, -1)
        scale = _LARGEST_LOG_SCALE * jnp.tanh(scale / _LARGEST_LOG_SCALE)
        return scale * (1 - kept), shift * (1 - kept)


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        layers: number of coupling layers.
        width: width of the hidden layers of each coupling layer's network.
        depth: number of hidden layers of each coupling layer's network.
    """

    layers: Annotated[int, Range(1, 64)] = 8
    width: Annotated[int, Range(1, 65_536)] = 64
    depth: Annotated[int, Range(1, 64)] = 2


@dataclass(frozen=True)
class RealNVP(MethodDefaults):
    """Maximum likelihood with affine coupling layers. The loss is the negative log-likelihood in nats per dimension.

    Attributes:
        network: `AffineCouplings` as pure functions.
        source: the distribution to which the data are mapped; it needs a density.
    """

    network: Network
    source: Source

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source",)
    metrics: ClassVar[tuple[str, ...]] = ("log_det",)
    sampler: ClassVar[str] = "push_forward"

    @classmethod
    def from_config(cls, parts: Components) -> "RealNVP":
        settings, source = parts.settings, parts.source
        if not has_density(source):
            raise ConfigError("method.name 'real_nvp' needs a source with a density: use source.name 'normal'")
        sizes: dict[str, Any] = {"layers": settings.layers, "width": settings.width, "depth": settings.depth}
        make = lambda rngs: AffineCouplings(parts.spec.shape, fields=parts.fields, rngs=rngs, **sizes)
        return cls(parts.network_of(make), source)

    @property
    def prior(self) -> Source:
        return self.source

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        x = batch.x1
        check_floating(x1=x)
        (z, log_det), state = self.network(params, context, x, batch.cond)
        nats = -(self.source.log_prob(z) + log_det)
        return Loss(jnp.mean(nats) / x[0].size, {"log_det": jnp.mean(log_det)}, state)

    def model(self, params: Params, state: PyTree) -> "RealNVPModel":
        return RealNVPModel(self.network, Variables(params, state))


@dataclass(frozen=True, eq=False)
class RealNVPModel:
    """A trained RealNVP, a bijection between the source and the data.

    Attributes:
        network: `AffineCouplings` as pure functions.
        variables: its trained parameters, and its masks and permutations.
    """

    network: Network
    variables: Variables

    def forward(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the source to the data. Returns (x, log|det dx / dz|)."""
        return self.network.apply(self.variables, at_least_float32(z), cond, method="invert")[0]

    def inverse(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the data to the source. Returns (z, log|det dz / dx|)."""
        return self.network.apply(self.variables, at_least_float32(x), cond)[0]
