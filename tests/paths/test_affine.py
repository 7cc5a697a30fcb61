"""The affine path: its two equations, its marginals, its prior, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowjax.paths import AffinePath, Bridge, Constant, Fading, GaussianPath, Path, Sine2
from flowjax.schedules import VP, CondOT, Cosine, Polynomial
from flowjax.sources import GaussianMixture, Normal, Uniform

pytestmark = pytest.mark.analytic
KEY = jax.random.key(0)
SCHEDULES = [CondOT(), Cosine(), Polynomial(2.0), VP()]
shapes = st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple)


@settings(max_examples=8)  # each is compiled
@given(
    batch=st.integers(1, 5),
    event=shapes,
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    t=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0, width=32)),
    one_time=st.booleans(),
    schedule=st.sampled_from(SCHEDULES[:3]),
)
def test_shapes_dtypes_and_edge_times(batch, event, dtype, t, one_time, schedule):
    """Any event shape, any float dtype, t = 0 and 1 exactly: finite, shaped and typed as the ends."""
    x0, x1 = (jax.random.normal(k, (batch, *event), dtype) for k in jax.random.split(KEY))
    p = AffinePath(schedule).sample(KEY, t if one_time else jnp.full(batch, t), x0, x1)
    assert p.x_t.shape == p.dx_t.shape == x1.shape
    assert p.x_t.dtype == p.dx_t.dtype == dtype
    assert p.t.shape == (batch,)
    assert p.t.dtype == jnp.float32
    assert np.isfinite(p.x_t.astype(np.float32)).all()
    assert np.isfinite(p.dx_t.astype(np.float32)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_goes_from_x0_to_x1(schedule):
    x0, x1 = jax.random.normal(KEY, (2, 6, 3))
    path = AffinePath(schedule)
    np.testing.assert_allclose(path.sample(None, 1.0, x0, x1).x_t, x1, atol=1e-6)
    if not isinstance(schedule, VP):
        np.testing.assert_allclose(path.sample(None, 0.0, x0, x1).x_t, x0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dx_t_is_the_time_derivative_of_x_t(schedule):
    """Against central differences in float64: error h^2 |x'''| / 6 < 1e-6 for h = 1e-4 on these schedules."""
    with jax.enable_x64(True):
        x0, x1 = jax.random.normal(KEY, (2, 6, 3))
        path, t, h = AffinePath(schedule), jnp.linspace(0.1, 0.9, 6), 1e-4
        ahead, behind = path.sample(None, t + h, x0, x1).x_t, path.sample(None, t - h, x0, x1).x_t
        np.testing.assert_allclose(path.sample(None, t, x0, x1).dx_t, (ahead - behind) / (2 * h), atol=1e-5)


def test_marginal_of_gaussian_data_has_the_known_mean_and_variance():
    n, path = 100_000, GaussianPath(Cosine())
    x0, x1 = jax.random.normal(KEY, (n, 1)), 2.0 + 0.5 * jax.random.normal(jax.random.key(1), (n, 1))
    x_t = path.sample(KEY, 0.3, x0, x1).x_t
    a, s = np.sin(0.15 * np.pi), np.cos(0.15 * np.pi)
    std = np.sqrt(a**2 * 0.25 + s**2)
    assert float(x_t.mean()) == pytest.approx(2 * a, abs=5 * std / np.sqrt(n))
    assert float(x_t.std()) == pytest.approx(std, rel=5 / np.sqrt(2 * n))


def test_prior():
    source = Uniform((2,))
    assert AffinePath(CondOT()).prior(source) is source
    prior = AffinePath(VP()).prior(Normal((2,)))
    assert isinstance(prior, Normal)
    assert prior.scale == pytest.approx(np.sqrt(1 - np.exp(-10.05)), rel=1e-6)
    assert jax.jit(lambda x: AffinePath(VP()).prior(Normal((2,))).log_prob(x))(jnp.zeros((1, 2))).shape == (1,)


def test_a_schedule_that_keeps_some_data_needs_the_normal():
    with pytest.raises(ValueError, match="needs the source N"):
        AffinePath(VP()).prior(Uniform((2,)))


@pytest.mark.parametrize(
    "source", [Uniform((2,)), Normal((2,), 1.0), Normal((2,), 0.0, 2.0), GaussianMixture(np.zeros((1, 2)))]
)
def test_gaussian_path_refuses_other_sources(source):
    with pytest.raises(ValueError, match="a GaussianPath needs the source N"):
        GaussianPath(CondOT()).prior(source)


@pytest.mark.usefixtures("as_users_call")
def test_refusals_are_clear():
    path, x = AffinePath(CondOT()), jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="batch is empty"):
        path.sample(KEY, 0.5, x[:0], x[:0])
    with pytest.raises(ValueError, match="the same shape"):
        path.sample(KEY, 0.5, x, jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match="one time per row"):
        path.sample(KEY, jnp.zeros(2), x, x)


def test_paths_satisfy_the_protocol_and_pass_through_jit():
    path, x = GaussianPath(VP()), jnp.ones((3, 2))
    assert isinstance(path, Path)
    inside = jax.jit(lambda p, t, x: p.sample(None, t, x, x).x_t)(path, 0.5, x)
    np.testing.assert_allclose(inside, path.sample(None, 0.5, x, x).x_t, rtol=1e-6)


@pytest.mark.parametrize("noise", [Constant(0.3), Bridge(0.7), Sine2(0.5), Fading(0.6)])
def test_a_path_with_noise_moves_with_its_own_z(noise):
    """dx_t is the derivative of x_t with z held, by central differences in float64; and z is what was added."""
    with jax.enable_x64(True):
        x0, x1 = jax.random.normal(KEY, (2, 6, 3))
        path, t, h = AffinePath(Cosine(), noise), jnp.linspace(0.1, 0.9, 6), 1e-4
        p, ahead, behind = (path.sample(KEY, s, x0, x1) for s in (t, t + h, t - h))
        np.testing.assert_allclose(p.dx_t, (ahead.x_t - behind.x_t) / (2 * h), atol=1e-5)
        added = p.x_t - AffinePath(Cosine()).sample(None, t, x0, x1).x_t
        np.testing.assert_allclose(added, noise.gamma(t)[:, None] * p.z, atol=1e-12)


def test_the_bridges_velocity_is_that_of_tong_et_al():
    """u = x1 - x0 + (1 - 2t) / (2t (1 - t)) (x_t - (1 - t) x0 - t x1): Tong et al. 2024, eq. 21."""
    with jax.enable_x64(True):
        x0, x1 = jax.random.normal(KEY, (2, 6, 3))
        t = jnp.linspace(1e-3, 1 - 1e-3, 6)
        p = AffinePath(CondOT(), Bridge(0.8)).sample(KEY, t, x0, x1)
        t = t[:, None]
        pull = (1 - 2 * t) / (2 * t * (1 - t)) * (p.x_t - (1 - t) * x0 - t * x1)
        np.testing.assert_allclose(p.dx_t, x1 - x0 + pull, rtol=1e-9)


def test_noise_needs_a_key_and_a_gaussian_path_has_none():
    x = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="pass key"):
        AffinePath(CondOT(), Bridge()).sample(None, 0.5, x, x)
    with pytest.raises(ValueError, match="cannot have noise of its own"):
        GaussianPath(CondOT(), Bridge())
    with pytest.raises(ValueError, match="positive"):
        Constant(0.0)
    assert (AffinePath(CondOT(), Bridge()).t_min, AffinePath(CondOT(), Bridge()).t_max) == (1e-3, 1 - 1e-3)
    assert AffinePath(CondOT(), Bridge()).has_score
    assert not AffinePath(CondOT()).has_score
