"""What the encoders of conditions share: which values are given, and their layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flowjax.conditions import Field

__all__ = ["dense", "given", "learned_vector", "present"]


def given(field: Field, value: Float[Array, "B *rest"], axes: int | tuple[int, ...]) -> Bool[Array, "B *kept"]:
    """Returns which elements of a condition are given, where `axes` are the axes of one element.

    An element is given if it contains no NaN or, if the null value of the field is 0, if any of its numbers is not 0.
    """
    return (value != 0).any(axes) if field.zero_is_null else ~jnp.isnan(value).any(axes)


def present(mask: Bool[Array, "..."], value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Replaces values that are not given by zeros. The mask has the axes of the values without the last one."""
    return jnp.where(mask[..., None], value, 0.0)


def dense(a: int, b: int, init: nnx.Initializer | None, rngs: nnx.Rngs, use_bias: bool = True) -> nnx.Linear:
    """Makes a linear layer; its kernel has LeCun's initialiser if `init` is None."""
    return nnx.Linear(a, b, use_bias=use_bias, kernel_init=init or nnx.initializers.lecun_normal(), rngs=rngs)


def learned_vector(width: int, rngs: nnx.Rngs) -> nnx.Param:
    """Makes a learned vector, which stands for what is not given."""
    return nnx.Param(jax.random.normal(rngs.params(), (width,)) / jnp.sqrt(width))
