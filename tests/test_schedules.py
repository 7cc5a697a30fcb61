"""Schedules against formulas written again in float64, and against what a schedule must satisfy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import schedules
from flowjax.schedules import (
    EDM,
    VE,
    VP,
    CondOT,
    Cosine,
    Polynomial,
    Shifted,
    SubVP,
    bisect_log_snr,
    check_monotone,
    ddpm_linear,
    nichol_cosine,
    rates,
)

pytestmark = pytest.mark.analytic

# alpha, sigma and their derivatives, in NumPy float64, derived by hand.
_B = lambda t: 0.5 * (1 - t) ** 2 * 19.9 + 0.1 * (1 - t)
_DB = lambda t: -((1 - t) * 19.9 + 0.1)
_edm = lambda t: 80 ** (1 / 7) + t * (0.002 ** (1 / 7) - 80 ** (1 / 7))
CASES = {
    "sub-vp": (
        SubVP(),
        lambda t: (
            np.exp(-_B(t) / 2),
            1 - np.exp(-_B(t)),
            -_DB(t) / 2 * np.exp(-_B(t) / 2),
            _DB(t) * np.exp(-_B(t)),
        ),
    ),
    "ve": (
        VE(0.01, 50),
        lambda t: (
            np.ones_like(t),
            50 * (0.01 / 50) ** t,
            np.zeros_like(t),
            np.log(0.01 / 50) * 50 * (0.01 / 50) ** t,
        ),
    ),
    "edm": (
        EDM(),
        lambda t: (
            np.ones_like(t),
            _edm(t) ** 7,
            np.zeros_like(t),
            7 * _edm(t) ** 6 * (0.002 ** (1 / 7) - 80 ** (1 / 7)),
        ),
    ),
    "lipman": (
        CondOT(sigma_min=0.1),
        lambda t: (t, 1 - 0.9 * t, np.ones_like(t), -0.9 * np.ones_like(t)),
    ),
    "shifted": (
        Shifted(CondOT(), 3.0),
        lambda t: (t / (3 - 2 * t), 3 * (1 - t) / (3 - 2 * t), 3 / (3 - 2 * t) ** 2, -3 / (3 - 2 * t) ** 2),
    ),
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
        # a few roundings of quantities of order max(1, |value|); a power of 7, or an exponential of 8, multiplies them
        np.testing.assert_allclose(ours, true, rtol=1e-5 if name in ("edm", "ve") else 3e-6, atol=1e-6)


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
    "bad",
    [
        lambda: Polynomial(0.0),
        lambda: Polynomial(-1.0),
        lambda: VP(20.0, 0.1),
        lambda: VP(0.0, 1.0),
        lambda: SubVP(2, 1),
        lambda: VE(2, 1),
        lambda: EDM(rho=0),
        lambda: Shifted(CondOT(), 0),
        lambda: CondOT(1.0),
    ],
)
def test_bad_parameters_are_refused(bad):
    with pytest.raises(ValueError, match=r"must be|needed"):
        bad()


def test_half_precision_times_are_widened():
    assert schedules.CondOT().sigma(jnp.float16(0.5)).dtype == jnp.float32


@pytest.mark.parametrize("make", [ddpm_linear, nichol_cosine])
def test_discrete_levels_are_the_products_of_the_betas(make):
    """alpha_k^2 = prod (1 - b_i) in float64, at t = 1 - k / N, for the paper's own betas; float32 log-SNR to 1e-6."""
    n = 1000
    if make is ddpm_linear:
        betas = np.linspace(1e-4, 0.02, n)
    else:
        f = lambda k: np.cos((k / n + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f(np.arange(1, n + 1)) / f(np.arange(n)), 0.999)
    signal = np.cumprod(1 - betas)[::-1]
    schedule = make()
    np.testing.assert_allclose(schedule.times, np.arange(n) / n, atol=1e-12)
    np.testing.assert_allclose(schedule.alpha(schedule.times), np.sqrt(signal), rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.sigma(schedule.times), np.sqrt(1 - signal), rtol=2e-5)
    middle = schedule.log_snr((schedule.times[1:] + schedule.times[:-1]) / 2)
    levels = np.log(signal / (1 - signal))
    np.testing.assert_allclose(middle, (levels[1:] + levels[:-1]) / 2, rtol=1e-4, atol=2e-4)  # linear between levels
    t = jnp.linspace(0.0, schedule.t_max, 77)
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule.log_snr(t)), t, atol=3e-6)


def test_the_shift_lowers_log_snr_by_twice_its_logarithm():
    """Esser et al. 2024: sigma / alpha grows by the shift at every t of CondOT."""
    t = jnp.linspace(0.1, 0.9, 9)
    fall = CondOT().log_snr(t) - Shifted(CondOT(), 3.0).log_snr(t)
    np.testing.assert_allclose(fall, 2 * np.log(3.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["condot", "vp", "sub-vp", "ve", "edm"])
def test_bisection_agrees_with_the_closed_inverse(name):
    schedule, _ = CASES[name]
    levels = schedule.log_snr(jnp.linspace(0.05, 0.95, 20))
    np.testing.assert_allclose(bisect_log_snr(schedule, levels), schedule.time_of_log_snr(levels), atol=3e-6)


class Bump:
    """A schedule that gives back what it has learned of the data."""

    t_min, t_max = 0.0, 1.0
    alpha = staticmethod(lambda t: jnp.sin(jnp.pi * jnp.asarray(t)))
    sigma = staticmethod(lambda t: jnp.ones_like(jnp.asarray(t)))

    def log_snr(self, t):
        return 2 * jnp.log(self.alpha(t) / self.sigma(t))

    def time_of_log_snr(self, log_snr):
        return bisect_log_snr(self, log_snr)


def test_a_schedule_that_is_not_monotone_is_refused():
    with pytest.raises(ValueError, match=r"not monotone.* t = 0\.5"):
        check_monotone(Bump())


SHIPPED = [
    *(schedule for schedule, _ in CASES.values()),
    Polynomial(2),
    Polynomial(0.5),
    Polynomial(20.0),
    VP(0.1, 0.1),
    ddpm_linear(),
    ddpm_linear(2),
    nichol_cosine(),
    nichol_cosine(7),
]


@pytest.mark.parametrize("shift", [1.0, pytest.param(0.3, marks=pytest.mark.slow), 3.0])
def test_all_schedules_pass_their_checks(shift):
    for schedule in SHIPPED:
        check_monotone(schedule if shift == 1.0 else Shifted(schedule, shift))


@dataclass(frozen=True)
class Joined:
    """CondOT, its log-SNR l(t) = 2 log(t / (1 - t)) put together from two halves at `at` by another function of t.

    The kinked forms have the right values everywhere, and at `at` a derivative of 0.
    """

    form: str
    at: float = 0.5
    t_min, t_max = 1e-3, 1 - 1e-3

    def log_snr(self, t):
        t = jnp.asarray(t)
        line = lambda t: 2 * (jnp.log(t) - jnp.log1p(-t))
        gap = t - self.at
        if self.form == "abs":
            return line(self.at + jnp.sign(gap) * jnp.abs(gap))
        if self.form == "root":  # 0 / 0 in its derivative
            return line(self.at + jnp.sign(gap) * jnp.sqrt(gap**2))
        if self.form == "maximum":  # half of either derivative at a tie
            return jnp.maximum(line(t), 2 * line(t) - line(jnp.asarray(self.at)))
        return jnp.where(gap < 0, line(t), line(t))

    def alpha(self, t):
        return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

    def sigma(self, t):
        return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))

    def time_of_log_snr(self, log_snr):
        return bisect_log_snr(self, log_snr)


@pytest.mark.parametrize("at", [0.5, 0.25, 2 / 3])
@pytest.mark.parametrize(("form", "slope"), [("abs", "0"), ("root", "nan")])
def test_a_derivative_that_disagrees_with_differences_is_refused(form, slope, at):
    """alpha'(0.5) of this schedule is sqrt(2) by hand: alpha^2 = t^2 / (t^2 + (1 - t)^2) = s, and alpha' = s' /
    (2 alpha) with s'(0.5) = 2."""
    with pytest.raises(ValueError, match=f"derivative of alpha at t = {at:.4g} is {slope} by") as error:
        check_monotone(Joined(form, at))
    if at == 0.5:
        assert " 1.414 by finite differences" in str(error.value)


@pytest.mark.parametrize("form", ["where", "maximum"])
def test_a_derivative_between_the_one_sided_ones_is_accepted(form):
    """A kink, as the discrete schedules have at every level; also when the check runs while `jit` traces."""

    @jax.jit
    def traced(x):
        check_monotone(Joined(form))
        return x

    traced(0.0)
