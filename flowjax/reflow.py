"""Reflow: flows that become straighter by training each one on the pairs of the one before.

A flow maps source samples x0 to samples x1 of the data. A new flow that is trained on these pairs, in place of
independent ones, has the same distribution at t = 1 and transport costs that are not larger, and its trajectories are
straighter, so that it can be solved in fewer steps (Liu et al. 2022, arXiv:2209.03003, theorems 3.5 and 3.7). An
error of one round remains in all later ones, unless some of the pairs come from real data (Lee et al. 2024,
arXiv:2405.20320, sec. 4.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowjax.config import Config, own_plugins
from flowjax.config_keys import method_of
from flowjax.data.model_pairs import X0
from flowjax.errors import ConfigError
from flowjax.inference import Run, SolverSettings, load
from flowjax.inference.choose import DEFAULT_SOLVER
from flowjax.inference.data_of_run import origin_of
from flowjax.inference.pairs import make_pairs
from flowjax.runs import train
from flowjax.training.workdir import WorkdirError
from flowjax.training.writers import say

__all__ = ["Reflowed", "reflow"]


@dataclass(frozen=True)
class Reflowed:
    """The result of `reflow`.

    Attributes:
        run: the run of the last round.
        transport_costs: for each round from the first: the mean of |x1 - x0|^2, in model space, over the pairs that it
            was trained on. They do not increase from round to round, up to errors of training.
    """

    run: Run
    transport_costs: tuple[float, ...]


def reflow(
    config: Config,
    workdir: str | Path,
    rounds: int = 1,
    num: int = 100_000,
    solver: SolverSettings = DEFAULT_SOLVER,
    real: float = 0.0,
    teacher: str | Path | None = None,
    batch: int = 0,
) -> Reflowed:
    """Trains a flow, and then in each round a straighter one on the pairs of the flow before.

    The workdir receives `round_0`, `round_1`, ..., each the workdir of a run, and `pairs_1`, ..., the pairs that each
    round is trained on. Finished parts are not repeated, and an interrupted one is continued. Training of a round
    starts from the averaged parameters of the run before, if its model, path and prediction are those of the config.

    Args:
        config: of all rounds. Its method must use pairs.
        workdir: the folder of the rounds.
        rounds: number of rounds after round 0, at least 1.
        num: number of pairs of each round.
        solver: how pairs are made: the run's solver by default.
        real: the share of pairs that come from real data by the reverse ODE.
        teacher: the workdir of a trained run, possibly of another method or path, which takes the place of round 0. All
            pairs come from it, so the data of the config are not used and must be those of the run, or not be named.
        batch: rows per batch when pairs are made; 0 for a default.

    Raises:
        ConfigError: if the config cannot be trained on pairs, the teacher has other data, conditions or another source,
            or the folder holds rounds of another config.
    """
    folder, plugins = Path(workdir), own_plugins(config)
    method: Any = method_of(config.method.name, plugins)
    if not getattr(method, "takes_pairs", False):
        raise ConfigError(
            f"method.name {config.method.name!r} does not use given pairs, data.pairs: take flow_matching"
        )
    if config.data.pairs or config.data.name.partition("(")[0] == "pairs":
        raise ConfigError("the config is trained on given pairs already, and reflow makes the pairs itself")
    if teacher is None:
        train(config, folder / "round_0", plots=False)
        run = load(folder / "round_0", plugins=plugins)
    else:
        try:
            run = load(teacher, plugins=plugins)
        except WorkdirError as error:
            raise ConfigError(f"the teacher must be the workdir of a trained run: {error}") from None
        _check_teacher(run, config)
    costs = []
    for k in range(1, rounds + 1):
        made = make_pairs(run, folder / f"pairs_{k}", num, (config.seed + k) % 2**32, solver, batch=batch, real=real)
        say(f"reflow: round {k}: the mean of |x1 - x0|^2 over its {num} pairs is {made.transport_cost:.4g}")
        costs.append(made.transport_cost)
        train(config, folder / f"round_{k}", changes_for(run, config, made.folder, k), plots=False)
        run = load(folder / f"round_{k}", plugins=plugins)
    return Reflowed(run, tuple(costs))


def changes_for(run: Run, config: Config, pairs: Path, k: int) -> Mapping[str, Any]:
    """The changes of a config for a round on the pairs of a run."""
    changes: dict[str, Any] = {"data.name": "pairs", "data.path": str(pairs), "data.pairs": X0, "data.simulator": ""}
    changes |= {"data.normalise": "", "data.degrade": "", "data.augment": "none"}
    changes |= {"coupling.name": "independent"} if "coupling" in config else {}
    start = str(run.workdir)
    for section in ("model", "path", "prediction"):
        if config.get(section) != run.config.get(section):
            say(f"reflow: round {k} starts from new parameters, because {run.workdir} has another {section}")
            start = ""
            break
    return changes | {"train.start_from": start}


def _check_teacher(run: Run, config: Config) -> None:
    """Checks that the config has the source and the conditions of a teacher, and names no other data."""
    known = origin_of(run)
    for key in ("name", "path", "simulator", "normalise", "degrade"):
        if (here := config.data[key]) and here != (there := known.get(key, "")):
            raise ConfigError(
                f"{run.workdir} was trained with data.{key}={there!r}, and the config has {here!r}: the pairs come "
                f"from the run, so set data.{key} to the same value, or leave it empty"
            )
    for key, (there, here) in {
        "source": (run.config.get("source"), config.get("source")),
        "data.cond": (_names(run.config), _names(config)),
    }.items():
        if there != here:
            raise ConfigError(f"{run.workdir} has another {key} than the config: {there} there and {here} here")


def _names(config: Config) -> list[str]:
    return [text.partition("(")[0] for text in config.data.cond]
