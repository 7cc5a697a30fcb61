"""The local classifier two-sample test on conjugate normal posteriors."""

import jax
import numpy as np
import pytest

from flowjax import metrics

PAIRS, PERMUTATIONS = 400, 30
OBSERVED = np.array([[0.0, 0.0], [1.0, -1.0]])


def pairs(scale: float = 1.0, shift: float = 0.0, seed: int = 0):
    """Parameters from N(0, I), and samples of N(x / 2, I / 2) given observations with noise N(0, I)."""
    rng = np.random.default_rng(seed)
    posterior = lambda x, *rows: x / 2 + np.sqrt(0.5) * (shift + scale * rng.normal(size=(*rows, 2)))
    theta = rng.normal(size=(PAIRS, 2))
    x = theta + rng.normal(size=theta.shape)
    return theta, posterior(x, PAIRS), x, OBSERVED, posterior(OBSERVED[:, None], 2, 200)


@pytest.fixture(scope="module")
def compiled():
    """The test, whose compiled program all cases share."""
    return lambda *rows, seed=0: metrics.local_c2st(jax.random.key(seed), *rows, permutations=PERMUTATIONS)


@pytest.mark.parametrize("wrong", [{"scale": 0.4}, {"shift": 0.8}])
def test_wrong_posteriors_are_found(compiled, wrong):
    """The statistic exceeds those of all 30 permutations, at each observation."""
    found = compiled(*pairs(**wrong))
    assert found.null.shape == (PERMUTATIONS, 2)
    assert (found.statistic > found.null.max(0)).all()
    np.testing.assert_allclose(found.p_value, 1 / (1 + PERMUTATIONS))


def test_p_values_of_the_right_posterior_are_uniform(compiled):
    """A p-value of the right posterior is uniform on 1/31, ..., 1, with the standard deviation 0.29. The mean of 6
    data sets, of one observation each, is 0.52 within four standard deviations 0.29 / sqrt(6) = 0.118; if one sample
    were told from the other by its order, it would be 1/31, four standard deviations below.
    """
    values = [compiled(*pairs(seed=seed), seed=seed).p_value[0] for seed in range(1, 7)]
    assert abs(np.mean(values) - 0.516) < 4 * 0.118


def test_a_posterior_that_is_wrong_at_one_observation_is_right_at_another(compiled):
    """For x_1 > 1, the samples are shifted by two standard deviations; at x = (-1.5, 0) they are right."""
    theta, samples, x, _, _ = pairs()
    rng = np.random.default_rng(3)
    observed = np.array([[-1.5, 0.0], [1.5, 0.0]])
    shifted = lambda x, rows: rows + 2 * np.sqrt(0.5) * (x[..., :1] > 1)
    at = observed[:, None] / 2 + np.sqrt(0.5) * rng.normal(size=(2, 200, 2))
    found = compiled(theta, shifted(x, samples), x, observed, shifted(observed[:, None], at))
    right, wrong = found.p_value
    assert wrong == pytest.approx(1 / (1 + PERMUTATIONS))
    assert found.statistic[1] > 3 * found.statistic[0]
    assert right > wrong


def test_shapes_that_do_not_fit_are_refused():
    theta, samples, x, observed, posterior = pairs()
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="must have the same rows"):
        metrics.local_c2st(key, theta, samples[:10], x, observed, posterior)
    with pytest.raises(ValueError, match=r"posterior \(M, L, 2\), got \(2, 2\) and \(1, 200, 2\)"):
        metrics.local_c2st(key, theta, samples, x, observed, posterior[:1])
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        metrics.local_c2st(key, theta, samples, x, observed, posterior, permutations=0)
