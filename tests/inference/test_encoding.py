"""Points mapped to the source and back, samples with their densities, and the error of the prior."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad, solve_ivp

from flowjax import load
from flowjax.config import changed, defaults
from flowjax.errors import ConfigError
from flowjax.inference import scoring
from flowjax.inference.choose import SolverSettings
from flowjax.inference.encoding import decode, encode
from flowjax.inference.prior_error import prior_kl_bound
from flowjax.inference.sampling import sample
from flowjax.runs import train

FINE = SolverSettings("rk4", steps=40)
X = np.array([[1.0, 0.5], [-2.0, 3.0], [4.0, -0.5], [0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def run(tiny_run):
    return load(tiny_run)


@pytest.fixture(scope="module")
def spline(tmp_path_factory):
    """A normalizing flow after two steps."""
    config = changed(defaults("mlp", "normalizing_flow"), {"data.name": "moons", "train.steps": 2})
    return train(config, tmp_path_factory.mktemp("spline") / "run", plots=False)


@pytest.mark.parametrize("which", ["run", "spline"])
def test_decode_is_the_inverse_of_encode(which, request):
    """Up to the error of 40 steps of order 4, or of the bijection in float32."""
    made = request.getfixturevalue(which)
    coded = encode(made, X, solver=FINE, batch=4)
    np.testing.assert_allclose(decode(made, coded.points, solver=FINE, batch=4).points, X, atol=1e-4)


def test_encode_solves_the_ode_backwards_in_time(run):
    """Against SciPy's solver with small tolerances, on the velocity of the run in model space."""
    velocity = run.model().velocity
    field = lambda t, x: np.asarray(velocity(jnp.float32(t), jnp.asarray(x, jnp.float32)[None], None))[0]
    start = run.spec.to_model(X[1:2])[0]
    true = solve_ivp(field, (1.0, 0.0), start, rtol=1e-5, atol=1e-5).y[:, -1]
    coded = encode(run, X, solver=FINE, batch=4)
    np.testing.assert_allclose(coded.points[1], true, atol=1e-3)


@pytest.mark.parametrize("which", ["run", "spline"])
def test_samples_with_densities_are_the_samples(which, request):
    """The density from the forward solve is that of a solve from the sample back to the source."""
    made, solver = request.getfixturevalue(which), FINE if which == "run" else SolverSettings()
    plain = sample(made, 6, seed=3, solver=solver, batch=4)
    drawn = sample(made, 6, seed=3, solver=solver, batch=4, log_prob=True)
    np.testing.assert_allclose(drawn.samples, plain.samples, atol=1e-5)
    assert plain.log_prob is None
    assert drawn.log_prob is not None
    scored = scoring.log_prob(made, drawn.samples, solver=solver, batch=4)
    np.testing.assert_allclose(drawn.log_prob, scored.log_prob, atol=1e-3)


def test_only_samples_of_an_ode_have_densities(run):
    with pytest.raises(ConfigError, match="needs those of an ODE, such as solver 'dopri5', not 'euler_maruyama'"):
        sample(run, 4, solver=SolverSettings("euler_maruyama", steps=4), log_prob=True)
    with pytest.raises(ConfigError, match="points z must have the shape"):
        decode(run, np.zeros((3, 5)))
    with pytest.raises(ConfigError, match=r"points z have NaN or infinite values in row 1"):
        decode(run, np.array([[0.0, 0.0], [np.nan, 0.0]]))


def kl_of_mixture(means, sigma, scale):
    """KL(mean of N(m, sigma^2) || N(0, scale^2)) by quadrature."""

    def integrand(x):
        p = stats.norm(means, sigma).pdf(x).mean()
        return p * (np.log(p) - stats.norm(0, scale).logpdf(x)) if p > 0 else 0.0

    return quad(integrand, -12 * scale, 12 * scale, points=[*means], epsabs=1e-12, limit=200)[0]


def test_the_bound_of_the_prior(tmp_path, run):
    """It is exact if all data are at one point, and above the KL of a mixture of two; by quadrature in both dimensions.

    On VP the noise of the first time is alpha(0) x1 short of the prior. On EDM's path of 80 the scale is not 1.
    """
    assert prior_kl_bound(run, X) == 0
    config = changed(defaults("mlp"), {"data.name": "moons", "path.schedule": "vp", "train.steps": 1})
    made = train(config, tmp_path / "vp", plots=False)
    schedule = made.path.schedule
    alpha, sigma = float(schedule.alpha(made.interval[0])), float(schedule.sigma(made.interval[0]))
    scale = made.prior.scale
    points = np.array([[3.0, 0.5], [-3.0, 0.5]], np.float32)
    means = alpha * made.spec.to_model(points).astype(np.float64)
    one = sum(kl_of_mixture(means[:1, i], sigma, scale) for i in range(2))
    two = sum(kl_of_mixture(means[:, i], sigma, scale) for i in range(2))
    assert prior_kl_bound(made, points[:1]) == pytest.approx(one, rel=1e-4)
    assert two < 0.1 * one
    assert prior_kl_bound(made, points) >= two
    assert 0 < one < 1e-2
