"""Fixed choices of rows: SplitMix64's published numbers, sorted files, and small classes."""

import numpy as np
import pytest
from scipy import stats

from flowjax.data.splits import _hash, complement, held_out_tenth, permutation, skipping, skips, stratified_rows


def test_the_hash_is_splitmix64():
    """The first outputs for seed 0 of the reference implementation, as the Java and Rosetta Code texts list them."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert _hash(np.arange(5)).tolist() == known


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_it_permutes(n):
    assert sorted(permutation(n)) == list(range(n))
    assert n < 3 or not np.array_equal(permutation(n), np.arange(n))


def test_the_first_rows_of_a_permutation_of_a_sorted_file_have_the_shares_of_the_whole():
    """10,000 rows in clusters of 5,000, 3,000, 1,500 and 500: of the first 1,000, a chi-square test at level 1e-3 (the
    finite population makes it only narrower)."""
    clusters = np.repeat(np.arange(4), [5000, 3000, 1500, 500])
    counts = np.bincount(clusters[permutation(10_000)[:1000]])
    assert stats.chisquare(counts, [500, 300, 150, 50]).pvalue > 1e-3


@pytest.mark.parametrize(("n", "k"), [(10, 10), (11, 3), (10_000, 999), (10**12, 1000), (5, 0)])
def test_a_spread_sample_has_one_row_of_each_stretch(n, k):
    rows = stratified_rows(n, k)
    assert len(rows) == k
    edges = [j * n // k for j in range(k + 1)] if k else []
    assert all(low <= row < high for low, row, high in zip(edges, rows.tolist(), edges[1:], strict=False))
    with pytest.raises(ValueError, match="cannot choose"):
        stratified_rows(n, n + 1)


def test_a_tenth_of_each_class_is_held_out_and_no_class_vanishes():
    """One row of a class is never held out, and the others are taken in equal stretches, so a class of c rows gives
    (c - 1) / (n - K) of n // 10, up to one."""
    labels = np.repeat(np.arange(5), [500, 300, 190, 9, 1])
    shuffled = labels[permutation(1000)]
    for y in (labels, shuffled):
        held = held_out_tenth(1000, y)
        assert len(np.unique(held)) == len(held) == 100
        assert np.all(np.abs(np.bincount(y[held], minlength=5) - (np.bincount(y) - 1) / 995 * 100) < 1)
        assert set(y[complement(1000, held)]) == set(range(5))
        assert sorted([*held, *complement(1000, held)]) == list(range(1000))


def test_small_sets_and_limits():
    assert len(held_out_tenth(2)) == 1
    assert len(held_out_tenth(1000, most=7)) == 7
    assert len(held_out_tenth(3, np.arange(3))) == 1  # no class has two rows
    np.testing.assert_array_equal(held_out_tenth(3, np.array([4, 2, 4])), [2])


def test_skipping_is_the_complement_without_its_array():
    for rows in ([], [0], [4, 5, 6, 19], [0, 1, 2, 18, 19], [7]):
        left_out = np.array(rows, np.int64)
        expected = complement(20, left_out)
        np.testing.assert_array_equal(skipping(skips(left_out), np.arange(len(expected))), expected)
