"""Metrics of sets with a mask: sets of independent elements, and sets whose elements are equal."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from flowjax.build import build
from flowjax.config import defaults
from flowjax.data import Affine, Dataset, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference import evaluation
from flowjax.inference.choose import SolverSettings
from flowjax.inference.run import Run
from flowjax.inference.set_metrics import OF_SETS, compare_sets, pair_distances
from flowjax.methods import Network

SETS, SIZE = 1000, 6
RNG = np.random.default_rng(0)


def masked(x, absent=1e6):
    """Sets with 2 to 6 elements in random places; the others hold a number that would be noticed."""
    counts = RNG.integers(2, SIZE + 1, len(x))
    mask = RNG.random((len(x), SIZE)).argsort(1) < counts[:, None]
    return np.where(mask[..., None], x, absent).astype(np.float32), mask


def normal(n=SETS):
    return RNG.normal(size=(n, SIZE, 2)).astype(np.float32)


def equal(n=SETS):
    """Sets of equal elements."""
    return np.repeat(normal(n)[:, :1], SIZE, 1)


@pytest.mark.analytic
def test_equal_distributions_differ_by_no_more_than_two_sets_of_data():
    """Of about 4,000 elements, the Kolmogorov-Smirnov statistic exceeds 2.2 sqrt(1 / 6000 + 1 / 4000) with the
    probability 1e-4 for each feature. The expected W1 is sqrt(2 / pi (1 / N + 1 / M)) times the integral of
    sqrt(F (1 - F)), 1.6 for a normal: 0.03 of the elements and 0.06 of pairs, of which each set has at least an
    independent one."""
    found = compare_sets(normal(), masked(normal()), masked(normal()))
    assert set(found) == set(OF_SETS)
    assert found["element_marginal_ks_max"] < 2.2 * math.sqrt(1 / 6000 + 1 / 4000)
    for end in ("", "_true"):
        assert found[f"element_marginal_w1_max{end}"] < 0.08
        assert abs(found[f"element_energy_distance{end}"]) < 0.01
        assert found[f"pair_distance_w1{end}"] < 2.2 * math.sqrt(2 / SETS)


@pytest.mark.analytic
def test_the_distance_of_pairs_sees_whether_elements_belong_together():
    """Independent elements of N(0, I) in the plane are sqrt(pi) apart on average (Rayleigh, of scale sqrt(2)), with the
    standard deviation sqrt(4 - pi). Equal ones have distance 0, whose standard deviation is 0, so that the unit is 1.
    Single elements of both have the same distribution."""
    found = compare_sets(normal(), masked(equal()), masked(equal()))
    assert found["pair_distance_w1"] == pytest.approx(math.sqrt(math.pi), abs=4 * math.sqrt((4 - math.pi) / SETS))
    assert found["pair_distance_w1_true"] == 0
    assert found["element_marginal_w1_max"] < 0.2  # of 1,000 different elements
    swapped = compare_sets(equal(), masked(normal()), masked(normal()))
    assert swapped["pair_distance_w1"] == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.1)


@pytest.mark.analytic
def test_pairs_are_of_different_elements_that_exist():
    x = np.arange(4.0)[None, :, None] ** 2 * np.ones((5000, 1, 1))  # 0, 1, 4, 9: all differences are different
    mask = np.ones((5000, 4), bool)
    mask[:, 1] = False
    mask[0] = [True, False, False, False]  # a single element, so no pair
    values, counts = np.unique(pair_distances(x, mask), return_counts=True)
    np.testing.assert_array_equal(values, [4, 5, 9])
    assert counts.sum() == 10 * 4999
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=4 * math.sqrt(2 / 9 / 49_990))
    assert pair_distances(x, np.zeros_like(mask)).shape == (0,)


def test_evaluate_compares_full_sets_with_the_elements_that_exist():
    """A network of velocity 0 samples N(0, I), scaled to the data: the distribution of the data."""
    spec = DataSpec("npz", (SIZE, 2), Affine(3.0, 5.0), has_mask=True)
    method = build(defaults("mlp"), spec)
    method = dataclasses.replace(method, network=Network.from_function(lambda params, t, x, cond, **_: 0 * x))
    run = Run(Path("run"), defaults("mlp"), 0, spec, method, {})
    x, mask = masked(5 + 3 * normal(800), absent=np.nan)
    found = evaluation.evaluate(run, Dataset(spec, x, test_mask=mask), solver=SolverSettings("euler", steps=1))
    assert set(found) == set(OF_SETS) <= set(evaluation.OF_DATA)
    assert found["element_marginal_ks_max"] < 2.2 * math.sqrt(1 / 2400 + 1 / 1600)
    assert found["pair_distance_w1"] < 2.2 * math.sqrt(2 / 400)
    with pytest.raises(ConfigError, match="have 3 test sets, and metrics of sets need at least 4"):
        evaluation.evaluate(run, Dataset(spec, x[:3], test_mask=mask[:3]))
