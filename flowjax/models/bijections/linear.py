"""Linear layers: permutations, scales, and the invertible linear map of Glow (Kingma & Dhariwal 2018,
arXiv:1807.03039)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.linalg import lu, solve_triangular
from jaxtyping import Array, Float, Int

from flowjax.models.bijections.base import constant_log_det
from flowjax.typing import Batched, Cond

__all__ = ["InvertibleLinear", "Permutation", "Scale"]


class Permutation(nnx.Module):
    """A fixed permutation of the last axis: z_i = x_{order_i}. It is a variable that is not a parameter.

    Args:
        order: the order, which contains each index once.
    """

    def __init__(self, order: Int[Array, " D"]):
        self.order = nnx.Variable(order)

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        return x[..., self.order[...]], jnp.zeros(x.shape[0], x.dtype)

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        return z[..., jnp.argsort(self.order[...])], jnp.zeros(z.shape[0], z.dtype)


class Scale(nnx.Module):
    """A learned positive factor for each entry of the last axis: z = x e^s.

    It is the last layer of NICE (Dinh et al. 2014, arXiv:1410.8516), whose other layers preserve volume.

    Args:
        size: length of the last axis.
    """

    def __init__(self, size: int):
        self.log_scale = nnx.Param(jnp.zeros(size))

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        scale = self.log_scale[...]
        return x * jnp.exp(scale), constant_log_det(x, scale.sum())

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        scale = self.log_scale[...]
        return z * jnp.exp(-scale), constant_log_det(z, -scale.sum())


class InvertibleLinear(nnx.Module):
    """A learned invertible matrix that multiplies the last axis. For images it is a convolution of 1 x 1 pixels.

    The matrix is W = P L (U + diag(s)), where L is lower triangular with ones on its diagonal and U strictly upper
    triangular, so that

        (1)  log |det dz / dx| = N sum_i log |s_i|

    with N the number of pixels. The permutation P and the signs of s stay those of the initial matrix, which is a
    random rotation. The cost of the determinant is that of a sum, and the inverse solves two triangular systems.

    Args:
        size: length D of the last axis.
        rngs: random number generators of the initialisation.
    """

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        rotation, _ = jnp.linalg.qr(jax.random.normal(rngs.params(), (size, size)))
        permutation, lower, upper = lu(rotation)
        self.order = nnx.Variable(jnp.argmax(permutation, 1))
        self.sign = nnx.Variable(jnp.sign(jnp.diagonal(upper)))
        self.log_scale = nnx.Param(jnp.log(jnp.abs(jnp.diagonal(upper))))
        self.lower, self.upper = nnx.Param(jnp.tril(lower, -1)), nnx.Param(jnp.triu(upper, 1))

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        lower, upper = self._triangular()
        z = jnp.matmul(x, jnp.matmul(lower, upper, precision="highest").T, precision="highest")
        return z[..., self.order[...]], constant_log_det(x, self.log_scale[...].sum())

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        lower, upper = self._triangular()
        y = z[..., jnp.argsort(self.order[...])]
        y = solve_triangular(lower, y.reshape(-1, y.shape[-1]).T, lower=True, unit_diagonal=True)
        return solve_triangular(upper, y, lower=False).T.reshape(z.shape), constant_log_det(
            z, -self.log_scale[...].sum()
        )

    def _triangular(self) -> tuple[Float[Array, "D D"], Float[Array, "D D"]]:
        """L, and U + diag(s)."""
        scale = self.log_scale[...]
        eye = jnp.eye(scale.size, dtype=scale.dtype)
        diagonal = self.sign[...].astype(scale.dtype) * jnp.exp(scale)
        return jnp.tril(self.lower[...], -1) + eye, jnp.triu(self.upper[...], 1) + eye * diagonal
