"""Samplers with few steps: their default grids, steps that are too long for the second order, and the data's scale."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles, schedules, solvers
from flowjax.data.densities import eight_gaussians
from flowjax.paths import GaussianPath
from flowjax.solvers import grids
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
STEPS = (10, 20, 40)
SCHEDULES = {
    "condot": schedules.CondOT(),
    "shifted": schedules.Shifted(schedules.CondOT(), 3),
    "cosine": schedules.Cosine(),
    "polynomial": schedules.Polynomial(2),
    "vp": schedules.VP(),
    "subvp": schedules.SubVP(),
    "ve": schedules.VE(),
    "edm": schedules.EDM(),
    "ddpm_linear": schedules.ddpm_linear(1000),
    "nichol_cosine": schedules.nichol_cosine(1000),
}
ORACLES = {
    "normal": GaussianMixture(jnp.array([[1.0, 1.0]]), jnp.array([0.5])),
    "two modes": GaussianMixture(jnp.array([[-1.0, 0.0], [1.5, 0.0]]), jnp.array([0.3, 0.15]), jnp.array([0.7, 0.3])),
    "gaussians8": GaussianMixture(eight_gaussians().means, jnp.full(8, eight_gaussians().scales)),
}
CELLS = [(schedule, oracle) for schedule in SCHEDULES for oracle in ORACLES]
MULTISTEP = {
    "dpmpp_2m": solvers.DPMSolverPP2M,
    "dpmpp_3m": solvers.DPMSolverPP3M,
    "unipc": solvers.UniPC,
}


class Tabulated:
    """A schedule at the times 0, 1, 2, ... alone: the values of any other on a grid, so that one program serves all."""

    t_min, t_max = 0.0, 1.0

    def __init__(self, alphas, sigmas):
        self.alphas, self.sigmas = alphas, sigmas

    def alpha(self, t):
        return self.alphas[jnp.round(t).astype(int)]

    def sigma(self, t):
        return self.sigmas[jnp.round(t).astype(int)]

    def log_snr(self, t):
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def time_of_log_snr(self, log_snr):
        raise NotImplementedError


class EvenInLogSNR:
    """alpha = 1, and half log-SNR linear in t between two values, which may be traced."""

    t_min, t_max = 0.0, 1.0

    def __init__(self, low, high):
        self.low, self.high = low, high

    def alpha(self, t):
        return jnp.ones_like(t)

    def sigma(self, t):
        return jnp.exp(-0.5 * self.log_snr(t))

    def log_snr(self, t):
        return 2 * (self.low + t * (self.high - self.low))

    def time_of_log_snr(self, log_snr):
        return (log_snr / 2 - self.low) / (self.high - self.low)


def mixtures(dtype):
    """The oracle of every cell as arrays with a leading axis, filled up to eight components with weight zero."""

    def filled(a, value):
        return jnp.concatenate([a, jnp.full((8 - len(a), *a.shape[1:]), value, a.dtype)]).astype(dtype)

    parts = [(filled(m.means, 0.0), filled(m.scales, 1.0), filled(m.log_weights, -1e9)) for m in ORACLES.values()]
    chosen = [parts[list(ORACLES).index(oracle)] for _, oracle in CELLS]
    return [jnp.stack(arrays) for arrays in zip(*chosen, strict=True)]


KEYS = jax.random.split(jax.random.key(0), 32)
Z = np.random.default_rng(0).standard_normal((32, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def exact_ends():
    """E[x1 | x] where the exact flow from sigma z arrives, of every cell, by 1,000 steps of RK4 in float64.

    A path with alpha = 0 starts at half log-SNR -15. Halving the steps changes the ends by less than 1e-5.
    """
    with jax.enable_x64(True):
        ends = [[SCHEDULES[s].log_snr(SCHEDULES[s].t_min), SCHEDULES[s].log_snr(SCHEDULES[s].t_max)] for s, _ in CELLS]
        low, high = np.clip(0.5 * np.array(ends, float), -15, 15).T

        @jax.jit
        @jax.vmap
        def flow(mixture, low, high):
            oracle = oracles.Oracle(GaussianPath(EvenInLogSNR(low, high)), *mixture)

            def step(x, t):
                h, v = 1e-3, oracle.velocity
                k1 = v(t, x)
                k2 = v(t + h / 2, x + h / 2 * k1)
                k3 = v(t + h / 2, x + h / 2 * k2)
                return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(t + h, x + h * k3)), None

            x = jax.lax.scan(step, jnp.exp(-low) * jnp.asarray(Z, jnp.float64), jnp.arange(1000) / 1000)[0]
            return oracle.ends(jnp.asarray(1.0), x).x1

        return np.asarray(flow(tuple(mixtures(jnp.float64)), jnp.asarray(low), jnp.asarray(high)))


@pytest.fixture(scope="module")
def errors(exact_ends):
    """`errors(sampler class, grid=its own)`: RMS to the exact flow, (steps, cells); one compilation a class.

    The scan always has 40 - 1 steps; those beyond the grid change nothing.
    """
    longest = max(STEPS)

    @cache
    def program(make):
        @jax.jit
        @jax.vmap
        def run(alphas, sigmas, count, mixture):
            path = GaussianPath(Tabulated(alphas, sigmas))
            sampler, oracle = make(path), oracles.Oracle(path, *mixture)

            def step(state, t):
                new = sampler.step(state, t, t + 1, oracle, None)
                return jax.tree.map(lambda a, b: jnp.where(t < count - 1, a, b), new, state), None

            state = sampler.init(sigmas[0] * Z, jnp.asarray(0.0))
            state, _ = jax.lax.scan(step, state, jnp.arange(longest - 1.0))
            return oracle.ends(jnp.asarray(longest - 1.0), state.x).x1

        return run

    @cache
    def tables(name, steps):
        """alpha and sigma of every cell at the times of that grid, the last of them repeated."""
        found = []
        for schedule in SCHEDULES.values():
            times = grids.times_for(solvers.DDIM(GaussianPath(schedule)), steps, grids.GRIDS[name]())
            times = jnp.concatenate([times, jnp.repeat(times[-1:], longest - steps)])
            found.append((schedule.alpha(times), schedule.sigma(times)))
        alphas, sigmas = (np.stack(values).repeat(len(ORACLES), 0) for values in zip(*found, strict=True))
        return jnp.asarray(alphas), jnp.asarray(sigmas)

    @cache
    def measure(make, grid=""):
        run, found = program(make), []
        for steps in STEPS:
            counts, mixture = jnp.full(len(CELLS), steps), tuple(mixtures(jnp.float32))
            ends = run(*tables(grid or make.grid, steps), counts, mixture)
            found.append(np.sqrt(np.mean((np.asarray(ends, np.float64) - exact_ends) ** 2, (1, 2))))
        return np.array(found)

    return measure


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_samplers_are_at_least_as_accurate_as_ddim(name, errors):
    """At 10, 20 and 40 steps on every schedule and oracle: within 1.05 times DDIM's error plus 1e-5 on the default
    grids (5% for errors that happen to cancel, 1e-5 for float32), and within 1.5 times on even times, whose last step
    is far too long on `vp`, `subvp`, `ddpm_linear` and `nichol_cosine`.
    """
    for grid, factor in (("", 1.05), ("uniform", 1.5)):
        ours, ddim = errors(MULTISTEP[name], grid), errors(solvers.DDIM, grid)
        worse = np.argwhere(~(ours <= factor * ddim + 1e-5))
        assert not len(worse), [(STEPS[i], *CELLS[j], ours[i, j], ddim[i, j]) for i, j in worse]


def test_few_steps_are_accurate_on_every_schedule(errors):
    """N(1, 1/4) with 20 steps: the error is below 0.01 with the default sampler of order 2 on every schedule.

    DDIM's is 0.05; one order higher, a multistep method has that times a fraction of the largest relevant step, 0.2.
    """
    normal = [j for j, (_, oracle) in enumerate(CELLS) if oracle == "normal"]
    for make in MULTISTEP.values():
        assert errors(make)[STEPS.index(20), normal].max() < 0.01


def steps_through(sampler, model, x, times):
    state = sampler.init(x, jnp.asarray(times[0]))
    for t, t_next in itertools.pairwise(times):
        last, state = state, sampler.step(state, jnp.asarray(t), jnp.asarray(t_next), model, KEYS)
    return last, state


@pytest.mark.parametrize("h_prev", [0.3, 1.4], ids=["h > 2 h_prev", "h > 1.594"])
@pytest.mark.parametrize("name", [*MULTISTEP, "dpmpp_sde"])
def test_a_step_too_long_in_half_log_snr_is_of_first_order(name, h_prev, monkeypatch):
    """After two steps of h_prev a step of 0.7 or 1.7 holds the latest E[x1 | x]; the noise of the SDE left out."""
    monkeypatch.setattr("flowjax.solvers.exponential.standard_normal", lambda key, x: jnp.zeros_like(x))
    path, h = GaussianPath(schedules.VP()), 0.7 if h_prev == 0.3 else 1.7
    levels = np.array([-1.0, h_prev - 1, 2 * h_prev - 1, 2 * h_prev - 1 + h])
    times = [float(path.schedule.time_of_log_snr(2 * level)) for level in levels]
    oracle = oracles.mixture(path, ORACLES["two modes"])
    sampler = solvers.DPMSolverPP2M(path, sde=True) if name == "dpmpp_sde" else MULTISTEP[name](path)
    before, after = steps_through(sampler, oracle, jnp.asarray(Z), times)
    r, to = (path.rates(jnp.asarray(t), before.x) for t in times[-2:])
    decay, held = to.sigma / r.sigma, after.history[0][0]
    if name == "dpmpp_sde":
        decay = decay**2 * r.alpha / to.alpha
    x = after.history[2] if name == "unipc" else before.x  # UniPC corrects the point first
    np.testing.assert_allclose(after.x, decay * x + (to.alpha - decay * r.alpha) * held, rtol=1e-4, atol=1e-5)


def test_a_step_of_adams_bashforth_more_than_twice_the_last_is_eulers():
    path = GaussianPath(schedules.CondOT())
    oracle = oracles.mixture(path, ORACLES["two modes"])
    before, after = steps_through(solvers.AdamsBashforth(path), oracle, jnp.asarray(Z), [0.1, 0.2, 0.3, 0.55])
    euler = solvers.RungeKutta(path, solvers.SOLVERS["euler"])
    held = euler.step(before, jnp.asarray(0.3), jnp.asarray(0.55), oracle, None).x
    np.testing.assert_allclose(after.x, held, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_edm_assumes_nothing_about_the_scale_of_the_data(scale):
    """Data of standard deviation `scale` on CondOT, 40 steps: that of the samples is within 5%.

    The flow of N(0, scale^2) only stretches, so the standard deviation is that of the stretch, without sampling error.
    The solve starts at sigma / alpha = 1000, where data of scale 100 are left out: half of (100 / 1000)^2, 0.5%. Heun's
    error at 40 steps is 1.5% for data of scale 1 and, because it grows with the number of levels below the data's
    scale that a step skips, 4% for 0.1. With the levels of Karras et al. it was 145% at scale 100.
    """
    path = GaussianPath(schedules.CondOT())
    oracle = oracles.gaussian(path, jnp.zeros(1), scale)
    z = jnp.linspace(-2, 2, 9)[:, None]
    y, _ = solvers.sample(oracle, z, solver="edm", steps=40)
    np.testing.assert_allclose(y, scale * z, rtol=0.05, atol=1e-3 * scale)
    coarse, _ = solvers.sample(oracle, z, solver="edm", steps=40, grid=solvers.grids.EDM(7, 0.002 * scale, 80 * scale))
    np.testing.assert_allclose(coarse, scale * z, rtol=0.05, atol=1e-3 * scale)
