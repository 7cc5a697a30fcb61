"""Scores of images with respect to a reference: FID, sFID, KID, precision and recall."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from flowjax.arguments import make
from flowjax.errors import check_name
from flowjax.metrics.frechet import between, with_bias
from flowjax.metrics.inception import Features, Inception, Precision, batches, load_inception
from flowjax.metrics.kid import kernel_distance
from flowjax.metrics.manifold import precision_recall
from flowjax.metrics.moments import Moments
from flowjax.metrics.notes import Say, to_stderr
from flowjax.metrics.reference import Reference, joined
from flowjax.plugins import Kind, Outside, find, is_outside, modules_of

__all__ = ["METRIC", "METRICS", "USUAL", "as_rgb", "check_names", "score_images"]

METRICS = ("fid", "sfid", "kid", "precision", "recall")

METRIC = Kind("a function of two arrays of features")
"""A metric defined outside the package. It is a function of the features (N, 2048) of the samples, the features
(M, 2048) of the reference and the arguments given in parentheses after its name, and returns a number. Only the caller
can name such a metric, so naming it also permits the import of its module."""

USUAL = 50_000
"""The number of images from which published FID values are computed."""


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Checks the names of metrics and removes duplicates.

    Raises:
        ValueError: if a name is neither in `METRICS` nor that of a function `my_package.metrics:distance`, or if there
            are no names.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if is_outside(name):
            find("metrics", name.partition("(")[0].strip(), METRIC, modules_of((name,)))
        else:
            check_name("metric", name, METRICS)
    if not names:
        raise ValueError(f"at least one metric must be named (known: {', '.join(METRICS)})")
    return names


def as_rgb(images: UInt8[np.ndarray, "N H W C"], say: Say = to_stderr) -> UInt8[np.ndarray, "N H W 3"]:
    """Images with three channels. The channel of grey images is repeated, which is reported by `say`.

    Raises:
        ValueError: if the images have neither 1 nor 3 channels.
    """
    channels = images.shape[-1]
    if channels == 1:
        say("images: the grey channel is repeated to three for the Inception network")
        return np.repeat(images, 3, -1)
    if channels != 3:
        raise ValueError(f"images must have 1 or 3 channels, not {channels}")
    return images


def score_images(
    images: UInt8[np.ndarray, "N H W C"],
    reference: Reference,
    names: Sequence[str] = METRICS,
    *,
    network: Inception | None = None,
    precision: Precision = "highest",
    batch: int = 0,
    seed: int = 0,
    say: Say = to_stderr,
    gather: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> dict[str, float]:
    """Computes scores of images with respect to a reference.

    Args:
        images: pixel values 0 to 255 with 1 or 3 channels.
        reference: the result of `reference_statistics` with the same weights and precision.
        names: names from `METRICS`, or user-defined functions `my_package.metrics:distance` of the features of the
            images and of the reference.
        network, precision, batch: as in `inception.batches`.
        seed: the seed of the random subsets for KID.
        say: called with notes for the user: on grey images, and on the bias if there are few images.
        gather: if several processes have part of the images each, a function that maps an array of one process to the
            concatenated arrays of all processes. If there are at least 50,000 images and only fid and sfid are
            computed, it exchanges moments and not features.

    Returns:
        A dictionary with the requested scores:
            fid, sfid: the Frechet distances of pooled and of spatial features. With fewer than 50,000 images, fid_bias
                and sfid_bias estimate by how much they are too large.
            kid, kid_stderr: not multiplied by 1,000; computed from the stored features of the reference.
            precision, recall: with k = 3 neighbours; computed from the stored features of the reference.

    Raises:
        ValueError: if a name is unknown, there are fewer than 4 images in total, or the reference was computed with
            other weights or another precision.
    """
    names = check_names(names)
    num = int(gather(np.array([len(images)])).sum())
    if num < 4:
        raise ValueError(f"image metrics need at least 4 images, got {num}")
    network = load_inception() if network is None else network
    for key, value in (("weights_sha256", network.checksum), ("precision", precision)):
        if reference.provenance[key] != value:
            raise ValueError(f"the reference was computed with another {key}: {reference.provenance[key]}, not {value}")
    images = as_rgb(images, say)
    # Spatial features are always computed, so that the program compiled for the reference is used again.
    features = joined(batches(images, batch, network=network, precision=precision, spatial=True, say=say))
    result: dict[str, float] = {}
    enough = num >= USUAL
    if not enough or not {"fid", "sfid"}.issuperset(names):
        features = Features(*(gather(rows) for rows in features))
        gather = lambda rows: rows
    if "fid" in names:
        result |= _frechet("fid", features.pooled, reference.pooled, say, enough, gather)
    if "sfid" in names:
        result |= _frechet("sfid", features.spatial, reference.spatial, say, enough, gather)
    if "kid" in names:
        result["kid"], result["kid_stderr"] = kernel_distance(features.pooled, reference.features, seed=seed)
    if "precision" in names or "recall" in names:
        found = precision_recall(reference.features, features.pooled)._asdict()
        result |= {name: found[name] for name in ("precision", "recall") if name in names}
    for name in filter(is_outside, names):
        outside = Outside(METRIC, modules_of((name,)), (features.pooled, reference.features))
        result[name] = float(make("metrics", name, {}, outside=outside))
    return result


def _frechet(
    name: str,
    rows: Float[np.ndarray, "N D"],
    reference: Moments,
    say: Say,
    enough: bool,
    gather: Callable[[np.ndarray], np.ndarray],
) -> dict[str, float]:
    """The Frechet distance. With fewer images than `USUAL`, its estimated bias is returned and reported as well."""
    if enough:
        return {name: between(Moments.of(rows).over(gather), reference)}
    value, bias = with_bias(rows, reference)
    n, d = rows.shape
    if n < d:  # the covariance is singular, and N is too small to extrapolate in 1 / N
        say(f"{name} of {n} images, fewer than its {d} dimensions: {value:.4g} is too large, by more than {bias:.3g}")
    else:
        say(
            f"{name} of {n} images: {value:.4g} is too large by about {bias:.3g}; infinitely many images would give "
            f"about {value - bias:.4g} (extrapolated in 1/N), and published values are of {USUAL} images"
        )
    return {name: value, f"{name}_bias": bias}
