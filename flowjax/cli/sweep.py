"""Train over a grid of config values, and tabulate the results.

usage: flowjax sweep --config FILE|NAME --workdir DIR --grid KEY=VALUES [KEY=VALUES ...] [--config.KEY=VALUE ...]
           [--evaluate] [--metrics NAMES] [--only I | --collect | --dry_run]

VALUES are separated by commas, and 0..4 is 0, 1, 2, 3, 4. Each point of the grid is a run in its own folder of DIR. The
points are trained one after the other; finished runs are not repeated, and a run that fails does not stop the others.
The table has means and standard deviations over `seed`, and is also written to DIR/sweep.json, sweep.csv and sweep.md.
--only I trains only point I, as in a task of a SLURM array (scripts/launch/slurm_sweep.sh). --collect trains nothing,
and makes the table of the runs that exist. --dry_run builds every point without training it, and names the first one
that cannot be trained. A grid has at most 10,000 points.

--evaluate adds the metrics of `flowjax evaluate` to the table: each finished run is evaluated, unless this was done
before with the same settings. --metrics chooses the metrics: those of the data set (nll, kl, w2, ...) and those of
images (fid, kid, ...), which take --num samples. --solver, --steps, --rtol and --atol apply to the evaluation.

example:
  flowjax sweep --config gaussians8 --workdir runs/lr --grid train.lr=1e-3,3e-3 seed=0..2 --metrics kl,w2
"""

import itertools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.arguments import separate
from flowjax.cli import cache, flags, sweep_metrics, sweep_table
from flowjax.cli.cautions import cautions
from flowjax.cli.config_file import read_config
from flowjax.cli.sweep_table import Point, point_name
from flowjax.config import Config, changed, literal, own_plugins

__all__ = ["Runs", "run"]

_MAX_POINTS = 10_000


def run(argv: list[str]) -> dict[str, Any]:
    """Trains the points of the grid, and returns the table."""
    grid, rest = _take_grid(argv)
    values = flags.of_run(trained=False)
    absl_flags.DEFINE_integer(
        "only", None, "train only this point of the grid, counted from 0", lower_bound=0, flag_values=values
    )
    absl_flags.DEFINE_bool(
        "collect", False, "train nothing, and make the table of the runs that exist", flag_values=values
    )
    absl_flags.DEFINE_bool(
        "dry_run", False, "build every point of the grid, print their names, and stop", flag_values=values
    )
    sweep_metrics.define(values)
    config = read_config(values, rest, __doc__ or "")
    request = sweep_metrics.requested(values)
    workdir = Path(flags.require(values, "workdir"))
    if not grid:
        raise flags.UsageError("--grid is required: KEY=VALUES, such as train.lr=1e-3,3e-3 or seed=0..4")
    count = math.prod(map(len, grid.values()))
    if count > _MAX_POINTS:
        raise flags.UsageError(f"--grid has {count:,} points, and at most {_MAX_POINTS:,} are possible")
    points = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    configs = [changed(config, point, plugins=None) for point in points]  # all are checked before the first is run
    folders = [workdir / point_name(point) for point in points]
    if long := next((folder.name for folder in folders if len(folder.name.encode()) > 250), None):
        raise flags.UsageError(f"--grid: {long[:60]}... is too long for the name of a folder: sweep over fewer keys")
    if again := [name for name, times in Counter(folder.name for folder in folders).items() if times > 1]:
        raise flags.UsageError(f"--grid has {again[0]} twice")
    if values.only is not None and values.only >= len(points):
        raise flags.UsageError(f"--only {values.only}: the grid has points 0 to {len(points) - 1}")
    for line in dict.fromkeys(line for config in configs for line in cautions(config)):
        sys.stderr.write(f"sweep: warning: {line}\n")
    if values.dry_run:
        _build_all(configs, folders)
        return {"workdir": str(workdir), "points": [folder.name for folder in folders]}
    chosen = range(len(points)) if values.only is None else [values.only]
    runs = [(configs[i], folders[i]) for i in chosen]
    if not values.collect or request is not None:
        cache.use(values.compilation_cache)
    failed = {} if values.collect else _train(runs)
    metrics: dict[Path, dict[str, Any]] = {}
    if request is not None:
        finished = [run for run in runs if run[1].name not in failed and _last_record(*run)]
        metrics, faults = sweep_metrics.evaluate(finished, request)
    else:
        faults = {}
    result = {"table": _table(points, configs, folders, failed, metrics), "failed": failed | faults}
    names = () if request is None else request.names
    for line in sweep_table.lines(result["table"], names):
        sys.stderr.write(f"{line}\n")
    result["workdir"] = str(workdir)
    if values.only is None:
        sweep_table.write(workdir, result, names)
    return result


def _table(
    points: list[Point],
    configs: list[Config],
    folders: list[Path],
    failed: Container[str],
    metrics: Mapping[Path, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns the rows of the table: the last losses and the metrics of the finished runs, averaged over seeds."""
    results = []
    for point, config, folder in zip(points, configs, folders, strict=True):
        record = None if folder.name in failed else _last_record(config, folder)
        results.append(sweep_table.PointResult(point, record, metrics.get(folder, {})))
    return sweep_table.rows(results)


def _last_record(config: Config, folder: Path) -> dict[str, Any] | None:
    """Returns the last record of a run, or None if the run is not finished."""
    from flowjax.training.writers import read_metrics

    records = read_metrics(folder / "metrics.jsonl")
    return records[-1] if records and records[-1]["step"] >= config.train.steps else None


def _build_all(configs: list[Config], folders: list[Path]) -> None:
    """Builds every point without training it. Points that differ only in their seed are built once.

    Raises:
        UsageError: if a point cannot be trained; the message names the first one.
    """
    from flowjax.build import build, data_arguments, make_augmentation
    from flowjax.data import Dataset, open_dataset
    from flowjax.training.optimizers import optimizer
    from flowjax.training.sharding import make_mesh

    datasets: dict[Any, Dataset] = {}
    built = set()
    for config, folder in zip(configs, folders, strict=True):
        kind = json.dumps(config.to_dict() | {"seed": 0}, sort_keys=True)
        if kind in built:
            continue
        built.add(kind)
        name = data_arguments(config)
        try:
            if name not in datasets:
                datasets[name] = open_dataset(*name, plugins=own_plugins(config))
            build(config, datasets[name].spec, own_plugins(config))
            make_augmentation(config, datasets[name].spec)
            optimizer(config.train)
            make_mesh(config)
        except ValueError as error:  # ConfigError and DataError among them
            raise flags.UsageError(f"{folder.name}: {' '.join(str(error).split())}") from None


def _take_grid(argv: list[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Returns the values of each key after --grid, and the other arguments."""
    grid: dict[str, list[Any]] = {}
    rest: list[str] = []
    taking = False
    for argument in argv:
        if argument == "--grid":
            taking = True
        elif argument.startswith("--grid="):
            _add(grid, argument.removeprefix("--grid="))
        elif taking and not argument.startswith("-"):
            _add(grid, argument)
        else:
            taking = False
            rest.append(argument)
    return grid, rest


def _add(grid: dict[str, list[Any]], text: str) -> None:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise flags.UsageError(f"--grid {text!r} is not KEY=VALUES, such as train.lr=1e-3,3e-3 or seed=0..4")
    if key in grid:
        raise flags.UsageError(f"--grid has the key {key} twice: give all its values at once, separated by commas")
    grid[key] = [value for part in separate(values) for value in _values(part)]


def _values(text: str) -> list[Any]:
    if match := re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})", text):
        numbers = range(int(match[1]), int(match[2]) + 1)
        if len(numbers) > _MAX_POINTS:
            raise flags.UsageError(
                f"--grid {text!r} has {len(numbers):,} values, and at most {_MAX_POINTS:,} are possible"
            )
        if numbers:
            return list(numbers)
        raise flags.UsageError(f"--grid {text!r} is empty: write the smaller number first")
    return [literal(text)]


Runs = list[tuple[Config, Path]]


def _train(runs: Runs) -> dict[str, str]:
    """Trains one run after the other. Returns the reasons of those that failed, by folder."""
    from flowjax.training.writers import say

    failed: dict[str, str] = {}
    for i, run in enumerate(runs, 1):
        if fault := _one(run, len(runs) == 1, f"{i} of {len(runs)}"):
            failed[run[1].name] = fault
            say(f"sweep: {run[1].name} failed: {fault}")
    return failed


def _one(run: tuple[Config, Path], strict: bool, label: str) -> str | None:
    """Trains one run. Returns the reason if it fails, or raises the error if `strict`."""
    from flowjax import runs
    from flowjax.training.loop import Preempted
    from flowjax.training.writers import say

    say(f"sweep: {label}: {run[1].name}")
    try:
        runs.train_workdir(*run)
        return None
    except Preempted:
        raise
    except Exception as error:
        if strict:
            raise
        return " ".join(str(error).split())
