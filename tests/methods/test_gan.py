"""GANs: the gradients of both losses, the penalties of a critic with a known gradient, and a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import GAN, Context, Network
from flowjax.methods.gan import LOSSES
from flowjax.sources import Normal
from flowjax.training.optimizers import groups_of
from flowjax.training.start_from import network_of
from flowjax.training.state import init_state

KEY, N = jax.random.key(0), 64
X1 = jax.random.normal(jax.random.key(1), (N, 2)) + 1


def shift(params, t, x, cond):
    """The generator x0 + params, whatever x0 is."""
    return jnp.broadcast_to(params, x.shape)


def quadratic(params, t, x, cond):
    """The critic C(x) = a / 2 |x|^2 + b x_0 as the mean of two coordinates."""
    value = 0.5 * params["a"] * (x**2).sum(-1) + params["b"] * x[:, 0]
    return jnp.stack([2 * value, jnp.zeros_like(value)], -1)


def gan(loss="relativistic", **settings):
    networks = Network.from_function(shift), Network.from_function(quadratic)
    return GAN(*networks, Normal((2,)), LOSSES[loss], **settings)


PARAMS = {"network": jnp.array([0.3, -0.2]), "critic": {"a": jnp.array(0.4), "b": jnp.array(-0.7)}}


def generated(params):
    """The samples of the generator for KEY."""
    return Normal((2,)).sample(jax.random.split(KEY, 3)[0], N) + params["network"]


def value(x, critic):
    return 0.5 * critic["a"] * (x**2).sum(-1) + critic["b"] * x[:, 0]


def test_the_penalties_of_a_quadratic_critic():
    """grad C = a x + b e_0. Rounding of float32 in sums of order 1: 1e-6."""
    loss = gan().loss(PARAMS, Context(), KEY, Batch(X1))
    a, b = (float(PARAMS["critic"][name]) for name in "ab")
    for name, x in (("slope_real", X1), ("slope_generated", generated(PARAMS))):
        x = np.asarray(x, np.float64)
        expected = np.mean(a**2 * (x**2).sum(-1) + 2 * a * b * x[:, 0] + b**2)
        assert float(loss.metrics[name]) == pytest.approx(expected, rel=1e-6)
    heavy = gan(gamma=3.0).loss(PARAMS, Context(), KEY, Batch(X1))
    slopes = float(loss.metrics["slope_real"] + loss.metrics["slope_generated"])
    assert float(heavy.value - loss.value) == pytest.approx(slopes, rel=1e-5)  # (3 - 1) / 2 of their sum


@pytest.mark.parametrize("name", LOSSES)
def test_each_network_gets_the_gradient_of_its_own_loss(name):
    """Against the two losses written down separately, each differentiated with respect to one network."""
    real = lambda critic: value(X1, critic)
    fake = lambda params, critic: value(generated(params), critic)
    log1 = lambda a: jnp.log(1 + jnp.exp(a))
    grad_sq = lambda x, c: ((c["a"] * x + c["b"] * jnp.array([1.0, 0.0])) ** 2).sum(-1)

    def of_critic(critic):
        penalty = 0.5 * 2.0 * jnp.mean(grad_sq(X1, critic) + grad_sq(generated(PARAMS), critic))
        c, r = fake(PARAMS, critic), real(critic)
        return penalty + jnp.mean(log1(c - r) if name == "relativistic" else log1(c) + log1(-r))

    def of_generator(network):
        c, r = fake({"network": network}, PARAMS["critic"]), real(PARAMS["critic"])
        return jnp.mean(log1(r - c) if name == "relativistic" else log1(-c))

    method = gan(name, gamma=2.0)
    loss, grads = jax.value_and_grad(lambda p: method.loss(p, Context(), KEY, Batch(X1)).value)(PARAMS)
    separate = {"network": jax.grad(of_generator)(PARAMS["network"]), "critic": jax.grad(of_critic)(PARAMS["critic"])}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), grads, separate)
    assert float(loss) == pytest.approx(float(of_critic(PARAMS["critic"]) + of_generator(PARAMS["network"])), rel=1e-6)


def test_in_equilibrium_the_generator_has_no_gradient():
    """With data and samples of the same distribution and a constant critic, both losses are log 2 and no gradient is
    left but that of the critic, which is the noise of a batch."""
    params = PARAMS | {"critic": {"a": jnp.array(0.0), "b": jnp.array(0.0)}}
    loss = lambda p: gan().loss(p, Context(), KEY, Batch(X1))
    assert float(loss(params).value) == pytest.approx(2 * np.log(2), rel=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda p: loss(p).value)(params)["network"], 0)


def small(model="mlp", shape=(2,), **keys):
    config = defaults(model, "gan")
    config.data.name = "moons"
    sizes = {"model.width": 8, "model.depth": 1} if model == "mlp" else {}
    config = changed(config, sizes | {key.replace("__", "."): value for key, value in keys.items()})
    return config, build(config, DataSpec("moons", shape))


def test_the_network_of_a_run_is_the_generator():
    """Its parameters have the structure of those of the critic, which comes first in the order of names."""
    config, method = small()
    params = init_state(config, method).params
    assert network_of(method, params) is params["network"]
    differ = jax.tree.map(lambda a, b: bool((a != b).any()), params["network"], params["critic"])
    assert any(jax.tree.leaves(differ))
    start = jax.tree.map(lambda a: a + 1.0, params["network"])
    begun = init_state(config, method, start).params
    jax.tree.map(np.testing.assert_array_equal, begun, {"network": start, "critic": params["critic"]})


def test_groups():
    _, method = small(method__critic_rate=2.0, method__generator_every=3)
    groups = groups_of(method)
    assert (groups["critic"], groups["network"]) == ((2.0, 1), (1.0, 3))


def test_images():
    """A U-Net as generator and as critic: the loss has derivatives of second order, whose compilation would be slow."""
    keys = {"model__channels": 8, "model__multipliers": (1, 2), "model__blocks": 1, "model__heads": 1}
    _, method = small("unet", (8, 8, 1), **keys)
    params = jax.eval_shape(method.init, KEY).params
    gradient = jax.grad(lambda p: method.loss(p, Context(), KEY, Batch(jnp.zeros((2, 8, 8, 1)))).value)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    assert shapes(jax.eval_shape(gradient, params)) == shapes(params)


def test_an_unknown_loss():
    with pytest.raises(ConfigError, match=r"method\.loss.*relativistic"):
        small(method__loss="hinge")


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1"]
    code, _, err = flowjax("train", "--config=gan_gaussians8", f"--workdir={tmp_path}/run", *tiny)
    assert code == 0, err
    assert "could not" not in err
    out = f"--out={tmp_path}/x.npz"
    code, result, err = flowjax("sample", f"--workdir={tmp_path}/run", "--num=10", out)
    assert (code, result["nfe"]) == (0, 1), err
    for flags, message in (
        (("--solver=heun", "--steps=2"), "heun needs velocity, and this model offers to_data: use"),
        (
            ("--solver=consistency", "--steps=2"),
            "adds the noise of the model's path, and this model has none: use push",
        ),
        (("--steps=2",), "once: use 1 step, not 2"),
        (("--checkpoint=best",), "does not measure the quality of a model of this method: use last, or the number"),
    ):
        code, _, err = flowjax("sample", f"--workdir={tmp_path}/run", out, *flags)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    code, _, err = flowjax("train", "--config=gan_gaussians8", f"--workdir={tmp_path}/run", *tiny, "--checkpoint=best")
    assert (code, "the checkpoint best in" in err) == (2, True)
