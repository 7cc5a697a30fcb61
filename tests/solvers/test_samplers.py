"""Samplers: their order, what they are in other coordinates, the marginals they keep, and what they count and
refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles, predictions, solvers
from flowjax.metrics import mmd
from flowjax.paths import AffinePath, Bridge, Constant, GaussianPath
from flowjax.schedules import EDM, VE, VP, CondOT, Cosine
from flowjax.solvers import Options, diffusions, grids, samplers, solve_ode
from flowjax.solvers.exponential import phi
from flowjax.solvers.names import SAMPLERS, check_solver, interval, known_solvers
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
SLOW = pytest.mark.slow
MORE = [pytest.param(name, marks=SLOW) for name in ("eulerheun", "slowrk")]
ON_PATHS = [name for name in SAMPLERS if name not in ("flow_map", "consistency")]
KEYS = jax.random.split(jax.random.key(0), 1)
MIXTURE = GaussianMixture(jnp.array([[1.5, 0.0], [-1.0, 1.0]]), jnp.array([0.7, 0.9]))
PATHS = {"cosine": GaussianPath(Cosine()), "condot": GaussianPath(CondOT()), "vp": GaussianPath(VP())}
DETERMINISTIC = {
    "ddim": (lambda path: solvers.DDIM(path), 1),
    "ab2": (lambda path: solvers.AdamsBashforth(path), 2),
    "edm": (lambda path: solvers.EDMHeun(path), 2),
    "dpmpp_2m": (lambda path: solvers.DPMSolverPP2M(path), 2),
    "dpmpp_3m": (lambda path: solvers.DPMSolverPP3M(path), 2),
    "dpmpp_3m, undamped": (lambda path: solvers.DPMSolverPP3M(path, damped=False), 3),
    "unipc": (lambda path: solvers.UniPC(path), 3),
    "heun": (lambda path: solvers.RungeKutta(path, solvers.SOLVERS["heun"]), 2),
}


def walk(sampler, model, x, times, key=None):
    """The sampler's steps alone, without its last denoising."""

    def step(state, edge):
        t, t_next, i = edge
        keys = None if key is None else jax.random.split(jax.random.fold_in(key, i), x.shape[0])
        return sampler.step(state, t, t_next, model, keys), None

    edges = (times[:-1], times[1:], jnp.arange(len(times) - 1))
    return jax.lax.scan(step, sampler.init(x, times[0]), edges)[0]


def wide(mixture):
    return GaussianMixture(*(jnp.asarray(a, jnp.float64) for a in (mixture.means, mixture.scales)))


@pytest.fixture(scope="module")
def references():
    """The exact flow of the mixture from t = 0.05 to 0.95 on each path: RK4 in float64, ten times the finest grid
    here."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (16, 2), jnp.float64)
        solve = lambda path: solve_ode(
            oracles.mixture(path, wide(MIXTURE)).velocity, x, t0=0.05, t1=0.95, solver="rk4", steps=3200
        )[0]
        return {name: np.asarray(solve(path)) for name, path in PATHS.items()}


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("path", PATHS)
def test_order_of_convergence(name, path, references):
    """Errors at 160 and 320 steps of [0.05, 0.95] in float64: within 0.2 of nominal.

    The damped dpmpp_3m takes eight times as many, because its terms of second and third order cancel until there.
    """
    (make, order), n = DETERMINISTIC[name], 160 * (8 if name == "dpmpp_3m" else 1)
    with jax.enable_x64(True):
        sampler, oracle = make(PATHS[path]), oracles.mixture(PATHS[path], wide(MIXTURE))
        x = jax.random.normal(jax.random.key(0), (16, 2), jnp.float64)
        end = jax.jit(lambda times: walk(sampler, oracle, x, times).x)
        error = lambda n: float(jnp.sqrt(jnp.mean((end(jnp.linspace(0.05, 0.95, n + 1)) - references[path]) ** 2)))
        assert np.log2(error(n) / error(2 * n)) == pytest.approx(order, abs=0.2)


STOCHASTIC = {
    "euler_maruyama": (lambda path: solvers.EulerMaruyama(path, diffusions.Sigma()), 1),
    "stochastic_heun": (lambda path: solvers.StochasticHeun(path, diffusions.Sigma()), 2),
    "ddpm": (lambda path: solvers.Ancestral(path), 1),
    "ddim, eta 0.5": (lambda path: solvers.Ancestral(path, 0.5), 1),
    "dpmpp_sde": (lambda path: solvers.DPMSolverPP2M(path, sde=True), 2),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_order_of_the_moments(name, monkeypatch):
    """Gaussian data: a step is affine in (state, noise), so mean and covariance go through it exactly; float64.

    The worst relative error of the mean and of the variance at the end, at 100 and 200 steps of [0.05, 0.9], CondOT.
    """
    make, order = STOCHASTIC[name]
    with jax.enable_x64(True):
        path = GaussianPath(CondOT())
        sampler, oracle = make(path), oracles.gaussian(path, jnp.asarray(1.0), 0.5)
        drawn = {}
        fixed = lambda key, x: drawn["z"]
        for module in ("stochastic", "exponential", "deterministic"):
            monkeypatch.setattr(f"flowjax.solvers.{module}.standard_normal", fixed)
        law = lambda t: (t, t**2 / 4 + (1 - t) ** 2)

        @jax.jit
        def moments(times):
            start = sampler.init(jnp.zeros((1, 1)), times[0])
            flat, unflatten = jax.flatten_util.ravel_pytree(
                jax.tree.map(lambda a: jnp.nan_to_num(a, neginf=-1e9), start)
            )

            def step(state, edge):
                t, t_next = edge

                def advance(flat, z):
                    drawn["z"] = z.reshape(1, 1)
                    state = unflatten(flat)
                    return jax.flatten_util.ravel_pytree(sampler.step(state, t, t_next, oracle, KEYS))[0]

                mean, covariance = state
                zero = jnp.zeros(1)
                a = jax.jacfwd(advance)(mean, zero)
                c = jax.jacfwd(lambda z: advance(mean, z))(zero)
                return (advance(mean, zero), a @ covariance @ a.T + c @ c.T), None

            m, v = law(times[0])
            mean = flat.at[0].set(m)
            covariance = jnp.zeros((flat.size, flat.size)).at[0, 0].set(v)
            (mean, covariance), _ = jax.lax.scan(step, (mean, covariance), (times[:-1], times[1:]))
            return mean[0], covariance[0, 0]

        def errors(n):
            mean, variance = moments(jnp.linspace(0.05, 0.9, n + 1))
            m, v = law(0.9)
            return np.abs([float(mean) / m - 1, float(variance) / v - 1]).max()

        assert np.log2(errors(100) / errors(200)) == pytest.approx(order, abs=0.2)


def test_ddim_is_euler_in_its_own_coordinates():
    """x / alpha against sigma / alpha, whatever the schedule: to rounding in float64."""
    with jax.enable_x64(True):
        for path in PATHS.values():
            oracle, times = oracles.mixture(path, wide(MIXTURE)), jnp.linspace(0.1, 0.9, 9)
            x = jax.random.normal(jax.random.key(0), (4, 2), jnp.float64)
            scaled = x / path.schedule.alpha(times[0])
            for t, t_next in itertools.pairwise(times):
                level = lambda t, path=path: path.schedule.sigma(t) / path.schedule.alpha(t)
                slope = oracle.ends(t, scaled * path.schedule.alpha(t)).x0
                scaled = scaled + (level(t_next) - level(t)) * slope
            end = walk(solvers.DDIM(path), oracle, x, times).x
            np.testing.assert_allclose(end, scaled * path.schedule.alpha(times[-1]), rtol=1e-10)


def test_first_order_dpm_solver_is_ddim_and_edm_is_heun_on_its_own_schedule():
    with jax.enable_x64(True):
        path = PATHS["cosine"]
        oracle, times = oracles.mixture(path, wide(MIXTURE)), jnp.array([0.2, 0.5])
        x = jax.random.normal(jax.random.key(0), (4, 2), jnp.float64)
        ddim = walk(solvers.DDIM(path), oracle, x, times).x
        np.testing.assert_allclose(walk(solvers.DPMSolverPP2M(path), oracle, x, times).x, ddim, rtol=1e-10)
        # one step of Heun in x against sigma, written out, on alpha = 1
        path = GaussianPath(VE(0.1, 10))
        oracle = oracles.mixture(path, wide(MIXTURE))
        s0, s1 = (float(path.schedule.sigma(t)) for t in times)
        d0 = (x - oracle.ends(times[0], x).x1) / s0
        guess = x + (s1 - s0) * d0
        d1 = (guess - oracle.ends(times[1], guess).x1) / s1
        heun = walk(solvers.EDMHeun(path), oracle, x, times).x
        np.testing.assert_allclose(heun, x + (s1 - s0) * (d0 + d1) / 2, rtol=1e-10)


def test_ddpm_is_the_posterior_and_goes_to_the_reverse_sde(monkeypatch):
    """One ancestral step against Euler-Maruyama with the canonical g, same noise: apart by O(h^(3/2)); float64."""
    with jax.enable_x64(True):
        path = PATHS["vp"]
        oracle = oracles.mixture(path, wide(MIXTURE))
        x, z = jax.random.normal(jax.random.key(0), (2, 64, 2), jnp.float64)
        monkeypatch.setattr("flowjax.solvers.stochastic.standard_normal", lambda key, x: z)
        gaps = []
        for h in (0.01, 0.005, 0.0025):
            step = lambda s, h=h: (
                s.step(
                    s.init(x, jnp.asarray(0.5)),
                    jnp.asarray(0.5),
                    jnp.asarray(0.5 + h),
                    oracle,
                    KEYS,
                ).x
            )
            gap = step(solvers.Ancestral(path)) - step(solvers.EulerMaruyama(path, diffusions.Canonical()))
            gaps.append(float(jnp.sqrt(jnp.mean(gap**2))))
        orders = np.log2(np.array(gaps[:-1]) / np.array(gaps[1:]))
        np.testing.assert_allclose(orders, 1.5, atol=0.25)


@pytest.mark.parametrize(
    "g",
    [diffusions.Constant(0.0), pytest.param(diffusions.Sigma(2.0), marks=SLOW), diffusions.Canonical(0.5)],
    ids=str,
)
@pytest.mark.parametrize(
    "path",
    [GaussianPath(CondOT()), pytest.param(GaussianPath(VP()), marks=SLOW), AffinePath(CondOT(), Bridge(1.0))],
    ids=str,
)
def test_every_g_keeps_the_marginals(g, path):
    """From p at t = 0.1 to p at 0.9 with 200 steps of stochastic Heun: mean and covariance within 5 standard errors and
    1% for the step, and no more MMD than two true samples show (their largest of three draws, times 2)."""
    if isinstance(g, diffusions.Canonical) and path.noise is not None:
        pytest.skip("the canonical g is of paths from N(0, I)")
    n, oracle = 4000, oracles.mixture(path, MIXTURE)
    x = oracle.sample(jax.random.key(0), 0.1, n, (2,))
    true = [np.asarray(oracle.sample(jax.random.key(i), 0.9, n, (2,))) for i in range(1, 5)]
    sampler = solvers.StochasticHeun(path, g)
    end = jax.jit(lambda x: walk(sampler, oracle, x, jnp.linspace(0.1, 0.9, 201), jax.random.key(9)).x)(x)
    end = np.asarray(end)
    many = np.concatenate(true)
    spread = many.std(0)
    assert np.all(np.abs(end.mean(0) - many.mean(0)) <= 5 * spread * np.sqrt(1.25 / n))
    outer = lambda a: np.cov(a.T)
    assert np.all(np.abs(outer(end) - outer(many)) <= (5 * np.sqrt(2 * 1.25 / n) + 0.01) * spread.max() ** 2)
    floor = max(abs(float(mmd(jnp.asarray(a[:1000]), jnp.asarray(true[3][:1000])))) for a in true[:3])
    assert float(mmd(jnp.asarray(end[:1000]), jnp.asarray(true[3][:1000]))) <= 2 * floor + 2e-3


@pytest.mark.parametrize(
    ("name", "path", "options"),
    [
        ("pc", GaussianPath(VE(0.02, 20)), Options()),
        ("pc", AffinePath(CondOT(), Constant(0.5)), Options()),
        ("langevin", GaussianPath(VE(0.02, 20)), Options()),
        ("edm", GaussianPath(EDM(0.02, 20)), Options(churn=0.2)),
        ("ddpm", GaussianPath(VP()), Options(variance="large")),
        ("dpmpp_sde", GaussianPath(CondOT()), Options()),
        pytest.param("dpmpp_sde", GaussianPath(VP()), Options(), marks=SLOW),
        pytest.param("shark", GaussianPath(CondOT()), Options(), marks=SLOW),
        ("euler", GaussianPath(CondOT()), Options(g=diffusions.Constant(0.5))),
    ],
)
def test_stochastic_samplers_reach_the_data(name, path, options):
    """200 steps to N(1, 1/4) in two dimensions: mean within 0.06 and standard deviation within 5% (step and Monte
    Carlo)."""
    oracle = oracles.gaussian(path, 1.0, 0.5)
    low, _ = interval(name, path, options)
    x = oracle.sample(jax.random.key(3), low, 3000, (2,))
    y, _ = solvers.sample(oracle, x, solver=name, steps=200, key=jax.random.key(0), options=options)
    blur = path.noise is not None and 0.5**2  # the constant noise stays on the data... until the last denoising
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y.mean(0), 1.0, atol=0.06)
    expected = 0.5 if not blur else float(jnp.sqrt(0.5**4 / (0.5**2 + blur)))
    np.testing.assert_allclose(y.std(0), expected, rtol=0.05)


def test_langevin_runs_at_the_last_level():
    """Data of standard deviation s at 10 levels down to sigma = s: before the denoising the state has s sqrt(2), after
    it s / sqrt(2); 3,000 draws and 100 Langevin steps a level leave 5%."""
    path, s = GaussianPath(VE(0.05, 5)), 0.05
    oracle = oracles.gaussian(path, 0.0, s)
    x = oracle.sample(jax.random.key(3), 0.0, 3000, (1,))
    sampler = solvers.AnnealedLangevin(path, each=100)
    states, _ = solvers.sample(oracle, x, solver=sampler, steps=10, key=jax.random.key(0), save=True)
    assert float(states[-2].std()) == pytest.approx(s * 2**0.5, rel=0.05)
    assert float(states[-1].std()) == pytest.approx(s / 2**0.5, rel=0.05)


@pytest.mark.parametrize("name", ["unipc", "ddpm", "heun", pytest.param("shark", marks=SLOW)])
def test_half_precision_states(name):
    path = GaussianPath(CondOT())
    x = jnp.ones((2, 2), jnp.bfloat16)
    y, _ = solvers.sample(oracles.gaussian(path, 1.0, 0.5), x, solver=name, steps=3, key=jax.random.key(0))
    assert y.shape == x.shape
    assert np.isfinite(y.astype(jnp.float32)).all()


def counted(path):
    calls = []
    oracle = oracles.gaussian(path, 1.0, 0.5)

    def count(x):
        calls.append(1)
        return np.zeros((), np.float32)

    def denoiser(t, x, cond):
        zero = jax.pure_callback(count, jax.ShapeDtypeStruct((), np.float32), x, vmap_method="sequential")
        return jax.tree.map(lambda a: a + zero, oracle.ends(t, x))

    return calls, predictions.model(denoiser, path)


@pytest.mark.parametrize("name", [*ON_PATHS, "heun", "sra1", "leapfrogmidpoint", *MORE])
def test_nfe_is_what_a_counter_counts(name):
    path = GaussianPath(VE(0.1, 10)) if name == "langevin" else GaussianPath(CondOT())
    calls, model = counted(path)
    y, stats = solvers.sample(model, jnp.ones((1, 2)), solver=name, steps=6, key=jax.random.key(0))
    jax.block_until_ready(y)
    assert len(calls) == int(stats.nfe[0])
    published = {"ddim": 6, "edm": 11, "unipc": 6, "dpmpp_2m": 6, "dpmpp_3m": 6, "ddpm": 6, "ab2": 6, "heun": 12}
    assert int(stats.nfe[0]) == published.get(name, int(stats.nfe[0]))


@pytest.mark.parametrize("name", ["unipc", "ddpm"])
def test_a_row_depends_on_its_own_key_alone(name):
    path = GaussianPath(CondOT())
    oracle = oracles.gaussian(path, 1.0, 0.5)
    x = jax.random.normal(jax.random.key(0), (6, 2))
    keys = jax.random.split(jax.random.key(1), 6)
    run = lambda rows: solvers.sample(oracle, x[rows], solver=name, steps=5, key=keys[rows])[0]
    np.testing.assert_allclose(run(slice(0, 6))[2:4], run(slice(2, 4)), rtol=1e-5, atol=1e-6)


def test_states_on_request_and_the_limit_of_the_last_step():
    """All states are returned, and on CondOT the denoising is Euler's step to t = 1."""
    path = GaussianPath(CondOT())
    oracle = oracles.gaussian(path, 1.0, 0.5)
    x = jax.random.normal(jax.random.key(0), (3, 2))
    states, _ = solvers.sample(oracle, x, solver="ddim", steps=5, save=True)
    assert states.shape == (6, 3, 2)
    np.testing.assert_array_equal(states[0], x)
    euler, _ = solvers.sample(oracle, x, solver="euler", steps=5, save=True)
    np.testing.assert_allclose(states[-1], euler[-1], rtol=1e-5)  # DDIM on CondOT is Euler
    same, _ = solvers.sample(oracle, x, solver="euler", grid=jnp.linspace(0, 1, 6))
    np.testing.assert_allclose(same, euler[-1], rtol=1e-6)


@pytest.mark.parametrize("schedule", [CondOT(), VP(), EDM(), Cosine()])
@pytest.mark.parametrize("grid", [grids.uniform, grids.condot, grids.EDM(), grids.log_snr])
def test_grids_rise_and_are_even_in_their_own_measure(schedule, grid):
    times = grid(schedule, schedule.t_min, schedule.t_max, 21)
    assert float(times[0]) == pytest.approx(schedule.t_min)
    assert float(times[-1]) == pytest.approx(schedule.t_max)
    assert np.all(np.diff(times) > 0)
    if grid is not grids.uniform:
        level = np.asarray(schedule.log_snr(times[1:-1]), np.float64)
        rules = {grids.log_snr: lambda level: level, grids.condot: lambda level: 1 / (1 + np.exp(-level / 2))}
        measure = rules.get(grid, lambda level: np.exp(-level / 14))(level)
        np.testing.assert_allclose(np.diff(measure), np.diff(measure).mean(), rtol=0.02)


def test_edms_grid_is_the_published_one():
    """sigma_i of Karras et al. 2022, eq. 5, for N = 18: on EDM's own schedule it is even in t."""
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = grids.EDM()(VE(0.002, 80), 0.0, 1.0, 18)
    np.testing.assert_allclose(VE(0.002, 80).sigma(times), sigma, rtol=1e-4)
    np.testing.assert_allclose(EDM().sigma(jnp.linspace(0, 1, 18)), sigma, rtol=1e-4)


def test_a_learned_grid_is_closer_to_the_fine_solve_than_the_one_it_starts_from():
    path = GaussianPath(CondOT())
    oracle = oracles.mixture(path, GaussianMixture(MIXTURE.means, 0.1))
    x = jax.random.normal(jax.random.key(0), (64, 2))
    sampler = solvers.DDIM(path)
    times = grids.learn(sampler, oracle, x, 6, iterations=40)
    fresh = jax.random.normal(jax.random.key(1), (256, 2))
    fine = samplers.run(sampler, oracle, fresh, grids.times_for(sampler, 200))
    error = lambda times: float(jnp.mean((samplers.run(sampler, oracle, fresh, times) - fine) ** 2))
    assert np.all(np.diff(times) > 0)
    assert error(times) < 0.8 * error(grids.times_for(sampler, 6))
    with pytest.raises(ValueError, match="deterministic"):
        grids.learn(solvers.Ancestral(path), oracle, x, 6)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
def test_a_sampler_has_a_derivative_by_the_times_of_its_grid(name):
    """Without it a grid is not learned, although the samples are right. Central differences in float64 by steps of 1e-5
    are off by 1e-10 of the third derivative, and by roundings of 1e-11."""
    path = GaussianPath(CondOT())
    with jax.enable_x64(True):
        oracle, x = oracles.mixture(path, wide(MIXTURE)), jnp.array([[0.5, -1.0]])
        sampler = DETERMINISTIC[name][0](path)
        end = jax.jit(lambda times: jnp.sum(samplers.run(sampler, oracle, x, times)))
        times = jnp.array([0.0, 0.1, 0.22, 0.3, 0.4, 0.55]) + 1e-3
        slope = jax.grad(end)(times)[1:]
        steps = 1e-5 * jnp.eye(6)[1:]
        differences = [(end(times + h) - end(times - h)) / 2e-5 for h in steps]
        np.testing.assert_allclose(slope, jnp.stack(differences), rtol=1e-6, atol=1e-8)


def test_phi_functions():
    """phi_k(q) = integral of e^((1 - s) q) s^(k-1) / (k-1)!, by quadrature, on both sides of the switch to the
    series."""
    s = np.linspace(0, 1, 200_001)
    for q in (-8.0, -0.51, -0.49, -1e-3):
        for k, ours in enumerate(phi(jnp.asarray(q))):
            exact = np.trapezoid(np.exp((1 - s) * q) * s**k / max(k, 1), s)
            assert float(ours) == pytest.approx(exact, rel=2e-6)


AFFINE, NOISY = AffinePath(CondOT()), AffinePath(CondOT(), Bridge())


@pytest.mark.parametrize(
    ("path", "keywords", "message"),
    [
        (PATHS["condot"], {"solver": "unipcc", "steps": 3}, "did you mean 'unipc'"),
        (PATHS["condot"], {"solver": "unipc"}, "pass steps=N"),
        (PATHS["condot"], {"solver": "ddpm", "steps": 1, "key": jax.random.key(0)}, "at least 2"),
        (PATHS["condot"], {"solver": "ddpm", "steps": 3}, "pass key"),
        (AFFINE, {"solver": "ddpm", "steps": 3}, "has no score"),
        (AFFINE, {"solver": "sra1", "steps": 3}, "has no score"),
        (NOISY, {"solver": "unipc", "steps": 3}, "noise of its own"),
        (NOISY, {"solver": "ddpm", "steps": 3}, "noise of its own"),
        (NOISY, {"solver": "langevin", "steps": 3}, "noise of its own"),
        (PATHS["condot"], {"solver": solvers.DDIM(PATHS["condot"])}, "needs a number of steps"),
        (PATHS["condot"], {"solver": solvers.DDIM(PATHS["vp"]), "steps": 3}, "for another path"),
        (PATHS["condot"], {"solver": "ddim", "steps": 3, "grid": [0.1, 0.5]}, "leave steps out"),
        (PATHS["condot"], {"solver": "ddim", "steps": 3, "grid": "logsnr"}, "unknown grid"),
        (PATHS["condot"], {"solver": "leapfrogmidpoint", "steps": 3, "t1": 1.5}, r"within \[0, 1\]"),
        (PATHS["condot"], {"solver": "dopri5", "t0": 0.5, "t1": 0.5}, "must run forwards"),
        (PATHS["condot"], {"solver": "heun", "steps": 3, "options": Options(eta=0.5)}, "does not accept eta"),
        (PATHS["condot"], {"solver": "ddim", "steps": 3, "options": Options(eta=2.0)}, "between 0"),
        (PATHS["condot"], {"solver": "edm", "grid": jnp.array([0.0, 0.5])}, "undefined at t = 0, where alpha = 0"),
        (PATHS["condot"], {"solver": "ddim", "grid": jnp.array([0.5, 0.8, 0.7, 0.9])}, "strictly increasing"),
        (PATHS["condot"], {"solver": "ddim", "grid": jnp.array([0.5, 1.2])}, r"within \[0, 1\]"),
        (PATHS["condot"], {"solver": "dopri5", "save": True}, "it has no grid"),
        (PATHS["condot"], {"solver": "edm", "steps": 4, "options": Options(churn=0.9)}, "sqrt"),
    ],
)
def test_refusals_come_before_anything_is_compiled(path, keywords, message):
    with pytest.raises(ValueError, match=message):
        solvers.sample(predictions.model(lambda t, x, cond: 1 / 0, path), jnp.ones((1, 2)), **keywords)


@pytest.mark.parametrize("path", [PATHS["condot"], GaussianPath(VE(0.1, 10))], ids=["condot", "ve"])
@pytest.mark.parametrize("name", ["ddim", "edm", "dpmpp_3m", "unipc"])
def test_one_step_is_the_denoising(name, path):
    """Up to rounding of float32: one is compiled, the other is not."""
    x = jax.random.normal(jax.random.key(0), (4, 2))
    model = oracles.mixture(path, MIXTURE)
    y, stats = solvers.sample(model, x, solver=name, steps=1)
    np.testing.assert_allclose(y, model.ends(interval(name, path)[0], x).x1, rtol=1e-5)
    assert stats.nfe.tolist() == [1] * 4


def test_negative_noise_is_refused_and_every_name_is_known():
    with pytest.raises(ValueError, match="negative"):
        diffusions.Constant(-1.0)
    for name in known_solvers():
        check_solver(name, None if name == "push_forward" else 5)


@pytest.mark.parametrize("steps", [1, 4])
def test_consistency_steps_keep_the_marginals_of_an_exact_map(steps):
    """N(0, 1) to N(m, c^2) on condot: x_t is normal with mean m t and variance (1 - t)^2 + (c t)^2, and the flow keeps
    the number of standard deviations from the mean. Means and variances are within 4 standard errors."""
    m, c, n = 2.0, 0.5, 20_000
    path = GaussianPath(CondOT())

    class Exact:
        def to_data(self, t, x, cond=None):
            return m + c * (x - m * t) / jnp.sqrt((1 - t) ** 2 + (c * t) ** 2)

    x0 = jax.random.normal(jax.random.key(0), (n, 1))
    keys = jax.random.split(jax.random.key(1), n)
    states = samplers.run(
        solvers.ConsistencySteps(path), Exact(), x0, jnp.linspace(0, 1, steps + 1), keys=keys, save=True
    )
    assert states.shape == (steps + 1, n, 1)
    for t, x in zip(np.linspace(0, 1, steps + 1), np.asarray(states, np.float64), strict=True):
        variance = (1 - t) ** 2 + (c * t) ** 2
        assert x.mean() == pytest.approx(m * t, abs=4 * np.sqrt(variance / n))
        assert x.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / n))
    if steps == 1:
        np.testing.assert_allclose(states[-1], m + c * x0, rtol=1e-5, atol=1e-5)
