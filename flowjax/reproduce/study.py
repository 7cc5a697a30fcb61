"""A run of an experiment: trains and measures, and keeps each finished measurement."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowjax.config import Config
from flowjax.errors import ConfigError
from flowjax.files import json_text, written
from flowjax.inference.run import Run
from flowjax.reproduce.results import Measurement, Value
from flowjax.runs import train
from flowjax.training.writers import say

__all__ = ["Study", "Trained", "file_name"]

_MEASUREMENTS = "measurements.jsonl"


class Trained(NamedTuple):
    """A trained run.

    Attributes:
        run: the run.
        seconds: the CPU seconds of its training, and of the call of `changes` before it (`Study.timed`). Of what that
            function keeps itself, such as pairs, it has only the part that was made after the last interruption.
    """

    run: Run
    seconds: float


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
        start, cpu = time.perf_counter(), time.process_time()
        metrics = {name: _plain(value) for name, value in function().items()}
        seconds, cpu_seconds = round(time.perf_counter() - start, 2), round(time.process_time() - cpu, 2)
        made = Measurement(setting, seed, seconds, metrics, cpu_seconds, time.strftime("%Y-%m-%d"))
        with (self.folder / _MEASUREMENTS).open("a") as file:
            file.write(json_text(asdict(made)) + "\n")
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
        of = f"{setting}, seed {seed}" if len(self.seeds) > 1 else setting
        say(f"reproduce: {of}: {numbers}  ({seconds:.1f} s)")
        return made

    def measurements(self) -> tuple[Measurement, ...]:
        """The finished measurements."""
        path = self.folder / _MEASUREMENTS
        return tuple(Measurement(**json.loads(line)) for line in path.read_text().splitlines()) if path.exists() else ()

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
        """Trains a run in the folder `runs/NAME` of the study, or opens it if it is finished. Its plots are not drawn.

        Args:
            name: the name of the run.
            config: a config, or the name of a shipped one.
            changes: values of config keys that replace those of the config.
        """
        return train(config, self.folder / "runs" / name, changes, plots=False)

    def timed(
        self,
        name: str,
        config: Config | str | Path,
        changes: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    ) -> Trained:
        """Trains a run as `train` does, and measures its CPU seconds, which are kept.

        A training that was interrupted starts again, so that the seconds are those of all its steps.

        Args:
            name, config: as for `train`.
            changes: as for `train`, or a function that returns them and first makes what the training needs, such as
                pairs, whose seconds are then counted.

        Returns:
            The run, and the seconds.
        """

        def make() -> Run:
            return self.train(name, config, changes() if callable(changes) else changes)

        def measured() -> dict[str, float]:
            shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)
            start = time.process_time()
            make()
            return {"seconds": time.process_time() - start}

        seconds = float(self.arrays(f"seconds_{name}", measured)["seconds"])
        return Trained(make(), seconds)

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Creates the folder, or checks that its kept measurements can be continued.

        Args:
            identity: what has to be equal, such as the checksum of the experiment and the device.

        Raises:
            ConfigError: if the folder holds something else, or measurements that were made in another way.
        """
        path, now = self.folder / "experiment.json", {**identity, "quick": self.quick}
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(f"{self.folder} is not empty, and does not hold an experiment: use another --out")
            with written(path) as part:
                part.write_text(json_text(now) + "\n")
        was = json.loads(path.read_text())
        if differing := [key for key in now if was.get(key) != now[key]]:
            raise ConfigError(
                f"{self.folder} holds measurements that cannot be continued, because they were made with another "
                f"{' and another '.join(differing)}: remove the folder or use another --out"
            )

    def cut_unfinished_line(self) -> None:
        """Removes the end of a line that a process which was killed has not finished; no other process may write."""
        path = self.folder / _MEASUREMENTS
        if path.exists() and not (text := path.read_text()).endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])


def file_name(*words: object) -> str:
    """The name of a run, an array or a figure of a study: words such as the name of a row, without spaces and commas.

    Args:
        words: what the name consists of, such as a data set, a row and a seed.

    Returns:
        The words, with underscores between them and in place of their spaces.
    """
    return "_".join(map(str, words)).replace(" ", "_").replace(",", "")


def _plain(value: Any) -> Value:
    """Converts numbers and arrays to what JSON has."""
    if isinstance(value, str) or value is None:
        return value
    array = np.asarray(value)
    return array.tolist() if array.ndim else array.item()
