"""Precision and recall against brute force and sets whose answer is plain."""

import numpy as np
import pytest

from flowjax.metrics import precision_recall

pytestmark = pytest.mark.analytic


def brute(data, samples, k):
    """Float64, one pair at a time: the share of samples within some datum's distance to its k-th other datum."""
    distance = lambda a, b: np.sqrt(((a - b) ** 2).sum())
    near = [sorted(distance(a, b) for j, b in enumerate(data) if j != i)[k - 1] for i, a in enumerate(data)]
    return np.mean([any(distance(s, a) <= r for a, r in zip(data, near, strict=True)) for s in samples])


@pytest.mark.parametrize("chunk", [7, 16, 1024])
def test_against_brute_force(chunk):
    """In steps of 1 / 40: a pair whose order float32 turns around would show, and there is none in these draws."""
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(45, 4)), 0.6 * rng.normal(size=(40, 4)) + 0.8
    found = precision_recall(data.astype(np.float32), samples.astype(np.float32), k=3, chunk=chunk)
    assert found.precision == pytest.approx(brute(data, samples, 3), abs=1e-6)
    assert found.recall == pytest.approx(brute(samples, data, 3), abs=1e-6)
    assert 0 < found.recall < found.precision < 1


def test_one_mode_of_two_is_precise_and_half_recalled():
    """Two clusters far apart, in the data as many points each; samples repeat one of them exactly."""
    rng = np.random.default_rng(0)
    mode = rng.normal(size=(200, 3)).astype(np.float32)
    found = precision_recall(np.concatenate([mode, mode + 100]), mode)
    assert found == (1.0, 0.5)
    assert precision_recall(mode, mode + 100) == (0.0, 0.0)


def test_far_from_the_origin_nothing_changes():
    """Squared distances of about 1 between points of squared norm 3e6: uncentred, float32 would round them by 0.3."""
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(2, 100, 3))
    far = precision_recall((data + 1000).astype(np.float32), (samples + 1000).astype(np.float32))
    near = precision_recall(data.astype(np.float32), samples.astype(np.float32))
    np.testing.assert_allclose(far, near, atol=0.011)  # rounding to float32 at 1000 moves points by 3e-5: one may cross


def test_it_says_what_it_needs():
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match="more than k = 3"):
        precision_recall(x, x)
