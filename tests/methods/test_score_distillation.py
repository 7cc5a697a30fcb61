"""Score distillation with a generator, a teacher and a fake network of normal distributions in closed form."""

import dataclasses

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
from flowjax.methods import Context, Network, ScoreDistillation
from flowjax.methods.score_distillation import LOSSES
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


@dataclasses.dataclass(frozen=True)
class Recorded(Normal):
    """A normal distribution that appends its samples to the list `drawn`: first x0, then the noise z."""

    drawn: list = dataclasses.field(default_factory=list)

    def sample(self, key, n):
        self.drawn.append(super().sample(key, n))
        return self.drawn[-1]


@pytest.mark.parametrize("a", [0.5, 1.2])
@pytest.mark.parametrize(("m_fake", "c_fake"), [(2.0, 0.5), (1.0, 0.7)])
def test_the_gradient_of_sid_by_hand(a, m_fake, c_fake):
    """With x = m + c x0 and x_t = alpha x + sigma z, the posterior mean of N(M, C^2) is M + k (x_t - alpha M), where
    k = alpha C^2 / (alpha^2 C^2 + sigma^2). Its derivative in m or c is k alpha x', with x' = 1 or x0. Equation (3) is
    differentiated by the product rule for each sample, with fixed numbers of the fake network and a fixed scale. In
    float64, for an exact fake network and for another one."""
    with jax.enable_x64(True):
        source, t, d, n = Recorded((3,)), 0.6, 3, 200
        own = {"m": jnp.asarray(2.0), "c": jnp.asarray(0.5)}
        params = {"network": own, "fake": {"m": jnp.asarray(m_fake), "c": jnp.asarray(c_fake)}}
        method = distillation("sid", times=(t, t), source=source, sid_alpha=a)
        found = gradients(method, params, (n, d))
        x0, z = (np.asarray(x) for x in source.drawn)
        alpha, sigma = t, 1 - t
        x = 2.0 + 0.5 * x0
        x_t = alpha * x + sigma * z

        def posterior(mean, std):
            k = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
            return mean + k * (x_t - alpha * mean), k * alpha

        (h, dh), (f, df) = posterior(TEACHER.m, TEACHER.c), posterior(m_fake, c_fake)
        scale = np.abs(x - h).mean(1, keepdims=True)
        by_x = (2 * (1 - a) * (h - f) * (dh - df) + (dh - df) * (f - x) + (h - f) * (df - 1)) / scale
        expected = {"m": by_x.mean(), "c": (by_x * x0).mean()}
        for name, value in expected.items():
            assert float(found["network"][name]) == pytest.approx(value, rel=1e-9)
        of_fake = gradients(distillation("dmd", times=(t, t), source=Normal((3,))), params, (n, d))["fake"]
        for name, value in of_fake.items():  # its own loss, which is the same for both losses of the generator
            assert float(found["fake"][name]) == pytest.approx(float(value), rel=1e-9)


def test_sid_has_no_gradient_at_the_distribution_of_the_teacher():
    """There h = f as functions of x_t, so that (3) and its derivative are 0 up to the rounding of float64."""
    with jax.enable_x64(True):
        own = {"m": jnp.asarray(TEACHER.m), "c": jnp.asarray(TEACHER.c)}
        found = gradients(distillation("sid", source=Normal((32,))), {"network": own, "fake": own}, (500, 32))
        assert max(abs(float(g)) for g in found["network"].values()) < 1e-12


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


def test_it_needs_a_teacher_and_guidance_needs_conditions():
    with pytest.raises(ConfigError, match=r"distils a trained run: set method\.teacher to its workdir$"):
        built()
    with pytest.raises(ConfigError, match=r"^method\.guidance 2 needs conditions"):
        built(flow(), method__teacher="a", method__guidance=2.0)
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
