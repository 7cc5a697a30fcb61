"""One call for people who bring their own training loop: a time, a point on the path, and its velocity.

The network may be of Flax, Equinox or plain JAX. A complete training step is

    def loss(params, key, x1):
        key_source, key_flow = jax.random.split(key)
        x0 = jax.random.normal(key_source, x1.shape)
        t, x_t, dx_t = sample_location_and_conditional_flow(key_flow, x0, x1)
        return jnp.mean((network(params, t, x_t) - dx_t) ** 2)

and samples come from `flowjax.solvers.solve_ode(lambda t, x, cond: network(params, t, x), x0)`.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from flowjax.couplings import INDEPENDENT, Coupling
from flowjax.paths.affine import AffinePath
from flowjax.schedules import CondOT
from flowjax.typing import Batched, Cond, PRNGKey

__all__ = ["ConditionalFlow", "sample_location_and_conditional_flow"]

_STRAIGHT = AffinePath(CondOT())


class ConditionalFlow(NamedTuple):
    """What `sample_location_and_conditional_flow` returns.

    Attributes:
        t: times (B,) in [path.t_min, path.t_max]; 0 is the source and 1 the data.
        x_t: points on the path, (B, *event).
        dx_t: the velocities of these pairs at x_t, (B, *event): the target of the regression.
    """

    t: Float[Array, " B"]
    x_t: Batched
    dx_t: Batched


def sample_location_and_conditional_flow(
    key: PRNGKey,
    x0: Batched,
    x1: Batched,
    path: AffinePath = _STRAIGHT,
    coupling: Coupling = INDEPENDENT,
    cond: Cond = None,
    t: Float[Array, " B"] | None = None,
) -> ConditionalFlow:
    """Pairs x0 with x1, draws a time for each pair, and returns a point of the path there with its velocity.

    It works under `jax.jit`. The arguments and the result correspond to the method of the same name in torchcfm; a path
    stands for its classes (Tong et al. 2024, arXiv 2302.00482, section 3.2).

    Args:
        key: a PRNG key for the coupling, the times and the noise of the path.
        x0: source samples, (B, *event).
        x1: data samples, (B, *event).
        path: the straight path without noise by default. `AffinePath(CondOT(), Constant(0.1))` is the path of I-CFM
            with sigma = 0.1, and `AffinePath(CondOT(), Bridge(1.0))` a Schroedinger bridge.
        coupling: which x0 belongs to which x1: as they are by default, `MinibatchOT()` for OT-CFM, `Sinkhorn(eps)` for
            SB-CFM. The data and their conditions never move.
        cond: conditions of x1 by name, which couplings with a `condition_weight` need.
        t: times to use instead of uniform ones, (B,).

    Returns:
        The times, points and velocities, in the order of x1.

    Raises:
        ValueError: if x0 and x1 differ in shape, or are not floating-point numbers.
    """
    key_pairs, key_times, key_noise = jax.random.split(key, 3)
    paired = x0[coupling(key_pairs, x0, x1, cond)]
    if t is None:
        t = jax.random.uniform(key_times, x1.shape[:1], minval=path.t_min, maxval=path.t_max)
    point = path.sample(key_noise, t, paired, x1)
    return ConditionalFlow(point.t, point.x_t, point.dx_t)
