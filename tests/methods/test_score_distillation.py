"""Score distillation with a generator, a teacher and a fake network of normal distributions in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import predictions
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import GAN, Context, Network, ScoreDistillation
from flowjax.methods.score_distillation import LOSSES
from flowjax.models.functional import Variables
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT
from flowjax.sources import Normal
from tests.methods.known_flow import Between, KnownFlow

PATH, KEY, N = GaussianPath(CondOT()), jax.random.key(0), 20_000
TEACHER = KnownFlow(PATH, m=1.5, c=0.4)


def generator(params, t, x, cond):
    """At time 0, x0 + net(0, x0) = params["m"] + params["c"] x0."""
    return params["m"] + (params["c"] - 1) * x


def fake(params, t, x, cond):
    """The velocity of the flow to the normal distribution with mean params["m"] and deviation params["c"]."""
    return KnownFlow(PATH, params["m"], params["c"]).velocity(t, x)


def distillation(loss="dmd", times=(0.4, 0.6), **settings):
    networks = Network.from_function(generator), Network.from_function(fake)
    settings = {"time": 0.0, "drawn": Between(*times), "row_loss": LOSSES[loss]} | settings
    source = settings.pop("source", Normal((1,)))
    return ScoreDistillation(*networks, PATH, source, predictions.velocity, TEACHER, **settings)


def params_of(m, c=0.4):
    """A generator of N(m, c^2), and the exact fake network for it."""
    own = {"m": jnp.asarray(m), "c": jnp.asarray(c)}
    return {"network": own, "fake": own}


def gradients(method, params, shape=(N, 1)):
    batch = Batch(jnp.zeros(shape))
    return jax.grad(lambda p: method.loss(p, TEACHER.context, KEY, batch).value)(params)


def test_the_generator_of_the_teachers_distribution_has_no_gradient():
    """f = h at every point then, up to the rounding of float32 in conversions between velocity and mean, 1e-5."""
    method, params = distillation(), params_of(1.5)
    found = gradients(method, params)["network"]
    assert max(abs(float(g)) for g in found.values()) < 1e-4
    loss = method.loss(params, TEACHER.context, KEY, Batch(jnp.zeros((N, 1))))
    assert float(loss.metrics["difference"]) < 1e-4


@pytest.mark.parametrize("m", [1.1, 2.0])
def test_a_shifted_generator_moves_towards_the_teacher(m):
    """At one time t the posterior means of N(m, c^2) and N(M, c^2) differ by sigma^2 / V (m - M) everywhere, with
    V = alpha^2 c^2 + sigma^2. Equation (2) is alpha E[1 / c_row] times that. Each c_row is the mean of D absolute
    values of a normal variable, which is drawn here independently: its relative deviation of 0.76 / sqrt(D) or less
    gives a mean over N rows that is known to 0.76 / sqrt(32 * 4000) = 0.2%, twice, and five of these deviations are
    1.5%."""
    t, d, n = 0.5, 32, 4000
    method, params = distillation(times=(t, t + 1e-6), source=Normal((d,))), params_of(m)
    found = float(gradients(method, params, (n, d))["network"]["m"])
    rng = np.random.default_rng(0)
    x = m + 0.4 * rng.normal(size=(n, d))
    x_t = t * x + (1 - t) * rng.normal(size=(n, d))
    variance = (0.4 * t) ** 2 + (1 - t) ** 2
    h = 1.5 + t * 0.4**2 / variance * (x_t - t * 1.5)
    inverse = np.mean(1 / np.abs(x - h).mean(1))
    assert found == pytest.approx(t * (1 - t) ** 2 / variance * (m - 1.5) * inverse, rel=0.015)


def test_each_network_gets_the_gradient_of_its_own_loss():
    """The exact fake network is a minimum of its loss: its gradient is the noise of a batch, of order N^-1/2 = 0.007.
    The generator's gradient does not depend on whether the fake network is trained."""
    method, params = distillation(), params_of(2.0)
    found = gradients(method, params)
    assert max(abs(float(g)) for g in found["fake"].values()) < 0.05
    assert abs(float(found["network"]["m"])) > 0.1
    off = params | {"fake": {"m": jnp.asarray(1.0), "c": jnp.asarray(0.4)}}
    pulled = gradients(method, off)
    assert float(pulled["fake"]["m"]) < -0.1  # gradient descent moves it towards the generator at 2
    assert float(pulled["network"]["m"]) < 0  # the fake mean is below the teacher's, so the generator moves up


def test_the_fisher_divergence_is_least_at_the_teacher():
    """With the exact fake network the expectation of (h - f)(f - x) is 0 given x_t, so for a = 1/2 the loss is
    |h - f|^2 / 2 without the factor 1 / c: not negative, and 0 for the teacher's own distribution."""
    row = LOSSES["sid"]
    x = TEACHER.m + 0.4 * jax.random.normal(KEY, (N, 1))
    np.testing.assert_array_equal(row(x, x - 1, x - 1, jnp.ones(()), 1.2), 0)
    method = distillation("sid", sid_alpha=1.0)
    at_teacher = gradients(method, params_of(1.5))["network"]
    shifted = gradients(method, params_of(2.0))["network"]
    assert abs(float(at_teacher["m"])) < 1e-3
    assert float(shifted["m"]) > 0.01


def test_the_generator_at_a_later_time():
    """The posterior mean at time 0.25 of N(1.5, 0.4^2) for x_t = 0.75 x0, from the network of the exact velocity."""
    method = distillation(time=0.25)
    model = ScoreDistillation(method.fake, method.fake, PATH, Normal((1,)), predictions.velocity, time=0.25)
    x0 = jnp.linspace(-2, 2, 5)[:, None]
    found = model.model(params_of(1.5), {}).to_data(0.0, x0)
    t, variance = 0.25, (0.4 * 0.25) ** 2 + 0.75**2
    np.testing.assert_allclose(found, 1.5 + t * 0.4**2 / variance * (0.75 * x0 - t * 1.5), rtol=1e-5)


SPEC = DataSpec("moons", (2,))


def built(teacher=None, **keys):
    config = defaults("mlp", "score_distillation")
    config.data.name = "moons"
    sizes = {"model.width": 8, "model.depth": 1}
    config = changed(config, sizes | {key.replace("__", "."): value for key, value in keys.items()})
    return build(config, SPEC, teacher=teacher)


def flow(**keys):
    config = defaults("mlp")
    config.data.name = "moons"
    config = changed(config, {"model.width": 8, "model.depth": 1} | keys)
    return build(config, SPEC)


def test_teachers_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"distils a trained run: set method\.teacher to its workdir$"):
        built()
    networks = Network.from_function(generator), Network.from_function(fake)
    adversarial = GAN(*networks, Normal((2,)))
    object.__setattr__(adversarial, "init", lambda key: Variables({"network": jnp.zeros(()), "critic": 0.0}, {}))
    with pytest.raises(
        ConfigError, match=r"^method\.teacher needs a velocity, and the model of that run offers to_data"
    ):
        built(adversarial, method__teacher="a")
    with pytest.raises(ConfigError, match=r"^method\.teacher has another path"):
        built(flow(**{"path.schedule": "cosine"}), method__teacher="a")
    method = built(flow(), method__teacher="a", method__generator_every=3)
    assert method.groups["network"].every == 3
    with pytest.raises(ValueError, match=r"needs a teacher"):
        built(method__teacher="a").loss(method.init(KEY).params, Context(), KEY, Batch(jnp.zeros((4, 2))))


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1"]
    teacher = f"{tmp_path}/teacher"
    code, _, err = flowjax("train", "--config=gaussians8", f"--workdir={teacher}", *tiny)
    assert code == 0, err
    given = (f"--config.method.teacher={teacher}", f"--config.train.start_from={teacher}")
    start = ("train", "--config=score_distillation_gaussians8", f"--workdir={tmp_path}/run", *tiny)
    code, _, err = flowjax(*start, *given)
    assert code == 0, err
    out = f"--out={tmp_path}/x.npz"
    code, result, err = flowjax("sample", f"--workdir={tmp_path}/run", "--num=10", out)
    assert (code, result["nfe"]) == (0, 1), err
