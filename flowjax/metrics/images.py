"""Scores of images against a reference: FID, sFID, KID, precision and recall."""

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
"""A metric from outside: a function of the features (N, 2048) of the samples and (M, 2048) of the reference, and of the
arguments in brackets, that returns a number. Its name is always one that the caller gives, so it allows its module."""

USUAL = 50_000
"""Images that published values of FID are of."""


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names, once each.

    Raises:
        ValueError: one line, for a name that is neither in `METRICS` nor that of a function in the caller's own module.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if is_outside(name):
            find("metrics", name.partition("(")[0].strip(), METRIC, modules_of((name,)))
        else:
            check_name("metric", name, METRICS)
    if not names:
        raise ValueError(f"no metric named (known: {', '.join(METRICS)})")
    return names


def as_rgb(images: UInt8[np.ndarray, "N H W C"], say: Say = to_stderr) -> UInt8[np.ndarray, "N H W 3"]:
    """Three channels: those that there are, or the one of grey images, repeated, with a line that says so."""
    channels = images.shape[-1]
    if channels == 1:
        say("images: one channel, repeated to three for the Inception network")
        return np.repeat(images, 3, -1)
    if channels != 3:
        raise ValueError(f"images of 1 or 3 channels are needed, not {channels}")
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
    """Scores of images.

    Args:
        images: pixels 0 to 255, 1 or 3 channels.
        reference: of `reference_statistics`, with the same weights and precision.
        names: some of `METRICS`, or of your own functions, `my_package.metrics:distance`, which get the features of the
            images and of the reference.
        network, precision, batch: as for `inception.batches`.
        seed: of KID's subsets.
        say: told of few images, with the size of the bias, and of grey ones.
        gather: of several processes, each with a share of the images: the rows of all from those of one. Where moments
            are enough (50,000 images, and no metric of single features) these alone are exchanged.

    Returns:
        fid, sfid: Frechet distances of pooled and spatial features; fid_bias, sfid_bias: by how much they are
            estimated to be too large, where there are fewer than 50,000 images.
        kid, kid_stderr: not multiplied by 1,000. Against the reference's kept features, as are
        precision, recall: k = 3.
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
    # spatial even where it is not asked for: so the program is the one that was compiled for the reference
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
    """The distance; of fewer images than usual the estimate of its bias too, said aloud."""
    if enough:
        return {name: between(Moments.of(rows).over(gather), reference)}
    value, bias = with_bias(rows, reference)
    n, d = rows.shape
    if n < d:  # the covariance is singular, and 1 / N is no small number to extrapolate in
        say(f"{name} of {n} images, fewer than its {d} dimensions: {value:.4g} is too large, by more than {bias:.3g}")
    else:
        say(
            f"{name} of {n} images: {value:.4g} is too large by about {bias:.3g}, so {value - bias:.4g} of infinitely "
            f"many (extrapolated in 1/N); published values are of {USUAL}"
        )
    return {name: value, f"{name}_bias": bias}
