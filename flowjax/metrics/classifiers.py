"""Classifiers that are trained to tell two samples apart, several of them together in one compiled loop."""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flowjax.typing import PRNGKey

__all__ = ["Layers", "first_layers", "logits", "train"]

_BATCH, _LEARNING_RATE, _PENALTY = 200, 1e-3, 1e-4
_TOLERANCE, _PATIENCE = 1e-4, 10

Layers = list[tuple[Array, Array]]
"""The weight (in, out) and the bias (out,) of each layer."""


class _State(NamedTuple):
    """Training so far; all arrays but the epoch have one entry a classifier."""

    layers: Layers
    optimizer: optax.OptState
    best: Array
    waited: Array
    epoch: Array


def train(
    key: PRNGKey,
    layers: Layers,
    rows: Float[Array, "N D"],
    second: Bool[Array, "K N"],
    training: Int[Array, "K M"],
    epochs: int,
) -> Layers:
    """Trains K classifiers until each of their losses no longer falls, as scikit-learn's `MLPClassifier` does.

    The settings are those of the benchmark of simulation-based inference: Adam with learning rate 1e-3, batches of 200
    rows, a squared penalty of 1e-4 on the weights, and for each classifier the end after the first 11 epochs in a row
    in which the mean loss is not 1e-4 below the least one before. The loop ends with the last classifier.

    Args:
        key: for the order of the rows.
        layers: the initial parameters of all classifiers, with a leading axis K.
        rows: what they are trained on.
        second: whether a row belongs to the second sample, for each classifier.
        training: the rows that each classifier is trained on; -1 stands for no row.
        epochs: the largest number of epochs.
    """
    folds, count = training.shape
    batch = min(_BATCH, count)
    steps = -(-count // batch)
    optimizer = optax.adam(_LEARNING_RATE)

    def step(
        carry: tuple[Layers, optax.OptState], chosen: tuple[Array, Array]
    ) -> tuple[tuple[Layers, optax.OptState], Array]:
        layers, state = carry
        index, labels = chosen
        (_, loss), gradient = jax.value_and_grad(_loss, has_aux=True)(layers, rows[index], labels, index >= 0)
        updates, state = optimizer.update(gradient, state)
        return (jax.tree.map(jnp.add, layers, updates), state), loss

    def epoch(state: _State) -> _State:
        order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, state.epoch), (count,)))
        shuffled = training[:, order]
        shuffled = jnp.pad(shuffled, ((0, 0), (0, steps * batch - count)), constant_values=-1)
        labels = jnp.take_along_axis(second, shuffled, 1)
        by_step = lambda a: jnp.moveaxis(a.reshape(folds, steps, batch), 1, 0)
        chosen = by_step(shuffled), by_step(labels)
        (layers, optimizer_state), losses = lax.scan(jax.vmap(step), (state.layers, state.optimizer), chosen)
        loss = losses.sum(0) / (training >= 0).sum(1)
        waited = jnp.where(loss > state.best - _TOLERANCE, state.waited + 1, 0)
        new = layers, optimizer_state, jnp.minimum(loss, state.best), waited
        done = state.waited > _PATIENCE
        keep = lambda old, new: jnp.where(done.reshape(-1, *([1] * (new.ndim - 1))), old, new)
        return _State(*jax.tree.map(keep, tuple(state)[:4], new), epoch=state.epoch + 1)

    going = lambda state: (state.waited <= _PATIENCE).any() & (state.epoch < epochs)
    first = _State(
        layers,
        jax.vmap(optimizer.init)(layers),
        jnp.full(folds, jnp.inf),
        jnp.zeros(folds, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    return lax.while_loop(going, epoch, first).layers


def first_layers(key: PRNGKey, classifiers: int, widths: tuple[int, ...]) -> Layers:
    """Weights and biases of several classifiers, of Glorot's uniform initialisation.

    Args:
        key: of the random numbers.
        classifiers: how many; the leading axis of each array.
        widths: of the input, of each hidden layer, and of the output, which is 1.
    """
    sizes = [(a + 1) * b for a, b in pairwise(widths)]
    values = jax.random.uniform(key, (classifiers, sum(sizes)), minval=-1, maxval=1)  # all at once: compiles faster
    layers, start = [], 0
    for size, (a, b) in zip(sizes, pairwise(widths), strict=True):
        layer = values[:, start : start + size].reshape(classifiers, a + 1, b) * (6 / (a + b)) ** 0.5
        layers.append((layer[:, :-1], layer[:, -1]))
        start += size
    return layers


def logits(layers: Layers, rows: Float[Array, "B D"]) -> Float[Array, " B"]:
    """The log-odds that rows belong to the second sample, by one classifier: ReLU between its layers."""
    for weight, bias in layers[:-1]:
        rows = jax.nn.relu(rows @ weight + bias)
    weight, bias = layers[-1]
    return (rows @ weight + bias)[:, 0]


def _loss(layers: Layers, rows: Float[Array, "B D"], second: Array, exists: Array) -> tuple[Array, Array]:
    """The mean loss over the rows that exist, and its sum."""
    losses = optax.sigmoid_binary_cross_entropy(logits(layers, rows), second.astype(rows.dtype))
    number = jnp.maximum(exists.sum(), 1)
    penalty = sum((weight**2).sum() for weight, _ in layers)
    mean = losses.sum(where=exists) / number + _PENALTY / 2 * penalty / number
    return mean, mean * exists.sum()
