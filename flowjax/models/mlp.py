"""A time-embedded, class-conditional multilayer perceptron: the network of the 2D experiments."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from flowjax.models.embeddings import LabelEmbedding, batch_time, time_features


def selu(x: Array) -> Array:
    """Klambauer et al. 2017; with exp, not expm1 as in `jax.nn`: half the time on a CPU, absolute error 1e-7."""
    return 1.0507009873554805 * jnp.where(x > 0, x, 1.6732632423543772 * (jnp.exp(jnp.minimum(x, 0.0)) - 1))


ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "selu": selu, "silu": jax.nn.silu, "tanh": jnp.tanh}


class MLP(nnx.Module):
    """`depth` hidden layers of one width on (x, features of t, embedding of the class).

    Args:
        shape: of one example; flattened inside.
        width, depth: of the hidden layers.
        features: sines and cosines of time, even; 0 appends t itself, as torchcfm's 2D network does.
        num_classes: classes of the condition; 0 for an unconditional network.
        activation: a name in `ACTIVATIONS`.
        outputs: arrays of the event's shape, side by side in the last axis.
        zero_init: start from an output of zero.
        rngs: for the initialisation.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 3,
        features: int = 16,
        num_classes: int = 0,
        activation: str = "silu",
        outputs: int = 1,
        zero_init: bool = True,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: known are {', '.join(ACTIVATIONS)}")
        d = math.prod(shape)
        self.features = features
        self.activation = ACTIVATIONS[activation]
        self.label = LabelEmbedding(num_classes, width, rngs=rngs) if num_classes else None
        widths = [d + (features or 1) + (width if num_classes else 0), *[width] * depth]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(widths)])
        init = nnx.initializers.zeros_init() if zero_init else nnx.initializers.lecun_normal()
        self.outputs = outputs
        self.out = nnx.Linear(widths[-1], outputs * d, kernel_init=init, rngs=rngs)

    def __call__(
        self, t: Array | float, x: Float[Array, "B *event"], cond: Int[Array, " B"] | None = None
    ) -> Float[Array, "B *output"]:
        """t: () or (B,) in [0, 1]; x: (B, *shape); cond: (B,) labels or None. Returns an array shaped like x, its
        last axis `outputs` times as long."""
        time = batch_time(t, x)
        inputs = [x.reshape(x.shape[0], -1), time_features(time, self.features) if self.features else time[:, None]]
        if self.label is not None:
            inputs.append(self.label(cond, x.shape[0]))
        h = jnp.concatenate(inputs, -1)
        for layer in self.layers:
            h = self.activation(layer(h))
        return self.out(h).reshape(*x.shape[:-1], self.outputs * x.shape[-1])
