"""Schedules against formulas written again in float64, and against what a schedule must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import schedules
from flowjax.schedules import VP, CondOT, Cosine, Polynomial, rates

pytestmark = pytest.mark.analytic

# alpha, sigma and their derivatives, in NumPy float64, derived by hand.
_B = lambda t: 0.5 * (1 - t) ** 2 * 19.9 + 0.1 * (1 - t)
_DB = lambda t: -((1 - t) * 19.9 + 0.1)
CASES = {
    "condot": (CondOT(), lambda t: (t, 1 - t, np.ones_like(t), -np.ones_like(t))),
    "cosine": (
        Cosine(),
        lambda t: (
            np.sin(np.pi * t / 2),
            np.cos(np.pi * t / 2),
            np.pi / 2 * np.cos(np.pi * t / 2),
            -np.pi / 2 * np.sin(np.pi * t / 2),
        ),
    ),
    "polynomial": (Polynomial(3.0), lambda t: (t**3, 1 - t**3, 3 * t**2, -3 * t**2)),
    "root": (Polynomial(0.5), lambda t: (t**0.5, 1 - t**0.5, 0.5 * t**-0.5, -0.5 * t**-0.5)),
    "vp": (
        VP(),
        lambda t: (
            np.exp(-_B(t) / 2),
            np.sqrt(1 - np.exp(-_B(t))),
            -_DB(t) / 2 * np.exp(-_B(t) / 2),
            _DB(t) * np.exp(-_B(t)) / (2 * np.sqrt(1 - np.exp(-_B(t)))),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_match_the_formulas(name):
    schedule, formula = CASES[name]
    t = np.linspace(0.02, 0.98, 50).astype(np.float32)
    got = rates(schedule, t)
    for ours, true in zip(got, formula(t.astype(np.float64)), strict=True):
        # a few roundings of quantities of order max(1, |value|)
        np.testing.assert_allclose(ours, true, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_time_of_log_snr_inverts_log_snr(name):
    schedule, _ = CASES[name]
    t = jnp.linspace(0.05, 0.95, 50)
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule.log_snr(t)), t, atol=3e-6)


@pytest.mark.parametrize("name", CASES)
def test_log_snr_is_log_of_the_ratio_and_increases(name):
    schedule, formula = CASES[name]
    t = np.linspace(0.02, 0.98, 50)
    alpha, sigma, _, _ = formula(t)
    np.testing.assert_allclose(schedule.log_snr(t), 2 * np.log(alpha / sigma), rtol=1e-5, atol=2e-5)
    assert np.all(np.diff(schedule.log_snr(t)) > 0)


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), Polynomial(2.0)])
def test_ends_are_exact(schedule):
    assert float(schedule.alpha(0.0)) == 0.0
    assert float(schedule.alpha(1.0)) == pytest.approx(1.0, abs=1e-7)
    assert float(schedule.sigma(1.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(schedule.sigma(0.0)) == pytest.approx(1.0, abs=1e-7)
    assert float(schedule.log_snr(0.0)) == -np.inf
    assert float(schedule.time_of_log_snr(-jnp.inf)) == 0.0
    assert float(schedule.time_of_log_snr(jnp.inf)) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), Polynomial(2.0), VP()])
def test_sigma_keeps_its_digits_near_the_data(schedule):
    """1 - t = 1e-4: relative error of sigma against float64, where the naive forms lose three digits."""
    t = np.float32(1 - 1e-4)
    with jax.enable_x64(True):
        exact = float(schedule.sigma(np.float64(t)))
    assert float(schedule.sigma(t)) == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), Polynomial(3.0), Polynomial(0.5), VP()])
def test_all_is_finite_on_the_interval_and_velocity_determines_the_ends(schedule):
    t = jnp.linspace(schedule.t_min, schedule.t_max, 201)
    a, s, da, ds = rates(schedule, t)
    for value in (a, s, da, ds):
        assert np.isfinite(value).all()
    assert np.all(np.abs(a * ds - s * da) > 0)


def test_vp_starts_where_the_literature_says():
    assert float(VP().alpha(0.0)) == pytest.approx(np.exp(-(20 + 0.1) / 4), rel=1e-5)  # 0.00657
    assert float(VP().sigma(1.0)) == 0.0


def test_schedules_pass_through_jit_as_static_parts():
    f = jax.jit(lambda schedule, t: schedule.alpha(t))
    assert float(f(Polynomial(2.0), 0.5)) == 0.25


@pytest.mark.parametrize(
    "bad", [lambda: Polynomial(0.0), lambda: Polynomial(-1.0), lambda: VP(20.0, 0.1), lambda: VP(0.0, 1.0)]
)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(ValueError, match=r"must be|needed"):
        bad()


def test_half_precision_times_are_widened():
    assert schedules.CondOT().sigma(jnp.float16(0.5)).dtype == jnp.float32
