"""Functions that the commands on a trained run share. Importing this module imports JAX."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags as absl_flags

from flowjax import archives
from flowjax.abilities import abilities_of
from flowjax.cli import flags
from flowjax.cli.usage import UsageError
from flowjax.conditions import named
from flowjax.data import DataError, DataSpec
from flowjax.data.arrays import read_npz
from flowjax.data.labels import read_labels
from flowjax.data.write_table import write_table
from flowjax.errors import ConfigError, RunFault, unknown
from flowjax.extras import MissingPackage
from flowjax.inference.choose import GUIDES, Guide, SolverSettings
from flowjax.inference.data_of_run import dataset_of
from flowjax.inference.given_conditions import check_given
from flowjax.inference.points import check_finite
from flowjax.inference.run import Run, load
from flowjax.solvers import ode
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = [
    "Observations",
    "Points",
    "check_labels",
    "check_solved",
    "class_of",
    "codes",
    "guide",
    "join",
    "open_run",
    "points",
    "save_grid",
    "save_npz",
    "save_table",
    "solver",
]


def join(values: absl_flags.FlagValues) -> None:
    """Connects to the other processes of this command, if there are any, before JAX finds its devices."""
    flags.check_processes(values)
    flags.start_processes(values)


def open_run(values: absl_flags.FlagValues, workdir: str) -> Run:
    """Opens the run that --workdir, --checkpoint, --ema and --width name; call `solver` before, to refuse a bad one."""
    plugins = flags.plugins(values)
    if values.width is not None and not values.ema:
        raise UsageError("--width selects a moving average, so it cannot be used with --no-ema")
    if values.width is not None and not 0 < values.width < 12**-0.5:
        raise UsageError(
            f"--width must be between 0 and 0.288, relative to the length of the run, not {values.width:g}"
        )
    return load(workdir, values.ema, values.checkpoint, values.width, plugins)


def solver(values: absl_flags.FlagValues, sampler: bool = False, steps: int | None = None) -> SolverSettings:
    """Returns the settings of --solver, --rtol, --atol and --steps, and of the flags of sampling if there are any.

    Args:
        values: the flags.
        sampler: whether --solver may name any sampler also without the flags of sampling; otherwise it is the solver of
            a likelihood.
        steps: the number of steps of a solver that is named without --steps.

    Raises:
        UsageError: if the solver or one of its settings cannot be used.
    """
    more = ("grid", "eta", "churn", "g", "variance", "schedule")
    given: dict[str, Any] = {name: values[name].value for name in more if name in values}
    steps = steps if values.solver and values.steps is None else values.steps
    chosen = SolverSettings(values.solver, values.rtol, values.atol, steps, **given)
    try:
        if given or sampler:
            chosen.check()
        else:
            ode.check_solver(chosen.name or "dopri5", chosen.steps)
    except ValueError as error:
        text = re.sub(r"\bsteps=N", "--steps N", str(error)).removeprefix("path.")
        raise UsageError(
            f"--{text}" if text.startswith(("grid", "g:", "g ", "variance:", "schedule")) else f"--solver: {text}"
        ) from None
    return chosen


_FLAGS_OF = {"weak": ("weak", "weak_checkpoint"), "fields": ("guided",)}
"""The flags that describe an attribute of `Guide`; each other one is described by the flag of its name."""


def guide(values: absl_flags.FlagValues) -> Guide | None:
    """Returns the guidance that --guidance, and the flags of its settings, describe; None without --guidance."""
    flags_of = lambda setting: _FLAGS_OF.get(setting, (setting,))
    flags_of_kinds = {name: kind for kind, made in GUIDES.items() for s in made.settings for name in flags_of(s)}
    extra = [name for name in ("scale", *flags_of_kinds) if values[name].value is not None]
    if values.guidance is None:
        if extra:
            raise UsageError(f"--{extra[0]} needs --guidance cfg or --guidance auto")
        return None
    if values.guidance not in GUIDES:
        raise UsageError(f"--guidance: {unknown(values.guidance, GUIDES)}")
    if values.scale is None:
        raise UsageError("--guidance needs --scale: 1 is no guidance, and larger values are stronger")
    if not math.isfinite(values.scale):
        raise UsageError(f"--scale must be finite, not {values.scale}")
    if values.guidance == "auto" and values.weak is None and values.weak_checkpoint is None:
        raise UsageError(
            "--guidance auto needs a weaker network: --weak WORKDIR, or --weak_checkpoint with an early step"
        )
    for name, kind in flags_of_kinds.items():
        if kind != values.guidance and values[name].value is not None:
            raise UsageError(f"--{name} cannot be used with --guidance {values.guidance}")
    try:
        low, high = (float(t) for t in values.interval or ("0", "1"))
    except ValueError:
        raise UsageError("--interval must be two times, such as 0.2,0.8") from None
    rescale = values.rescale or 0.0
    if not 0 <= low <= high <= 1 or not 0 <= rescale <= 1:
        raise UsageError("--interval must be two times in order in [0, 1], and --rescale must be between 0 and 1")
    weak = None
    if values.guidance == "auto":
        weak = load(values.weak or values.workdir, values.ema, values.weak_checkpoint or "last", plugins=values.plugins)
    return Guide(values.guidance, values.scale, (low, high), rescale, weak, tuple(values.guided or ()))


def check_labels(values: absl_flags.FlagValues, run: Run) -> None:
    """Raises UsageError if a flag about classes is given for a run without classes."""
    given = next((name for name in ("label", "labels") if name in values and values[name].present), None)
    if given is not None and named(run.fields, "label") is None:
        raise UsageError(f"--{given}: the network of {values.workdir} has no classes as a condition")


_OF_SAMPLERS = ("solver", "steps")
_OF_SOLVES = (*_OF_SAMPLERS, "rtol", "atol", "check", "converged_within", "divergence", "probes", "probe_kind")


def check_solved(values: absl_flags.FlagValues, run: Run, samples: bool = False) -> None:
    """Raises UsageError if a flag of the solve of an ODE is given for a bijection, which is evaluated without one.

    Flags that are given their default, and --check=0, ask for nothing and pass.

    Args:
        values: the flags.
        run: the run.
        samples: whether --solver and --steps are those of samples, which are checked by `choose`.
    """
    offered = abilities_of(run.model())
    if "velocity" in offered or "bijection" not in offered:
        return
    given = [name for name in flags.settings(values, _OF_SAMPLERS if samples else ()) if name in _OF_SOLVES]
    for name in given:
        if (name, values[name].value) != ("check", 0):
            raise UsageError(
                f"--{name} has no effect on method.name {run.config.method.name!r}, whose network is evaluated "
                "without solving an ODE: leave it out"
            )


def class_of(text: str, spec: DataSpec) -> int:
    """Returns the label of the class that --label names by its name or its number."""
    try:
        return spec.label(text)
    except DataError as error:
        raise UsageError(f"--label: {error}") from None


class Points(NamedTuple):
    """Points to score.

    Attributes:
        x: (N, *event) in data space.
        cond: their conditions by name, (N, ...).
        rows: (N,) the row of each point in the array that it was read from, or None if the points keep their order.
    """

    x: np.ndarray
    cond: dict[str, np.ndarray]
    rows: np.ndarray | None

    def first(self, num: int) -> "Points":
        """Returns the first `num` points."""
        rows = None if self.rows is None else self.rows[:num]
        return Points(self.x[:num], {name: a[:num] for name, a in self.cond.items()}, rows)


def points(run: Run, path: str | None) -> Points:
    """Returns the points to score with their conditions: those of a file, or the test split of the run's data."""
    spec, rows = run.spec, None
    names = [field.name for field in run.fields]
    if path is None:
        dataset = dataset_of(run)
        x, labels, rows = dataset.test, dataset.test_labels, dataset.test_rows
        cond = {name: dataset.test_cond[name] for name in names if name in dataset.test_cond}
    else:
        arrays = read_npz(path, "x", "samples")
        x = arrays["x"] if "x" in arrays else arrays["samples"]
        if x.ndim == len(spec.shape) + 2:  # samples for several observations, as `flowjax sample --cond` writes them
            arrays, x = _for_each_sample(arrays, x, names), x.reshape(-1, *x.shape[2:])
        cond, labels = _conditions(run, arrays, path)
        if x.shape[1:] != tuple(spec.shape) or len(x) == 0:
            raise DataError(f"{path}: x must be (N, {', '.join(map(str, spec.shape))}) with N >= 1, not {x.shape}")
        if x.dtype.kind not in "iuf":
            raise DataError(f"{path}: x must be real numbers, and its type is {x.dtype}")
        if fault := check_finite(x):
            raise DataError(f"{path}: the points x {fault}")
        if spec.levels and (x.min() < 0 or x.max() > spec.levels):
            raise DataError(f"{path}: pixels of this run lie in 0 to {spec.levels}, not {x.min()} to {x.max()}")
    if "label" in names and labels is not None:
        cond["label"] = labels if path is None else _labels(run, path, labels, len(x))
    return Points(x, cond, rows)


def codes(run: Run, path: str) -> Points:
    """Returns the points z of the source in a file of `flowjax encode`, with the conditions of the network.

    Raises:
        DataError: if z or a label has the wrong shape or values.
    """
    arrays = read_npz(path, "z")
    z = arrays["z"]
    if z.shape[1:] != tuple(run.spec.shape) or len(z) == 0 or z.dtype.kind not in "iuf":
        shape = ", ".join(map(str, run.spec.shape))
        raise DataError(f"{path}: z must be real numbers (N, {shape}) with N >= 1, not {z.dtype} {z.shape}")
    cond, labels = _conditions(run, arrays, path)
    return Points(z, cond if labels is None else {**cond, "label": _labels(run, path, labels, len(z))}, None)


def _conditions(
    run: Run, arrays: Mapping[str, np.ndarray], path: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The conditions of the network among the arrays of a file, and the labels; a line says which are absent."""
    names = [field.name for field in run.fields]
    labels = next((arrays[key] for key in ("y", "label", "labels") if key in arrays and "label" in names), None)
    if absent := [name for name in names if name not in arrays and (name != "label" or labels is None)]:
        say(f"{path} has no {', '.join(absent)}: these conditions are not given")
    return {name: arrays[name] for name in names if name in arrays and name != "label"}, labels


class Observations(NamedTuple):
    """Conditions for samples.

    Attributes:
        cond: arrays by the names of the run's fields, each with one row for each observation, or one row for all.
        is_single: whether each array is a single condition, without an axis for observations.
    """

    cond: dict[str, np.ndarray]
    is_single: bool


def _for_each_sample(arrays: dict[str, np.ndarray], x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Returns arrays with one row for each of the samples (M, num, ...): the conditions (M, ...) are repeated."""
    labels, num = ("y", "label", "labels"), x.shape[1]
    flat = {name: a.reshape(-1) for name, a in arrays.items() if name in labels and a.ndim == 2}
    given = {name: a for name, a in arrays.items() if name in (*names, *labels) and name not in flat}
    return arrays | flat | {name: np.repeat(a, num, 0) for name, a in given.items() if len(a) == len(x)}


def observations(run: Run, path: str) -> Observations:
    """Returns the conditions in the file of --cond.

    Labels may be in an array `y`, as in data sets, or `label`. An array that has the shape of its field, without an
    axis for observations, is one condition for all.

    Raises:
        UsageError: if an array is not a field of the run, or has the wrong shape or values.
    """
    try:
        arrays = archives.read_npz(path)
        if "y" in arrays and named(run.fields, "label") is not None:
            arrays["label"] = arrays.pop("y")
        shapes = {run.given_source: run.spec.shape} | {field.name: field.shape for field in run.fields}
        scalar = lambda name, a: a.ndim == 0 and name != "label" and shapes.get(name) == (1,)
        arrays = {name: a.reshape(1) if scalar(name, a) else a for name, a in arrays.items()}
        for name, a in arrays.items():
            if a.ndim == 0 and name != "label":
                raise DataError(f"{path}: {name} is a single number, and must have the shape {shapes.get(name, ())}")
        alone = {name: a.shape == shapes.get(name) for name, a in arrays.items()}
        arrays = {name: a[None] if alone[name] else a for name, a in arrays.items()}
        if "label" in arrays:
            arrays["label"] = _labels(run, path, arrays["label"], len(arrays["label"]))
        rows = max((len(a) for a in arrays.values()), default=1)
        if not arrays:
            raise DataError(f"{path} holds no arrays")
        return Observations(check_given(run, arrays, rows, "observation"), all(alone.values()))
    except (archives.ArchiveError, DataError) as error:
        raise UsageError(f"--cond: {error}") from None
    except ConfigError as error:
        raise UsageError(f"--cond {path}: {error}") from None


def _labels(run: Run, source: str, labels: np.ndarray, num: int) -> np.ndarray:
    """Returns the labels (num,) for an array of class numbers or class names."""
    spec = run.spec
    classes = f"the classes that the run was trained on: {spec.describe_classes()}"
    try:
        labels = read_labels(source, "y", labels, num, spec.class_names)
    except DataError as error:
        raise DataError(str(error) if "the classes are" in str(error) else f"{error}; {classes}") from None
    if not np.isin(labels, spec.classes).all():
        raise DataError(f"{source}: y must have a label for each row of x, one of {classes}")
    return labels


def save_npz(path: Path, /, **arrays: Any) -> None:
    """Writes the arrays that are not None into an .npz file atomically. Only the first of several processes writes."""
    _save(path, lambda: archives.write_npz(path, {name: a for name, a in arrays.items() if a is not None}))


def save_grid(path: Path, run: Run, samples: np.ndarray, labels: np.ndarray | None) -> None:
    """Draws the first 64 samples of a run on images beside the file `path`, as FILE.png; a line says if it cannot."""
    if not run.spec.is_image or not processes.is_primary():
        return
    from flowjax import plots

    try:
        shown = None if labels is None else labels[:64]
        grid = plots.image_grid(samples[:64], run.spec.levels, shown, run.spec.class_names)
        plots.save(grid, path.with_suffix(".png"))
    except MissingPackage as error:  # the samples are written, so the command has done its work
        say(f"no grid of images is drawn: {error}")


def save_table(path: Path, spec: DataSpec, samples: np.ndarray, cond: Mapping[str, np.ndarray]) -> None:
    """Writes samples of a run on a table (`write_table`). Only the first of several processes writes."""
    _save(path, lambda: write_table(path, spec, samples, cond))


def _save(path: Path, write: Callable[[], None]) -> None:
    if not processes.is_primary():
        return
    try:
        write()
    except OSError as error:
        raise RunFault(f"cannot write {path}: {error.strerror or error}") from None
