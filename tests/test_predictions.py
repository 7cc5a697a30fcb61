"""Predictions: every reading agrees with the oracle's ends, and every round trip comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowjax import oracles, predictions
from flowjax.paths import GaussianPath
from flowjax.predictions import Ends, data, field, noise, read, score, velocity
from flowjax.schedules import VP, CondOT, Cosine, Polynomial
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
SCHEDULES = {"condot": CondOT(), "cosine": Cosine(), "polynomial": Polynomial(2.0), "vp": VP()}
ALL = [velocity, noise, data, score]
MIXTURE = GaussianMixture(jnp.array([[2.0, 0.0], [-1.0, 1.0]]), jnp.array([0.5, 0.8]), jnp.array([1.0, 2.0]))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prediction", ALL, ids=lambda p: p.name)
def test_to_ends_inverts_from_ends(schedule, prediction):
    """From true ends to an output and back, inside the prediction's own interval.

    One rounding of x (eps |x|) is divided by the small coefficient c, and comes back: error <= 20 eps / c.
    """
    path = GaussianPath(schedule)
    low, high = prediction.interval(path)
    t = jnp.linspace(low + 0.02 * (high - low), high - 0.02 * (high - low), 25)
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 25, 3))
    p = path.sample(None, t, x0, x1)
    output = prediction.from_ends(path, t, p.x_t, Ends(x0, x1))
    back = prediction.to_ends(path, t, p.x_t, output)
    a, s = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
    small = (
        np.minimum(a, s) if prediction is score else {"velocity": 0 * a + 0.05, "noise": a, "data": s}[prediction.name]
    )
    bound = (20 * np.finfo(np.float32).eps / small * 4)[:, None]
    assert np.all(np.abs(back.x0 - x0) <= bound)
    assert np.all(np.abs(back.x1 - x1) <= bound)


@pytest.mark.parametrize("prediction", ALL, ids=lambda p: p.name)
def test_target_is_the_output_of_the_true_ends(prediction):
    path = GaussianPath(Cosine())
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 9, 2))
    t = jnp.linspace(0.1, 0.9, 9)
    p = path.sample(None, t, x0, x1)
    expected = prediction.from_ends(path, t, p.x_t, Ends(x0, x1))
    np.testing.assert_allclose(prediction.target(path, p), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("prediction", ALL, ids=lambda p: p.name)
def test_a_perfect_network_of_any_kind_gives_the_oracles_velocity(schedule, prediction):
    """field(read(net)) = the oracle's velocity, whatever the network predicts; float64, so only algebra is tested."""
    with jax.enable_x64(True):
        path = GaussianPath(schedule)
        oracle = oracles.mixture(path, jax.tree.map(lambda a: a.astype(jnp.float64), MIXTURE))
        x = jax.random.normal(jax.random.key(0), (30, 2), jnp.float64) * 2
        t = jnp.linspace(0.1, 0.9, 30)
        net = lambda t, x, cond: prediction.from_ends(path, t, x, oracle.denoiser(t, x))
        np.testing.assert_allclose(
            field(read(net, path, prediction), path)(t, x, None), oracle.velocity(t, x), atol=1e-9
        )


def test_noise_is_minus_sigma_score():
    path = GaussianPath(VP())
    ends = Ends(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    sigma = float(VP().sigma(0.4))
    got = score.from_ends(path, 0.4, jnp.zeros((2, 3)), ends)
    np.testing.assert_allclose(noise.from_ends(path, 0.4, jnp.zeros((2, 3)), ends), -sigma * got, rtol=1e-6)


def test_intervals_keep_away_from_the_singular_end():
    path = GaussianPath(CondOT())
    assert velocity.interval(path) == (0.0, 1.0)
    assert noise.interval(path) == (pytest.approx(1e-3, rel=2e-3), 1.0)
    assert data.interval(path) == (0.0, pytest.approx(1 - 1e-3, abs=2e-6))
    assert score.interval(path)[0] > 0
    assert score.interval(path)[1] < 1


@given(
    batch=st.integers(1, 4),
    event=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    edge=st.integers(0, 1),
    prediction=st.sampled_from(ALL),
)
def test_reading_at_the_edges_is_finite_and_wide(batch, event, dtype, edge, prediction):
    """At both ends of the interval a half-precision network reads as finite float32 ends and velocity."""
    path = GaussianPath(CondOT())
    x = jax.random.normal(jax.random.key(0), (batch, *event), dtype)
    denoiser = read(lambda t, x, cond: x.astype(dtype), path, prediction)
    t = prediction.interval(path)[edge]
    for out in (*denoiser(t, x, None)[:2], field(denoiser, path)(t, x, None)):
        assert out.dtype == jnp.float32
        assert out.shape == x.shape
        assert np.isfinite(out).all()


def test_the_gaussian_only_ones_say_so():
    assert [p.name for p in ALL if p.gaussian_only] == ["noise", "score"]
    assert predictions.velocity.name == "velocity"
