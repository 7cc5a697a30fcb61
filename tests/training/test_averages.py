"""Power-function averages: profiles, updates in training, and the reconstruction of other widths from snapshots."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from flowjax.training import averages, snapshots
from flowjax.training.averages import gamma_of
from flowjax.training.snapshots import SnapshotError, inner, misfit, posthoc, solve_weights

SIGMAS = (0.05, 0.10)


def density(gamma, t):
    """The profile at time t, from its definition."""
    return lambda s: (gamma + 1) * s**gamma / t ** (gamma + 1)


@pytest.mark.analytic
def test_published_exponents_and_the_cubic():
    """Against the values 16.97 and 6.94 that Karras et al. 2024 print, and against a general root finder."""
    np.testing.assert_allclose(gamma_of(0.05), 16.97, atol=5e-3)
    np.testing.assert_allclose(gamma_of(0.10), 6.94, atol=5e-3)
    for s in np.geomspace(0.002, averages.MAX_SIGMA_REL, 40):
        roots = np.roots([1, 7, 16 - s**-2, 12 - s**-2])
        np.testing.assert_allclose(gamma_of(float(s)), roots.real.max(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(averages.sigma_rel(gamma_of(float(s))), s, rtol=1e-12)
    for bad in (0.0, 0.29, -0.1):
        with pytest.raises(ValueError, match="sigma_rel must be in"):
            gamma_of(bad)


@pytest.mark.analytic
@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.25])
def test_sigma_rel_is_the_width_of_the_profile(sigma):
    """Against moments by quadrature, whose relative error is about 1e-8."""
    p = density(gamma_of(sigma), 1.0)
    mass, mean, square = (quad(lambda s, k=k: s**k * p(s), 0, 1)[0] for k in range(3))
    np.testing.assert_allclose([mass, np.sqrt(square - mean**2)], [1, sigma], rtol=1e-6)


@pytest.mark.analytic
def test_inner_products():
    for t, a, s, b in [(3.0, 1.5, 5.0, 7.0), (5.0, 1.5, 3.0, 7.0), (4.0, 2.0, 4.0, 2.0), (0.5, 16.97, 4.0, 6.94)]:
        p, q = density(a, t), density(b, s)
        expected = quad(lambda x, p=p, q=q: p(x) * q(x), 0, min(t, s))[0]
        np.testing.assert_allclose(inner((t, a), (s, b)), expected, rtol=1e-7)


@pytest.mark.analytic
def test_rate_is_published_beta_without_its_rounding():
    """Against float64. In float32, log1p and expm1 are accurate to about 1e-7; 1 - beta would be accurate to 3e-3."""
    for gamma in (6.94, 16.97):
        steps = np.array([1, 2, 10, 1000, 3_000_000])
        expected = -np.expm1((gamma + 1) * np.log1p(-1 / steps[1:].astype(np.float64)))
        np.testing.assert_allclose(jax.vmap(partial(averages.rate, gamma))(steps)[1:], expected, rtol=1e-6)
        np.testing.assert_allclose(averages.beta(gamma, 10), 0.9 ** (gamma + 1), rtol=1e-6)
        assert float(averages.rate(gamma, 1)) == 1.0


def trajectory(steps):
    """Values (steps, 3) of order 1 with a decay, a drift and an oscillation, like parameters in training."""
    x = np.arange(1, steps + 1) / steps
    return np.stack([np.exp(-6 * x), x + 0.3 * np.sin(9 * x), np.cos(25 * x)], 1)


def track(values, sigmas, stored=()):
    """The averages after all steps, updated as in training, and the averages at the steps in `stored`."""
    gammas = tuple(gamma_of(s) for s in sigmas)
    every = jax.jit(
        lambda values: jax.lax.scan(
            lambda carry, x: (new := averages.update_power(carry, {"w": x[1]}, gammas, x[0]), new),
            averages.init_power({"w": values[0] * 0 + 9.0}, len(sigmas)),
            (jnp.arange(1, len(values) + 1), values),
        )
    )
    last, history = every(jnp.asarray(values, jnp.float32))
    return last, {n: jax.tree.map(lambda a, n=n: a[n - 1], history) for n in stored}


@pytest.mark.analytic
def test_tracking_is_the_integral_of_the_profile():
    """The factors (1 - 1/t)^(gamma + 1) telescope: the weight of step i is the integral of the profile over [i - 1, i].

    The integrals are computed by quadrature. Float32 rounds each update by at most 6e-8. The average remembers about
    t / (gamma + 1) updates, so the error is below 6e-8 x 600 / 8 = 5e-6. The first step replaces the initial value 9,
    up to a rounding.
    """
    steps = 600
    values = trajectory(steps)
    last, stored = track(values, SIGMAS, (1,))
    for sigma, average, first in zip(SIGMAS, last, stored[1], strict=True):
        p = density(gamma_of(sigma), float(steps))
        weights = np.array([quad(p, i, i + 1)[0] for i in range(steps)])
        np.testing.assert_allclose(average["w"], weights @ values, atol=5e-6)
        np.testing.assert_allclose(first["w"], values[0], atol=2e-6)


@pytest.mark.analytic
@pytest.mark.parametrize("sigma", [0.04, 0.07, 0.13, 0.2])
def test_other_widths_from_two_tracks(sigma):
    """By Cauchy-Schwarz the error is at most misfit x |profile| x |trajectory| (L2 over time), and 1e-5 in float32."""
    steps = 2000
    values = trajectory(steps)
    at = range(steps // 16, steps + 1, steps // 16)
    _, stored = track(values, SIGMAS, at)
    profiles = [(n, gamma_of(s)) for n in at for s in SIGMAS]
    target = (steps, gamma_of(sigma))
    coefficients = solve_weights(profiles, target)
    np.testing.assert_allclose(coefficients.sum(), 1, atol=1e-9)
    rebuilt = snapshots.reconstruct((tree for n in at for tree in stored[n]), coefficients)["w"]
    direct = track(values, (sigma,))[0][0]["w"]
    size = np.sqrt(inner(target, target))
    bound = misfit(profiles, target, coefficients) * size * np.linalg.norm(values, axis=0)
    assert np.all(np.abs(rebuilt - direct) <= bound + 1e-5)
    assert np.abs(rebuilt - direct).max() < 3e-3  # small compared with the difference between the two averages, below
    assert np.abs(stored[steps][0]["w"] - stored[steps][1]["w"]).max() > 0.05


@pytest.mark.analytic
def test_coefficients_are_the_least_squares_ones():
    """Against least squares for profiles on a grid of midpoints, whose relative error is h^2 / 24 p'' / p < 1e-4."""
    profiles = [(t, gamma_of(s)) for t in (40.0, 70.0, 100.0) for s in SIGMAS]
    target = (90.0, gamma_of(0.15))
    h = 0.01
    grid = np.arange(h / 2, 100, h)
    profile = lambda t, g: np.where(grid < t, density(g, t)(grid), 0.0)
    columns = np.stack([profile(*s) for s in profiles], 1)
    free = columns[:, :-1] - columns[:, -1:]  # the coefficients sum to 1
    first = np.linalg.lstsq(free, profile(*target) - columns[:, -1], rcond=None)[0]
    expected = np.append(first, 1 - first.sum())
    coefficients = solve_weights(profiles, target)
    np.testing.assert_allclose(coefficients, expected, atol=2e-3)
    off = np.linalg.norm(columns @ coefficients - profile(*target)) / np.linalg.norm(profile(*target))
    np.testing.assert_allclose(misfit(profiles, target, coefficients), off, rtol=1e-3)
    same = solve_weights(profiles, profiles[2])  # a snapshot is its own reconstruction
    np.testing.assert_allclose(same, np.eye(6)[2], atol=1e-6)


def test_snapshots_on_disk(tmp_path):
    """float16 has a relative error of at most 2^-11, so the error of the sum is at most 2^-11 sum |c_i x_i|."""
    steps, at = 800, range(50, 801, 50)
    values = trajectory(steps)
    _, stored = track(values, SIGMAS, at)
    folder = tmp_path / "ema"
    trees = {}
    for n in at:
        for sigma, tree in zip(SIGMAS, stored[n], strict=True):
            trees[n, sigma] = {"net": {"enc": {0: {"weight": tree["w"]}}, "gain": jnp.float32(n)}}
            snapshots.write_snapshot(folder, n, sigma, trees[n, sigma])
    (folder / "notes.npz").write_bytes(b"")
    found = snapshots.read_snapshots(folder)
    assert [(s.step, s.sigma_rel) for s in found] == list(trees)
    assert jax.tree.structure(snapshots.read_params(found[0].path)) == jax.tree.structure(trees[50, 0.05])
    for step in (None, 650):
        target = (step or 800, gamma_of(0.07))
        c = solve_weights([(n, gamma_of(s)) for n, s in trees], target)
        exact = snapshots.reconstruct(trees.values(), c)
        rebuilt = posthoc(folder, 0.07, step)
        size = snapshots.reconstruct((jax.tree.map(jnp.abs, tree) for tree in trees.values()), np.abs(c))
        leaves = zip(jax.tree.leaves(rebuilt), jax.tree.leaves(exact), jax.tree.leaves(size), strict=True)
        for a, b, s in leaves:
            assert a.dtype == np.float32
            assert np.all(np.abs(a - b) <= s * 2.0**-11 + 1e-6)


def test_snapshots_that_do_not_serve(tmp_path):
    with pytest.raises(SnapshotError, match="holds no snapshots"):
        posthoc(tmp_path / "none", 0.1)
    for step in (500, 1000):
        snapshots.write_snapshot(tmp_path, step, 0.1, {"w": jnp.ones(2)})
    np.testing.assert_array_equal(posthoc(tmp_path, 0.1)["w"], np.ones(2))
    for sigma, step in ((0.02, None), (0.1, 2000), (0.1, 100)):
        with pytest.raises(SnapshotError, match=r"out of reach .*\(steps 500 to 1000, widths 0\.1\): .*% off"):
            posthoc(tmp_path, sigma, step)
    with pytest.raises(SnapshotError, match="beyond float16"):
        snapshots.write_snapshot(tmp_path, 1500, 0.1, {"w": jnp.full(2, 1e5)})
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written
    (tmp_path / "000001000-0.1.npz").write_bytes(b"PK")
    with pytest.raises(SnapshotError, match="cannot be read"):
        posthoc(tmp_path, 0.1)
