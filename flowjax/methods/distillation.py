"""Distillation: a network learns the map of a trained flow from its pairs (x0, x1), for sampling in one evaluation.

The network predicts the change of a source sample at time 0 only:

    (1)  L(w) = E |net_w(0, x0) - (x1 - x0)|^2,    G(x0) = x0 + net_w(0, x0)

(Liu et al. 2022, arXiv:2209.03003, sec. 2.2 and 5, who distil the last round of reflow). The pairs come from
`flowjax pairs` or `flowjax reflow`. G can represent the map of the flow exactly, whatever its trajectories are; the
straighter they are, the nearer the velocity network at time 0, from which training can start, is to the minimum. Pairs
that do not determine x1 from x0 give its conditional mean, which is no sample.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from flowjax.batch import Batch, check_floating
from flowjax.methods.base import Context, Loss, MethodDefaults, Network
from flowjax.methods.components import Components
from flowjax.methods.draw import row_mean_square
from flowjax.methods.errors_of_rows import SQUARED, RowLoss
from flowjax.methods.generator import GeneratorModel, OneStep
from flowjax.sources import Source, filled
from flowjax.typing import Params, PRNGKey, PyTree

__all__ = ["Distillation"]


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        loss: the loss of an example as a function of its squared error, as for `flow_matching`.
    """

    loss: str = "squared"


@dataclass(frozen=True)
class Distillation(MethodDefaults):
    """One-step distillation of given pairs.

    Attributes:
        network: `network(t, x, cond)`, which is evaluated at t = 0.
        source: the distribution of x0.
        row_loss: the loss of an example as a function of its squared error.
    """

    network: Network
    source: Source
    row_loss: RowLoss = SQUARED

    Settings: ClassVar[type] = Settings
    metrics: ClassVar[tuple[str, ...]] = ("squared_error",)
    sampler: ClassVar[str] = "push_forward"
    takes_pairs: ClassVar[bool] = True
    needs_pairs: ClassVar[bool] = True

    @classmethod
    def from_config(cls, parts: Components) -> "Distillation":
        return cls(parts.network(), parts.source, parts.row_loss(parts.settings.loss))

    @property
    def prior(self) -> Source:
        return self.source

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        if batch.x0 is None:  # `build` refuses such data before; this is for own loops
            raise ValueError("distillation needs batches with x0, the source sample of each row")
        check_floating(x1=batch.x1, x0=batch.x0)
        n = batch.x1.shape[0]
        x0 = filled(batch.x0, self.source.sample(key, n))
        output, state = self.network(params, context, jnp.zeros(n, jnp.float32), x0, batch.cond, key=key)
        rows = row_mean_square(output - (batch.x1 - x0))
        return Loss(jnp.mean(self.row_loss(rows)), {"squared_error": jnp.mean(rows)}, state)

    def model(self, params: Params, state: PyTree) -> GeneratorModel:
        return GeneratorModel(OneStep(self.network.bind(params, state)))
