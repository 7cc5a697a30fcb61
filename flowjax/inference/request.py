"""What a call asks for, as JSON: it tells finished batches of one request from those of another."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flowjax import checksums
from flowjax.inference.choose import Guide, SolverSettings
from flowjax.inference.run import Run
from flowjax.training import processes
from flowjax.trees import on_host

__all__ = ["check_same_request", "checksum", "request_of"]


def request_of(run: Run, solver: SolverSettings, guide: Guide | None, **more: Any) -> dict[str, Any]:
    """All that the results depend on, as JSON.

    A checksum identifies the parameters: the folder and the step do not, because the same run may have been trained
    again, and because `--no-ema` and `--width` select other parameters of it.

    Args:
        run, solver, guide: what is solved, and how.
        more: other entries.
    """
    asked: dict[str, Any] = _network("", run) | more
    asked |= {"solver" if name == "name" else name: value for name, value in dataclasses.asdict(solver).items()}
    if guide is None:
        return asked | {"guidance": None}
    asked |= {"guidance": guide.name, "scale": guide.scale, "interval": guide.interval, "rescale": guide.rescale}
    return asked if guide.weak is None else asked | _network("weak ", guide.weak)


def checksum(arrays: Mapping[str, Any]) -> str | None:
    """A checksum of named arrays, their types and shapes; None if there are none."""
    if not arrays:
        return None
    total = 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        total = checksums.of_arrays([array], total)
    return f"{total:08x}"


def check_same_request(request: Mapping[str, Any]) -> None:
    """ConfigError if processes have been asked for different things, or have found another checkpoint."""
    if processes.process_count() > 1:
        processes.check_same("request", dict(request))


def _network(prefix: str, run: Run) -> dict[str, Any]:
    return {
        f"{prefix}run": str(run.workdir.resolve()),
        f"{prefix}checkpoint": run.step,
        f"{prefix}parameters": f"{checksums.of_arrays(map(on_host, jax.tree.leaves(run.arrays))):08x}",
    }
