"""Generative adversarial network: a generator in one evaluation, trained against a critic (Goodfellow et al. 2014,
arXiv:1406.2661). It is a baseline for flows, with the same networks.

The generator adds the output of the network to a sample x0 of the source, which is a flow of constant velocity over
times 0 to 1, so that training may start from a velocity network:

    (1)  G(x0) = x0 + net(0, x0)

The critic C(x) is the mean over the coordinates of the output of a second network of the same kind, at time 1. With
softplus(a) = log(1 + e^a), data x1 and x = G(x0), the default is the relativistic pairing loss of R3GAN (Huang et al.
2025, arXiv:2501.05441, eq. 2, and eq. 4 to 6 for the penalties), which compares each row of the data with one generated
row:

    (2)  L_critic    = E softplus(C(x) - C(x1)) + gamma / 2 (E |grad C(x1)|^2 + E |grad C(x)|^2)
    (3)  L_generator = E softplus(C(x1) - C(x))

`non_saturating` has E softplus(C(x)) + E softplus(-C(x1)) for the first term of (2), and E softplus(-C(x)) for (3). The
two penalties, R1 on the data and R2 on generated samples, make training converge locally (Mescheder et al. 2018,
arXiv:1801.04406). |.|^2 is the sum of squares over the coordinates.

The loss is the sum of (2) and (3). No gradient of (2) reaches the generator, because its samples are constants there,
and no gradient of (3) reaches the critic, because its parameters are constants there. Each network therefore gets the
gradient of its own loss in one step, and both are updated from the same parameters. As the two losses work against each
other, their sum says nothing about the quality of samples. In equilibrium C(x) and C(x1) have the same distribution,
and (2) without the penalties and (3) are each at least log 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch, check_floating
from flowjax.errors import lookup
from flowjax.methods.base import Context, Group, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.methods.generator import GeneratorModel, OneStep, context_of, init_networks
from flowjax.models.functional import Variables
from flowjax.precision import at_least_float32
from flowjax.ranges import Range
from flowjax.sources import Source, sum_event
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["GAN", "LOSSES", "AdversarialLoss"]

Rows = Float[Array, " B"]
"""The values of the critic at the rows of a batch."""


class AdversarialLoss(NamedTuple):
    """The losses of the two networks, as functions of the critic's values at data and at generated samples.

    Attributes:
        critic: `critic(real, generated) -> (B,)`.
        generator: `generator(real, generated) -> (B,)`.
    """

    critic: Callable[[Rows, Rows], Rows]
    generator: Callable[[Rows, Rows], Rows]


_softplus = jax.nn.softplus

LOSSES: dict[str, AdversarialLoss] = {
    "relativistic": AdversarialLoss(
        lambda real, generated: _softplus(generated - real), lambda real, generated: _softplus(real - generated)
    ),
    "non_saturating": AdversarialLoss(
        lambda real, generated: _softplus(generated) + _softplus(-real), lambda real, generated: _softplus(-generated)
    ),
}
"""The values of the setting `loss`."""


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        loss: the adversarial loss: `relativistic` or `non_saturating`.
        gamma: the weight of the penalties on the gradient of the critic. Larger values make training more stable and
            the critic smoother.
        critic_rate: the learning rate of the critic divided by that of the generator.
        generator_every: the number of updates of the critic for one update of the generator.
    """

    loss: str = "relativistic"
    gamma: Annotated[float, Range(0, 1e6)] = 1.0
    critic_rate: Annotated[float, Range(1e-3, 1e3)] = 1.0
    generator_every: Annotated[int, Range(1, 1000)] = 1


class Judged(NamedTuple):
    """The critic at the rows of a batch.

    Attributes:
        value: C(x), (B,).
        slope: |grad C(x)|^2, (B,).
        state: the variables of the critic that are not parameters, after the call.
    """

    value: Rows
    slope: Rows
    state: PyTree


@dataclass(frozen=True)
class GAN(MethodDefaults):
    """A generative adversarial network.

    Attributes:
        network: the network of the generator, `network(t, x, cond)`.
        critic: the network of the critic, `critic(t, x, cond)`.
        source: the distribution of x0.
        adversarial: the losses of both.
        gamma, critic_rate, generator_every: as in `Settings`.
    """

    network: Network
    critic: Network
    source: Source
    adversarial: AdversarialLoss = LOSSES["relativistic"]
    gamma: float = 1.0
    critic_rate: float = 1.0
    generator_every: int = 1

    Settings: ClassVar[type] = Settings
    comparable_loss: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = (
        "generator_loss",
        "critic_loss",
        "critic_real",
        "critic_generated",
        "slope_real",
        "slope_generated",
    )
    sampler: ClassVar[str] = "push_forward"
    starts: ClassVar[tuple[str, ...]] = ("network",)

    @classmethod
    def from_config(cls, parts: Components) -> "GAN":
        settings = parts.settings
        chosen = lookup("method.loss", settings.loss, LOSSES)
        rates = settings.gamma, settings.critic_rate, settings.generator_every
        return cls(parts.network(), parts.network(), parts.source, chosen, *rates)

    @property
    def prior(self) -> Source:
        return self.source

    @property
    def groups(self) -> Mapping[str, Group]:
        return {"network": Group(every=self.generator_every), "critic": Group(rate=self.critic_rate)}

    def init(self, key: PRNGKey) -> Variables:
        return init_networks(key, {"network": self.network, "critic": self.critic})

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        check_floating(x1=batch.x1)
        freeze, cond = jax.lax.stop_gradient, batch.cond
        key_source, key_generator, key_critic = jax.random.split(key, 3)
        x0 = self.source.sample(key_source, batch.x1.shape[0]).astype(batch.x1.dtype)
        of_generator = context_of(context, "network")
        change, state = self.network(params["network"], of_generator, _times(0.0, x0), x0, cond, key=key_generator)
        x = at_least_float32(x0) + at_least_float32(change)

        real = self._judge(params["critic"], context, batch.x1, cond, key_critic)
        generated = self._judge(params["critic"], context, freeze(x), cond, key_critic)
        penalty = self.gamma / 2 * jnp.mean(real.slope + generated.slope)
        critic_loss = jnp.mean(self.adversarial.critic(real.value, generated.value))

        against = self._values(freeze(params["critic"]), context, x, cond, key_critic)[0]
        generator_loss = jnp.mean(self.adversarial.generator(freeze(real.value), against))
        metrics = {
            "generator_loss": generator_loss,
            "critic_loss": critic_loss,
            "critic_real": jnp.mean(real.value),
            "critic_generated": jnp.mean(generated.value),
            "slope_real": jnp.mean(real.slope),
            "slope_generated": jnp.mean(generated.slope),
        }
        return Loss(critic_loss + penalty + generator_loss, metrics, {"network": state, "critic": real.state})

    def _values(self, params: Params, context: Context, x: Batched, cond: Cond, key: PRNGKey) -> tuple[Rows, PyTree]:
        """C(x) for each row, and the state of the critic after the call."""
        critic = self.critic.with_forward_mode()  # fused kernels have no second derivative, which the penalties need
        output, state = critic(params, context_of(context, "critic"), _times(1.0, x), x, cond, key=key)
        output = at_least_float32(output)
        return sum_event(output) / output[0].size, state

    def _judge(self, params: Params, context: Context, x: Batched, cond: Cond, key: PRNGKey) -> Judged:
        """The critic with the square of its gradient. The rows are independent, so the gradient of their sum has it."""

        def total(x: Batched) -> tuple[Array, tuple[Rows, PyTree]]:
            values, state = self._values(params, context, x, cond, key)
            return jnp.sum(values), (values, state)

        slope, (values, state) = jax.grad(total, has_aux=True)(at_least_float32(x))
        return Judged(values, sum_event(slope**2), state)

    def model(self, params: Params, state: PyTree) -> GeneratorModel:
        return GeneratorModel(OneStep(self.network.bind(params["network"], state.get("network", {}))))


def _times(t: float, x: Batched) -> Rows:
    """The same time for each row."""
    return jnp.full(x.shape[0], t, jnp.float32)
