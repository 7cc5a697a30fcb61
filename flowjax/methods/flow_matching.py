"""Flow matching: regress the conditional target, learn the marginal field (Lipman et al. 2023, theorem 2).

    conditional   L_c(w) = E_{t, x0, x1} |net_w(t, x_t) - target(x_t | x0, x1)|^2
    marginal      L_m(w) = E_{t, x_t}    |net_w(t, x_t) - E[target | x_t]|^2

The two have the same gradient in w and differ by a constant, E |target - E[target | x_t]|^2: what cannot be known
from x_t. The marginal loss needs the conditional expectation, which only an oracle has; the method rests on not
needing it. Denoising score matching (Vincent 2011) is the same with the score or the noise as target.

Norms are means over the coordinates of an example. Where times are drawn (`methods.times`) and how much an error
counts there (`methods.weights`) are two choices. A learned uncertainty u(t) replaces the weighted loss L by
L / e^u + u, so that all times weigh alike once u = log E[L | t] (Karras et al. 2024, EDM2, sec. 2.3).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.abilities import HasEnds
from flowjax.batch import Batch
from flowjax.couplings import Coupling, Independent, Pairs, pair
from flowjax.methods import times as times_
from flowjax.methods.times import Interval, Profile, Times, Uniform
from flowjax.methods.weights import OWN, Weighting
from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.paths.base import PathSample
from flowjax.predictions import Prediction, velocity
from flowjax.schedules import check_monotone
from flowjax.sources import Source
from flowjax.typing import Batched, Cond, Output, Params, PRNGKey

ParametricApply = Callable[[Params, Float[Array, " B"], Batched, Cond], Output]
"""A network with free parameters: `apply(params, t, x, cond) -> output`, shaped like x for each head."""


class Diagnosed(NamedTuple):
    """A loss, and how far the coupling's plan was from its marginals (`flowjax.couplings.Pairs`)."""

    value: Float[Array, ""]
    violation: Float[Array, ""]


Loss = Callable[[Params, PRNGKey, Batch], Float[Array, ""]]
"""`loss(params, key, batch)`: a scalar to minimise, a pure function of its arguments."""

DiagnosedLoss = Callable[[Params, PRNGKey, Batch], Diagnosed]


class Draw(NamedTuple):
    """One point on the path for each row of a batch, the weight of its time, and the coupling's violation."""

    sample: PathSample
    weight: Float[Array, " B"]
    violation: Float[Array, ""]


def draw(
    key: PRNGKey,
    batch: Batch,
    path: AffinePath,
    source: Source,
    coupling: Coupling,
    interval: Interval,
    times: Times | None = None,
    profile: Profile | None = None,
) -> Draw:
    """One point on the path for each row of the batch; times uniform on the interval where None."""
    key_source, key_coupling, key_time, key_path = jax.random.split(key, 4)
    n = batch.x1.shape[0]
    x0 = source.sample(key_source, n).astype(batch.x1.dtype)
    pairs: Pairs = pair(coupling, key_coupling, x0, batch.x1, batch.cond)
    drawn = (times or Uniform())(key_time, n, path, interval, profile)
    return Draw(path.sample(key_path, drawn.t, x0[pairs.rows], batch.x1), drawn.weight, pairs.violation)


def row_mean_square(error: Output) -> Float[Array, " B"]:
    """Mean over the coordinates of each example."""
    return jnp.mean(error.reshape(error.shape[0], -1) ** 2, -1)


def diagnosed(
    apply: ParametricApply,
    path: AffinePath,
    source: Source,
    coupling: Coupling | None = None,
    prediction: Prediction = velocity,
    times: Times | None = None,
    weighting: Weighting = OWN,
    profile: Callable[[Params], Profile] | None = None,
    uncertainty: bool = False,
) -> DiagnosedLoss:
    """As `conditional`, with what the coupling has to report."""
    coupling = Independent() if coupling is None else coupling
    check_monotone(path.schedule)
    path.prior(source)  # refuses a source that the path cannot start from
    if isinstance(path, GaussianPath) and not coupling.keeps_independence:
        raise ValueError(
            f"{type(coupling).__name__} makes the source depend on the data: use AffinePath, not GaussianPath"
        )
    interval = weighting.interval(path, prediction)
    if uncertainty and profile is None:
        raise ValueError("a learned uncertainty needs a profile: params -> (K,)")

    def loss(params: Params, key: PRNGKey, batch: Batch) -> Diagnosed:
        u = None if profile is None else profile(params)
        p, time_weight, violation = draw(key, batch, path, source, coupling, interval, times, u)
        output = apply(params, p.t, prediction.inputs(path, p.t, p.x_t), batch.cond)
        rows = weighting(path, prediction, p.t) * row_mean_square(output - prediction.target(path, p))
        return Diagnosed(_combine(rows, time_weight, u, p.t, interval, uncertainty), violation)

    return loss


def _combine(
    rows: Array, time_weight: Array, profile: Profile | None, t: Array, interval: Interval, uncertainty: bool
) -> Float[Array, ""]:
    if profile is None:
        return jnp.mean(time_weight * rows)
    u = times_.at(profile, t, interval)
    if uncertainty:
        return jnp.mean(time_weight * (rows / jnp.exp(u) + u))
    fit = jnp.mean(time_weight * (jax.lax.stop_gradient(rows) / jnp.exp(u) + u))
    return jnp.mean(time_weight * rows) + fit - jax.lax.stop_gradient(fit)  # the profile learns, the value stays


def conditional(
    apply: ParametricApply,
    path: AffinePath,
    source: Source,
    coupling: Coupling | None = None,
    prediction: Prediction = velocity,
    times: Times | None = None,
    weighting: Weighting = OWN,
    profile: Callable[[Params], Profile] | None = None,
    uncertainty: bool = False,
) -> Loss:
    """The conditional flow matching loss: what is trained.

    Args:
        apply: the network, `apply(params, t, x, cond)`.
        path, source: where x_t comes from.
        coupling: pairs x0 with x1; independent where None.
        prediction: what the network regresses.
        times: where times are drawn; uniform where None.
        weighting: how much an error counts at each time.
        profile: params -> (K,), the learned logarithm of the loss over time, for `times.Importance` and `uncertainty`.
        uncertainty: weigh by the learned profile.

    Returns:
        `loss(params, key, batch)`, over `weighting.interval(path, prediction)`.
    """
    both = diagnosed(apply, path, source, coupling, prediction, times, weighting, profile, uncertainty)
    return lambda params, key, batch: both(params, key, batch).value


def marginal(
    apply: ParametricApply, path: AffinePath, source: Source, model: HasEnds, prediction: Prediction = velocity
) -> Loss:
    """The marginal flow matching loss against a model that knows its ends (`flowjax.oracles`), with independent pairs.

    It draws the same points as `conditional` does with the same key, so the two can be compared draw by draw.
    """
    interval = prediction.interval(path)

    def loss(params: Params, key: PRNGKey, batch: Batch) -> Float[Array, ""]:
        p = draw(key, batch, path, source, Independent(), interval).sample
        target = prediction.from_ends(path, p.t, p.x_t, model.ends(p.t, p.x_t, batch.cond))
        output = apply(params, p.t, prediction.inputs(path, p.t, p.x_t), batch.cond)
        return jnp.mean(prediction.weight(path, p.t) * row_mean_square(output - target))

    return loss
