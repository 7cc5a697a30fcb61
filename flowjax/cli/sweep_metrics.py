"""Evaluates the finished runs of a sweep, and keeps their metrics as `flowjax evaluate` does."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from flowjax.arguments import separate
from flowjax.cli import flags
from flowjax.config import Config, own_plugins

if TYPE_CHECKING:
    from flowjax.inference.choose import SolverSettings

__all__ = ["MetricsRequest", "define", "evaluate", "requested"]

_SOLVER = ("solver", "rtol", "atol", "steps")


@dataclass(frozen=True)
class MetricsRequest:
    """The metrics that are computed for the runs of a sweep.

    Attributes:
        names: the metrics that the table shows; empty for the usual ones of the data set.
        of_data: whether the metrics of the data set are computed.
        of_images: the metrics of images.
        num: the number of samples for metrics of images.
        solver: of the evaluation.
        settings: by the kind of metrics ("of_data", "of_images"), the settings under which they are kept.
    """

    names: tuple[str, ...]
    of_data: bool
    of_images: tuple[str, ...]
    num: int
    solver: "SolverSettings"
    settings: dict[str, dict[str, Any]]


def define(values: absl_flags.FlagValues) -> None:
    """Defines the flags that choose the metrics."""
    absl_flags.DEFINE_bool("evaluate", False, "also evaluate the finished runs", flag_values=values)
    names = "evaluate the finished runs by these metrics, with commas between, such as kl,w2 or fid,kid"
    absl_flags.DEFINE_string("metrics", None, names, flag_values=values)
    absl_flags.DEFINE_integer("num", 50_000, "number of samples for metrics of images, at least 4", flag_values=values)
    flags.define_solver(values)


def requested(values: absl_flags.FlagValues) -> MetricsRequest | None:
    """Returns the metrics that the flags choose; None if the runs are not evaluated.

    Raises:
        UsageError: if a metric is unknown, a solver cannot be used, or a flag has no meaning without --evaluate.
    """
    if not values.evaluate and values.metrics is None:
        for name in (*_SOLVER, "num"):
            if values[name].present:
                raise flags.UsageError(f"--{name} has a meaning only together with --evaluate or --metrics")
        return None

    from flowjax.cli.common import solver
    from flowjax.inference.choose import SolverSettings
    from flowjax.inference.evaluation import OF_DATA
    from flowjax.metrics.images import check_names

    names = separate(values.metrics) if values.metrics is not None else ()
    of_images = tuple(name for name in names if name not in OF_DATA)
    of_data = len(of_images) < len(names) or not names
    try:
        of_images = check_names(of_images) if of_images else ()
    except ValueError as error:
        raise flags.UsageError(f"--metrics: {error}, and for the data set {', '.join(OF_DATA)}") from None
    if of_data:
        chosen = solver(values)
    else:
        chosen = SolverSettings(values.solver, values.rtol, values.atol, values.steps)
        try:
            chosen.check()
        except ValueError as error:
            raise flags.UsageError(f"--solver: {error}") from None
    common = {name: value for name, value in flags.settings(values, ()).items() if name in _SOLVER}
    num = {} if values.num == values["num"].default else {"num": values.num}
    settings = {"of_data": common, "of_images": common | num | {"metrics": ",".join(of_images)}}
    return MetricsRequest(names, of_data, of_images, values.num, chosen, settings)


def evaluate(
    runs: Iterable[tuple[Config, Path]], request: MetricsRequest
) -> tuple[dict[Path, dict[str, Any]], dict[str, str]]:
    """Evaluates finished runs. What has been evaluated before with the same settings is read.

    Args:
        runs: their configs and workdirs.
        request: the metrics.

    Returns:
        The metrics by workdir, and the reasons of the evaluations that failed, by the names of the workdirs.
    """
    from flowjax.training.writers import say

    runs, found, failed = list(runs), {}, {}
    datasets: dict[Any, Any] = {}
    for i, (config, workdir) in enumerate(runs, 1):
        say(f"sweep: metrics {i} of {len(runs)}: {workdir.name}")
        try:
            found[workdir] = _metrics_of(config, workdir, request, datasets)
        except Exception as error:
            failed[workdir.name] = f"evaluation: {' '.join(str(error).split())}"
            say(f"sweep: {workdir.name} cannot be evaluated: {' '.join(str(error).split())}")
    return found, failed


def _metrics_of(config: Config, workdir: Path, request: MetricsRequest, datasets: dict[Any, Any]) -> dict[str, Any]:
    """The metrics of one run. `datasets` keeps the data sets that are open, by their configs."""
    from flowjax.build import data_arguments
    from flowjax.data import Dataset
    from flowjax.inference import evaluation
    from flowjax.inference.data_of_run import check_same_data, open_data
    from flowjax.inference.kept_metrics import find_metrics, keep_metrics
    from flowjax.inference.run import Run, load
    from flowjax.training.checkpoints import Checkpoints

    @functools.cache
    def opened() -> tuple[Run, Dataset]:
        run, name = load(workdir, plugins=own_plugins(config)), data_arguments(config)
        if name not in datasets:
            datasets[name] = open_data(config, run.plugins)
        check_same_data(workdir, datasets[name].spec, run.spec)
        return run, datasets[name]

    step, result = Checkpoints(workdir / "checkpoints").choose("last"), {}
    for kind in ("of_data",) * request.of_data + ("of_images",) * bool(request.of_images):
        settings = request.settings[kind]
        if (metrics := find_metrics(workdir, step, settings)) is None:
            run, dataset = opened()
            if kind == "of_data":
                metrics = evaluation.evaluate(run, dataset, solver=request.solver)
            else:
                metrics = evaluation.evaluate_images(
                    run, dataset, request.of_images, num=request.num, solver=request.solver
                )
            keep_metrics(run, settings, metrics)
        result |= metrics
    return result
