"""Couplings: permutations that are optimal, against brute force and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowjax.couplings import Coupling, Independent, MinibatchOT

pytestmark = pytest.mark.analytic


@given(seed=st.integers(0, 10_000), n=st.integers(1, 6), d=st.integers(1, 3))
def test_exact_ot_is_the_cheapest_of_all_permutations(seed, n, d):
    rng = np.random.default_rng(seed)
    x0, x1 = rng.normal(size=(2, n, d)).astype(np.float32)
    rows = np.asarray(MinibatchOT()(None, jnp.asarray(x0), jnp.asarray(x1)))
    cost = lambda rows: ((x0[list(rows)] - x1) ** 2).sum()
    assert sorted(rows) == list(range(n))
    assert cost(rows) <= min(cost(p) for p in itertools.permutations(range(n))) + 1e-5


def test_exact_ot_sorts_on_the_line():
    """In one dimension the optimal plan is monotone."""
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 64, 1))
    rows = MinibatchOT()(None, x0, x1)
    order = np.argsort(x1[:, 0])
    assert np.all(np.diff(np.asarray(x0[rows][order, 0])) >= 0)


def test_exact_ot_undoes_a_shuffle_of_images_inside_jit():
    x1 = jax.random.normal(jax.random.key(0), (16, 3, 3, 1))
    shuffle = jax.random.permutation(jax.random.key(1), 16)
    rows = jax.jit(MinibatchOT())(None, x1[shuffle] + 1e-3, x1)
    np.testing.assert_array_equal(shuffle[rows], np.arange(16))


def test_independent_keeps_the_order():
    x = jnp.zeros((5, 2))
    np.testing.assert_array_equal(Independent()(jax.random.key(0), x, x), np.arange(5))


@pytest.mark.parametrize("coupling", [Independent(), MinibatchOT()])
def test_protocol_and_empty_batch(coupling):
    assert isinstance(coupling, Coupling)
    assert coupling(None, jnp.zeros((1, 2)), jnp.ones((1, 2))).tolist() == [0]
    with pytest.raises(ValueError, match="empty"):
        coupling(None, jnp.zeros((0, 2)), jnp.zeros((0, 2)))


def test_values_that_are_not_finite_do_not_kill_the_callback():
    x = jnp.full((4, 2), jnp.nan)
    assert MinibatchOT()(None, x, x).shape == (4,)
