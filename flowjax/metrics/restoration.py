"""Metrics of images that are restored from others: distances of samples to the truth, and to what was given.

The peak signal-to-noise ratio is PSNR = 10 log10(peak^2 / MSE) in decibels, where MSE is the mean over all images. A
sample of the posterior p(x | y) has, on average, twice the mean squared error of the posterior mean, which is the best
possible one: its PSNR is 3.0 dB lower. So a higher PSNR does not mean better samples (Blau & Michaeli 2018,
arXiv:1711.06077).
"""

import math
from collections.abc import Callable

import numpy as np

__all__ = ["psnr", "restoration"]


def psnr(x: np.ndarray, truth: np.ndarray, peak: float | int, where: np.ndarray | None = None) -> float:
    """The peak signal-to-noise ratio of images in decibels, for the mean square over all images.

    Args:
        x, truth: images of shapes that broadcast against each other.
        peak: the largest possible difference of two pixels: 255 for 8 bits.
        where: the pixels that count, as bools; None for all.
    """
    square = (np.asarray(x, np.float64) - np.asarray(truth, np.float64)) ** 2
    mean = float(square.mean() if where is None else square[np.broadcast_to(where, square.shape)].mean())
    return math.inf if mean == 0 else 10 * math.log10(peak**2 / mean)


def restoration(
    samples: np.ndarray,
    truth: np.ndarray,
    peak: float | int,
    given: np.ndarray | None = None,
    degrade: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, float]:
    """Compares samples with the truth and with what was given.

    If pixels of `given` are missing, the distances to the truth are those in the missing pixels only.

    Args:
        samples: (K, N, H, W, C), K samples for each row.
        truth: (N, H, W, C).
        peak: the largest possible difference of two pixels: 255 for 8 bits.
        given: (N, H, W, C) the degraded images, in the units of the truth, with NaN in missing pixels; or None.
        degrade: the operator that made `given` of the truth, or None.

    Returns:
        psnr_sample: PSNR of single samples.
        psnr_mean: PSNR of the mean of the K samples of each row.
        psnr_given: PSNR of `given` itself, with missing pixels replaced by the mean of the others of the image.
        sample_spread: the root of the mean over pixels and rows of the variance of the K samples (divided by K - 1), if
            K > 1. It equals the error of the posterior mean if samples and truth have the same distribution.
        consistency: the root mean square of degrade(sample) - given, over the pixels that are given.
        All but the PSNRs are in the units of the truth. What needs an argument that is None is absent.
    """
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    missing = None if given is None or not np.isnan(given).any() else np.isnan(given)
    of = lambda x: psnr(x, truth, peak, missing)
    found = {"psnr_sample": of(samples), "psnr_mean": of(samples.mean(0))}
    if given is not None:
        filled = np.where(np.isnan(given), np.nanmean(given, (1, 2), keepdims=True), given)
        found["psnr_given"] = of(filled)
    if len(samples) > 1:
        variance = samples.var(0, ddof=1)
        found["sample_spread"] = float(np.sqrt((variance if missing is None else variance[missing]).mean()))
    if given is not None and degrade is not None:
        again = np.stack([degrade(images.astype(np.float32)) for images in samples])
        found["consistency"] = float(np.sqrt(np.nanmean((again - given) ** 2)))
    return found
