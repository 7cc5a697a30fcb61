"""Predictions: every reading agrees with the oracle's ends, and every round trip comes back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowjax import oracles, predictions, solvers
from flowjax.paths import AffinePath, Bridge, Constant, GaussianPath
from flowjax.predictions import (
    Ends,
    data,
    edm,
    noise,
    noise_variance,
    read,
    score,
    v,
    velocity,
    velocity_score,
)
from flowjax.schedules import EDM, VE, VP, CondOT, Cosine, Polynomial, SubVP, nichol_cosine
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
SCHEDULES = {"condot": CondOT(), "cosine": Cosine(), "polynomial": Polynomial(2.0), "vp": VP()}
EVERY = {**SCHEDULES, "sub-vp": SubVP(), "ve": VE(0.05, 20), "edm": EDM(), "nichol": nichol_cosine()}
ALL = [velocity, noise, data, score, v, edm(0.7)]
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
    fixed = 0 * a + 0.05
    known = {"velocity": fixed, "noise": a, "data": s, "score": np.minimum(a, s), "v": fixed, "edm": fixed}
    small = known[prediction.name]
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
    """The velocity and the score of read(net) are the oracle's, whatever the network predicts; float64, so only algebra
    is tested."""
    with jax.enable_x64(True):
        path = GaussianPath(schedule)
        oracle = oracles.mixture(path, jax.tree.map(lambda a: a.astype(jnp.float64), MIXTURE))
        x = jax.random.normal(jax.random.key(0), (30, 2), jnp.float64) * 2
        t = jnp.linspace(0.1, 0.9, 30)
        prediction = dataclasses.replace(prediction, inputs=lambda path, t, x: x)  # the net below wants x itself
        net = lambda t, x, cond: prediction.from_ends(path, t, x, oracle.ends(t, x))
        model = read(net, path, prediction)
        np.testing.assert_allclose(model.velocity(t, x, None), oracle.velocity(t, x), atol=1e-9)
        np.testing.assert_allclose(model.score(t, x, None), oracle.score(t, x), rtol=1e-8)


EDGES = (1e-4, 0.1, 0.5, 0.9, 1 - 1e-4)


@pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("prediction", [velocity, noise, data, v, edm(0.5)], ids=lambda p: p.name)
def test_round_trips_at_the_edges(schedule, prediction):
    """From a prediction to the ends and back to it, at t = 1e-4, 0.1, 0.5, 0.9 and 1 - 1e-4, and the ends themselves.

    The output comes back within 1e-5 of its size (of its own, for VE and EDM whose velocity is up to 700). The ends
    come back within 1e-5 from velocity, v and edm; from noise within 10 eps / alpha, from data within 10 eps / sigma,
    where these are at least 1e-4; on a scale of max(1, sigma), which is what x_t is rounded to.
    """
    path, eps = GaussianPath(schedule), np.finfo(np.float32).eps
    t = jnp.array([t for t in EDGES if path.t_min <= t <= path.t_max])
    x0, x1 = (jnp.clip(a, -2, 2) for a in jax.random.normal(jax.random.key(1), (2, len(t), 8)))
    x = path.sample(None, t, x0, x1).x_t
    a, s = (np.asarray(c)[:, None] for c in (schedule.alpha(t), schedule.sigma(t)))
    usable = {"noise": a >= 1e-4, "data": s >= 1e-4}.get(prediction.name, a > -1) & np.ones((1, 8), bool)
    output = prediction.from_ends(path, t, x, Ends(x0, x1))
    back = prediction.to_ends(path, t, x, output)
    scale = np.maximum(1, s)
    rounding = {"noise": 10 * eps / np.maximum(a, 1e-4), "data": 10 * eps / np.maximum(s, 1e-4)}
    bound = np.maximum(1e-5, rounding.get(prediction.name, 0)) * scale * np.ones((1, 8))
    assert np.all(np.abs(back.x1 - x1)[usable] <= bound[usable])
    assert np.all(np.abs(back.x0 - x0)[usable] <= bound[usable])
    again = prediction.from_ends(path, t, x, back)
    size = np.maximum(1, np.abs(output).max(1, keepdims=True))
    assert np.all((np.abs(again - output) / size)[usable] <= bound[usable])


def test_edms_f_is_the_published_preconditioning():
    """D = c_skip x + c_out F(c_in x) with Karras et al. 2022, table 1, written in their own scale; float64."""
    with jax.enable_x64(True):
        path, sd, t = GaussianPath(EDM()), 0.5, 0.6
        sigma = float(EDM().sigma(jnp.asarray(t)))
        x, f = jax.random.normal(jax.random.key(0), (2, 5, 3))
        skip, out = sd**2 / (sigma**2 + sd**2), sigma * sd / np.sqrt(sigma**2 + sd**2)
        prediction = edm(sd)
        np.testing.assert_allclose(prediction.to_ends(path, t, x, f).x1, skip * x + out * f, rtol=1e-6)
        np.testing.assert_allclose(prediction.inputs(path, t, x), x / np.sqrt(sigma**2 + sd**2), rtol=1e-6)


def test_v_is_a_multiple_of_the_cosine_velocity():
    path = GaussianPath(Cosine())
    p = path.sample(None, jnp.linspace(0.1, 0.9, 5), *jax.random.normal(jax.random.key(0), (2, 5, 3)))
    np.testing.assert_allclose(v.target(path, p), -2 / np.pi * velocity.target(path, p), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", [CondOT(), VE(0.1, 10), Cosine()])
@pytest.mark.parametrize("of", [noise, data, v, velocity, edm(0.5)], ids=lambda p: p.name)
def test_gain_is_the_ratio_of_errors(schedule, of):
    """Two readings of one (t, x): their differences in any two predictions stand in the ratio of the gains."""
    with jax.enable_x64(True):
        path, t = GaussianPath(schedule), jnp.array([0.2, 0.5, 0.8])
        x, one, other = jax.random.normal(jax.random.key(0), (3, 3, 4))
        ends = [data.to_ends(path, t, x, x1) for x1 in (one, other)]
        difference = lambda p: p.from_ends(path, t, x, ends[0]) - p.from_ends(path, t, x, ends[1])
        ratio = (of.gain(path, t) / data.gain(path, t))[:, None]
        np.testing.assert_allclose(difference(of), ratio * difference(data), rtol=1e-9)


@pytest.mark.parametrize("noise_of_path", [Constant(0.4), Bridge(0.8)])
def test_two_heads_determine_everything_on_a_path_with_noise(noise_of_path):
    """From (v, E[z]) both ends, the velocity and the score of the oracle come back; float64."""
    with jax.enable_x64(True):
        path = AffinePath(CondOT(), noise_of_path)
        oracle = oracles.gaussian(path, 1.0, 0.6, source_mean=-0.5, source_std=1.3, correlation=0.4)
        x = jax.random.normal(jax.random.key(0), (7, 2))
        t = jnp.linspace(0.1, 0.9, 7)
        ends = oracle.ends(t, x)
        net = lambda t, x, cond: velocity_score.from_ends(path, t, x, oracle.ends(t, x))
        model = read(net, path, velocity_score)
        for ours, true in zip(model.ends(t, x)[:3], ends[:3], strict=True):
            np.testing.assert_allclose(ours, true, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(model.velocity(t, x), oracle.velocity(t, x), rtol=1e-9)
        np.testing.assert_allclose(model.score(t, x), oracle.score(t, x), rtol=1e-8)
        one_head = read(lambda t, x, cond: oracle.velocity(t, x), path, velocity)
        np.testing.assert_allclose(one_head.velocity(t, x), oracle.velocity(t, x), rtol=1e-9)
        with pytest.raises(ValueError, match="velocity_score"):
            one_head.score(t, x)


def test_no_score_without_a_gaussian_source():
    model = read(lambda t, x, cond: x, AffinePath(CondOT()), velocity)
    with pytest.raises(ValueError, match="path has no score"):
        model.score(0.5, jnp.ones((1, 2)))


def test_learned_variance_travels_with_the_noise():
    path = GaussianPath(VP())
    x, eps = jax.random.normal(jax.random.key(0), (2, 4, 3))
    fraction = jnp.full_like(eps, 0.25)
    output = noise_variance.from_ends(path, 0.5, x, Ends(eps, eps, None, fraction))
    back = noise_variance.to_ends(path, 0.5, x, output)
    np.testing.assert_allclose(back.variance_fraction, fraction, rtol=1e-6)
    np.testing.assert_allclose(back.x1, noise.to_ends(path, 0.5, x, eps).x1, rtol=1e-6)
    with pytest.raises(ValueError, match="2 heads"):
        noise_variance.gain(path, jnp.array([0.5]))


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


def test_a_grid_that_asks_a_network_where_it_is_undefined_is_refused():
    """Noise at t = 0 says nothing of the data: refused before the network is called; by default the grid keeps away."""
    path = GaussianPath(CondOT())
    model = read(lambda t, x, cond: x, path, noise)
    assert model.interval[0] > 0
    with pytest.raises(ValueError, match="determines the ends on"):
        solvers.sample(model, jnp.ones((2, 2)), solver="heun", grid=jnp.linspace(0, 1, 5))
    y, _ = solvers.sample(model, jnp.ones((2, 2)), solver="heun", steps=4)
    assert np.isfinite(y).all()


@given(
    batch=st.integers(1, 2),
    event=st.sampled_from([(1,), (2, 3, 1)]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    edge=st.integers(0, 1),
    prediction=st.sampled_from(ALL),
)
def test_reading_at_the_edges_is_finite_and_wide(batch, event, dtype, edge, prediction):
    """At both ends of the interval a half-precision network reads as finite float32 ends and velocity."""
    path = GaussianPath(CondOT())
    x = jax.random.normal(jax.random.key(0), (batch, *event), dtype)
    model = read(lambda t, x, cond: x.astype(dtype), path, prediction)
    t = prediction.interval(path)[edge]
    for out in (*model.ends(t, x, None)[:2], model.velocity(t, x, None)):
        assert out.dtype == jnp.float32
        assert out.shape == x.shape
        assert np.isfinite(out).all()


def test_the_gaussian_only_ones_say_so():
    assert [p.name for p in ALL if p.gaussian_only] == ["noise", "score"]
    assert predictions.velocity.name == "velocity"
