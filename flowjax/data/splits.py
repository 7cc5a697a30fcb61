"""Fixed pseudo-random choices of rows: the order of test rows, samples of rows, and the held-out tenth.

Every choice is a pure function of the number of rows (and of the labels). It uses only integer arithmetic (the
SplitMix64 generator of Steele et al. 2014, "Fast splittable pseudorandom number generators"), so it does not change
with the version of NumPy, whose generators do not guarantee this.
"""

import numpy as np
from jaxtyping import Int, UInt64

__all__ = ["complement", "held_out_tenth", "permutation", "skipping", "skips", "stratified_rows"]

_GOLDEN = 0x9E3779B97F4A7C15


def permutation(n: int) -> Int[np.ndarray, " n"]:
    """Returns a fixed permutation of n rows: the rows sorted by their hashes, which are all different."""
    return np.argsort(_hash(np.arange(n)), kind="stable")


def stratified_rows(n: int, k: int) -> Int[np.ndarray, " k"]:
    """Returns a fixed sample of k of n rows, in increasing order, that represents the whole file.

    The rows are divided into k equal intervals, and a hash chooses one row of each. So even if rows are sorted into
    clusters, each cluster is sampled in proportion to its size, up to one row per boundary. Memory and time are O(k).

    Raises:
        ValueError: if k > n.
    """
    if k > n:
        raise ValueError(f"cannot choose {k} of {n} rows")
    j, stretches = np.arange(k + 1), max(k, 1)
    edges = j * (n // stretches) + j * (n % stretches) // stretches
    start, width = edges[:-1], np.diff(edges)
    return start + (_hash(np.arange(k)) % width.astype(np.uint64)).astype(np.int64)


def held_out_tenth(n: int, labels: np.ndarray | None = None, most: int | None = None) -> Int[np.ndarray, " k"]:
    """Returns the fixed tenth of n rows that is held out if a data set has no test rows.

    Args:
        n: number of rows, at least 2.
        labels: (n,) labels, or None. Each class contributes about a tenth of its rows, and at least one row of each
            class remains for training (unless no class has two rows).
        most: the largest number of rows to hold out; None for no limit.

    Returns:
        Row numbers in increasing order: n // 10 of them, but at least one and at most `most`.
    """
    candidates = np.arange(0) if labels is None else _all_but_one_of_each(labels)
    k = max(1, min(n // 10, n if most is None else most))
    if len(candidates) == 0:
        return stratified_rows(n, k)
    return np.sort(candidates[stratified_rows(len(candidates), min(k, len(candidates)))])


def complement(n: int, rows: Int[np.ndarray, " k"]) -> Int[np.ndarray, " rest"]:
    """Returns the indices from 0 to n - 1 that are not in `rows`, in increasing order."""
    return np.delete(np.arange(n), rows)


def skips(rows: Int[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """Returns the argument of `skipping` for rows that are left out, in increasing order."""
    return rows - np.arange(len(rows))


def skipping(skips: Int[np.ndarray, " k"], index: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Returns `complement(n, rows)[index]` by bisection, for `skips = skips(rows)`."""
    return index + np.searchsorted(skips, index, side="right")


def _all_but_one_of_each(labels: np.ndarray) -> Int[np.ndarray, " m"]:
    """Returns row indices sorted by label and, within a label, by index, without the first row of each label."""
    order = np.argsort(labels, kind="stable")
    return order[1:][labels[order[1:]] == labels[order[:-1]]]


def _hash(index: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Returns output number `index` of SplitMix64, which is a bijection of the 64-bit integers."""
    z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
