"""The trained runs that a config names: the teacher of a method, and the run from which training starts.

Both are opened with the moving average of their parameters. Only training opens them: a trained run is sampled without.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from flowjax import checksums
from flowjax.abilities import abilities_of
from flowjax.build import fields_of
from flowjax.config import Config, flatten
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.files import written
from flowjax.inference.run import Run, load
from flowjax.methods import Method
from flowjax.methods.base import learns_interval
from flowjax.training.start_from import check_start, network_of
from flowjax.training.workdir import WorkdirError
from flowjax.training.writers import say
from flowjax.typing import Params

__all__ = ["check_teacher", "open_teacher", "starting_parameters", "write_record"]


_RECORD = "teacher.json"
"""The file in the workdir of a student with the step and the checksum of its teacher."""


def open_teacher(
    config: Config, plugins: Sequence[str] = (), workdir: Path | None = None
) -> tuple[Run | None, dict[str, Any]]:
    """Opens the run that `method.teacher` names; None if the method has no such key or it is empty.

    Args:
        config: the config.
        plugins: the modules that may be imported.
        workdir: the workdir of a run that is resumed. It goes on with the checkpoint of the teacher with which it was
            started, also if the teacher was trained further since then.

    Returns:
        The teacher, and its step and checksum for `write_record`, which are empty without a teacher.

    Raises:
        ConfigError: if there is no trained run, or its parameters are no longer those with which this one was started.
    """
    known: dict[str, Any] = {}
    if workdir is not None and (workdir / _RECORD).exists():
        known = json.loads((workdir / _RECORD).read_bytes())
    teacher = _open("method.teacher", config.method.get("teacher", ""), plugins, known.get("step", "last"))
    if teacher is None:
        return None, {}
    record = {"step": teacher.step, "checksum": checksums.of_arrays(jax.tree.leaves(teacher.params))}
    if known and record != known:
        raise ConfigError(
            f"method.teacher {teacher.workdir} has other parameters at step {teacher.step} than when {workdir} was "
            "started with it: use another --workdir"
        )
    return teacher, record


def write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of a teacher into the workdir of a student, if there is one."""
    if record:
        with written(workdir / _RECORD) as part:
            part.write_text(json.dumps(record) + "\n")


def _open(key: str, workdir: str, plugins: Sequence[str], checkpoint: str | int = "last") -> Run | None:
    if not workdir:
        return None
    try:
        return load(workdir, checkpoint=checkpoint, plugins=plugins)
    except WorkdirError as error:
        raise ConfigError(f"{key} must be the workdir of a trained run: {error}") from None


def check_teacher(teacher: Run, method: Method, config: Config, spec: DataSpec) -> None:
    """Checks that the teacher has a velocity, and the same data, conditions, source and path as the method.

    Data of another name whose description is the same are a warning: they may be more examples of the same kind.

    Args:
        teacher: the run that `method.teacher` names.
        method: the method, which was built with the teacher.
        config: the config of the method.
        spec: the description of its data.

    Raises:
        ConfigError: if the teacher has learned its interval, has no velocity, or was always trained with a condition
            that guidance has to leave out, or if they differ; the message says in what.
    """
    what = f"method.teacher {teacher.workdir}"
    if learns_interval(teacher.method):
        raise ConfigError(
            f"{what} has learned the ends of its log-SNR (method.learn_ends), which the loss of a student "
            "does not know: use a teacher with fixed ends"
        )
    if "velocity" not in (offered := abilities_of(teacher.model())):
        raise ConfigError(
            f"{what} is a run of method.name {teacher.config.method.name!r}, which has no velocity but "
            f"{', '.join(offered)}: use a run of another method, such as 'flow_matching'"
        )
    then = replace(teacher.spec, name=spec.name, paired_source=spec.paired_source)  # pairs have the data of their model
    if differences := spec.differences(then):
        raise ConfigError(f"{what} was trained on other data: {'; '.join(differences)[:300]}")
    if teacher.spec.name != spec.name:
        say(
            f"train: warning: {what} was trained on {teacher.spec.name!r}, and this run trains on {spec.name!r}: the "
            "teacher's velocity is right only for data of the same distribution"
        )
    fields = lambda config, spec: [
        replace(f, dropout=0.0, encoder="") for f in fields_of(config, spec) if f.name != "augment"
    ]
    there, here = fields(teacher.config, teacher.spec), fields(config, spec)
    if there != here:
        names = lambda fields: ", ".join(field.name for field in fields) or "none"
        raise ConfigError(
            f"{what} has other conditions, {names(there)} there and {names(here)} here: set data.cond to those of the "
            "teacher"
        )
    _check_equal_keys(what, teacher.config, config, ("source", "path"))
    kept = [f.name for f in teacher.fields if not f.dropout]
    if kept and getattr(method, "guidance", 1.0) != 1.0:
        raise ConfigError(
            f"method.guidance needs the teacher's velocity without conditions, and the run {teacher.workdir} was "
            f"trained with {kept[0]!r} in every row (its data.cond_dropout is 0): use method.guidance=1"
        )


_ONLY_IN_TRAINING = ("model.dropout", "model.remat", "model.dtype")
"""Keys that do not change what a network computes, up to rounding."""


def _check_equal_keys(what: str, there: Config, here: Config, sections: Sequence[str]) -> None:
    """Checks that the keys of some sections are equal, as far as both configs have the section.

    Raises:
        ConfigError: if one differs; the message names the key and both values.
    """
    for section in sections:
        if section not in there or section not in here:
            continue
        of_there, of_here = (flatten({section: config[section]}) for config in (there, here))
        for key in of_there | of_here:
            was, now = of_there.get(key), of_here.get(key)
            if was != now and key not in _ONLY_IN_TRAINING:
                raise ConfigError(f"{what} has {key}={was!r}, and this config has {now!r}: set {key} to the same value")


def starting_parameters(config: Config, method: Method, spec: DataSpec, plugins: Sequence[str] = ()) -> Params | None:
    """The parameters of the network of the run that `train.start_from` names; None if it is empty.

    Args:
        config: the config.
        method: its method.
        spec: the description of its data. If the other run has another normalisation, a line on stderr says so.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: if there is no trained run, or its network, path or prediction is another one.
    """
    run = _open("train.start_from", config.train.start_from, plugins)
    if run is None:
        return None
    what = f"train.start_from {run.workdir}"
    if getattr(method, "starts", None) == ():
        raise ConfigError(
            f"{what} would copy parameters only, and method.name {config.method.name!r} needs further variables of the "
            "trained network: leave train.start_from empty"
        )
    _check_equal_keys(what, run.config, config, ("model", "path", "prediction"))
    learned = run.config.get("prediction", "velocity")
    if "prediction" not in config and learned != "velocity":
        raise ConfigError(
            f"{what} has prediction={learned!r}, and method.name {config.method.name!r} starts from a velocity: use a "
            "run with prediction 'velocity'"
        )
    start = network_of(run.method, run.params)
    check_start(method, start, what)
    if run.spec.shape != spec.shape or not run.spec.normalise.near(spec.normalise):
        say(f"train: warning: {what} was trained on data with another normalisation, so the start is only approximate")
    return start
