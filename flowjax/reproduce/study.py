"""A run of an experiment: trains and measures, and keeps each finished measurement."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowjax.config import Config
from flowjax.errors import ConfigError
from flowjax.files import json_text, written
from flowjax.inference.run import Run
from flowjax.reproduce.results import Measurement, Value
from flowjax.runs import train
from flowjax.training.writers import say

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """Given to the function `run` of an experiment.

    Attributes:
        folder: for workdirs and kept measurements.
        quick: whether to run the quick form.
        seeds: the seeds to measure.
    """

    folder: Path
    quick: bool
    seeds: range

    def measure(self, setting: str, function: Callable[[], Mapping[str, Value]], seed: int = 0) -> Measurement:
        """Calls a function that returns metrics, and keeps its result; a measurement that was kept is not repeated.

        Args:
            setting: the row of the table.
            function: returns metrics by name: numbers, or lists and texts, which are kept but not tabulated.
            seed: the seed of this measurement.
        """
        for kept in self.measurements():
            if (kept.setting, kept.seed) == (setting, seed):
                return kept
        start = time.perf_counter()
        metrics = {name: _plain(value) for name, value in function().items()}
        made = Measurement(setting, seed, round(time.perf_counter() - start, 2), metrics)
        with (self.folder / "measurements.jsonl").open("a") as file:
            file.write(json_text(asdict(made)) + "\n")
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
        of = f"{setting}, seed {seed}" if len(self.seeds) > 1 else setting
        say(f"reproduce: {of}: {numbers}  ({made.seconds:.1f} s)")
        return made

    def measurements(self) -> tuple[Measurement, ...]:
        """The finished measurements."""
        path = self.folder / "measurements.jsonl"
        if not path.exists():
            return ()
        lines = path.read_text().split("\n")[:-1]  # a line that was not finished has no newline
        return tuple(Measurement(**json.loads(line)) for line in lines)

    def arrays(self, name: str, function: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Calls a function that returns arrays for figures, and keeps them; arrays that were kept are read."""
        path = self.folder / "arrays" / f"{name}.npz"
        if not path.exists():
            made: dict[str, Any] = {key: np.asarray(value) for key, value in function().items()}
            with written(path) as part, part.open("wb") as file:
                np.savez_compressed(file, **made)
        with np.load(path) as file:
            return dict(file)

    def train(
        self,
        name: str,
        config: Config | str | Path,
        changes: Mapping[str, Any] | None = None,
    ) -> Run:
        """Trains a run in the folder `runs/NAME` of the study, or opens it if it is finished.

        Args:
            name: the name of the run.
            config: a config, or the name of a shipped one.
            changes: values of config keys that replace those of the config.
        """
        return train(config, self.folder / "runs" / name, changes)

    def begin(self, file: Path) -> None:
        """Creates the folder, and checks that its kept measurements belong to this version of the experiment.

        Raises:
            ConfigError: if the experiment was changed since they were made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, digest = self.folder / "experiment.json", hashlib.sha256(file.read_bytes()).hexdigest()
        now = {"sha256": digest, "quick": self.quick, "device": jax.devices()[0].device_kind}
        if path.exists():
            was = json.loads(path.read_text())
            if was != now:
                key = next(key for key in now if was.get(key) != now[key])
                reason = {
                    "sha256": "experiment.py has changed",
                    "quick": "the other form (with or without --quick) was run there",
                    "device": f"they were made on another device, {was.get('device')}",
                }[key]
                raise ConfigError(
                    f"{self.folder} holds measurements of which a part cannot be continued: {reason}; "
                    "remove the folder or use another --out"
                )
        else:
            with written(path) as part:
                part.write_text(json_text(now) + "\n")


def _plain(value: Any) -> Value:
    """Converts numbers and arrays to what JSON has."""
    if isinstance(value, str) or value is None:
        return value
    array = np.asarray(value)
    return array.tolist() if array.ndim else array.item()
