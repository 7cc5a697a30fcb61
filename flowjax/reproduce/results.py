"""Results of experiments: what was measured, its table in Markdown, and the comparison with expected values."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.errors import ConfigError
from flowjax.files import json_text, written
from flowjax.formatting import format_duration, format_mean

__all__ = ["Measurement", "Results", "deviations", "markdown_table", "read_results", "write_results"]

Value = int | float | list[Any] | str | None


@dataclass(frozen=True)
class Measurement:
    """The metrics of one setting for one seed.

    Attributes:
        setting: the row of the table.
        seed: the seed.
        seconds: the time that the measurement took since the command was last started; None if it is not known.
        metrics: numbers by name; None stands for a number that is not finite. Lists and texts are kept, but are not
            tabulated.
        cpu_seconds: the time of all threads of this process; None if it is not known.
        date: as YYYY-MM-DD; "" if it is not known.
    """

    setting: str
    seed: int
    seconds: float | None
    metrics: Mapping[str, Value]
    cpu_seconds: float | None = None
    date: str = ""


@dataclass(frozen=True)
class Results:
    """All measurements of one form of an experiment.

    Attributes:
        experiment: its name.
        quick: whether this is the quick form.
        machine: the device and its number, such as "1 x NVIDIA H200" or "2 CPU cores".
        versions: versions of the packages.
        date: of the last measurement, as YYYY-MM-DD.
        seconds: the sum of the times of the measurements.
        measurements: in the order in which they were made.
    """

    experiment: str
    quick: bool
    machine: str
    versions: Mapping[str, str]
    date: str
    seconds: float
    measurements: tuple[Measurement, ...]

    @property
    def settings(self) -> list[str]:
        """The settings, in the order in which they were measured."""
        return list(dict.fromkeys(m.setting for m in self.measurements))

    def seeds(self, setting: str) -> list[int]:
        """The seeds of a setting."""
        return [m.seed for m in self.measurements if m.setting == setting]

    def values(self, setting: str, metric: str) -> list[float]:
        """The numbers of a metric, one for each seed that has it; NaN where a number was not finite."""
        found = [m.metrics[metric] for m in self.measurements if m.setting == setting and metric in m.metrics]
        return [math.nan if v is None else float(v) for v in found if v is None or isinstance(v, int | float)]

    def mean(self, setting: str, metric: str) -> float:
        """The mean of a metric over the seeds; NaN if it was not measured, or was not finite for a seed."""
        values = self.values(setting, metric)
        return statistics.fmean(values) if values else math.nan

    def deviation(self, setting: str, metric: str) -> float:
        """The standard deviation of a metric over the seeds; 0 for a single seed."""
        values = self.values(setting, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def series(self, setting: str, metric: str) -> list[Any]:
        """A metric that is a list, of the first seed that has it."""
        found = (m.metrics.get(metric) for m in self.measurements if m.setting == setting)
        return next(v for v in found if isinstance(v, list))


def write_results(path: Path, results: Results) -> None:
    """Writes results as JSON, one line per measurement."""
    record = asdict(results)
    lines = ",\n  ".join(json_text(m) for m in record.pop("measurements"))
    head = json_text(record)[1:-1]
    with written(path) as part:
        part.write_text(f'{{{head},\n "measurements": [\n  {lines}\n ]}}\n')


def read_results(path: Path) -> Results:
    """Reads results that `write_results` wrote.

    Raises:
        ConfigError: if the file is not one of these.
    """
    try:
        record = json.loads(path.read_text())
        measurements = tuple(Measurement(**m) for m in record.pop("measurements"))
        return Results(**record, measurements=measurements)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as results of an experiment: {error}") from None


def markdown_table(
    results: Results, columns: Mapping[str, str], published: Mapping[str, Mapping[str, float | str]]
) -> str:
    """The table of an experiment: published and own values with their spread, seeds, time and machine.

    Args:
        results: what was measured.
        columns: headings by metric, in order.
        published: published values by setting and metric; metrics without any get no column for them.
    """
    shown = [metric for metric in columns if any(results.values(setting, metric) for setting in results.settings)]
    heads, compared = ["setting"], [m for m in shown if any(m in row for row in published.values())]
    for metric in shown:
        heads += [f"{columns[metric]}, published", "ours"] if metric in compared else [columns[metric]]
    heads += ["seeds", "seconds"]
    rows = [heads, ["---"] * len(heads)]
    for setting in results.settings:
        cells = [setting]
        for metric in shown:
            if metric in compared:
                value = published.get(setting, {}).get(metric, "")
                cells.append(value if isinstance(value, str) else f"{value:g}")
            cells.append(_with_spread(results, setting, metric))
        times = [m.seconds for m in results.measurements if m.setting == setting and m.seconds is not None]
        took = statistics.fmean(times) if times else None
        shown_time = "" if took is None else f"{took:.0f}" if took >= 10 else f"{took:.1f}"
        rows.append([*cells, str(len(results.seeds(setting))), shown_time])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items() if name == "jax")
    several = max(len(results.seeds(setting)) for setting in results.settings) > 1
    spread = "Mean ± standard deviation over the seeds" if several else "A single seed"
    used = [m.cpu_seconds for m in results.measurements if m.cpu_seconds is not None]
    cpu = f", {format_duration(sum(used))} of CPU time" if len(used) == len(results.measurements) else ""
    return (
        f"{table}\n\n{spread}; seconds per setting and seed. Machine: {results.machine}, {versions}, {results.date}; "
        f"{format_duration(results.seconds)} in all{cpu}."
    )


def _with_spread(results: Results, setting: str, metric: str) -> str:
    values, mean = results.values(setting, metric), results.mean(setting, metric)
    if len(values) > 1 and math.isfinite(mean):
        return format_mean(mean, results.deviation(setting, metric))
    return f"{mean:.4g}" if values else ""


def deviations(results: Results, expected: Mapping[str, Mapping[str, list[int | float]]]) -> list[str]:
    """Compares the means over the seeds with expected values.

    Args:
        results: what was measured.
        expected: [value, tolerance] by setting and metric.

    Returns:
        One line for each value that is missing or differs by more than its tolerance.
    """
    lines = []
    for setting, metrics in expected.items():
        for metric, (value, tolerance) in metrics.items():
            mean = results.mean(setting, metric)
            if not abs(mean - value) <= tolerance:
                what = f"is {mean:.5g}" if results.values(setting, metric) else "was not measured"
                lines.append(f"{setting}: {metric} {what}; expected {value:g} ± {tolerance:g}")
    return lines
