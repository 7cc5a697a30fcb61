"""Conditions that a caller gives for samples or points: checked against the fields of a run, one row for each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowjax.conditions import Field, named
from flowjax.errors import ConfigError
from flowjax.inference.run import Run
from flowjax.training import hosts
from flowjax.training.writers import say

__all__ = ["check_given", "one_row_each", "say_missing"]


def check_given(run: Run, cond: Mapping[str, Any] | None, num: int, what: str = "sample") -> dict[str, np.ndarray]:
    """The conditions in data space, if each array belongs to a field of the run's network and fits it.

    Args:
        run: whose network takes them.
        cond: arrays by the names of their fields, with one row for all, or one for each of the samples or points.
        num: the number of samples or points.
        what: "sample" or "point", for the messages.

    Returns:
        The arrays, (1, *field.shape) or (num, *field.shape): int32 for labels, float32 for other fields. NaN in these
        means "not given".

    Raises:
        ConfigError: one line, on an unknown name, a wrong shape or type, infinite numbers, or a label of no class.
    """
    fields = [field for field in run.fields if not field.zero_is_null]
    return {name: _checked(run, _field(fields, name), a, num, what) for name, a in (cond or {}).items()}


def one_row_each(cond: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
    """The conditions with a row for each sample or point, without copies."""
    return {name: np.broadcast_to(a, (num, *a.shape[1:])) for name, a in cond.items()}


def say_missing(run: Run, cond: Mapping[str, Any], command: str) -> None:
    """Says on stderr which conditions are not given, although the network was always trained with them."""
    fields = [field for field in run.fields if field.kind != "label" and not field.zero_is_null]
    missing = [field.name for field in fields if field.name not in cond and not field.dropout]
    if missing and hosts.leader():
        say(
            f"{command}: not given: {', '.join(missing)}; the network gets the null value, with which it was never "
            "trained (the dropout of the condition is 0)"
        )


def _field(fields: Sequence[Field], name: str) -> Field:
    field = named(fields, name)
    if field is None:
        names = ", ".join(repr(f.name) for f in fields)
        raise ConfigError(f"unknown condition {name!r}: the conditions of this run are {names or 'none'}")
    return field


def _checked(run: Run, field: Field, given: Any, num: int, what: str) -> np.ndarray:
    array = np.asarray(given)
    if array.shape not in ((1, *field.shape), (num, *field.shape)):
        event = "".join(f", {n}" for n in field.shape)
        raise ConfigError(
            f"condition {field.name!r} must be (1{event or ','}) for all {what}s or ({num}{event or ','}) with one row "
            f"a {what}, not {array.shape}"
        )
    if field.kind == "label":
        known = array.dtype.kind in "iu" and np.isin(array, [*run.spec.classes, field.null]).all()
        if not known:
            raise ConfigError(
                f"condition {field.name!r} must hold a label for each row, or {field.null} for none: "
                f"{run.spec.describe_classes()}"
            )
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf" or np.isinf(array).any():
        raise ConfigError(f"condition {field.name!r} must hold real numbers, and NaN where it is not given")
    return array.astype(np.float32)
