"""The classifier two-sample test: how well a network tells two samples apart."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.metrics.classifiers import first_layers, logits, train
from flowjax.typing import PRNGKey

__all__ = ["c2st"]


def c2st(
    key: PRNGKey,
    x: Float[Array | np.ndarray, "N *event"],
    y: Float[Array | np.ndarray, "M *other"],
    *,
    folds: int = 5,
    epochs: int = 1000,
) -> Float[Array, ""]:
    """The accuracy of a classifier that is trained to tell two samples apart (Lopez-Paz and Oquab 2017).

    It is 1/2 if the samples cannot be told apart, and at most the Bayes accuracy 1/2 + TV / 2 in expectation, where TV
    is the total variation distance. The settings are those of the benchmark of simulation-based inference (Lueckmann et
    al. 2021, arXiv:2101.04653): both samples are standardised by the mean and the standard deviation of each coordinate
    of x; the classifier has two hidden layers of 10 d units with ReLU; its accuracy is the mean over the folds of a
    cross-validation. Training is that of scikit-learn's `MLPClassifier`, which the benchmark uses: Glorot's uniform
    initialisation, Adam with learning rate 1e-3, batches of 200 rows, a squared penalty of 1e-4 on the weights, and for
    each fold the end after the first 11 epochs in a row in which the mean loss is not 1e-4 below the least one before.
    All folds are trained together in one compiled loop, which ends with the last fold. On normal distributions in 1 to
    40 dimensions, with 1,000 to 5,000 rows a sample, it agrees with scikit-learn to 0.01 (the mean over three seeds),
    and takes a half to a ninth of the time on two CPU cores. For many dimensions and few rows, the training until the
    loss no longer falls overfits, and the accuracy is below the Bayes accuracy, as in the benchmark.

    If x and y have the same distribution, the accuracy has the standard deviation 1 / sqrt(8 N) at least; the folds
    share training rows, so in practice it is a little larger.

    Args:
        key: for the folds, the initialisation and the order of the rows.
        x, y: the samples, of equal size, (N, *event) each. x is the reference by which both are standardised.
        folds: the number of folds, at least 2.
        epochs: the largest number of epochs. The benchmark allows 10,000; the training usually ends after 20 to 200.

    Raises:
        ValueError: if the samples differ in size or in dimension, have fewer rows than folds, or are not finite.
    """
    if x.shape != y.shape:
        raise ValueError(f"the two samples must have the same size, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("the samples must be finite numbers")
    if not 2 <= folds <= len(x):
        raise ValueError(f"the number of folds must be from 2 to {len(x)}, the rows of a sample, not {folds}")
    return _c2st(key, *(jnp.asarray(a, jnp.float32).reshape(len(a), -1) for a in (x, y)), folds, epochs)


@partial(jax.jit, static_argnums=(3, 4))
def _c2st(key: PRNGKey, x: Float[Array, "N D"], y: Float[Array, "N D"], folds: int, epochs: int) -> Float[Array, ""]:
    key_rows, key_layers, key_order = jax.random.split(key, 3)
    mean, std = x.mean(0), x.std(0)
    rows = (jnp.concatenate([x, y]) - mean) / jnp.where(std > 0, std, 1.0)
    total, d = rows.shape
    size = -(-total // folds)  # rows of a fold; the last row of the last folds may be missing
    order = jnp.argsort(jax.random.uniform(key_rows, (total,)))
    order = jnp.pad(order, (0, folds * size - total), constant_values=-1)
    others = jnp.array([[j for j in range(folds) if j != k] for k in range(folds)])
    held_out = order.reshape(size, folds).T
    training = held_out[others].reshape(folds, -1)

    layers = first_layers(key_layers, folds, (d, 10 * d, 10 * d, 1))
    second = jnp.broadcast_to(jnp.arange(total) >= total // 2, (folds, total))
    layers = train(key_order, layers, rows, second, training, epochs)
    found = jax.vmap(logits)(layers, rows[held_out])
    exists = held_out >= 0
    correct = ((found > 0) == (held_out >= total // 2)) & exists
    return (correct.sum(1) / exists.sum(1)).mean()
