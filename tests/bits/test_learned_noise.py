"""Variational dequantisation: the density of the noise, refusals, and known integers against uniform noise."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from flowjax import oracles
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.errors import ConfigError
from flowjax.inference import scoring
from flowjax.inference.choose import SolverSettings
from flowjax.inference.dequantisations import dequantisation_of
from flowjax.inference.encoding import encode
from flowjax.inference.program import keys_of_seed
from flowjax.inference.run import Run
from flowjax.methods import Context
from tests.bits.known import pixels, run_of

JOINT = np.array([[0.3, 0.02, 0.0, 0.08], [0.02, 0.2, 0.02, 0.0], [0.0, 0.02, 0.1, 0.02], [0.02, 0.0, 0.0, 0.2]])
"""The probabilities of pairs of integers from 0 to 3."""

SIZES = {"method.layers": 4, "method.width": 32, "method.depth": 2, "method.flow": "spline"}


def method_of(dequantisation, shape=(2,), **keys):
    config = changed(
        defaults("mlp", "normalizing_flow"),
        {"data.name": "npz", "data.dequantisation": dequantisation, **SIZES, **keys},
    )
    spec = pixels(shape, dequantisation)
    return config, spec, build(config, spec)


def perturbed(method, scale=0.1):
    params, state = method.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + scale * jnp.asarray(rng.normal(size=a.shape), a.dtype), params), state


@pytest.mark.analytic
def test_the_density_of_the_noise_is_that_of_the_change_of_variables():
    """log q(u) = log N(e) - log |det du/de| by forward-mode derivatives of u, within the rounding of float32; the mean
    of 1 / q is the volume of the cube, within 4 standard errors. At the start u is uniform: log q = 0."""
    _, spec, method = method_of("variational")
    params, state = perturbed(method)
    edges = jnp.asarray(spec.to_model(np.array([[0.0, 3.0], [2.0, 1.0], [1.0, 1.0]])))
    centres = spec.bins.centres(edges)
    e = jax.random.normal(jax.random.key(5), (3, 2))
    noise = lambda e: method.network(params, Context(state=state), e, centres, method="noise")[0]
    log_q = noise(e)[1]
    jacobian = jax.vmap(lambda i: jax.jacfwd(lambda row: noise(e.at[i].set(row))[0][i])(e[i]))(jnp.arange(3))
    exact = jax.scipy.stats.norm.logpdf(e).sum(1) - jnp.log(jnp.abs(jnp.linalg.det(jacobian)))
    np.testing.assert_allclose(log_q, exact, atol=1e-4)
    assert np.abs(log_q).max() > 0.05
    model = method.model(params, state)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = model.dequantise(keys, jnp.broadcast_to(edges[:1], (4000, 2)))
    inverse = np.exp(-np.asarray(drawn.log_q, float))
    assert abs(inverse.mean() - 1) < 4 * inverse.std() / np.sqrt(4000)
    u = (drawn.z - edges[:1]) / spec.bins.width
    assert float(u.min()) >= -1e-6
    assert float(u.max()) <= 1 + 1e-6
    fresh = method.model(*method.init(jax.random.key(0))).dequantise(keys[:50], jnp.broadcast_to(edges[:1], (50, 2)))
    np.testing.assert_allclose(fresh.log_q, 0, atol=1e-5)


def trained(dequantisation, steps):
    """A run of a flow that was trained on samples of `JOINT`."""
    config, spec, method = method_of(dequantisation)
    params, state = method.init(jax.random.key(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def step(params, state, moments, i):
        key_rows, key_noise, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(7), i), 3)
        index = jax.random.choice(key_rows, 16, (256,), p=jnp.asarray(JOINT.ravel()))
        x = spec.prepare(key_noise, jnp.stack([index // 4, index % 4], -1))

        def loss(params):
            found = method.loss(params, Context(state=state, training=True), key_loss, Batch(x))
            return found.value, found.state

        (_, state), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), state, moments

    moments = optimizer.init(params)
    for i in range(steps):
        params, state, moments = step(params, state, moments, i)
    return Run(Path("run"), config, steps, spec, method, params, state)


@pytest.mark.slow
def test_learned_noise_is_closer_to_the_entropy_of_known_integers_than_uniform_noise():
    """The mean bound on the cross-entropy is at least the entropy, up to 4 standard errors over draws of the noise. At
    K = 1 the learned noise is closer by more than 0.05 nats; K = 10 tightens the bound of uniform noise."""
    entropy = -float(sum(p * np.log(p) for p in JOINT.ravel() if p))
    pairs = np.stack(np.indices((4, 4)), -1).reshape(16, 2)
    x = np.repeat(pairs[JOINT.ravel() > 0], 200, 0).astype(np.float32)
    shares = np.repeat(JOINT[JOINT > 0] / 200, 200)
    found = {}
    for name, k in (("uniform", 1), ("uniform", 10), ("variational", 1)):
        run = trained(name, 1500) if k == 1 else run
        log_prob = scoring.log_prob(run, x, importance_samples=k).log_prob
        error = np.sqrt((shares**2 * log_prob.reshape(-1, 200).std(1).repeat(200) ** 2).sum())
        found[name, k] = -float(shares @ log_prob), 4 * error
        assert found[name, k][0] > entropy - found[name, k][1]
    assert found["variational", 1][0] + 0.05 < found["uniform", 1][0]
    assert found["uniform", 10][0] < found["uniform", 1][0]


@pytest.mark.parametrize(
    ("method", "dequantisation", "shape", "message"),
    [
        ("normalizing_flow", "none", (2,), "set data.dequantisation to 'uniform' or 'variational'"),
        ("flow_matching", "variational", (2,), "would ignore that data.dequantisation is 'variational'"),
        ("normalizing_flow", "variational", (1,), "needs examples of at least 2 numbers"),
    ],
)
def test_refusals(method, dequantisation, shape, message):
    config = changed(defaults("mlp", method), {"data.name": "npz", "data.dequantisation": dequantisation})
    config = changed(config, {"method.flow": "maf"} if "flow" in config.method else {})
    with pytest.raises(ConfigError, match=message):
        build(config, pixels(shape, dequantisation))


def test_encode_and_log_prob_of_a_seed_see_the_same_noisy_centres():
    """For integers that were trained without noise, by the ODE of the density N(0.2, 0.5^2), whose map from the source
    is 0.2 + 0.5 x."""
    spec = pixels((2,))
    run = run_of(spec, "condot", lambda path: oracles.gaussian(path, 0.2, 0.5))
    x = np.array([[0, 3], [2, 1], [1, 1]], np.float32)
    z = 0.2 + 0.5 * encode(run, x, seed=7, solver=SolverSettings(rtol=1e-6, atol=1e-6)).points
    edges = spec.to_model(x)
    assert np.all((z >= edges) & (z <= edges + spec.bins.width))
    assert np.std((z - edges) / spec.bins.width) > 0.05  # noise, and not the centres
    density = stats.norm.logpdf(z, 0.2, 0.5).sum(1)
    found = scoring.log_prob(run, x, seed=7, solver=SolverSettings(rtol=1e-6, atol=1e-6)).log_prob
    np.testing.assert_allclose(found, spec.log_prob_to_data(density, x), atol=1e-3)


@pytest.mark.parametrize("dequantisation", ["uniform", "variational"])
def test_encode_and_log_prob_of_a_seed_see_the_same_noisy_integers(dequantisation):
    """The noise is drawn here from the seed. `encode` gives the inverse of these points, and `log_prob` their density
    minus log q, in the units of the integers, where a bin has width 1."""
    config, spec, method = method_of(dequantisation)
    params, state = perturbed(method)
    run = Run(Path("run"), config, 0, spec, method, params, state)
    x = np.array([[0, 3], [2, 1], [1, 1], [3, 0], [2, 2]], np.float32)
    coded = encode(run, x, seed=7, batch=16).points
    z = run.model().forward(jnp.asarray(coded), {})[0]
    edges = jnp.asarray(spec.to_model(x))
    assert np.all((z >= edges) & (z <= edges + spec.bins.width))
    key = keys_of_seed(7, 2)[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, i), 0))(jnp.arange(len(x)))
    drawn = dequantisation_of(run, x).draw(run.model(), keys, edges, {})
    np.testing.assert_allclose(z, drawn.z, atol=1e-4)
    base, log_det = run.model().inverse(z, {})
    log_p = np.asarray(run.prior.log_prob(base) + log_det - drawn.log_q)
    found = scoring.log_prob(run, x, seed=7, batch=16).log_prob
    np.testing.assert_allclose(found, spec.log_prob_to_data(log_p, x), atol=1e-3)
    assert np.abs(encode(run, x, seed=8, batch=16).points - coded).max() > 0.01
