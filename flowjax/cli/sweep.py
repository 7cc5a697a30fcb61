"""Train over a grid of config values, and tabulate the results.

usage: flowjax sweep --config FILE|NAME --workdir DIR --grid KEY=VALUES [KEY=VALUES ...] [--config.KEY=VALUE ...]
           [--only I | --collect | --dry_run]

VALUES are separated by commas, and 0..4 is 0, 1, 2, 3, 4. Each point of the grid is a run in its own folder of DIR. The
points are trained one after the other; finished runs are not repeated, and a run that fails does not stop the others.
The table averages over `seed`, and is also written to DIR/sweep.json. --only I trains only point I, as in a task of a
SLURM array (scripts/launch/slurm_sweep.sh). --collect trains nothing, and makes the table of the runs that exist.
--dry_run builds every point without training it, and names the first one that cannot be trained. A grid has at most
10,000 points.

example:
  flowjax sweep --config gaussians8 --workdir runs/lr --grid train.lr=1e-3,3e-3 seed=0..2 --config.train.steps=2000
"""

import itertools
import json
import math
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.arguments import separate
from flowjax.cli import flags
from flowjax.cli.cautions import cautions
from flowjax.cli.config_file import read_config
from flowjax.config import Config, changed, literal, own_plugins
from flowjax.files import json_text, written

__all__ = ["Point", "Runs", "run"]

_MAX_POINTS = 10_000

Point = dict[str, Any]
"""A value for each key of the grid."""


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
    config = read_config(values, rest, __doc__ or "")
    workdir = Path(flags.require(values, "workdir"))
    if not grid:
        raise flags.UsageError("--grid is required: KEY=VALUES, such as train.lr=1e-3,3e-3 or seed=0..4")
    count = math.prod(map(len, grid.values()))
    if count > _MAX_POINTS:
        raise flags.UsageError(f"--grid has {count:,} points, and at most {_MAX_POINTS:,} are possible")
    points = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    configs = [changed(config, point, plugins=None) for point in points]  # all are checked before the first is run
    folders = [workdir / _name(point) for point in points]
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
    failed = {}
    if not values.collect:
        chosen = range(len(points)) if values.only is None else [values.only]
        failed = _train([(configs[i], folders[i]) for i in chosen], values.compilation_cache)
    result = _collect(points, configs, folders, failed) | {"workdir": str(workdir)}
    if values.only is None:
        with written(workdir / "sweep.json") as part:
            part.write_text(json_text(result, indent=2) + "\n")
    return result


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


def _name(point: Point) -> str:
    """Returns the folder of a point, such as train.lr=0.001,seed=0."""
    return re.sub(r"[^\w.,=()+-]", "_", ",".join(f"{key}={value}" for key, value in point.items()))


Runs = list[tuple[Config, Path]]


def _train(runs: Runs, cache_folder: str | None) -> dict[str, str]:
    """Trains one run after the other. Returns the reasons of those that failed, by folder."""
    from flowjax.cli import cache
    from flowjax.training.writers import say

    cache.use(cache_folder)
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


def _collect(points: list[Point], configs: list[Config], folders: list[Path], failed: dict[str, str]) -> dict[str, Any]:
    """Prints and returns the last losses of the finished runs of each point, averaged over seeds."""
    from flowjax.training.writers import read_metrics, say

    groups: dict[str, list[tuple[dict[str, Any], Path]]] = {}
    for point, config, folder in zip(points, configs, folders, strict=True):
        records = read_metrics(folder / "metrics.jsonl")
        group = _name({key: value for key, value in point.items() if key != "seed"}) or "all"
        groups.setdefault(group, [])
        if records and records[-1]["step"] >= config.train.steps and folder.name not in failed:
            groups[group].append((records[-1], folder))
    rows = []
    for group, found in groups.items():
        row: dict[str, Any] = {"point": group, "runs": len(found)}
        for key in ("step", "loss", "val_loss"):
            numbers = [math.nan if record[key] is None else record[key] for record, _ in found]
            row[key] = statistics.fmean(numbers) if numbers else None
            if key != "step":
                row[f"{key}_std"] = (
                    statistics.stdev(numbers) if len(numbers) > 1 and all(map(math.isfinite, numbers)) else None
                )
        rows.append(row)
    width = max(len(row["point"]) for row in rows)
    text = lambda mean, std: "-" if mean is None else f"{mean:.5g}" + ("" if std is None else f" +- {std:.2g}")
    say(f"{'point':<{width}}  runs  {'loss':<20}  validation loss")
    for row in rows:
        loss, val = (text(row[key], row[f"{key}_std"]) for key in ("loss", "val_loss"))
        say(f"{row['point']:<{width}}  {row['runs']:>4}  {loss:<20}  {val}")
    return {"table": rows, "failed": failed}
