"""The trained runs that a config names: the teacher of a method, and the run from which training starts.

Both are opened with the moving average of their parameters. Only training opens them: a trained run is sampled without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flowjax.abilities import abilities_of
from flowjax.build import fields_of
from flowjax.config import Config
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.inference.run import Run, load
from flowjax.methods import Method
from flowjax.training.start_from import check_start, network_of
from flowjax.training.workdir import WorkdirError
from flowjax.typing import Params

__all__ = ["check_teacher", "open_teacher", "starting_parameters"]


def open_teacher(config: Config, plugins: Sequence[str] = ()) -> Run | None:
    """Opens the run that `method.teacher` names; None if the method has no such key or it is empty.

    Raises:
        ConfigError: if there is no trained run.
    """
    return _open("method.teacher", config.method.get("teacher", ""), plugins)


def _open(key: str, workdir: str, plugins: Sequence[str]) -> Run | None:
    if not workdir:
        return None
    try:
        return load(workdir, plugins=plugins)
    except WorkdirError as error:
        raise ConfigError(f"{key} must be the workdir of a trained run: {error}") from None


def check_teacher(teacher: Run, method: Method, config: Config, spec: DataSpec) -> None:
    """Checks that the teacher has a velocity, and the same space, conditions and path as the method.

    Args:
        teacher: the run that `method.teacher` names.
        method: the method, which was built with the teacher.
        config: the config of the method.
        spec: the description of its data.

    Raises:
        ConfigError: if the teacher has no velocity, or was always trained with a condition that guidance has to leave
            out, or if they differ; the message says in what.
    """
    then, now = teacher.spec, spec
    if "velocity" not in (offered := abilities_of(teacher.model())):
        raise ConfigError(
            f"method.teacher {teacher.workdir} is a run of method.name {teacher.config.method.name!r}, which has no "
            f"velocity but {', '.join(offered)}: use a run of another method, such as 'flow_matching'"
        )
    fields = lambda config, spec: [replace(f, dropout=0.0, encoder="") for f in fields_of(config, spec)]
    kinds: Mapping[str, tuple[Any, Any]] = {
        "shape of the examples": (then.shape, now.shape),
        "normalisation of the data": (then.normalise.near(now.normalise), True),
        "conditions": (fields(teacher.config, then), fields(config, now)),
        "path": (teacher.path, getattr(method, "path", teacher.path)),
    }
    for what, (of_teacher, own) in kinds.items():
        if of_teacher != own:
            values = "" if isinstance(own, bool) else f", {of_teacher} there and {own} here"
            raise ConfigError(f"method.teacher {teacher.workdir} differs in the {what}{values}")
    kept = [f.name for f in teacher.fields if not f.dropout]
    if kept and getattr(method, "guidance", 1.0) != 1.0:
        raise ConfigError(
            f"method.guidance needs the teacher's velocity without conditions, and the run {teacher.workdir} was "
            f"trained with {kept[0]!r} in every row (its data.cond_dropout is 0): use method.guidance=1"
        )


def starting_parameters(config: Config, method: Method, plugins: Sequence[str] = ()) -> Params | None:
    """The parameters of the network of the run that `train.start_from` names; None if it is empty.

    Raises:
        ConfigError: if there is no trained run, or its network is another one.
    """
    run = _open("train.start_from", config.train.start_from, plugins)
    if run is None:
        return None
    start = network_of(run.method, run.params)
    check_start(method, start, f"train.start_from {run.workdir}")
    return start
