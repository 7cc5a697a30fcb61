"""PSNR, spread and consistency of restored images, against closed forms."""

import math

import numpy as np

from flowjax.data.degrade import Box, Downsample
from flowjax.metrics import psnr, restoration

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=(50, 8, 8, 1))


def test_psnr():
    """An error of 1 everywhere, of a peak of 100, is 40 dB; where it is 10 in a tenth of the pixels, 30 dB."""
    assert math.isclose(psnr(TRUTH + 1, TRUTH, 100), 40)
    where = np.arange(8)[:, None, None] < 4
    assert math.isclose(psnr(TRUTH + np.where(where, 10, 0), TRUTH, 100, where), 20)
    assert psnr(TRUTH, TRUTH, 100) == math.inf


def test_perfect_samples_of_a_normal_distribution():
    """truth and K = 4 samples are independent N(m, s^2): MSE 2 s^2 of a sample, (1 + 1/K) s^2 of the mean, spread s.

    3,200 pixels: the relative errors of the variances are at most sqrt(2 / 3200) = 2.5%; five of them are 0.5 dB.
    """
    mean, s = RNG.normal(size=TRUTH.shape) * 5, 0.7
    truth, samples = mean + s * TRUTH, mean + s * RNG.normal(size=(4, *TRUTH.shape))
    found = restoration(samples, truth, 10.0)
    assert set(found) == {"psnr_sample", "psnr_mean", "sample_spread"}
    assert abs(found["psnr_sample"] - 10 * math.log10(100 / (2 * s**2))) < 0.5
    assert abs(found["psnr_mean"] - 10 * math.log10(100 / (1.25 * s**2))) < 0.5
    assert abs(found["sample_spread"] / s - 1) < 5 * 0.025 / 2


def test_what_was_given():
    down, box = Downsample((8, 8, 1), 4), Box((8, 8, 1), 4)
    found = restoration((TRUTH + 3)[None], TRUTH, 10.0, down(TRUTH), down)
    assert abs(found["consistency"] - 3) < 1e-6
    assert math.isclose(found["psnr_given"], psnr(down(TRUTH), TRUTH, 10.0))
    given = box(TRUTH)
    hole = np.isnan(given)
    found = restoration(np.where(hole, TRUTH - 2, TRUTH + 3)[None], TRUTH, 10.0, given, box)
    assert abs(found["consistency"] - 3) < 1e-6
    assert math.isclose(found["psnr_sample"], 10 * math.log10(100 / 4))
    means = np.nanmean(given, (1, 2), keepdims=True)
    assert math.isclose(found["psnr_given"], 10 * math.log10(100 / np.mean((TRUTH - means)[hole] ** 2)))
