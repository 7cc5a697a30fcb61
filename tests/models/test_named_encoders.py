"""Deeper encoders of conditions: missing values, order and number of elements, and refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import Field
from flowjax.models import ResMLP
from flowjax.models.encoders import check_fields
from flowjax.models.named_encoders import NAMED_ENCODERS

FIELDS = {
    "mlp": Field("obs", "vector", (5,), encoder="mlp"),
    "cnn": Field("obs", "sequence", (9, 2), encoder="cnn"),
    "attention": Field("obs", "set", (4, 3), encoder="attention"),
}


def made(name) -> Any:
    return NAMED_ENCODERS[name](FIELDS[name], 8, rngs=nnx.Rngs(0))


def values(name, rows=3):
    return jnp.asarray(np.random.default_rng(0).normal(size=(rows, *FIELDS[name].shape)), jnp.float32)


@pytest.mark.parametrize("name", FIELDS)
def test_a_row_that_is_not_given_has_the_learned_vector(name):
    encoder, x = made(name), values(name)
    given = encoder(x, 3)
    assert given.shape == (3, 8)
    assert len(np.unique(np.asarray(given), axis=0)) == 3
    absent = encoder(jnp.full_like(x, jnp.nan), 3)
    np.testing.assert_array_equal(absent, encoder(None, 3))
    np.testing.assert_array_equal(absent, jnp.broadcast_to(encoder.missing[...], (3, 8)))


@pytest.mark.parametrize("name", FIELDS)
def test_partly_missing_values_are_no_zeros_and_have_finite_gradients(name):
    encoder, x = made(name), values(name)
    where = (0, 1) if name == "mlp" else (0, 1, slice(None))
    partly, zero = x.at[where].set(jnp.nan), x.at[where].set(0.0)
    a, b = encoder(partly, 3), encoder(zero, 3)
    assert jnp.isfinite(a).all()
    assert jnp.abs(a[0] - b[0]).max() > 1e-4
    np.testing.assert_allclose(a[1:], b[1:], rtol=1e-5, atol=1e-6)
    graph, params = nnx.split(encoder)
    gradients = jax.grad(lambda p: nnx.merge(graph, p)(partly, 3).sum())(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_the_order_of_a_set_does_not_matter_and_its_size_does():
    encoder, x = made("attention"), values("attention")
    np.testing.assert_allclose(encoder(x[:, ::-1], 3), encoder(x, 3), rtol=1e-4, atol=1e-5)
    # the same element once and four times: equal means, but different numbers of elements
    four = jnp.broadcast_to(x[:, :1], x.shape)
    once = four.at[:, 1:].set(jnp.nan)
    assert jnp.abs(encoder(four, 3) - encoder(once, 3)).max() > 1e-3


def test_absent_elements_do_not_matter():
    encoder, x = made("attention"), values("attention")
    short = NAMED_ENCODERS["attention"](Field("obs", "set", (2, 3), encoder="attention"), 8, rngs=nnx.Rngs(0))
    padded = x.at[:, 2:].set(jnp.nan)
    np.testing.assert_allclose(encoder(padded, 3), short(x[:, :2], 3), rtol=1e-4, atol=1e-5)


def test_networks_use_the_named_encoder():
    network = ResMLP((2,), width=8, depth=1, fields=tuple(FIELDS[n] for n in ("mlp",)), rngs=nnx.Rngs(0))
    assert type(network.encoders["obs"]) is NAMED_ENCODERS["mlp"]


def test_refusals():
    with pytest.raises(ValueError, match="a vector has no encoder 'cnn'"):
        Field("obs", "vector", (5,), encoder="cnn")
    with pytest.raises(ValueError, match=r"unet takes no encoder 'cnn'|no condition of the kind sequence"):
        check_fields("unet", (FIELDS["cnn"],), (8, 8, 1))
    with pytest.raises(ValueError, match="edm2 takes no encoder 'mlp'"):
        check_fields("edm2", (FIELDS["mlp"],), (8, 8, 1))
