"""The local classifier two-sample test: whether samples are from the posterior given one observation."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowjax.metrics.classifiers import first_layers, logits, train
from flowjax.typing import PRNGKey

__all__ = ["LocalC2ST", "local_c2st"]


_MOST_UNITS = 50
"""The width of hidden layers is 10 times the number of inputs, up to this."""


class LocalC2ST(NamedTuple):
    """The result of `local_c2st` for M observations and T permutations.

    Attributes:
        statistic: the mean of (p - 1/2)^2 over the posterior samples of each observation, (M,), between 0 and 1/4.
        null: the same for classifiers that were trained on permuted labels, (T, M).
        p_value: (1 + the number of permutations whose statistic is not smaller) / (1 + T), (M,).
    """

    statistic: Float[np.ndarray, " M"]
    null: Float[np.ndarray, "T M"]
    p_value: Float[np.ndarray, " M"]


def local_c2st(
    key: PRNGKey,
    theta: Float[Array | np.ndarray, "N D"],
    samples: Float[Array | np.ndarray, "N1 D1"],
    x: Float[Array | np.ndarray, "N2 *event"],
    observed: Float[Array | np.ndarray, "M *other"],
    posterior: Float[Array | np.ndarray, "M1 L D2"],
    *,
    permutations: int = 100,
    epochs: int = 50,
) -> LocalC2ST:
    """Tests whether samples are from the posterior given single observations (Linhart et al. 2023, arXiv:2306.03580).

    A classifier is trained to tell pairs (theta, x) of the simulator from pairs of a posterior sample and the same x.
    At an observation x_o, its probability p(theta, x_o) that theta is a posterior sample is 1/2 everywhere if the
    estimated posterior is right there. The statistic is the mean of (p - 1/2)^2 over samples of the estimated posterior
    (their equation 11), so no samples of the true posterior at x_o are needed.

    If the estimated posterior is right, theta and the posterior sample of a pair can be exchanged. The p-value
    compares the statistic with those of classifiers that are trained after each pair was exchanged with probability
    1/2, and is exact for a posterior that is right for all x. The networks and their training are those of
    `flowjax.metrics.c2st`, all in one compiled loop, except that hidden layers have at most 50 units, and that training
    ends after 50 epochs: networks that are trained until their loss no longer falls overfit a few thousand pairs, which
    costs power. For example, with 500 pairs of two
    normal parameters and half the right standard deviation, p is below 0.05 at one of three observations if they are
    trained to the end, and at all three after 30 or 100 epochs.

    Args:
        key: for the exchanges, the initialisation and the order of the rows.
        theta: true parameters, (N, D).
        samples: one sample of the estimated posterior given each row of x, (N, D).
        x: observations, each simulated with the row of theta, (N, *event).
        observed: observations to test, (M, *event).
        posterior: L samples of the estimated posterior given each of them, (M, L, D).
        permutations: T, the number of classifiers for the distribution under the null hypothesis. The smallest p-value
            is 1 / (1 + T).
        epochs: the largest number of epochs.

    Raises:
        ValueError: if shapes do not fit, there are fewer than two pairs, or numbers are not finite.
    """
    n, d = theta.shape
    if samples.shape != (n, d) or len(x) != n:
        raise ValueError(f"theta, samples and x must have the same rows, got {theta.shape}, {samples.shape}, {x.shape}")
    if observed.shape[1:] != x.shape[1:] or posterior.shape[::2] != (len(observed), d):
        raise ValueError(
            f"observed must be (M, *event) with event {x.shape[1:]}, and posterior (M, L, {d}), got {observed.shape} "
            f"and {posterior.shape}"
        )
    if n < 2 or not all(np.isfinite(a).all() for a in (theta, samples, x, observed, posterior)):
        raise ValueError("at least two pairs are needed, and all numbers must be finite")
    if permutations < 1:
        raise ValueError(f"the number of permutations must be at least 1, not {permutations}")
    flat = lambda a: jnp.asarray(a, jnp.float32).reshape(len(a), -1)
    found = np.asarray(
        _statistics(
            key,
            jnp.arange(2 * n),
            *map(flat, (theta, samples, x, observed)),
            jnp.asarray(posterior, jnp.float32),
            permutations,
            epochs,
        ),
        np.float64,
    )
    statistic, null = found[0], found[1:]
    return LocalC2ST(statistic, null, (1 + (null >= statistic).sum(0)) / (1 + permutations))


@partial(jax.jit, static_argnums=(7, 8))
def _statistics(
    key: PRNGKey,
    index: Int[Array, " N2"],
    theta: Float[Array, "N D"],
    samples: Float[Array, "N D"],
    x: Float[Array, "N F"],
    observed: Float[Array, "M F"],
    posterior: Float[Array, "M L D"],
    permutations: int,
    epochs: int,
) -> Float[Array, "T1 M"]:
    """The statistics at all observations, of the classifier and of those with permuted labels.

    `index` counts the rows of both samples. It is an argument, as XLA would take seconds to fold what depends on it.
    """
    key_exchange, key_layers, key_order = jax.random.split(key, 3)
    n, classifiers = len(theta), 1 + permutations
    true, estimated = jnp.concatenate([theta, x], 1), jnp.concatenate([samples, x], 1)
    mean, std = true.mean(0), true.std(0)
    scaled = lambda rows: (rows - mean) / jnp.where(std > 0, std, 1.0)
    exchanged = jax.random.bernoulli(key_exchange, 0.5, (permutations, n))
    exchanged = jnp.concatenate([jnp.zeros((1, n), bool), exchanged])
    second = jnp.concatenate([exchanged, ~exchanged], 1)
    everything = jnp.broadcast_to(index, (classifiers, 2 * n))
    d, width = len(mean), min(10 * len(mean), _MOST_UNITS)
    layers = first_layers(key_layers, classifiers, (d, width, width, 1))
    layers = train(key_order, layers, scaled(jnp.concatenate([true, estimated])), second, everything, epochs)

    def at(pair: tuple[Array, Array]) -> Float[Array, " T1"]:
        draws, one = pair
        rows = scaled(jnp.concatenate([draws, jnp.broadcast_to(one, (len(draws), len(one)))], 1))
        p = jax.nn.sigmoid(jax.vmap(logits, (0, None))(layers, rows))
        return ((p - 0.5) ** 2).mean(1)

    return jax.lax.map(at, (posterior, observed)).T
