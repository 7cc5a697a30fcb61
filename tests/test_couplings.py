"""Couplings: permutations that are optimal, against brute force and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flowjax.transport import assign, entropic_potentials, pairwise_cost
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


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_potentials_steer_without_changing_the_optimum(scale):
    """Whatever the units: the assignment costs what SciPy's cold solver pays, and most reduced costs are small."""
    rng = np.random.default_rng(0)
    x0, x1 = scale * rng.normal(size=(2, 150, 2))
    x1 = x1 * 0.2 + scale * 5 * np.sign(x1)
    u, v = entropic_potentials(jnp.asarray(x0, jnp.float32), jnp.asarray(x1, jnp.float32))
    rows = assign(x0, x1, u, v)
    cost = ((x1[:, None] - x0) ** 2).sum(-1)
    best = cost[linear_sum_assignment(cost)].sum()
    assert cost[np.arange(150), rows].sum() == pytest.approx(best, rel=1e-12)
    reduced = (cost - np.asarray(u)[:, None] - np.asarray(v))[np.arange(150), rows]
    assert np.abs(reduced).mean() < 0.05 * cost.mean()


def test_useless_potentials_do_no_harm():
    x0, x1 = np.random.default_rng(0).normal(size=(2, 20, 2))
    cold = assign(x0, x1, np.zeros(20), np.zeros(20))
    np.testing.assert_array_equal(assign(x0, x1, np.full(20, np.nan), np.zeros(20)), cold)
    np.testing.assert_array_equal(assign(x0, x1, np.arange(20.0) * 7, -np.arange(20.0)), cold)
    assert assign(x0[:1], x0[:1], *entropic_potentials(jnp.asarray(x0[:1]), jnp.asarray(x0[:1]))).tolist() == [0]
