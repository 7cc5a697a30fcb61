"""The metrics of a run that `flowjax evaluate` keeps in WORKDIR/metrics: one JSON file for each kind of evaluation.

A file names the step of the checkpoint and the settings of the evaluation, so that a repeated evaluation replaces it.
"""

import json
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowjax.config import CADENCE, Config, flatten
from flowjax.files import json_text, written
from flowjax.inference.run import Run
from flowjax.training.workdir import read_config
from flowjax.training.writers import disk_problem, say

__all__ = ["FOLDER", "KeptMetrics", "find_metrics", "keep_metrics", "read_kept"]

FOLDER = "metrics"
"""The folder of the workdir in which metrics are kept."""


@dataclass(frozen=True)
class KeptMetrics:
    """The result of one evaluation.

    Attributes:
        step: of the checkpoint.
        settings: the settings that differ from the defaults of `flowjax evaluate`, by the names of its flags.
        metrics: the metrics by name, with texts that say what they hold for; None for one that is not finite.
        evaluated: the time at which the evaluation ended, in seconds since 1970.
    """

    step: int
    settings: dict[str, Any]
    metrics: dict[str, float | int | str | None]
    evaluated: float


def keep_metrics(run: Run, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Writes the metrics of a run into its workdir, or says on stderr why they cannot be written there.

    Args:
        run: the run that was evaluated.
        settings: the settings that differ from the defaults of `flowjax evaluate`.
        metrics: the result.
    """
    kept = KeptMetrics(run.step, settings, metrics, time.time())
    name = f"step{run.step}-{_crc(settings):08x}.json"
    try:
        with written(run.workdir / FOLDER / name) as part:
            part.write_text(json_text({"config": _fingerprint(run.config.to_dict())} | asdict(kept), indent=2) + "\n")
    except OSError as error:
        say(f"evaluate: the metrics are not kept in {run.workdir / FOLDER}: {disk_problem(error)}")


def read_kept(workdir: Path) -> list[KeptMetrics]:
    """Returns the metrics that are kept in a workdir, the latest ones last. Those of another config are left out."""
    wanted = _fingerprint(read_config(workdir)[0])
    found = []
    for path in sorted((workdir / FOLDER).glob("step*.json")):
        try:
            record = json.loads(path.read_bytes())
            if record.pop("config") == wanted:
                found.append(KeptMetrics(**record))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            say(f"warning: {path} cannot be read, and is left out")
    return sorted(found, key=lambda kept: kept.evaluated)


def find_metrics(workdir: Path, step: int, settings: dict[str, Any]) -> dict[str, float | int | str | None] | None:
    """Returns the metrics that an evaluation of this step with these settings has kept; None if there was none."""
    found = [kept.metrics for kept in read_kept(workdir) if (kept.step, kept.settings) == (step, settings)]
    return found[-1] if found else None


def _fingerprint(config: dict[str, Any] | Config) -> int:
    """A checksum of the keys that make a run what it is; the folder of the data may change."""
    return _crc({key: value for key, value in flatten(config).items() if key not in (*CADENCE, "data.path")})


def _crc(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(json.loads(json_text(value)), sort_keys=True).encode())
