"""Normalizing flows by maximum likelihood: the density, the loss, conditions, configs, and the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.conditions import Field
from flowjax.config import changed, defaults
from flowjax.data.affine import Affine
from flowjax.data.spec import DataSpec
from flowjax.errors import ConfigError
from flowjax.likelihood import log_prob
from flowjax.methods import Context, Network, NormalizingFlow
from flowjax.models import functional
from flowjax.models.bijections import FLOWS, Sizes
from flowjax.sources import Normal

VECTOR = Field("y", "vector", (2,))
TINY = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
TINY += ["--config.method.layers=2", "--config.method.width=8", "--config.method.depth=1"]


def method(name, shape=(2,), fields=()):
    sizes = Sizes(layers=2, width=8, depth=1, bins=4, bound=3.0)
    return NormalizingFlow(Network.of(functional(lambda rngs: FLOWS[name](shape, fields, sizes, rngs))), Normal(shape))


def variables(method, scale=0.3):
    """Parameters away from their initial values, at which every flow is linear."""
    params, state = method.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + scale * jnp.asarray(rng.normal(size=a.shape), a.dtype), params), state


@pytest.mark.analytic
@pytest.mark.parametrize("name", ["real_nvp", "spline"])
def test_the_density_integrates_to_one(name):
    own = method(name)
    model = own.model(*variables(own, 0.2))
    side, step = np.linspace(-8, 8, 321, retstep=True)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
    density = np.exp(np.asarray(log_prob(model, grid, own.prior)[0], float))
    assert density.sum() * step**2 == pytest.approx(1, abs=1e-3)
    gaussian = np.exp(np.asarray(own.source.log_prob(grid)))
    assert abs(density - gaussian).max() > 0.02


@pytest.mark.analytic
def test_the_loss_is_the_negative_log_density_in_nats_per_dimension():
    own = method("real_nvp")
    params, state = variables(own)
    x = jax.random.normal(jax.random.key(3), (64, 2))
    loss = own.loss(params, Context(state=state), jax.random.key(0), Batch(x))
    density, _, stats = log_prob(own.model(params, state), x, own.prior)
    assert float(loss.value) == pytest.approx(-float(density.mean()) / 2, rel=1e-5)
    assert set(stats.nfe.tolist()) == {1}
    assert set(loss.metrics) == set(NormalizingFlow.metrics)
    z, _ = own.model(params, state).inverse(x)
    assert float(loss.metrics["z_square"]) == pytest.approx(float((z**2).mean()), rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, loss.state, state)


@pytest.mark.analytic
def test_the_density_depends_on_the_condition():
    own = method("maf", (3,), (VECTOR,))
    model = own.model(*variables(own))
    x = jnp.zeros((3, 3))
    y = jnp.array([[0.0, 0.0], [1.0, -1.0], [jnp.nan, jnp.nan]])
    density = np.asarray(log_prob(model, x, own.prior, cond={"y": y})[0])
    assert len(set(density.round(3).tolist())) == 3
    np.testing.assert_allclose(log_prob(model, x, own.prior)[0], density[2], rtol=1e-5)
    samples, _ = model.forward(x, {"y": y})
    np.testing.assert_allclose(model.inverse(samples, {"y": y})[0], x, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "fields", "message"),
    [
        ({"method.flow": "gloww"}, (), "method.flow: unknown 'gloww'; did you mean 'glow'"),
        ({"source.name": "uniform"}, (), "needs a source with a density that is positive everywhere"),
        ({"method.flow": "glow", "method.scales": 3}, (), r"3 scales need images .* multiples of 8"),
        ({"data.cond": ("z",)}, (Field("z", "image", (4, 4, 1)),), r"takes no condition of the kind image \('z'\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(keys, fields, message):
    maps = tuple(Affine(1.0, 0.0) for _ in fields)
    spec = DataSpec("npz", (4, 4, 1), Affine(1.0, 0.0), conditions=fields, condition_maps=maps)
    with pytest.raises(ConfigError, match=message):
        build(changed(defaults(method="normalizing_flow"), {"data.name": "npz", **keys}), spec)


def test_an_unknown_method_lists_the_known_ones(flowjax, tmp_path):
    argv = ["--config=moons", "--config.method.name=real_nvp", f"--workdir={tmp_path}/x"]
    code, _, err = flowjax("train", *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown 'real_nvp'" in err
    assert "normalizing_flow" in err


def test_from_the_command_line(flowjax, tmp_path):
    """The checkpoint restores what activation normalisation learned from the first batch."""
    run = f"--workdir={tmp_path}/run"
    code, _, err = flowjax("train", "--config=spline_moons", run, *TINY, "--config.train.accumulate=2")
    assert code == 0, err
    from flowjax import load

    restored = load(str(tmp_path / "run"))
    norm = restored.model().variables.state["inner"]["layers"][0]
    assert norm["initialised"]
    assert (norm["deviation"] > 1.2).all()  # moons extends over several units
    code, result, err = flowjax("sample", run, "--num=10", f"--out={tmp_path}/a.npz")
    assert code == 0, err
    assert result["nfe"] == 1
    assert np.load(tmp_path / "a.npz")["samples"].shape == (10, 2)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(5, 2)))
    code, result, err = flowjax("likelihood", run, f"--data={tmp_path}/x.npz", f"--out={tmp_path}/ll.npz")
    assert code == 0, err
    assert result["nfe"] == 1
    points, out = f"--data={tmp_path}/x.npz", f"--out={tmp_path}/b.npz"
    for command in (
        ("likelihood", run, points, out, "--steps=3"),
        ("likelihood", run, points, out, "--divergence=hutchinson"),
        ("encode", run, points, out, "--solver=tsit5"),
        ("decode", run, points, out, "--rtol=0.1"),
        ("sample", run, out, "--log_prob", "--atol=0.1"),
        ("evaluate", run, "--check=3"),
    ):
        code, _, err = flowjax(*command)
        given = command[-1].partition("=")[0]
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{given} has no effect on method.name 'normalizing_flow'" in err
    assert flowjax("likelihood", run, points, out, "--check=0", "--divergence=exact")[0] == 0
    for command in ("likelihood", "encode"):
        code, _, err = flowjax(command, run, points, out, "--split=test")
        assert (code, err.count("\n")) == (2, 1)
        assert "--split and --data cannot be used together" in err
    code, _, err = flowjax("sample", run, "--solver=heun", "--steps=3", f"--out={tmp_path}/b.npz")
    assert (code, err.count("\n")) == (2, 1)
    assert "heun needs velocity, and this model offers bijection: use push_forward" in err
    start = [f"--workdir={tmp_path}/y", f"--config.train.start_from={tmp_path}/run"]
    code, _, err = flowjax("train", "--config=spline_moons", *start, *TINY)
    assert (code, err.count("\n")) == (2, 1)
    assert "would copy parameters only" in err
    code, _, err = flowjax("train", "--config=realnvp_moons", f"--workdir={tmp_path}/x", "--config.coupling.name=ot")
    assert code == 2
    assert "coupling.name" in err
