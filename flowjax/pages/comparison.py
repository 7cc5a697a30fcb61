"""The comparison of several runs: differences of their configs, curves on common axes, metrics, and samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax import plots
from flowjax.formatting import NONE, format_duration, format_number
from flowjax.pages.markup import Markup, figure, figure_grid, page, section, table, tag
from flowjax.pages.record import RunRecord, flags_of, label_of, read_run, shown, with_error

__all__ = ["Comparison", "check_different", "compare"]

_DECIDE_THE_LOSS = ("coupling", "data", "method", "path", "prediction", "source")
"""Sections and keys of configs that decide which function the loss is."""


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        html: the page.
        runs: the names of the runs: the last parts of their paths, as many as it takes for all names to differ.
        differences: the values of the config keys that differ, in the order of the runs; None for a key that a run
            does not have.
        last: the step, the losses and the training time (seconds) of the last record of each run.
        metrics: the metrics of the latest evaluation of each run; empty for a run that was not evaluated.
    """

    html: str
    runs: list[str]
    differences: dict[str, list[Any]]
    last: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, Any]]


def compare(workdirs: Sequence[str | Path]) -> Comparison:
    """Compares runs by the files in their workdirs. No checkpoint is opened, and nothing is computed.

    Args:
        workdirs: of at least two runs, which may still be training.

    Raises:
        WorkdirError: if a folder is not the workdir of a run.
        ValueError: if fewer than two different folders are given.
    """
    paths = [Path(workdir) for workdir in workdirs]
    check_different(paths)
    runs = dict(zip(_names(paths), map(read_run, paths), strict=True))
    differences = _differences(list(runs.values()))
    body = [
        section("Runs", _overview(runs)),
        section("Config", _config(list(runs), differences)),
        section("Curves", *_caution(differences), figure_grid(_curves(runs))),
        section("Metrics", *_metrics(runs)),
        section("Samples", figure_grid(_samples(runs), small=True)),
    ]
    keys = ("step", "loss", "val_loss", "time")
    return Comparison(
        page(f"Comparison of {len(runs)} runs", *body),
        list(runs),
        differences,
        {name: {key: run.last.get(key) for key in keys} for name, run in runs.items()},
        {name: dict(run.kept[-1].metrics) if run.kept else {} for name, run in runs.items()},
    )


def check_different(paths: Sequence[Path]) -> None:
    """Raises a ValueError unless these are at least two different folders."""
    if len({path.absolute() for path in paths}) < max(2, len(paths)):
        raise ValueError("a comparison needs at least two different workdirs")


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as it takes for all of them to differ."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path.absolute()) for path in paths]


def _differences(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    configs = [run.config for run in runs]
    values = {key: [config.get(key) for config in configs] for key in dict.fromkeys(k for c in configs for k in c)}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _overview(runs: dict[str, RunRecord]) -> Markup:
    """A line for each run: what it is, how far it is, and its last losses."""
    rows = []
    for name, run in runs.items():
        last, parameters = run.last, run.size.get("parameters")
        network = run.config.get("model.name", "of the method")
        step = format_number(last.get("step")) + (
            "" if run.finished else f" of {format_number(run.config.get('train.steps'))}"
        )
        numbers = [step, format_number(last.get("loss")), format_number(last.get("val_loss"))]
        time = format_duration(last["time"]) if last else NONE
        method = str(run.config.get("method.name"))
        rows.append([name, run.spec.name, method, network, format_number(parameters), *numbers, time])
    header = ("run", "data", "method", "network", "parameters", "step", "training loss", "validation loss", "time")
    return table(header, rows)


def _config(names: Sequence[str], differences: dict[str, list[Any]]) -> Markup:
    """The keys that differ, with a column for each run."""
    if not differences:
        return tag("p", "All keys have the same values.", cls="note")
    rows = [[tag("code", key), *map(shown, values)] for key, values in differences.items()]
    return table(["key", *names], rows)


def _caution(differences: dict[str, list[Any]]) -> list[Markup]:
    """A sentence if the losses of the runs are values of different functions."""
    keys = [key for key in differences if key.partition(".")[0] in _DECIDE_THE_LOSS]
    if not keys:
        return []
    text = (
        f"The runs differ in {', '.join(keys)}, on which the loss depends: a lower loss does not mean a better model."
    )
    return [tag("p", text, cls="note")]


def _curves(runs: dict[str, RunRecord]) -> Iterator[Markup]:
    """A figure for each entry of the records that at least one run has."""
    columns = {key: name for run in runs.values() for key, name in run.columns.items()}
    for key, name in columns.items():
        curves = {label: run.curve(key) for label, run in runs.items() if run.records}
        if any(np.isfinite(values).any() for _, values in curves.values()):
            drawn = plots.training_curves(curves, name, whole=key in ("learning_rate", "samples_per_second"))
            yield figure(plots.to_bytes(drawn, "svg"), "svg", name)


def _metrics(runs: dict[str, RunRecord]) -> list[Markup]:
    """A table for each kind of evaluation: the latest metrics of each run, with a column for each run."""
    kinds: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        for kept in run.kept:  # later ones replace earlier ones
            kinds.setdefault(" ".join(flags_of(kept)), {})[name] = kept
    tables = []
    for text, found in kinds.items():
        metrics = dict.fromkeys(m for kept in found.values() for m in kept.metrics if not m.endswith("_stderr"))
        cells = lambda m, found=found: [with_error(found[n].metrics, m) if n in found else NONE for n in runs]
        steps = [f"{found[n].step:,}" if n in found else NONE for n in runs]
        rows = [["step", *steps], *([label_of(m), *cells(m)] for m in metrics)]
        tables += [tag("p", tag("code", f"flowjax evaluate {text}".strip()), cls="note"), table(["", *runs], rows)]
    return tables or [tag("p", "No run has been evaluated (flowjax evaluate --workdir RUN).", cls="note")]


def _samples(runs: dict[str, RunRecord]) -> Iterator[Markup]:
    """The figures of samples that were drawn at the end of training."""
    for name, run in runs.items():
        path = run.workdir / "plots" / "samples.png"
        if path.exists():
            yield figure(path.read_bytes(), "png", name)
