"""Conditions that a caller gives for samples or points: checked against the fields of a run, and encoded."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flowjax.conditions import NO_LABEL, named
from flowjax.data import DataError, Dataset
from flowjax.errors import ConfigError
from flowjax.inference.run import Run
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["SOURCE_SAMPLES", "GivenConditions", "check_given", "conditions_of_test", "encode_given", "say_missing"]


SOURCE_SAMPLES = "data.pairs"
"""The name of the source samples of a run on pairs among encoded conditions. No condition can have this name."""


_FAR = 1.0
"""A condition that is outside the range of the training data by more standard deviations is reported."""


class GivenConditions(NamedTuple):
    """Conditions by name.

    Attributes:
        values: in data space, (num, *field.shape).
        encoded: as the network takes them, with the rows that the caller gave: one for all, or one for each. Source
            samples of a run on pairs are the entry `SOURCE_SAMPLES`, encoded like training rows.
        rows: as the network takes them, (num, *field.shape).
    """

    values: dict[str, np.ndarray]
    encoded: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]


def encode_given(
    run: Run,
    cond: Mapping[str, Any] | None,
    num: int,
    what: str = "sample",
    command: str = "sample",
    fill_labels: bool = False,
) -> GivenConditions:
    """Checks and encodes conditions, and prints on stderr which of them are missing.

    Args:
        run: whose network takes them.
        cond: arrays by the names of their fields, in data space, with one row for all samples or points, or one for
            each of them; for samples of a run on pairs also the source samples, by the name `data.pairs`.
        num: the number of samples or points.
        what: "sample" or "point", for the messages.
        command: the prefix of the line on stderr.
        fill_labels: whether `rows` has the label "none" where no labels are given.

    Raises:
        ConfigError: as `check_given`; if labels are filled for a network that was always trained with labels.
    """
    given = check_given(run, cond, num, what)
    lacking = None if not fill_labels or "label" in given else named(run.fields, "label")
    if lacking is not None and not lacking.dropout:
        raise ConfigError(
            f"{command}: this network was always trained with labels (data.cond_dropout is 0): give the label of each "
            f"{what} (y in a file)"
        )
    taken, pairs = {f.name for f in run.fields}, run.given_source
    encoded = run.spec.encode_cond({name: a for name, a in given.items() if name in taken})
    if pairs in given:
        encoded[SOURCE_SAMPLES] = np.asarray(run.spec.encode_source(given[pairs]), np.float32)
    say_missing(run, given, command)
    _say_far(run, given, command)
    each = lambda cond: {name: np.broadcast_to(a, (num, *a.shape[1:])) for name, a in cond.items()}  # without copies
    filled = {} if lacking is None else {"label": np.full(num, NO_LABEL, np.int32)}
    return GivenConditions(each(given), encoded, each(encoded) | filled)


def check_given(run: Run, cond: Mapping[str, Any] | None, num: int, what: str = "sample") -> dict[str, np.ndarray]:
    """Checks that each array belongs to a field of the run's network and fits it.

    Args:
        run, cond, num, what: as for `encode_given`.

    Returns:
        The arrays in data space, (1, *field.shape) or (num, *field.shape). NaN in numbers means "not given".

    Raises:
        ConfigError: one line, on an unknown name, a wrong shape or type, infinite numbers, or an unknown class.
    """
    return {name: _checked(run, name, np.asarray(a), num, what) for name, a in (cond or {}).items()}


def say_missing(run: Run, cond: Mapping[str, Any], command: str) -> None:
    """Prints on stderr which conditions are not given although the network was always trained with them."""
    missing = [f.name for f in run.fields if f.kind != "label" and not f.dropout and f.name not in cond]
    if missing and processes.is_primary():
        say(
            f"{command}: not given: {', '.join(missing)}; the network gets the null value, with which it was never "
            "trained (the dropout of the condition is 0)"
        )
    for field in run.fields:
        if field.kind == "label" or field.dropout or field.name not in cond or not processes.is_primary():
            continue
        rows = np.flatnonzero(np.isnan(cond[field.name].reshape(len(cond[field.name]), -1)).any(1))
        if rows.size:
            say(
                f"{command}: {rows.size} of {len(cond[field.name])} rows of {field.name} have NaN, which means not "
                f"given (the first is row {rows[0]}); as its dropout is 0, the network knows this only from missing "
                "values in its training data"
            )


def _say_far(run: Run, cond: Mapping[str, np.ndarray], command: str) -> None:
    """Prints on stderr which conditions are far outside the range of the training data, and how far."""
    for name, array in cond.items():
        distance, entry = run.spec.beyond(name, array)
        if distance > _FAR and processes.is_primary():
            far = [i for i in range(len(array)) if run.spec.beyond(name, array[i : i + 1])[0] > _FAR]
            say(
                f"{command}: {len(far)} of {len(array)} rows of the condition {name} are outside the range of the "
                f"training data (the first is row {far[0]}), entry {entry} by up to {distance:.3g} standard deviations"
                ": the network extrapolates, and its answer can be arbitrarily wrong"
            )


def conditions_of_test(run: Run, dataset: Dataset, num: int) -> dict[str, np.ndarray]:
    """The conditions of test points, for samples that are compared with them.

    Args:
        run: whose network takes them.
        dataset: the data set of the run.
        num: the number of samples.

    Returns:
        (num, *field.shape) by name: sample i has the conditions of test point i mod N. Empty where the network takes no
        conditions, or only labels, which are chosen by a `LabelRule`. For a run on pairs, the source samples of the
        test points are there by the name `data.pairs`.
    """
    names = [field.name for field in run.fields if field.name in dataset.test_cond]
    rows = np.arange(num) % len(dataset.test)
    sources = {} if dataset.test_x0 is None else {run.given_source: dataset.test_x0[rows]}
    if all(field.kind == "label" for field in run.fields) and not sources:
        return {}
    return {name: dataset.test_cond[name][rows] for name in names} | sources


def _checked(run: Run, name: str, array: np.ndarray, num: int, what: str) -> np.ndarray:
    field = named(run.fields, name)
    if field is None and name and name == run.given_source and what != "point":
        _check_rows(name, array, run.spec.shape, num, what)
        _check_numbers(name, array)
        return array
    if field is None:
        pairs = [run.given_source] * bool(run.given_source and what != "point")
        names = ", ".join(map(repr, dict.fromkeys([f.name for f in run.fields] + pairs)))
        raise ConfigError(f"unknown condition {name!r}: the conditions of this run are {names or 'none'}")
    try:
        array = run.spec.as_numbers(name, array)
    except DataError as error:
        raise ConfigError(str(error)) from None
    array = array.reshape(-1, 1) if array.ndim == 1 and field.shape == (1,) else array
    _check_rows(name, array, field.shape, num, what)
    if field.kind == "label":
        if array.dtype.kind not in "iu" or array.min() < field.null or array.max() >= field.num_classes:
            classes = f"0 to {field.num_classes - 1}"
            raise ConfigError(f"condition {name!r} must hold classes, {classes}, or {field.null} for no class")
    else:
        _check_numbers(name, array)
    return array


def _check_rows(name: str, array: np.ndarray, shape: tuple[int, ...], num: int, what: str) -> None:
    if array.shape not in ((1, *shape), (num, *shape)):
        one, each = (f"({rows}, {', '.join(map(str, shape))})" if shape else f"({rows},)" for rows in (1, num))
        raise ConfigError(
            f"condition {name!r} must be {one} for all {what}s or {each} with one row per {what}, not {array.shape}"
            + (f"; a single one has the shape {shape}" if shape and what == "observation" else "")
        )


def _check_numbers(name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "iuf" or np.isinf(array).any():
        raise ConfigError(f"condition {name!r} must hold finite numbers, or NaN where it is not given")
