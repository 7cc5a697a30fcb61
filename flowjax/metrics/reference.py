"""Reference statistics of a data set, which are stored with their provenance and recomputed if it differs."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from flowjax.archives import read_npz, write_npz
from flowjax.metrics.cache import cache_folder
from flowjax.metrics.inception import SIDE, Features, Inception, Precision, batches, load_inception
from flowjax.metrics.moments import Moments
from flowjax.metrics.notes import Say, to_stderr

__all__ = ["KEPT", "Reference", "joined", "reference_statistics"]

KEPT = 10_000
"""The number of images whose features are stored for KID, precision and recall, as in ADM's reference batches."""

_FORMAT = 1
_UNCOMPARED = ("date", "flowjax")


@dataclass(frozen=True)
class Reference:
    """The statistics of a data set with which samples are compared.

    Attributes:
        provenance: checksums of the images and of the weights, the resize, the precision, the date and the version.
        pooled, spatial: the moments of the pooled and of the spatial features of all images.
        features: (K, D) pooled features of at most `KEPT` images, sampled without replacement with a fixed seed.
    """

    provenance: dict[str, Any]
    pooled: Moments = field(repr=False)
    spatial: Moments = field(repr=False)
    features: Float[np.ndarray, "K D"] = field(repr=False)


def reference_statistics(
    images: UInt8[np.ndarray, "N H W 3"],
    name: str,
    *,
    network: Inception | None = None,
    precision: Precision = "highest",
    batch: int = 0,
    folder: Path | None = None,
    say: Say = to_stderr,
) -> Reference:
    """The reference statistics of images. They are read from a file if it has the same provenance, else computed.

    Args:
        images: pixel values 0 to 255, (N, H, W, 3) with N >= 2.
        name: the name of the data set and split, from which the file name is made.
        network, precision, batch: as in `inception.batches`.
        folder: the folder of the file; None for $FLOWJAX_CACHE or ~/.cache/flowjax.
        say: called with notes for the user, for example on why statistics are computed.

    Raises:
        ValueError: if there are fewer than two images.
    """
    network = load_inception() if network is None else network
    wanted = _provenance(images, name, network, precision)
    path = (cache_folder() if folder is None else folder) / f"reference_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.npz"
    known, reason = _read(path, wanted)
    if known is not None:
        return known
    say(f"reference statistics of {name}: {reason}; computed from {len(images)} images and stored in {path}")
    found = _compute(
        images, wanted, batches(images, batch, network=network, precision=precision, spatial=True, say=say)
    )
    arrays = {"provenance": np.array(json.dumps(found.provenance)), "features": found.features}
    for key in ("pooled", "spatial"):
        moments: Moments = getattr(found, key)
        arrays |= {f"{key}_mean": moments.mean, f"{key}_scatter": moments.scatter}
    try:
        write_npz(path, arrays)
    except OSError as error:
        say(f"reference statistics of {name} could not be stored: {error.strerror}: {path}")
    return found


def _provenance(images: np.ndarray, name: str, network: Inception, precision: Precision) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "name": name,
        "images": len(images),
        "shape": list(images.shape[1:]),
        "images_sha256": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "weights_sha256": network.checksum,
        "resize": f"TensorFlow 1 bilinear to {SIDE}",
        "precision": precision,
        "kept": min(KEPT, len(images)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "flowjax": _version(),
    }


def _version() -> str | None:
    try:
        return metadata.version("flowjax-research")
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path, wanted: dict[str, Any]) -> tuple[Reference | None, str]:
    """The stored statistics and "", or None and the reason why there are none."""
    if not path.exists():
        return None, "none stored yet"
    try:
        file = read_npz(path)
        kept = json.loads(str(file["provenance"]))
        differ = [k for k in wanted if k not in _UNCOMPARED and kept.get(k) != wanted[k]]
        if differ:
            return None, f"the stored ones differ in {', '.join(differ)}"
        read = lambda key: Moments(kept["images"], file[f"{key}_mean"], file[f"{key}_scatter"])
        return Reference(kept, read("pooled"), read("spatial"), file["features"]), ""
    except (ValueError, KeyError, AttributeError, RecursionError):  # a damaged file, or JSON that is not an object
        return None, "the stored ones cannot be read"


def _compute(images: np.ndarray, provenance: dict[str, Any], parts: Iterable[Features]) -> Reference:
    rows = np.sort(np.random.default_rng(0).choice(len(images), provenance["kept"], replace=False))
    pooled: Moments | None = None
    spatial: Moments | None = None
    features, start = [], 0
    for part in _gathered(parts):
        stop = start + len(part.pooled)
        features.append(part.pooled[rows[(rows >= start) & (rows < stop)] - start])
        more = Moments.of(part.pooled), Moments.of(part.spatial)
        pooled = pooled.merge(more[0]) if pooled else more[0]
        spatial = spatial.merge(more[1]) if spatial else more[1]
        start = stop
    if pooled is None or spatial is None or pooled.count < 2:
        raise ValueError(f"reference statistics need at least two images, got {len(images)}")
    return Reference(provenance, pooled, spatial, np.concatenate(features))


def _gathered(parts: Iterable[Features], size: int = 4096) -> Iterator[Features]:
    """Joins consecutive parts to parts of at least `size` rows, because merging moments has a cost per part."""
    waiting: list[Features] = []
    for part in parts:
        waiting.append(part)
        if sum(len(p.pooled) for p in waiting) >= size:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def joined(parts: Iterable[Features]) -> Features:
    """Concatenates parts along the first axis."""
    return Features(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
