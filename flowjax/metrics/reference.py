"""Reference statistics of a data set: computed once, kept with their provenance, and computed anew if that differs."""

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

from flowjax.archives import read_npz
from flowjax.metrics.cache import cache_folder, write_npz
from flowjax.metrics.inception import SIDE, Features, Inception, Precision, batches, load_inception
from flowjax.metrics.moments import Moments
from flowjax.metrics.notes import Say, to_stderr

__all__ = ["KEPT", "Reference", "joined", "reference_statistics"]

KEPT = 10_000
"""Images whose features are kept, for KID, precision and recall: as many as in ADM's reference batches."""

_FORMAT = 1
_UNCOMPARED = ("date", "flowjax")


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        provenance: of the images, the weights, the resize and the precision; and when and by which version.
        pooled, spatial: moments of the features of all images.
        features: (K, D) pooled features of at most `KEPT` images, drawn without replacement by a fixed seed.
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
    """The statistics of these images: from the folder if they are there and of the same provenance.

    Args:
        images: pixels 0 to 255, N >= 2.
        name: of the data set and split; names the file.
        network, precision, batch: as for `inception.batches`.
        folder: where they are kept; None for $FLOWJAX_CACHE or ~/.cache/flowjax.
        say: told what is computed, and why.
    """
    network = load_inception() if network is None else network
    wanted = _provenance(images, name, network, precision)
    path = (cache_folder() if folder is None else folder) / f"reference_{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.npz"
    known, reason = _read(path, wanted)
    if known is not None:
        return known
    say(f"reference statistics of {name}: {reason}; {len(images)} images, kept in {path}")
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
        say(f"reference statistics of {name} could not be kept: {error.strerror}: {path}")
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
    """The kept statistics, or None and why they are not taken."""
    if not path.exists():
        return None, "none kept yet"
    try:
        file = read_npz(path)
        kept = json.loads(str(file["provenance"]))
        differ = [k for k in wanted if k not in _UNCOMPARED and kept.get(k) != wanted[k]]
        if differ:
            return None, f"those kept differ in {', '.join(differ)}"
        read = lambda key: Moments(kept["images"], file[f"{key}_mean"], file[f"{key}_scatter"])
        return Reference(kept, read("pooled"), read("spatial"), file["features"]), ""
    except (ValueError, KeyError, AttributeError, RecursionError):  # a damaged file, or JSON that is not an object
        return None, "those kept cannot be read"


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
    """Joined to `size` rows or more: merging moments costs the same whatever the rows."""
    waiting: list[Features] = []
    for part in parts:
        waiting.append(part)
        if sum(len(p.pooled) for p in waiting) >= size:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def joined(parts: Iterable[Features]) -> Features:
    """One after another."""
    return Features(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
