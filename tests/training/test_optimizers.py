"""Optimizers: Muon against singular values, stacked against single arrays, `skip_spikes`, and learning rates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.config import defaults, resolve
from flowjax.errors import ConfigError
from flowjax.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    SpikeState,
    learning_rate,
    optimizer,
    skip_spikes,
    skipped,
    stacked,
)
from flowjax.training.parameters import Stacks, largest_within

pytestmark = pytest.mark.analytic


def config(**changes):
    c = defaults("mlp")
    c.train.update({"steps": 100, "batch_size": 32, "lr": 1e-2, "schedule": "constant", "clip": 0.0, **changes})
    return c.train


def tree(seed=0, **more):
    """Two matrices of one shape and a convolution for Muon, and for Adam a vector and matrices with a side below 16."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (24, 40), "b": (24, 40), "tall": (40, 16), "conv": (3, 3, 16, 20), "thin": (15, 64), "bias": (40,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in (shapes | more).items()}


# Muon


MUON = ("a", "b", "tall", "conv")
LR, BETA, BETA2, DECAY = 0.01, 0.9, 0.95, 0.5


@pytest.fixture(scope="module")
def muon():
    """Parameters, three gradients, and the updates by Muon."""
    params, gradients = tree(9), [tree(seed) for seed in range(3)]
    tx = optimizer(config(optimizer="muon", lr=LR, momentum=BETA, beta2=BETA2, weight_decay=DECAY))
    state, update, updates = tx.init(params), jax.jit(tx.update), []
    for g in gradients:
        u, state = update(g, state, params)
        updates.append(u)
    return params, gradients, updates


def test_muon_replaces_singular_values_by_one(muon):
    """The update of a matrix is -lr (0.2 sqrt(longer side) U V^T + decay w), with the singular vectors of the Nesterov
    momentum (Liu et al. 2025, eq. 4), which NumPy computes here in float64. Five Newton-Schulz steps map singular
    values between 0.01 and 1 of the Frobenius norm to values between 0.68 and 1.14 (Jordan et al. 2024), which is
    [0.65, 1.2] with rounding. They change only singular values, so U^T X V is diagonal up to rounding: sums of 40
    products of order 1 in float32, five times, give 1e-4. A convolution is a matrix from all taps to the outputs.

    The root mean square of an update is therefore about 0.2 lr, the size of Adam's:
    0.2 sqrt(max) sqrt(min / (max min)).
    """
    params, gradients, updates = muon
    flat = lambda a: np.asarray(a, np.float64).reshape(-1, a.shape[-1])
    for name in MUON:
        momentum = 0.0
        for k, g in enumerate(gradients):
            wide = flat(g[name])
            momentum = BETA * momentum + (1 - BETA) * wide
            # bias-corrected: BETA times the momentum at the next step, plus 1 - BETA times this gradient
            nesterov = BETA * momentum / (1 - BETA ** (k + 2)) + (1 - BETA) * wide / (1 - BETA ** (k + 1))
            u, _, vt = np.linalg.svd(nesterov, full_matrices=False)
            step = -flat(updates[k][name]) / LR - DECAY * flat(params[name])
            x = step / (0.2 * math.sqrt(max(wide.shape)))
            core = u.T @ x @ vt.T
            assert np.all((np.diag(core) > 0.65) & (np.diag(core) < 1.2))
            np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-4)
            np.testing.assert_allclose(u @ core @ vt, x, atol=1e-4)  # no components outside the singular vectors
            assert 0.65 < np.sqrt(np.mean(step**2)) / 0.2 < 1.2


def test_muon_leaves_what_is_no_matrix_to_adam(muon):
    """Against the formula in float64: Adam with Nesterov momentum, b1 = 0.9 as in optax, and no weight decay."""
    _, gradients, updates = muon
    for name in ("thin", "bias"):
        m = v = 0.0
        for k, g in enumerate(np.asarray(g[name], np.float64) for g in gradients):
            m, v = 0.9 * m + 0.1 * g, BETA2 * v + (1 - BETA2) * g**2
            ahead = 0.9 * m / (1 - 0.9 ** (k + 2)) + 0.1 * g / (1 - 0.9 ** (k + 1))
            expected = -LR * ahead / (np.sqrt(v / (1 - BETA2 ** (k + 1))) + 1e-8)
            np.testing.assert_allclose(updates[k][name], expected, rtol=1e-4, atol=1e-7)


# Stacks


def test_stacked_adam_is_adam_bit_for_bit():
    """Elementwise operations are the same on stacks, and arrays of two types share no stack. The test does not compile,
    because XLA contracts products and sums differently for different layouts, which changes the rounding."""
    params = {name: a[:3, ..., :4] for name, a in tree(9).items() if name in ("a", "b", "thin")}
    params |= {"half": jnp.ones((3, 4), jnp.bfloat16), "nested": {"bias": jnp.ones(4)}}
    gradients = [jax.tree.map(lambda a, s=seed: a * (1.1 * s + 1), params) for seed in range(2)]
    plain, stacks = optax.adamw(1e-2, weight_decay=0.1), stacked(optax.adamw(1e-2, weight_decay=0.1))
    state, other = plain.init(params), stacks.init(params)
    for g in gradients:
        one, state = plain.update(g, state, params)
        two, other = stacks.update(g, other, params)
        jax.tree.map(np.testing.assert_array_equal, one, two)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), one) == jax.tree.map(lambda a: (a.shape, a.dtype), two)
    shapes = sorted(a.shape for a in jax.tree.leaves(other[0].mu))
    assert shapes == [(1, 3, 4), (1, 4), (3, 3, 4)]  # bfloat16 apart


def test_stacks_of_what_follows_the_parameters():
    """Subtrees with the structure of the parameters are stacked; large leaves are not; `unstack` is the inverse."""
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": -jnp.ones((2, 3)), "c": {"bias": jnp.arange(3.0)}}
    params |= {"large": jnp.ones((5, 5)), "too": jnp.zeros((5, 5))}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    tree = {"state": tx.init(params), "averages": (params, params), "step": jnp.ones(())}
    stacks = Stacks(params, largest=10)
    found = stacks.stack(tree)
    assert jax.tree.map(jnp.shape, found["averages"][1]) == {
        "2x3_float32": (2, 2, 3),
        "3_float32": (1, 3),
        "5x5_float32_3": (1, 5, 5),
        "5x5_float32_4": (1, 5, 5),
    }
    assert jax.tree.structure(found["state"]) == jax.tree.structure(tx.init(found["averages"][0]))
    back = stacks.unstack(found)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_what_stacks_may_hold():
    """The smallest leaves come first, and leaves of one size are stacked all or not at all."""
    like = [jnp.zeros(n) for n in (1, 4, 4, 4, 10, 100)]
    found = [largest_within(like, numbers) for numbers in (0, 1, 12, 13, 22, 23, 122, 123)]
    assert found == [0, 1, 1, 4, 4, 10, 10, 100]


# The guard


GUARDED = skip_spikes(optax.adam(0.1), 3.0)
UPDATE = jax.jit(GUARDED.update)


def guarded(norms):
    """The updates of a vector whose gradients have these norms, and the states of the guard."""
    params = {"w": jnp.ones(4)}
    updates, states, state = [], [], GUARDED.init(params)
    for norm in norms:
        u, state = UPDATE({"w": np.full(4, norm / 2, np.float32)}, state, params)
        updates.append(np.asarray(u["w"]))
        states.append(state)
    return updates, states


def test_a_spike_is_left_out_and_counted():
    """A spike after the first hundred steps changes neither the parameters nor Adam's moments, bitwise, so the steps
    after it equal those of a run without the spike."""
    updates, states = guarded([1.0] * 100 + [50.0, 1.0, 2.9])
    for leaf, before in zip(jax.tree.leaves(states[100].inner), jax.tree.leaves(states[99].inner), strict=True):
        np.testing.assert_array_equal(leaf, before)
    np.testing.assert_array_equal(updates[100], 0)
    assert [int(s.skipped) for s in states[99:]] == [0, 1, 1, 1]
    assert int(states[-1].seen) == 103
    without, clean = guarded([1.0] * 101)
    np.testing.assert_array_equal(updates[101], without[100])
    jax.tree.map(np.testing.assert_array_equal, states[101].inner, clean[100].inner)
    assert np.abs(updates[102]).max() > 0
    early, states = guarded([1.0] * 99 + [50.0])  # the running mean is not used before that
    assert np.abs(early[-1]).max() > 0
    assert int(skipped(states[-1])) == 0


def test_the_usual_norm():
    """The running mean in float64: the first norm, then 0.99 mean + 0.01 norm, where a spike counts as 3 means."""
    norms = np.concatenate([np.random.default_rng(0).uniform(1, 2, 110), [90.0, 1.5]])
    _, states = guarded(norms)
    mean = norms[0]
    for k, (norm, state) in enumerate(zip(norms, states, strict=True)):
        if k:
            mean = 0.99 * mean + 0.01 * min(norm, 3 * mean)
        assert float(state.norm) == pytest.approx(mean, rel=1e-5)
    assert int(skipped(states[-1])) == 1


def test_the_guard_follows_a_lasting_change():
    """Each spike multiplies the mean by 0.99 + 0.01 * 3 = 1.02, until 12 is at most 3 times the mean: 71 steps."""
    updates, states = guarded([1.0] * 100 + [12.0] * 80)
    needed = math.ceil(math.log(12 / 3) / math.log(1.02))
    assert needed == 71
    assert int(skipped(states[-1])) == needed
    assert np.abs(updates[100 + needed]).max() > 0
    np.testing.assert_array_equal(updates[100 + needed - 1], 0)


def test_the_guard_is_outermost_and_optional():
    """The guard sees the norm before clipping, and `skipped` is 0 without a guard."""
    params = {"w": jnp.zeros(2)}
    guard = optimizer(config(spike=5.0, clip=1.0))
    _, state = guard.update({"w": jnp.array([30.0, 40.0])}, guard.init(params), params)
    assert isinstance(state, SpikeState)
    assert float(state.norm) == pytest.approx(50.0)
    assert int(skipped(optimizer(config()).init(params))) == 0


# Learning rates


@pytest.mark.parametrize("schedule", ["constant", "cosine(0.5)", "linear", "inverse_sqrt(500)"])
def test_a_rate_is_a_function_of_samples(schedule):
    """The curve is the same for batches of 8, 16 and 64. In the warm-up, samples of the current step count as seen."""
    at = {}
    for batch in (8, 16, 64):
        steps, rising = 6400 // batch, 640 // batch
        rate = learning_rate(config(schedule=schedule, batch_size=batch, steps=steps, warmup=640.0, lr=2.0))
        curve = np.asarray(rate(jnp.arange(801)))
        at[batch] = curve[rising : steps + 1]
        np.testing.assert_allclose(curve[:rising], 2 * np.arange(1, rising + 1) / rising, rtol=1e-5)
        assert at[batch][0] == pytest.approx(2.0)
    np.testing.assert_allclose(at[8][::8], at[64], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at[16][::4], at[64], rtol=1e-5, atol=1e-6)


def test_shapes_of_rates():
    """Against the formulas in float64, after a warm-up of 100 samples; 1e-6 is for the rounding of float32."""
    seen = np.arange(0, 3201, 32.0)
    after = np.maximum(seen - 100, 0)
    u = after / 3100
    cosine = lambda u: 0.5 * (1 + np.cos(np.pi * u))
    for schedule, expected in {
        "constant": np.ones_like(u),
        "cosine": cosine(u),
        "linear": 1 - u,
        "cosine(0.5)": cosine(np.clip(2 * u - 1, 0, 1)),
        "linear(constant=0.75)": 1 - np.clip(4 * u - 3, 0, 1),
        "inverse_sqrt(400)": 1 / np.sqrt(np.maximum(after / 400, 1)),  # Karras et al. 2024, eq. 67
    }.items():
        rate = learning_rate(config(schedule=schedule, warmup=100.0, lr=1.0))
        rising = np.minimum((seen + 32) / 100, 1)
        np.testing.assert_allclose(rate(jnp.arange(101)), rising * expected, atol=1e-6)


# With the weights of EDM2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_normalised_weights_keep_unit_magnitude(name):
    """Every optimizer ends with the projection, with an error of two roundings of numbers below 4, and EPS^2 = 1e-8.
    Without it, steps of 0.1 change magnitudes by more than 1e-3, as for the parameter named `kernel`. A step that the
    guard skips adds nothing."""
    layer = lambda seed: np.random.default_rng(seed).normal(size=(3, 3, 16, 20)).astype(np.float32)
    magnitude = lambda w: np.sqrt((np.asarray(w, np.float64) ** 2).mean((0, 1, 2)))
    unit = jnp.asarray(layer(0) / magnitude(layer(0)), jnp.float32)
    params = {"conv": {"weight": unit, "kernel": unit}}
    tx = optimizer(config(optimizer=name, lr=0.1, clip=1.0, spike=2.0))
    state, update = tx.init(params), jax.jit(tx.update)
    for seed in (1, 2):
        updates, state = update({"conv": {"weight": layer(seed), "kernel": layer(seed)}}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(magnitude(params["conv"]["weight"]), 1, atol=2e-6)
    assert np.abs(magnitude(params["conv"]["kernel"]) - 1).max() > 1e-3
    assert float(jnp.abs(params["conv"]["weight"] - unit).max()) > 0.01
    late = state._replace(seen=jnp.asarray(100, jnp.int32))
    updates, after = update({"conv": {"weight": 9 * layer(3), "kernel": 9 * layer(3)}}, late, params)
    assert int(after.skipped) == 1
    assert all(float(jnp.abs(u).max()) == 0 for u in jax.tree.leaves(updates))


# Invalid values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "train.schedule: unknown 'cosin'; did you mean 'cosine'"),
        ({"schedule": "cosine(1)"}, "the fraction of the run at the peak must be in [0, 1), not 1"),
        ({"schedule": "linear(-0.1)"}, "the fraction of the run at the peak must be in [0, 1), not -0.1"),
        ({"schedule": "constant(1)"}, "constant takes no arguments"),
        ({"schedule": "inverse_sqrt"}, "inverse_sqrt needs its argument samples"),
        ({"schedule": "inverse_sqrt(0)"}, "the number of samples must be positive, not 0"),
        ({"schedule": "inverse_sqrt('a')"}, "train.schedule"),
        ({"schedule": "cosine('a')"}, "train.schedule"),
        ({"optimizer": "moun"}, "train.optimizer: unknown 'moun'; did you mean 'muon'"),
        ({"spike": 1.0}, "must be above 1 (a multiple of the mean gradient norm) or 0 for no guard, not 1.0"),
        ({"spike": 0.5}, "must be above 1 (a multiple of the mean gradient norm) or 0 for no guard, not 0.5"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_arguments_are_one_line(changes, message):
    with pytest.raises(ConfigError) as error:
        optimizer(config(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "beta2", 1.0, "train.beta2 must be in [0, 1)"),
        ("train", "beta2", -0.1, "train.beta2 must be in [0, 1)"),
        ("train", "beta2", math.nan, "train.beta2 must be in [0, 1)"),
        ("train", "momentum", 1.0, "train.momentum must be in [0, 1)"),
        ("train", "spike", -1.0, "train.spike must not be negative"),
        ("train", "warmup", -1.0, "train.warmup must not be negative"),
        ("model", "dropout", 1.0, "model.dropout must be in [0, 1)"),
        ("model", "dropout", -0.1, "model.dropout must be in [0, 1)"),
    ],
)
def test_keys_out_of_range_are_one_line(section, key, value, message):
    c = defaults("adm")
    resolve(c)
    c[section][key] = value
    with pytest.raises(ConfigError) as error:
        resolve(c)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_schedule_and_optimizer_is_tried_above():
    assert set(SCHEDULES) == {"constant", "cosine", "linear", "inverse_sqrt"}
    assert set(OPTIMIZERS) == {"adam", "adamw", "muon"}
