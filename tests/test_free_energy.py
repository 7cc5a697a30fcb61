"""Free energies: estimates of log Z against closed forms and quadrature, their errors, and what is refused."""

import runpy
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from flowjax import oracles
from flowjax.data.densities import eight_gaussians
from flowjax.free_energy import importance_sample, importance_sample_sde, log_normalizer
from flowjax.paths import GaussianPath
from flowjax.schedules import VP, CondOT
from flowjax.solvers.diffusions import Constant, Sigma
from flowjax.sources import GaussianMixture, Normal

pytestmark = pytest.mark.analytic
PATH = GaussianPath(CondOT())
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Stretch:
    """The bijection x = exp(a) z."""

    a: float

    def forward(self, z, cond=None):
        return jnp.exp(self.a) * z, jnp.full(z.shape[0], self.a * z[0].size)

    def inverse(self, x, cond=None):
        return jnp.exp(-self.a) * x, jnp.full(x.shape[0], -self.a * x[0].size)


def gaussian(x):
    """log f of exp(-|x|^2 / 2 + 3), with log Z = D log(2 pi) / 2 + 3."""
    return 3 - 0.5 * jnp.sum(x**2, -1)


def test_the_estimate_by_hand():
    """Weights 1, 2, 3: mean 2, sample variance 1, relative standard error sqrt(1 / 3) / 2; ESS 36 / 14."""
    found = log_normalizer(jnp.log(jnp.array([1.0, 2.0, 3.0])))
    assert float(found.log_z) == pytest.approx(np.log(2), rel=1e-6)
    assert float(found.stderr) == pytest.approx(np.sqrt(1 / 3) / 2, rel=1e-6)
    assert float(found.ess) == pytest.approx(36 / 14, rel=1e-6)


@pytest.mark.parametrize("shift", [-1e6, 700.0, 1e6])
def test_a_constant_added_to_log_weights_changes_log_z_alone(shift):
    """Multiples of 1/16, which float32 adds to 1e6 without rounding, against float64."""
    logs = np.random.default_rng(0).integers(-32, 33, 1000) / 16
    w = np.exp(logs)
    found = log_normalizer(jnp.asarray(logs + shift, jnp.float32))
    ess = w.sum() ** 2 / (w**2).sum()
    assert float(found.ess) == pytest.approx(ess, rel=1e-5)  # sums of 1,000 float32 numbers
    assert float(found.stderr) == pytest.approx(np.std(w, ddof=1) / np.mean(w) / np.sqrt(1000), rel=1e-5)
    assert float(found.log_z) == pytest.approx(np.log(w.mean()) + shift, abs=float(np.spacing(np.float32(abs(shift)))))


@pytest.mark.parametrize("d", [1, 8])
def test_a_normal_proposal_of_another_width(d):
    """q = N(0, s^2 I) with s = 1.3 for f = exp(3 - |x|^2 / 2). Per coordinate E[w^2] / E[w]^2 = s^2 / sqrt(2 s^2 - 1).

    The effective share of n = 40,000 samples is the inverse of its D-th power, within 10%; log Z is within 4 standard
    errors, and the standard error that of this share within 10%.
    """
    s, n = 1.3, 40_000
    found = log_normalizer(
        importance_sample(gaussian, Stretch(float(np.log(s))), Normal((d,)), jax.random.key(0), n).log_weights
    )
    share = (np.sqrt(2 * s**2 - 1) / s**2) ** d
    assert float(found.ess) / n == pytest.approx(share, rel=0.1)
    assert float(found.stderr) == pytest.approx(np.sqrt((1 / share - 1) / n), rel=0.1)
    assert abs(float(found.log_z) - 3 - d * LOG_2PI / 2) < 4 * float(found.stderr)


def test_the_standard_error_is_the_spread_of_estimates():
    """Of 200 estimates from 500 weights each; a standard deviation of 200 numbers has an error of 5%."""
    weights = importance_sample(gaussian, Stretch(0.2), Normal((4,)), jax.random.key(1), 100_000).log_weights
    found = [log_normalizer(part) for part in weights.reshape(200, 500)]
    spread = np.std([float(one.log_z) for one in found])
    assert spread == pytest.approx(np.mean([float(one.stderr) for one in found]), rel=0.2)


@pytest.mark.parametrize("d", [2, pytest.param(32, marks=pytest.mark.slow)])
def test_an_exact_flow_has_constant_weights(d):
    """The velocity of a mixture for f = 5 p: log w = log 5, up to the error of rk4 in log q, and no variance."""
    mixture = eight_gaussians() if d == 2 else GaussianMixture(jax.random.normal(jax.random.key(2), (4, d)), 0.7)
    model, log_density = oracles.mixture(PATH, mixture), lambda x: jnp.log(5.0) + mixture.log_prob(x)
    found = importance_sample(log_density, model, Normal((d,)), jax.random.key(0), 64, solver="rk4", steps=60)
    np.testing.assert_allclose(found.log_weights, np.log(5), atol=0.02)
    result = log_normalizer(found.log_weights)
    assert float(result.ess) == pytest.approx(64, rel=1e-3)
    assert set(found.nfe.tolist()) == {240}


def double_well(x):
    """log f = -(x^4 / 2 - 3 x^2 + x / 2) - y^2 / 2."""
    return -(0.5 * x[:, 0] ** 4 - 3 * x[:, 0] ** 2 + 0.5 * x[:, 0]) - 0.5 * x[:, 1] ** 2


def test_a_double_well_by_a_flow_of_its_wells():
    """A mixture at the wells as proposal, wider than they are, and Z by quadrature; the share of the right well is that
    of the density."""
    side = np.linspace(-5, 5, 20_001)
    density = np.exp(-(0.5 * side**4 - 3 * side**2 + 0.5 * side))
    log_z = np.log(density.sum() * (side[1] - side[0])) + LOG_2PI / 2
    model = oracles.mixture(PATH, GaussianMixture(jnp.array([[-1.7, 0.0], [1.7, 0.0]]), jnp.array([0.9, 0.9])))
    found = importance_sample(double_well, model, Normal((2,)), jax.random.key(0), 4_000, solver="rk4", steps=40)
    result = log_normalizer(found.log_weights)
    assert abs(float(result.log_z) - log_z) < 4 * float(result.stderr)
    assert float(result.stderr) < 0.05
    right = float(jnp.sum(jax.nn.softmax(found.log_weights) * (found.x[:, 0] > 0)))
    assert right == pytest.approx(density[side > 0].sum() / density.sum(), abs=0.03)
    assert abs(float((found.x[:, 0] > 0).mean()) - right) > 0.1  # the proposal itself has equal wells


@pytest.mark.parametrize(
    ("steps", "g"), [(1, Constant(1.0)), (3, Sigma(1.0)), (12, Constant(0.7))], ids=["one", "three", "twelve"]
)
def test_the_weights_of_a_chain_are_unbiased_for_any_number_of_steps(steps, g):
    """A model of N(0.4, 0.9^2) for f = exp(3 - |x|^2 / 2): Z within 4 standard errors of the mean of 40,000 weights.

    The weights of a biased formula would be off by a factor: without the backward kernels their mean is not Z.
    """
    model = oracles.gaussian(PATH, jnp.full(2, 0.4), 0.9)
    found = importance_sample_sde(gaussian, model, Normal((2,)), jax.random.key(3), 40_000, steps=steps, g=g)
    result = log_normalizer(found.log_weights)
    relative = np.exp(float(result.log_z) - 3 - LOG_2PI)
    assert abs(relative - 1) < 4 * float(result.stderr)
    assert float(result.stderr) < 0.05
    assert found.nfe.tolist()[0] == steps + 1


@pytest.mark.slow
def test_small_steps_of_an_exact_model_give_constant_weights():
    """The variance of log w falls at least like the step: with 4 times as many steps it is less than half."""
    mixture = GaussianMixture(jnp.array([[-1.0, 0.0], [1.0, 0.5]]), 0.6)
    model = oracles.mixture(GaussianPath(VP()), mixture)
    spread = []
    for steps in (25, 100):
        found = importance_sample_sde(mixture.log_prob, model, Normal((2,)), jax.random.key(4), 2_000, steps=steps)
        spread.append(float(found.log_weights.var()))
        assert abs(float(log_normalizer(found.log_weights).log_z)) < 4 * float(log_normalizer(found.log_weights).stderr)
    assert spread[1] < spread[0] / 2


def test_a_row_depends_on_the_key_and_its_index_alone():
    model = oracles.gaussian(PATH, jnp.zeros(2), 0.9)
    for sampled in (
        lambda n: importance_sample(gaussian, model, Normal((2,)), jax.random.key(0), n, solver="heun", steps=3),
        lambda n: importance_sample_sde(gaussian, model, Normal((2,)), jax.random.key(0), n, steps=3),
    ):
        few, many = sampled(2), sampled(5)
        np.testing.assert_allclose(few.log_weights, many.log_weights[:2], rtol=1e-5)
        np.testing.assert_allclose(few.x, many.x[:2], rtol=1e-5)


def test_few_effective_samples_are_a_warning():
    """A proposal that is far too narrow in 32 dimensions; f = q has none."""
    narrow = importance_sample(gaussian, Stretch(-0.7), Normal((32,)), jax.random.key(0), 1000).log_weights
    with pytest.warns(UserWarning, match=r"the effective sample size is .* of 1,000 samples"):
        log_normalizer(narrow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_normalizer(jnp.zeros(1000))
        jax.jit(log_normalizer)(narrow)


def test_what_has_no_weights_is_refused(as_users_call):
    with pytest.raises(ValueError, match="at least 2 weights"):
        log_normalizer(jnp.zeros(1))
    with pytest.raises(ValueError, match="a weight is NaN"):
        log_normalizer(jnp.array([0.0, jnp.nan]))
    with pytest.raises(ValueError, match="-inf at all samples"):
        log_normalizer(jnp.full(3, -jnp.inf))
    with pytest.raises(ValueError, match="needs a model with a velocity or an inverse"):
        importance_sample(gaussian, None, Normal((2,)), jax.random.key(0), 4)  # pyright: ignore[reportArgumentType]
    model = oracles.gaussian(PATH, jnp.zeros(2), 0.9)
    for wrong in (lambda x: gaussian(x)[:, None], lambda x: gaussian(x).sum()):
        with pytest.raises(ValueError, match="one number for each row"):
            importance_sample(wrong, model, Normal((2,)), jax.random.key(0), 4, solver="rk4", steps=2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        importance_sample_sde(gaussian, model, Normal((2,)), jax.random.key(0), 4, steps=0)
    for g in (Constant(0.0), Sigma(0.0)):
        with pytest.raises(ValueError, match=r"g is 0 in a step.*use a positive diffusion, or importance_sample,"):
            importance_sample_sde(gaussian, model, Normal((2,)), jax.random.key(0), 4, steps=2, g=g)
    with pytest.raises(ValueError, match="needs a model with ends"):
        importance_sample_sde(gaussian, Stretch(0.0), Normal((2,)), jax.random.key(0), 4, steps=2)  # pyright: ignore


def test_the_wells_of_the_experiment():
    """log Z and the share of a well against scipy's quadrature, and the published 11784.50927 of exp(6x^2 + x/2 - x^4).

    The error of the trapezoidal sums is below 1e-7 of Z. The energy of float32 points is compared with float64, and the
    samples with the shares within 5 standard deviations.
    """
    path = Path(__file__).parent.parent / "experiments" / "free_energies" / "experiment.py"
    experiment = runpy.run_path(str(path))
    wells = experiment["EIGHT"]
    assert wells.log_z() == pytest.approx(4 * (np.log(11784.50927) + LOG_2PI / 2), abs=1e-6)
    for each in (wells, experiment["DOUBLE"]):
        density = lambda x, each=each: np.exp(each.b * x**2 + each.c * x - each.a * x**4)
        left, right = (integrate.quad(density, *ends, epsabs=0, epsrel=1e-10)[0] for ends in ((-6, 0), (0, 6)))
        assert each.log_z() == pytest.approx(each.pairs * (np.log(left + right) + LOG_2PI / 2), abs=1e-6)
        assert each.left() == pytest.approx(left / (left + right), abs=1e-6)
    n = 4_000
    for left, shares in (((), [wells.left()] * 4), ((1.0, 0.5), [1.0, 0.5, wells.left(), wells.left()])):
        x = wells.sample(np.random.default_rng(0), n, left)
        spread = np.sqrt(np.multiply(shares, np.subtract(1, shares)) / n)
        assert np.all(np.abs((x[:, 0::2] < 0).mean(0) - shares) <= 5 * spread)
    first, second = x[:, 0::2], x[:, 1::2]
    expected = (6 * first**2 + first / 2 - first**4 - second**2 / 2).sum(-1)
    np.testing.assert_allclose(wells.minus_energy(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-4)
