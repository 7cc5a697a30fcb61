"""RealNVP against float64 Jacobians and closed forms, and from the command line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.methods import Context, Network, RealNVP
from flowjax.methods.real_nvp import AffineCouplings
from flowjax.models import functional
from flowjax.sources import Normal

LABEL = Field("label", "label", num_classes=3)


def method(shape, fields=()):
    make = lambda rngs: AffineCouplings(shape, fields=fields, layers=4, width=8, depth=1, rngs=rngs)
    return RealNVP(Network.of(functional(make)), Normal(shape))


def variables(method, scale=0.3):
    """Parameters away from their initial values, at which every layer is a permutation."""
    params, state = method.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(a + scale * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)), state


@pytest.mark.parametrize(("shape", "fields"), [((3,), ()), ((2, 2), (LABEL,))])
def test_the_inverse_and_the_log_determinant_are_those_of_the_jacobian(shape, fields):
    """In float64, where the composition of both ways and log|det| by LU are exact to 1e-10."""
    with jax.enable_x64(True):
        own = method(shape, fields)
        model = own.model(*jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, variables(own)))
        z = jax.random.normal(jax.random.key(2), (5, *shape), float)
        cond = {"label": jnp.array([0, 1, 2, -1, 0])} if fields else None
        x, log_det = model.forward(z, cond)
        back, inverse_log_det = model.inverse(x, cond)
        np.testing.assert_allclose(back, z, atol=1e-10)
        np.testing.assert_allclose(log_det, -inverse_log_det, atol=1e-10)
        one = lambda z, c: model.forward(z[None], c)[0].ravel()
        for i in range(5):
            c = {name: a[i : i + 1] for name, a in cond.items()} if cond else None
            jacobian = jax.jacobian(lambda flat, c=c: one(flat.reshape(shape), c))(z[i].ravel())
            assert float(log_det[i]) == pytest.approx(np.linalg.slogdet(np.asarray(jacobian))[1], abs=1e-10)


def test_the_loss_is_the_negative_log_density():
    """In nats a dimension: -(log N(z) + log|det|) / D."""
    own = method((2,))
    params, state = variables(own)
    x = jax.random.normal(jax.random.key(3), (64, 2))
    loss = own.loss(params, Context(state=state), jax.random.key(0), Batch(x))
    z, log_det = own.model(params, state).inverse(x)
    expected = -np.mean(np.asarray(-0.5 * (z**2).sum(-1) - np.log(2 * np.pi) + log_det)) / 2
    assert float(loss.value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(loss.state["order"], state["order"])


def test_masks_and_permutations_are_not_parameters():
    params, state = method((3,)).init(jax.random.key(0))
    assert set(state) == {"order", "mask"}
    assert all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(params))
    with pytest.raises(ValueError, match="at least 2 numbers"):
        AffineCouplings((1,), fields=(), layers=2, width=4, depth=1, rngs=nnx.Rngs(0))


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.method.layers=2", "--config.method.width=8", "--config.method.depth=1"]
    code, result, err = flowjax("train", "--config=realnvp_moons", f"--workdir={tmp_path}/run", *tiny)
    assert code == 0, err
    code, result, err = flowjax("sample", f"--workdir={tmp_path}/run", "--num=10", f"--out={tmp_path}/a.npz")
    assert code == 0, err
    assert result["nfe"] == 1
    assert np.load(tmp_path / "a.npz")["samples"].shape == (10, 2)
    data = np.random.default_rng(0).normal(size=(5, 2))
    np.savez(tmp_path / "x.npz", x=data)
    files = [f"--data={tmp_path}/x.npz", f"--out={tmp_path}/ll.npz"]
    code, result, err = flowjax("likelihood", f"--workdir={tmp_path}/run", *files)
    assert code == 0, err
    assert result["nfe"] == 1
    code, _, err = flowjax(
        "sample", f"--workdir={tmp_path}/run", "--solver=heun", "--steps=3", f"--out={tmp_path}/b.npz"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "heun needs velocity, and this model offers bijection: use push_forward" in err
    code, _, err = flowjax("train", "--config=realnvp_moons", f"--workdir={tmp_path}/x", "--config.coupling.name=ot")
    assert code == 2
    assert "coupling.name" in err
