"""Another schedule at sampling time: the same posterior means, and the same flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles
from flowjax.paths import AffinePath, Bridge, GaussianPath
from flowjax.predictions import model
from flowjax.reschedule import Rescheduled, overlap
from flowjax.schedules import EDM, VE, VP, CondOT, Cosine, SubVP
from flowjax.solvers import solve_ode
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
MIXTURE = GaussianMixture(jnp.array([[1.5, 0.0], [-1.0, 1.0]]), jnp.array([0.5, 0.8]))


@pytest.mark.parametrize("trained", [CondOT(), VP(), EDM()])
@pytest.mark.parametrize("new", [CondOT(), Cosine(), VP(), SubVP(), VE(0.05, 20)])
def test_the_oracle_of_one_schedule_is_that_of_another(trained, new):
    """Exact where log-SNR overlaps: the rescheduled oracle is the new path's own; float64."""
    with jax.enable_x64(True):
        mixture = GaussianMixture(*(jnp.asarray(a, jnp.float64) for a in (MIXTURE.means, MIXTURE.scales)))
        old, path = GaussianPath(trained), GaussianPath(new)
        low, high = overlap(old, path)
        t = jnp.linspace(low + 0.02, high - 0.02, 20)
        scale = jnp.maximum(1.0, new.sigma(t))[:, None]
        x = jax.random.normal(jax.random.key(0), (20, 2), jnp.float64) * scale
        moved = Rescheduled(oracles.mixture(old, mixture), path)
        truth = oracles.mixture(path, mixture)
        for ours, true in zip(moved.ends(t, x)[:2], truth.ends(t, x)[:2], strict=True):
            np.testing.assert_allclose(ours, true, atol=1e-7)


def test_the_vp_flow_is_the_flow_matching_flow():
    """The probability-flow ODE of VP and that of CondOT carry the same noise to the same points: float64, RK4.

    Both start at the log-SNR of VP's start, each at its own scale; what is left is RK4's error, below 1e-6.
    """
    with jax.enable_x64(True):
        mixture = GaussianMixture(*(jnp.asarray(a, jnp.float64) for a in (MIXTURE.means, MIXTURE.scales)))
        vp, flow = GaussianPath(VP()), GaussianPath(CondOT())
        low, _ = overlap(vp, flow)
        size = lambda path, t: jnp.sqrt(path.schedule.alpha(t) ** 2 + path.schedule.sigma(t) ** 2)
        x = jax.random.normal(jax.random.key(0), (32, 2), jnp.float64)
        oracle = oracles.mixture(vp, mixture)
        direct, _ = solve_ode(oracle.velocity, x * size(vp, 0.0), t0=0.0, t1=0.999, solver="rk4", steps=2000)
        end = float(flow.schedule.time_of_log_snr(vp.schedule.log_snr(jnp.asarray(0.999))))
        moved = Rescheduled(oracle, flow).velocity
        other, _ = solve_ode(moved, x * size(flow, low), t0=low, t1=end, solver="rk4", steps=2000)
        np.testing.assert_allclose(direct / size(vp, 0.999), other / size(flow, end), atol=2e-6)


def test_overlap_clips_and_says_where():
    low, high = overlap(GaussianPath(VP()), GaussianPath(CondOT()))
    level = float(VP().log_snr(0.0))
    assert low == pytest.approx(1 / (1 + np.exp(-level / 2)), rel=1e-4)
    assert 0.99 < high < 1
    assert overlap(GaussianPath(CondOT()), GaussianPath(VP())) == (VP.t_min, VP.t_max)
    narrow = overlap(GaussianPath(CondOT()), GaussianPath(CondOT()), (0.1, 0.8))
    assert narrow == pytest.approx((0.1, 0.8), abs=1e-6)


def test_noise_on_the_path_forbids_it():
    path = AffinePath(CondOT(), Bridge())
    with pytest.raises(ValueError, match="cannot change its schedule"):
        Rescheduled(model(lambda t, x, cond: None, path), path)
