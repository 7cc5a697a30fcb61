"""log p by the change of variables, against closed forms; Hutchinson against the exact trace."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import guidance, likelihood, oracles, predictions
from flowjax.paths import GaussianPath
from flowjax.schedules import VP, CondOT, Cosine
from flowjax.sources import Empirical, GaussianMixture, Normal

pytestmark = pytest.mark.analytic
PATH = GaussianPath(CondOT())


@pytest.mark.parametrize("mean", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
@pytest.mark.parametrize("shape", [(2,), (4, 4, 3)])
def test_gaussian_to_gaussian(mean, shape):
    """|log_prob - exact| <= 1e-5 (1 + |exact|) D at rtol = atol = 1e-6 in float32."""
    x = mean + 0.5 * jax.random.normal(jax.random.key(0), (32, *shape))
    field = oracles.gaussian(PATH, mean, 0.5).velocity
    got, _, stats_ = likelihood.log_prob(field, x, Normal(shape), rtol=1e-6, atol=1e-6)
    true = stats.norm(mean, 0.5).logpdf(np.asarray(x, np.float64)).reshape(32, -1).sum(1)
    assert np.all(np.abs(got - true) <= 1e-5 * (1 + np.abs(true)) * np.prod(shape))
    assert stats_.nfe.shape == (32,)


@pytest.mark.parametrize("schedule", [CondOT(), pytest.param(Cosine(), marks=pytest.mark.slow)])
def test_mixture(schedule):
    mixture = GaussianMixture(jnp.array([[2.0, 0.0], [-1.0, 1.0]]), jnp.array([0.5, 0.8]), jnp.array([1.0, 2.0]))
    x = mixture.sample(jax.random.key(0), 64)
    field = oracles.mixture(GaussianPath(schedule), mixture).velocity
    got, *_ = likelihood.log_prob(field, x, Normal((2,)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, mixture.log_prob(x), atol=2e-3)


def test_from_the_exact_start_the_vp_flow_is_exact_too():
    """VP starts from N(alpha(0) m, alpha(0)^2 s^2 + sigma(0)^2), not from N(0, I): from there the answer is exact."""
    alpha, sigma = float(VP().alpha(0.0)), float(VP().sigma(0.0))
    x = 1.0 + 0.5 * jax.random.normal(jax.random.key(0), (16, 2))
    start = Normal((2,), alpha * 1.0, np.hypot(alpha * 0.5, sigma))
    field = oracles.gaussian(GaussianPath(VP()), 1.0, 0.5).velocity
    got, *_ = likelihood.log_prob(field, x, start, t1=VP.t_max, rtol=1e-6, atol=1e-6)
    true = stats.norm(1.0, 0.5).logpdf(np.asarray(x)).sum(1)
    # stopping at t_max leaves noise of variance 1e-6: it moves log p by less than 1e-6 / 0.25 * (1 + z^2) a coordinate
    assert np.all(np.abs(got - true) <= 1e-5 * (1 + np.abs(true)) * 2 + 4e-6 * 20)


def test_hutchinson_is_unbiased():
    """A linear field with off-diagonal terms: the mean over many keys is the trace, within 4 standard errors."""
    a = jnp.array([[0.5, 1.0, -0.3], [0.2, -0.4, 0.8], [0.6, 0.1, 0.3]])
    field = lambda t, x, cond: x @ a.T
    x = jnp.ones((1, 3))
    exact, *_ = likelihood.log_prob(field, x, Normal((3,)), rtol=1e-6, atol=1e-6)
    many = jnp.repeat(x, 512, 0)
    keys = jax.random.split(jax.random.key(0), 512)
    estimates, *_ = likelihood.log_prob(
        field, many, Normal((3,)), divergence="hutchinson", key=keys, solver="rk4", steps=20
    )
    stderr = float(estimates.std()) / np.sqrt(512)
    assert stderr > 1e-3  # there is something to average
    assert abs(float(estimates.mean() - exact[0])) < 4 * stderr
    wide, *_ = likelihood.log_prob(
        field, x, Normal((3,)), divergence="hutchinson", key=keys[0], probes=2000, solver="rk4", steps=20
    )
    assert abs(float(wide[0] - exact[0])) < 4 * float(estimates.std()) / np.sqrt(2000)


def test_hutchinson_is_exact_where_the_jacobian_is_diagonal():
    """e . J e = trace J for signs e and diagonal J: exact = Hutchinson, on images too."""
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 1))
    field = oracles.gaussian(PATH, 0.0, 0.5).velocity
    kw = {"rtol": 1e-6, "atol": 1e-6}
    exact, *_ = likelihood.log_prob(field, x, Normal((3, 3, 1)), **kw)
    estimate, *_ = likelihood.log_prob(
        field, x, Normal((3, 3, 1)), divergence="hutchinson", key=jax.random.key(1), **kw
    )
    np.testing.assert_allclose(estimate, exact, rtol=1e-5)


def test_exact_divergence_in_blocks_is_the_trace():
    """More coordinates than one block holds, against jacfwd."""
    w = jax.random.normal(jax.random.key(0), (70, 70)) / 8
    v = lambda x: jnp.tanh(x @ w)
    x = jax.random.normal(jax.random.key(1), (3, 70))
    y, divergence = likelihood.exact_divergence(v, x)
    jacobian = jax.vmap(jax.jacfwd(lambda x: v(x[None])[0]))(x)
    np.testing.assert_allclose(divergence, jnp.trace(jacobian, axis1=1, axis2=2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y, v(x), rtol=1e-6)


@jax.custom_vjp
def _reverse_only(x):
    return -x


_reverse_only.defvjp(lambda x: (-x, None), lambda _, g: (-g,))


@dataclass(frozen=True)
class Fused:
    """The network -x, by an operation that JAX does not differentiate forwards unless forward mode was asked for."""

    forward: bool = False

    def __call__(self, t, x, cond=None):
        return -x if self.forward else _reverse_only(x)

    def with_forward_mode(self):
        return Fused(True)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_networks_are_differentiated_in_forward_mode(divergence):
    """dx/dt = -x: x(0) = e x and log p(x) = log N(e x; 0, 1) + D, also through a reading and guidance. RK4 with 20
    steps is within 1e-6."""
    model = predictions.read(Fused(), PATH, predictions.velocity)
    guided = guidance.Auto(model, model, 2.0)
    x = jnp.array([[0.3, -0.2], [0.1, 0.4]])
    got, *_ = likelihood.log_prob(
        guided, x, Normal((2,)), divergence=divergence, key=jax.random.key(0), solver="rk4", steps=20
    )
    np.testing.assert_allclose(got, stats.norm.logpdf(np.e * np.asarray(x)).sum(1) + 2, atol=2e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: Fused()(0.5, x), (x,), (x,))


def test_conditions_reach_their_rows():
    """v = c x: log p(x) = log N(x e^-c; 0, 1) - c, with its own c for each row."""
    c = jnp.array([-0.5, 0.0, 1.0])
    x = jnp.array([[0.3], [1.0], [-2.0]])
    got, *_ = likelihood.log_prob(lambda t, x, cond: cond[:, None] * x, x, Normal((1,)), cond=c, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got, stats.norm.logpdf(x[:, 0] * np.exp(-c)) - c, atol=2e-5)


def test_it_can_be_trained():
    """d/ds of the mean log-likelihood of N(0, s^2) is zero at the data's own s: here sign and value at s = 0.4."""
    x = jnp.array([[0.5], [-0.5]])

    def objective(s):
        field = lambda t, x, cond: jnp.log(s) * x
        return likelihood.log_prob(field, x, Normal((1,)), solver="rk4", steps=20)[0].mean()

    assert float(jax.grad(objective)(0.4)) == pytest.approx(-1 / 0.4 + 0.25 / 0.4**3, rel=1e-4)


def test_it_can_be_compiled():
    """Points and tolerances that are constants of the compiled program are checked as well."""
    x = jnp.array([[0.5], [-0.5]])
    score = lambda x: likelihood.log_prob(lambda t, x, cond: -x, x, Normal((1,)), rtol=1e-5).log_prob
    np.testing.assert_allclose(jax.jit(score)(x), score(x), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda: score(x))(), score(x), rtol=1e-5)
    bad = x.at[1].set(jnp.nan)
    with pytest.raises(ValueError, match="NaN in row 1: remove or repair"):
        jax.jit(lambda: score(bad))()


@pytest.mark.parametrize(
    ("x", "keywords", "message"),
    [
        (jnp.ones((3, 1)).at[::2].set(jnp.nan), {}, "NaN in rows 0, 2: remove"),
        (
            jnp.ones((2, 1)),
            {"rtol": 1e-8, "atol": 0.0},
            "atol=0 are below the rounding errors of float32",
        ),
        (jnp.ones((2, 1)), {"source": Empirical(np.zeros((3, 1)))}, "the source Empirical has no density"),
    ],
)
def test_bad_input_is_refused_before_the_solve(x, keywords, message):
    arguments = {"source": Normal((1,))} | keywords
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob(lambda t, x, cond: x, x, **arguments)


def test_one_key_means_one_a_row():
    x = jnp.ones((3, 4))
    field = lambda t, x, cond: jnp.sin(x @ jnp.arange(16.0).reshape(4, 4) / 8)
    score = lambda **kw: likelihood.log_prob(
        field, x, Normal((4,)), divergence="hutchinson", solver="rk4", steps=5, **kw
    )[0]
    together = score(key=jax.random.key(0))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(3))
    np.testing.assert_array_equal(together, score(key=keys))
    assert len(np.unique(together)) == 3


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"divergence": "hutchinson"}, "pass key="),
        ({"divergence": "hutchinson", "key": jax.random.key(0), "probes": 0}, "probes"),
        ({"divergence": "exakt"}, r"'exact', 'hutchinson' or 'hutch\+\+'"),
    ],
)
def test_refusals(keywords, message):
    with pytest.raises(ValueError, match=message):
        likelihood.log_prob(lambda t, x, cond: x, jnp.ones((2, 1)), Normal((1,)), **keywords)


def test_empty_batch():
    with pytest.raises(ValueError, match="empty"):
        likelihood.log_prob(lambda t, x, cond: x, jnp.ones((0, 1)), Normal((1,)))


@dataclass(frozen=True)
class Triangle:
    """A source that is not a pytree, with the density of the sum of two uniform numbers in each coordinate."""

    shape: tuple[int, ...] = (2,)

    def sample(self, key, n):
        return jax.random.uniform(key, (2, n, *self.shape)).sum(0)

    def log_prob(self, x):
        return jnp.log(1 - jnp.abs(x - 1)).sum(-1)


@dataclass(frozen=True)
class Half:
    """The bijection x = z / 2."""

    def forward(self, z, cond=None):
        return z / 2, jnp.full(z.shape[0], -z[0].size * jnp.log(2.0))

    def inverse(self, x, cond=None):
        return 2 * x, jnp.full(x.shape[0], x[0].size * jnp.log(2.0))


def test_a_bijection_has_a_likelihood_from_a_source_that_is_not_a_pytree():
    got, *_ = likelihood.log_prob(Half(), jnp.array([[0.25, 0.5]]), Triangle())
    np.testing.assert_allclose(got, [np.log(4 * 0.5 * 1.0)], rtol=1e-6)


def test_push_forward_of_a_gaussian():
    """x = e^a z with z ~ N(0, I) has the density N(0, e^(2 a)); the solve is the inverse of that of `log_prob`."""
    rate, z = 0.7, jax.random.normal(jax.random.key(0), (16, 3))
    field = lambda t, x, cond: rate * x
    x, found = likelihood.push_forward(field, z, Normal((3,)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(x, np.exp(rate) * z, rtol=1e-5)
    true = stats.norm(0, np.exp(rate)).logpdf(np.asarray(x, np.float64)).sum(1)
    np.testing.assert_allclose(found.log_prob, true, rtol=1e-5, atol=1e-5)
    again = likelihood.log_prob(field, x, Normal((3,)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.log_prob, again.log_prob, rtol=1e-5, atol=1e-5)
