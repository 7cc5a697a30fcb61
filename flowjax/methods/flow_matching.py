"""Flow matching: a network learns a marginal vector field by regression on conditional targets.

    conditional   L_c(w) = E_{t, x0, x1} |net_w(t, x_t) - target(x_t | x0, x1)|^2
    marginal      L_m(w) = E_{t, x_t}    |net_w(t, x_t) - E[target | x_t]|^2

The two losses have the same gradient in w (Lipman et al. 2023, arXiv:2210.02747, theorem 2). They differ by the
constant E |target - E[target | x_t]|^2, the variance of the target given x_t. Training minimises the conditional loss,
because only an oracle can evaluate the conditional expectation. Denoising score matching (Vincent 2011) is the case in
which the target is the score or the noise.

|.|^2 is the mean square over the coordinates of an example, which may be replaced by a function of it
(`methods.errors_of_rows`); the minimum is then no longer the conditional expectation, unless the target is a function
of x_t, as for pairs that a straight flow has made. The distribution of training times (`methods.times`) and
the loss weight (`methods.weights`) are chosen separately. A learned uncertainty u(t) replaces the weighted loss L by
L / e^u + u, which gives all times the same weight once u = log E[L | t] (Karras et al. 2024, arXiv:2312.02696, sec.
2.3).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax import predictions
from flowjax.abilities import HasEnds
from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT, Coupling
from flowjax.errors import ConfigError
from flowjax.methods import weighted_times
from flowjax.methods.base import Context, Limit, Loss, Network, PathMethod
from flowjax.methods.components import Components
from flowjax.methods.draw import MARGINAL_ERROR, draw, row_mean_square
from flowjax.methods.errors_of_rows import SQUARED, RowLoss
from flowjax.methods.times import UNIFORM, Interval, Profile, Times, needs_profile
from flowjax.methods.weights import NATIVE, Weighting
from flowjax.models.functional import Variables
from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.predictions import Prediction, velocity
from flowjax.schedules import check_monotone
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Output, Params, PRNGKey, PyTree

__all__ = ["FlowMatching", "conditional", "marginal"]

ParametricApply = Callable[[Params, Float[Array, " B"], Batched, Cond], Output]
"""A network as a plain function `apply(params, t, x, cond) -> output`. The output has one array shaped like x per head
of the prediction, concatenated along the last axis. For a batch with a mask it is called with the keyword `mask`."""


@dataclass(frozen=True)
class Settings:
    """The keys of `config.method`.

    Attributes:
        weight: the weight of the loss at each time. `native` is the plain squared error of what the network predicts;
            the name of another prediction gives the loss of a network that predicts it.
        loss: the loss of an example as a function of its squared error: `pseudo_huber(c)` is linear above c, so that
            examples with large errors count less. The weight multiplies the loss.
        times: the distribution of the times in training. `u_shaped` suits pairs from a trained flow.
        uncertainty: whether to divide the loss at each time by its learned size.
    """

    weight: str = "native"
    loss: str = "squared"
    times: str = "uniform"
    uncertainty: bool = False


@dataclass(frozen=True)
class FlowMatching(PathMethod):
    """Flow matching on an affine path: the weighted squared error of a prediction.

    Attributes:
        network: `network(t, x, cond) -> output`.
        path, source: the path of x_t and the distribution of x0.
        coupling: pairs x0 with x1. It is not used for batches that contain x0.
        prediction: the quantity that the network predicts.
        drawn: the distribution of training times.
        weighting: the loss weight.
        uncertainty: whether to divide the loss at each time by its learned size.
        row_loss: the loss of an example as a function of its squared error (`methods.errors_of_rows`).

    Raises:
        ValueError: if the source does not fit the path, or the coupling makes the ends of a Gaussian path dependent.
    """

    network: Network
    path: AffinePath
    source: Source
    coupling: Coupling = INDEPENDENT
    prediction: Prediction = velocity
    drawn: Times = UNIFORM
    weighting: Weighting = NATIVE
    uncertainty: bool = False
    row_loss: RowLoss = SQUARED

    Settings: ClassVar[type] = Settings
    sections: ClassVar[tuple[str, ...]] = ("source", "path", "coupling", "prediction", "model")
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error",)
    limits: ClassVar[Mapping[str, Limit]] = {"marginal_error": MARGINAL_ERROR}
    takes_mask: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_monotone(self.path.schedule)
        self.path.prior(self.source)  # raises ValueError if the path cannot start from this source
        if isinstance(self.path, GaussianPath) and not self.coupling.keeps_independence:
            raise ValueError(
                f"{type(self.coupling).__name__} makes the source depend on the data: use AffinePath, not GaussianPath"
            )

    @classmethod
    def from_config(cls, parts: Components) -> "FlowMatching":
        settings, prediction, path = parts.settings, parts.prediction, parts.path
        weighting = parts.weighting(settings.weight)
        if prediction.learns_variance:
            raise ConfigError(
                f"prediction {prediction.name!r} needs the variational bound: use method.name 'variational' with "
                "method.hybrid=true"
            )
        if weighting.of is not None and (prediction.heads > 1 or path.noise is not None):
            raise ConfigError(
                f"method.weight {settings.weight!r} needs a prediction with one head and a path without noise: use "
                "'native'"
            )
        return cls(
            parts.network(prediction.heads),
            path,
            parts.source,
            parts.coupling,
            prediction,
            parts.times(settings.times),
            weighting,
            settings.uncertainty,
            parts.row_loss(settings.loss),
        )

    @property
    def interval(self) -> Interval:
        return self.prediction.interval(self.path)

    @property
    def has_profile(self) -> bool:
        """Whether a profile of the logarithm of the loss over time is trained together with the network."""
        return self.uncertainty or needs_profile(self.drawn)

    def init(self, key: PRNGKey) -> Variables:
        params, state = self.network.init(key)
        return Variables(
            {"network": params, "profile": jnp.zeros(weighted_times.BINS)} if self.has_profile else params, state
        )

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        interval = self.weighting.interval(self.path, self.prediction)
        profile, params = (params["profile"], params["network"]) if self.has_profile else (None, params)
        p, time_weight, marginal_error = draw(
            key, batch, self.path, self.source, self.coupling, interval, self.drawn, profile
        )
        inputs = self.prediction.inputs(self.path, p.t, p.x_t)
        output, state = self.network(params, context, p.t, inputs, batch.cond, key=key, mask=batch.mask)
        error = row_mean_square(output - self.prediction.target(self.path, p), batch.mask)
        rows = self.weighting(self.path, self.prediction, p.t) * self.row_loss(error)
        value = _combine(rows, time_weight, profile, p.t, interval, self.uncertainty)
        return Loss(value, {"marginal_error": marginal_error}, state)

    def model(self, params: Params, state: PyTree) -> Any:
        network = self.network.bind(params["network"] if self.has_profile else params, state)
        return predictions.read(network, self.path, self.prediction)


def _combine(
    rows: Array, time_weight: Array, profile: Profile | None, t: Array, interval: Interval, uncertainty: bool
) -> Float[Array, ""]:
    if profile is None:
        return jnp.mean(time_weight * rows)
    u = weighted_times.at(profile, t, interval)
    if uncertainty:
        return jnp.mean(time_weight * (rows / jnp.exp(u) + u))
    fit = jnp.mean(time_weight * (jax.lax.stop_gradient(rows) / jnp.exp(u) + u))
    return jnp.mean(time_weight * rows) + fit - jax.lax.stop_gradient(fit)  # adds gradients of the profile, value 0


def conditional(
    apply: ParametricApply,
    path: AffinePath,
    source: Source,
    coupling: Coupling | None = None,
    prediction: Prediction = velocity,
    times: Times | None = None,
    weighting: Weighting = NATIVE,
    uncertainty: bool = False,
) -> Callable[[Params, PRNGKey, Batch], Float[Array, ""]]:
    """Returns the conditional flow matching loss of a plain function, for use in your own training loop.

    Args:
        apply: the network, `apply(params, t, x, cond)`.
        path, source: the path of x_t and the distribution of x0.
        coupling: pairs x0 with x1; None for the independent coupling.
        prediction: the quantity that the network predicts.
        times: the distribution of training times; None for the uniform distribution.
        weighting: the loss weight.
        uncertainty: whether to divide the loss at each time by its learned size. If it is True, or if `times` is an
            `Importance` of `flowjax.methods.weighted_times`, the parameters are {"network": parameters of `apply`,
            "profile": zeros (BINS,)}, with the BINS of that module.

    Returns:
        A function `loss(params, key, batch)` that returns a scalar. Its training times are in
        `weighting.interval(path, prediction)`.
    """
    method = FlowMatching(
        Network.from_function(apply),
        path,
        source,
        INDEPENDENT if coupling is None else coupling,
        prediction,
        times or UNIFORM,
        weighting,
        uncertainty,
    )
    return lambda params, key, batch: method.loss(params, Context(), key, batch).value


def marginal(
    apply: ParametricApply, path: AffinePath, source: Source, model: HasEnds, prediction: Prediction = velocity
) -> Callable[[Params, PRNGKey, Batch], Float[Array, ""]]:
    """Returns the marginal flow matching loss, whose target comes from a model with known posterior means.

    It uses the independent coupling and draws the same points as `conditional` with the same key, so that the two
    losses can be compared on the same samples. Batches that contain x0 are refused, because their pairs may depend on
    each other.

    Args:
        apply, path, source, prediction: as for `conditional`.
        model: an oracle (`flowjax.oracles`), or any other model with the ability `ends`.

    Returns:
        A function `loss(params, key, batch)` that returns a scalar. It raises ValueError for a batch that contains x0.
    """
    interval, network = prediction.interval(path), Network.from_function(apply)

    def loss(params: Params, key: PRNGKey, batch: Batch) -> Float[Array, ""]:
        if batch.x0 is not None:
            raise ValueError("the marginal loss draws x0 independently of x1: leave x0 out of the batch")
        p = draw(key, batch, path, source, INDEPENDENT, interval).sample
        target = prediction.from_ends(path, p.t, p.x_t, model.ends(p.t, p.x_t, batch.cond))
        inputs = prediction.inputs(path, p.t, p.x_t)
        output, _ = network(params, Context(), p.t, inputs, batch.cond, mask=batch.mask)
        return jnp.mean(prediction.weight(path, p.t) * row_mean_square(output - target, batch.mask))

    return loss
