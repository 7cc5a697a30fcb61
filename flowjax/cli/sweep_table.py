"""The table of a sweep: means and standard deviations over seeds, on stderr, as CSV and as Markdown."""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowjax.files import json_text, written
from flowjax.formatting import format_mean

__all__ = ["Point", "PointResult", "lines", "markdown", "point_name", "rows", "write"]

Point = dict[str, Any]
"""A value for each key of the grid."""

_LOSSES = ("loss", "val_loss")
_TITLES = {"val_loss": "validation loss"}
_USUAL = ("nll", "bits_per_dim", "kl", "w2", "mmd", "npe", "c2st")
"""The metrics that are shown if none are named; the files JSON and CSV have all."""


@dataclass(frozen=True)
class PointResult:
    """What is known about a point of the grid.

    Attributes:
        point: its values.
        record: the last record of its `metrics.jsonl`; None if the run is not finished.
        metrics: its metrics by name; empty if it was not evaluated.
    """

    point: Point
    record: dict[str, Any] | None
    metrics: dict[str, float | int | str | None] = field(default_factory=dict)


def point_name(point: Point) -> str:
    """Returns the name of the folder of a point, such as train.lr=0.001,seed=0."""
    return re.sub(r"[^\w.,=()+-]", "_", ",".join(f"{key}={value}" for key, value in point.items()))


def rows(results: Sequence[PointResult]) -> list[dict[str, Any]]:
    """Returns the rows of the table: one for each combination of the values of the keys other than `seed`.

    Each has the `point`, its `values`, the number of finished `runs`, the means `step`, `loss` and `val_loss`, the
    standard deviations `loss_std` and `val_loss_std`, the numbers of runs `loss_runs` and `val_loss_runs` that have the
    loss, and `metrics`: by name the `mean`, the standard deviation `std` and the number of `runs` that have the metric.
    Numbers that are not finite count as missing. A mean is None if no run has the number, and a standard deviation if
    fewer than two have it.
    """
    groups: dict[str, list[PointResult]] = {}
    for result in results:
        values = {key: value for key, value in result.point.items() if key != "seed"}
        groups.setdefault(point_name(values) or "all", []).append(result)
    return [_row(name, found) for name, found in groups.items()]


def _row(name: str, results: list[PointResult]) -> dict[str, Any]:
    finished = [result for result in results if result.record is not None]
    records = [result.record for result in finished if result.record is not None]
    chosen = {key: value for key, value in results[0].point.items() if key != "seed"}
    row: dict[str, Any] = {"point": name, "values": chosen, "runs": len(records)}
    row["step"] = statistics.fmean(record["step"] for record in records) if records else None
    for key in _LOSSES:
        spread = _spread(record[key] for record in records)
        row |= {key: spread["mean"], f"{key}_std": spread["std"], f"{key}_runs": spread["runs"]}
    names = dict.fromkeys(metric for result in finished for metric in result.metrics)
    row["metrics"] = {name: _spread(result.metrics.get(name) for result in finished) for name in names}
    return row


def _spread(numbers: Iterable[float | int | str | None]) -> dict[str, Any]:
    """The mean, the standard deviation and the number of those that are finite; None for what is undefined.

    Texts, such as the name of a dequantisation, are left out.
    """
    known = [number for number in numbers if isinstance(number, float | int) and math.isfinite(number)]
    mean, std = statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None
    return {"mean": mean, "std": std, "runs": len(known)}


def lines(table: Sequence[dict[str, Any]], metrics: Iterable[str] = ()) -> list[str]:
    """Returns the table as aligned lines of text, and a line where there is only one seed.

    Args:
        table: from `rows`.
        metrics: the metrics to show; the usual ones if empty.
    """
    header, cells = _cells(table, metrics, lambda row: [row["point"]], ["point"], " +- ")
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (header, *cells)
    ]
    return [*(line.rstrip() for line in padded), *_notes(table)]


def markdown(table: Sequence[dict[str, Any]], metrics: Iterable[str] = ()) -> str:
    """Returns the table in Markdown, with a column for each key of the grid; the arguments are those of `lines`."""
    keys = list(table[0]["values"])
    header, cells = _cells(table, metrics, lambda row: [f"`{row['values'][key]}`" for key in keys], keys, " ± ")
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *cells)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in escaped), *(f"\n{note}" for note in _notes(table)), ""])


def write(workdir: Path, result: dict[str, Any], metrics: Iterable[str]) -> None:
    """Writes the result of a sweep into the files sweep.json, sweep.csv and sweep.md of its folder.

    Args:
        workdir: the folder of the sweep.
        result: the result that the command prints, with the rows in `table`.
        metrics: the metrics to show in the table in Markdown; the usual ones if empty.
    """
    files = {"json": json_text(result, indent=2) + "\n", "csv": _csv(result["table"])}
    files["md"] = markdown(result["table"], metrics)
    for suffix, text in files.items():
        with written(workdir / f"sweep.{suffix}") as part:
            part.write_text(text)


def _csv(table: Sequence[dict[str, Any]]) -> str:
    """The table as CSV, with a column for each key of the grid, and three for each metric."""
    names = dict.fromkeys(metric for row in table for metric in row["metrics"])
    flat = []
    for row in table:
        line = row["values"] | {key: value for key, value in row.items() if key not in ("point", "values", "metrics")}
        for name in names:
            one = row["metrics"].get(name, _spread(()))
            line |= {name: one["mean"], f"{name}_std": one["std"], f"{name}_runs": one["runs"]}
        flat.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _cells(
    table: Sequence[dict[str, Any]],
    metrics: Iterable[str],
    start: Callable[[dict[str, Any]], list[str]],
    titles: list[str],
    sign: str,
) -> tuple[list[str], list[list[str]]]:
    """The header and the lines of the table as text. `start` makes the first cells of a line, which have `titles`."""
    known = dict.fromkeys(metric for row in table for metric in row["metrics"])
    shown = list(metrics) or [name for name in _USUAL if name in known] if known else []
    cells = []
    for row in table:
        losses = [_cell(row[key], row[f"{key}_std"], row[f"{key}_runs"], row["runs"], sign) for key in _LOSSES]
        found = [row["metrics"].get(name, _spread(())) for name in shown]
        others = [_cell(one["mean"], one["std"], one["runs"], row["runs"], sign) for one in found]
        cells.append([*start(row), str(row["runs"]), *losses, *others])
    return [*titles, "runs", *(_TITLES.get(key, key) for key in (*_LOSSES, *shown))], cells


def _cell(mean: float | None, std: float | None, runs: int, finished: int, sign: str) -> str:
    """A mean with its standard deviation as text, and the number of its runs in brackets if others are missing."""
    return format_mean(mean, std, sign) + (f" ({runs})" if 0 < runs < finished else "")


def _notes(table: Sequence[dict[str, Any]]) -> list[str]:
    """A line about rows of one run, which have no standard deviation."""
    single = sum(row["runs"] == 1 for row in table)
    if not single:
        return []
    which = "Each point has" if single == len(table) else f"{single} of {len(table)} points have"
    return [f"{which} one finished run, and so no standard deviation: add seeds to the grid, such as seed=0..4."]
