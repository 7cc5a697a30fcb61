"""Forced weight normalisation: after every step, weights go back to the sphere on which they mean something.

A layer that normalises its weight before use has a gradient orthogonal to that weight, so plain steps only ever
lengthen it, and a longer weight turns less in each step: the effective learning rate decays in a way that nobody chose.
Bringing the length back after each step leaves the schedule in charge (Karras et al. 2024, section 2.3 and eq. 66).
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from flowjax.models.magnitude import is_weight, unit
from flowjax.typing import Params

Mask = PyTree[bool] | Callable[[Params], PyTree[bool]]


def normalise_weights(mask: Mask = is_weight) -> optax.GradientTransformation:
    """Replaces each selected weight by `unit` of it: mean square 1 in every output channel, the last axis.

    It is the last of a chain, for it has to see the update that is applied: it turns the update u of a weight w into
    unit(w + u) - w. Weights end as exact as the addition rounds, to about 1e-7.

    Args:
        mask: a tree of booleans like the parameters, or a function from parameters to one. By default the parameters
            that `models.magnitude` names `weight`.

    Returns:
        A transformation without state, whose update needs the parameters.
    """

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Any, optax.OptState]:
        if params is None:
            raise ValueError("normalise_weights needs the parameters: pass them to update")
        chosen = mask(params) if callable(mask) else mask
        project = lambda m, u, w: unit(w + u) - w if m else u
        return jax.tree.map(project, chosen, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
