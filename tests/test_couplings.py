"""Couplings: permutations that are optimal, against brute force and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flowjax.couplings import Coupling, Independent, MinibatchOT, Sinkhorn, pair
from flowjax.sources import GaussianMixture
from flowjax.transport import (
    assign,
    auction,
    condition_penalty,
    entropic_potentials,
    pairwise_cost,
    round_plan,
    sinkhorn,
)

pytestmark = pytest.mark.analytic


@given(seed=st.integers(0, 10_000), n=st.sampled_from([1, 3, 6]), d=st.integers(1, 2))
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


@pytest.mark.parametrize("coupling", [Independent(), MinibatchOT(), MinibatchOT("auction"), Sinkhorn(1.0)])
def test_protocol_and_empty_batch(coupling):
    assert isinstance(coupling, Coupling)
    assert coupling(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones((1, 2))).tolist() == [0]
    with pytest.raises(ValueError, match="empty"):
        coupling(jax.random.key(0), jnp.zeros((0, 2)), jnp.zeros((0, 2)))


def test_values_that_are_not_finite_do_not_kill_the_callback():
    x = jnp.full((4, 2), jnp.nan)
    assert MinibatchOT()(None, x, x).shape == (4,)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_potentials_steer_without_changing_the_optimum(scale):
    """Whatever the units: the assignment costs what SciPy's cold solver pays, and most reduced costs are small."""
    rng = np.random.default_rng(0)
    x0, x1 = scale * rng.normal(size=(2, 150, 2))
    x1 = x1 * 0.2 + scale * 5 * np.sign(x1)
    u, v = entropic_potentials(pairwise_cost(jnp.asarray(x0, jnp.float32), jnp.asarray(x1, jnp.float32)))
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
    assert assign(
        x0[:1], x0[:1], *entropic_potentials(pairwise_cost(jnp.asarray(x0[:1]), jnp.asarray(x0[:1])))
    ).tolist() == [0]


@pytest.fixture(scope="module")
def points():
    """A batch of 8 Gaussians and one of a unit normal, 128 each."""
    angle = 2 * jnp.pi * jnp.arange(8) / 8
    modes = GaussianMixture(5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), 0.56)
    return jax.random.normal(jax.random.key(0), (128, 2)), modes.sample(jax.random.key(1), 128)


def mean_cost(x0, x1, rows):
    return float(((x0[rows] - x1) ** 2).sum(-1).mean())


@pytest.mark.parametrize("tolerance", [0.05, 0.01, 1e-3])
def test_the_auction_is_within_its_tolerance_of_the_exact_cost(points, tolerance):
    """Bertsekas' bound: each row is within eps of its best column, so the mean cost within eps of the least."""
    x0, x1 = points
    rows, left = jax.jit(auction, static_argnums=1)(pairwise_cost(x0, x1), tolerance)
    assert sorted(rows.tolist()) == list(range(128))
    assert left == 0
    least = mean_cost(x0, x1, MinibatchOT()(None, x0, x1))
    assert least * (1 - 1e-5) <= mean_cost(x0, x1, rows) <= least * (1 + tolerance) * (1 + 1e-5)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_far_from_the_origin_plans_keep_their_digits(offset):
    """64 points in 8 dimensions against float64 references of the same float32 points.

    Centred, the squared norms are at most about 40, so a cost is wrong by a few roundings of 40 * 2^-24 = 2.4e-6.
    (With norms of 8e6 it would be wrong by 3.) A plan's entries then change by the factor exp(+-2e / eps): the L1
    distance is below 2e-5 at eps = 2, and both plans are within their own tolerance of 1e-5 of their marginals.
    """
    x0, x1 = (np.random.default_rng(0).normal(size=(2, 64, 8)) + offset).astype(np.float32)
    exact = ((x1[:, None].astype(np.float64) - x0) ** 2).sum(-1)
    cost = pairwise_cost(jnp.asarray(x0), jnp.asarray(x1))
    np.testing.assert_allclose(cost, exact, atol=2e-5)
    rows, _ = auction(cost, 0.01)
    assert exact[np.arange(64), rows].sum() <= 1.01 * exact[linear_sum_assignment(exact)].sum()
    plan = sinkhorn(cost, 2.0, tolerance=1e-5).matrix
    with jax.enable_x64(True):
        reference = np.asarray(sinkhorn(jnp.asarray(exact), 2.0, tolerance=1e-9).matrix)
    assert np.abs(np.asarray(plan, np.float64) - reference).sum() < 1e-4


@given(seed=st.integers(0, 10_000), n=st.sampled_from([1, 4, 9]))
def test_the_auction_always_gives_a_permutation(seed, n):
    x0, x1 = np.random.default_rng(seed).normal(size=(2, n, 2)).astype(np.float32)
    x0 = np.round(x0)  # ties
    rows, _ = _auction(pairwise_cost(jnp.asarray(x0), jnp.asarray(x1)))
    assert sorted(rows.tolist()) == list(range(n))


_auction = jax.jit(auction)


def test_an_auction_cut_short_reports_what_was_left(points):
    pairs = MinibatchOT("auction", max_rounds=2).pairs(None, *points)
    assert sorted(pairs.rows.tolist()) == list(range(128))
    assert 0 < pairs.marginal_error < 1


def test_sinkhorn_is_the_entropic_plan(points):
    """Its marginals, its form diag(u) K diag(v), and its cost between the exact and the independent one."""
    cost = pairwise_cost(*points)
    plan = jax.jit(lambda c: sinkhorn(c, 1.0, tolerance=1e-6))(cost)
    p = np.asarray(plan.matrix, np.float64)
    np.testing.assert_allclose(p.sum(0), 1 / 128, rtol=1e-4)
    np.testing.assert_allclose(p.sum(1), 1 / 128, rtol=1e-4)
    assert plan.marginal_error < 1e-5
    # log P + C / eps is a sum of a row and a column term: its mixed differences vanish, where P is not negligible
    form = np.log(np.maximum(p, 1e-30)) + np.asarray(cost)
    seen = p > 1e-6  # where what rounding adds, at most the marginal_error / B^2, is nothing
    quads = [(i, j, k, m) for i in range(0, 30, 3) for j in range(0, 30, 3) for k in (50, 90) for m in (60, 100)]
    checked = 0
    for i, j, k, m in quads:
        if seen[i, j] and seen[k, m] and seen[i, m] and seen[k, j]:
            assert abs(form[i, j] + form[k, m] - form[i, m] - form[k, j]) < 2e-3
            checked += 1
    assert checked > 10
    exact = mean_cost(*points, MinibatchOT()(None, *points))
    assert exact < (p * np.asarray(cost)).sum() < np.asarray(cost).mean()


def test_sinkhorn_between_normals_has_the_bridges_correlation():
    """Entropic transport of N(0, 1) to N(0, b^2) at eps = 2 s^2: covariance c with c^2 + s^2 c = b^2.

    On 600 quantiles of each the sums are deterministic; the quantile grid is off by less than 2% in the variances.
    """
    from scipy import stats

    q = stats.norm.ppf((np.arange(600) + 0.5) / 600)
    x0, x1 = jnp.asarray(q[:, None], jnp.float32), jnp.asarray(0.5 * q[:, None], jnp.float32)
    for s in (0.3, 1.0):
        plan = sinkhorn(pairwise_cost(x0, x1), 2 * s**2, tolerance=1e-5).matrix
        covariance = float((plan * (x1 @ x0.T)).sum())
        expected = np.sqrt(0.25 + s**4 / 4) - s**2 / 2
        assert covariance == pytest.approx(expected, rel=0.02)


def test_small_eps_approaches_exact_transport_and_does_not_underflow(points):
    """At eps = 0.02, a thousandth of the mean cost, where plain Sinkhorn in float32 loses almost all its mass."""
    plan = sinkhorn(pairwise_cost(*points), 0.02)
    assert plan.marginal_error < 2e-3
    assert float(plan.matrix.sum()) == pytest.approx(1, abs=1e-5)
    exact = mean_cost(*points, MinibatchOT()(None, *points))
    assert float((plan.matrix * pairwise_cost(*points)).sum()) == pytest.approx(exact, rel=5e-3)


def test_rounding_is_altschulers():
    """Exact marginals, no negative entries, and an L1 change of at most twice the marginal_error (their lemma 7)."""
    rng = np.random.default_rng(0)
    plan = rng.random((20, 20)) ** 3
    plan = jnp.asarray(plan / plan.sum() * 1.1, jnp.float32)
    rounded = round_plan(plan)
    np.testing.assert_allclose(rounded.sum(0), 1 / 20, rtol=1e-4)
    np.testing.assert_allclose(rounded.sum(1), 1 / 20, rtol=1e-4)
    assert float(rounded.min()) >= 0
    marginal_error = float(jnp.abs(plan.sum(0) - 1 / 20).sum() + jnp.abs(plan.sum(1) - 1 / 20).sum())
    assert float(jnp.abs(rounded - plan).sum()) <= 2 * marginal_error + 1e-5


def test_rows_are_drawn_from_the_plan():
    """Frequencies over many keys against the plan of a small batch: within 5 standard errors."""
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 4, 2))
    plan = np.asarray(sinkhorn(pairwise_cost(x0, x1), 2.0).matrix) * 4
    draws = jax.vmap(lambda k: Sinkhorn(2.0)(k, x0, x1))(jax.random.split(jax.random.key(1), 4000))
    share = np.stack([(np.asarray(draws) == j).mean(0) for j in range(4)], -1)
    assert np.all(np.abs(share - plan) <= 5 * np.sqrt(plan * (1 - plan) / 4000) + 1e-3)


def test_an_unconverged_plan_is_reported(points):
    assert Sinkhorn(0.05, max_sweeps=3).pairs(jax.random.key(0), *points).marginal_error > 0.05
    assert pair(Independent(), None, *points).marginal_error == 0
    with pytest.raises(ValueError, match="Sinkhorn has not converged"):
        Sinkhorn(0.05, max_sweeps=3)(jax.random.key(0), *points)
    with pytest.raises(ValueError, match="Sinkhorn has not converged"):
        Sinkhorn(1.0)(jax.random.key(0), points[0].at[0].set(jnp.nan), points[1])


@pytest.mark.parametrize(
    "coupling",
    [
        MinibatchOT(condition_weight=np.inf),
        MinibatchOT("auction", condition_weight=np.inf),
        Sinkhorn(0.5, condition_weight=np.inf),
    ],
)
def test_class_aware_pairs_stay_in_the_class(points, coupling):
    """And within each class the exact ones are optimal."""
    x0, x1 = points
    labels = jnp.arange(128) % 4 - 1  # one of them is "no label"
    rows = coupling(jax.random.key(0), x0, x1, labels)
    np.testing.assert_array_equal(labels[rows], labels)
    if isinstance(coupling, Sinkhorn):
        cost = pairwise_cost(x0, x1) + jnp.where(labels[:, None] != labels, jnp.inf, 0.0)
        plan = sinkhorn(cost, 0.5).matrix
        assert float(jnp.where(jnp.isfinite(cost), 0.0, plan).max()) == 0
        np.testing.assert_allclose(plan.sum(1), 1 / 128, rtol=1e-5)
    if coupling == MinibatchOT(condition_weight=np.inf):
        for k in range(-1, 3):
            inside = np.flatnonzero(labels == k)
            alone = MinibatchOT()(None, x0[inside], x1[inside])
            assert mean_cost(x0, x1[inside], rows[inside]) == pytest.approx(
                mean_cost(x0[inside], x1[inside], alone), rel=1e-5
            )


def test_class_aware_ot_leaves_the_source_given_the_class_normal():
    """x0 | class over 60 batches of 128: mean 0 and covariance I within 5 standard errors; plain OT is far off.

    The class of a point is the sign of its first coordinate, as for data on two sides of the source.
    """

    def moments(coupling):
        def one(key):
            k0, k1 = jax.random.split(key)
            x0, x1 = jax.random.normal(k0, (128, 2)), 2 * jax.random.normal(k1, (128, 2))
            labels = (x1[:, 0] > 0).astype(jnp.int32)
            return x0[coupling(key, x0, x1, labels)], labels

        x0, labels = jax.lax.map(one, jax.random.split(jax.random.key(0), 60))
        rows = np.asarray(x0[labels == 1])
        return rows.mean(0), np.cov(rows.T), len(rows)

    mean, covariance, n = moments(MinibatchOT("auction", condition_weight=np.inf))
    assert np.all(np.abs(mean) <= 5 / np.sqrt(n))
    assert np.all(np.abs(covariance - np.eye(2)) <= 5 * np.sqrt(2 / n))
    mean, covariance, _ = moments(MinibatchOT("auction"))
    assert mean[0] > 0.6  # a half normal has 0.80
    assert covariance[0, 0] < 0.6  # 0.36


def test_continuous_conditions_weigh_in_the_cost():
    """Weight 0 ignores them, a large one pairs equal conditions, and between the cost is of both."""
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 40, 2))
    cond = {"angle": jax.random.normal(jax.random.key(1), (40, 1))}
    gap = lambda rows: float(jnp.abs(cond["angle"][rows] - cond["angle"]).mean())
    gaps = [gap(MinibatchOT(condition_weight=w)(None, x0, x1, cond)) for w in (0.0, 1.0, 1e6)]
    assert gaps[0] > gaps[1] > 100 * gaps[2]
    rows = MinibatchOT(condition_weight=1.0)(None, x0, x1, cond)
    both = lambda a, b: np.concatenate([a, b], 1)
    plain = MinibatchOT()(None, jnp.asarray(both(x0, cond["angle"])), jnp.asarray(both(x1, cond["angle"])))
    np.testing.assert_array_equal(rows, plain)


DROPPED = {
    "label": jnp.array([0, 1, 0, 1, -1, -1]),
    "obs": jax.random.normal(jax.random.key(2), (6, 3)).at[jnp.array([1, 4])].set(jnp.nan),
}


def test_a_dropped_condition_is_a_value_of_its_own():
    """Equal to another dropped one; a dropped vector of 3 numbers is at squared distance 3 from a given one."""
    penalty = condition_penalty({"obs": DROPPED["obs"]}, 2.0)
    np.testing.assert_allclose(penalty[1], [6, 0, 6, 6, 0, 6])
    obs = np.asarray(DROPPED["obs"])
    np.testing.assert_allclose(penalty[0, 2:4], 2 * ((obs[0] - obs[2:4]) ** 2).sum(-1), rtol=1e-6)
    assert float(condition_penalty(jnp.array([[1.0, jnp.nan], [3.0, 5.0]]), 1.0)[0, 1]) == 5
    x0, x1 = jax.random.normal(jax.random.key(0), (2, 6, 2))
    for coupling in (MinibatchOT(condition_weight=1.0), Sinkhorn(1.0, condition_weight=1.0)):
        assert np.all(np.asarray(coupling(jax.random.key(1), x0, x1, DROPPED)) < 6)


def test_an_infinite_weight_compares_labels_only():
    penalty = condition_penalty(DROPPED, np.inf)
    np.testing.assert_array_equal(penalty == 0, DROPPED["label"][:, None] == DROPPED["label"])
    x0, x1 = jax.random.normal(jax.random.key(3), (2, 6, 2))
    for solver in ("scipy", "auction"):
        rows = MinibatchOT(solver, condition_weight=np.inf)(None, x0, x1, DROPPED)
        np.testing.assert_array_equal(DROPPED["label"][rows], DROPPED["label"])
        np.testing.assert_array_equal(
            rows, MinibatchOT(solver, condition_weight=np.inf)(None, x0, x1, DROPPED["label"])
        )
    with pytest.raises(ValueError, match="condition_weight inf needs labels, and the batch has none"):
        condition_penalty({"obs": DROPPED["obs"]}, np.inf)


def test_unbalanced_transport_leaves_outliers_out(points):
    """A tenth of the source far away: balanced transport must use it all, unbalanced transport nearly none."""
    x0, x1 = points
    x0 = x0.at[:13].add(60.0)
    used = lambda tau: float((sinkhorn(pairwise_cost(x0, x1), 1.0, tau=tau).matrix[:, :13]).sum())
    assert used(np.inf) == pytest.approx(13 / 128, rel=1e-3)
    assert used(10.0) < 1e-3
    assert sinkhorn(pairwise_cost(x0, x1), 1.0, tau=10.0).marginal_error < 2e-3


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Sinkhorn(0.0),
        lambda: Sinkhorn(1.0, tau=-1.0),
        lambda: MinibatchOT(tolerance=0.0),
        lambda: Sinkhorn(1.0)(None, jnp.ones((2, 2)), jnp.ones((2, 2))),
        lambda: MinibatchOT(condition_weight=1.0)(None, jnp.ones((2, 2)), jnp.ones((2, 2))),
    ],
)
def test_refusals(bad):
    with pytest.raises(ValueError, match=r"positive|pass key|has none"):
        bad()
