"""Configs: every key with its default in one place, and the checks that turn a bad one into one clear line.

A config file is short: `config = defaults("mlp")`, a few assignments, `return config`. Importing this module costs
ml_collections and nothing heavier.
"""

import ast
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ml_collections import ConfigDict

if TYPE_CHECKING:
    Config = Any  # its keys are checked by `resolve`, at run time; a type checker knows nothing of them
else:
    Config = ConfigDict

T = TypeVar("T")

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 128, "depth": 3, "features": 16, "activation": "silu"},
    "unet": {"channels": 64, "multipliers": (1, 2, 2), "blocks": 2, "patch": 1, "heads": 4},
    "adm": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "head_width": 64,
        "heads": 0,
        "film": False,
        "dropout": 0.1,
        "time_scale": 1.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
    "edm2": {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "head_width": 64,
        "dropout": 0.0,
        "time": "log_snr",
        "time_scale": 1.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
    "dit": {
        "patch": 2,
        "depth": 12,
        "width": 384,
        "heads": 6,
        "qk_norm": False,
        "dropout": 0.0,
        "time_scale": 1000.0,
        "dtype": "bfloat16",
        "remat": "none",
    },
}
"""Each model's own keys, as its constructor takes them."""

_POSITIVE = (
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "mesh.fsdp",
    "mesh.tensor",
)

_NOT_NEGATIVE = (
    "data.workers",
    "train.warmup",
    "train.clip",
    "train.spike",
    "train.peak_tflops",
    "train.weight_decay",
    "train.keep_every",
    "ema.half_life",
    "seed",
)

CADENCE = (
    "train.steps",
    "train.accumulate",  # with remat, what fewer devices need; it draws other noise
    "model.remat",
    "train.log_every",
    "train.save_every",
    "train.keep_last",
    "train.keep_every",
    "train.keep_at",
    "train.peak_tflops",
    "data.workers",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.rules",
)
"""Keys that a resumed run may change; with any other it would be another run."""


class ConfigError(ValueError):
    """A config that cannot be run; the message is one line that names the key."""


def defaults(model: str = "mlp") -> Config:
    """All keys of a run with their defaults, for one of the models in `MODEL_DEFAULTS`."""
    return ConfigDict(
        {
            "seed": 0,
            "data": {"name": "gaussians8", "path": "", "augment": "none", "workers": 0},
            "source": {"name": "normal"},
            "path": {"name": "affine", "schedule": "condot", "shift": 1.0, "noise": ""},
            "coupling": {"name": "independent"},
            "prediction": "velocity",
            "loss": {"name": "matching", "weight": "own", "times": "uniform", "uncertainty": False},
            "model": {"name": model, "conditional": False, **lookup("model.name", model, MODEL_DEFAULTS)},
            "train": {
                "steps": 10_000,
                "batch_size": 256,
                "accumulate": 1,
                "optimizer": "adam",
                "lr": 1e-3,
                "beta2": 0.999,
                "momentum": 0.95,
                "weight_decay": 0.0,
                "warmup": 0.0,
                "schedule": "cosine",
                "clip": 1.0,
                "spike": 0.0,
                "peak_tflops": 0.0,
                "label_dropout": 0.1,
                "log_every": 200,
                "save_every": 1000,
                "keep_last": 3,
                "keep_every": 0,
                "keep_at": (),
            },
            "ema": {"half_life": 100_000.0, "widths": (), "snapshots": 64},
            "mesh": {"data": 0, "fsdp": 1, "tensor": 1, "rules": ()},
        }
    )


def unknown(name: object, known: Iterable[str]) -> str:
    """`unknown 'x'; did you mean 'y'? (known: ...)`."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return (
        f"unknown {str(name)!r}" + (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(names)})"
    )


def lookup(key: str, name: str, table: Mapping[str, T]) -> T:
    """table[name], or a ConfigError that names the key and the nearest valid name."""
    if name not in table:
        raise ConfigError(f"{key}: {unknown(name, table)}")
    return table[name]


def make(key: str, text: str, table: Mapping[str, Callable[..., T]], *first: Any) -> T:
    """What `name`, `name(1, 2)` or `name(eps=2)` stands for in a table: table[name](*first, *arguments).

    Raises:
        ConfigError: on an unknown name, arguments that are not literals, or ones that it does not take.
    """
    name, bracket, _ = text.partition("(")
    build = lookup(key, name.strip(), table)
    try:
        call = ast.parse(text.strip(), mode="eval").body if bracket else ast.Call(ast.Name(name), [], [])
        if not isinstance(call, ast.Call):
            raise ValueError("no closing bracket")
        arguments = [ast.literal_eval(node) for node in call.args]
        keywords = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        return build(*first, *arguments, **keywords)
    except (TypeError, SyntaxError, ValueError) as error:
        if type(error) not in (TypeError, SyntaxError, ValueError):
            raise  # a line of its own, as DataError's
        reason = str(error).replace("<unknown>, ", "").replace("<lambda>()", name.strip())
        hint = "" if type(error) is ValueError else f"; write it like {name.strip()}(number, ...)"
        raise ConfigError(f"{key} {text!r}: {reason}{hint}") from None


def flatten(config: Config | dict, prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 1000, ...}; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def literal(text: str) -> Any:
    """The Python value that a text stands for: 3, 1e-3, True, (1, 2); a name is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """A full, checked copy of a config in which the keys of `values`, such as "train.lr", have these.

    Raises:
        ConfigError: as `resolve`.
    """
    known, raw = flatten(config), config.to_dict()
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}; the nearest valid one is {nearest_key(key, known)!r}")
        section, _, leaf = key.rpartition(".")
        (raw[section] if section else raw)[leaf] = value
    return resolve(raw)


def nearest_key(key: str, known: Iterable[str]) -> str:
    """The known key closest to `key`; a right last part in the wrong place wins over a similar spelling."""
    names = list(known)
    last = [k for k in names if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    return (last or difflib.get_close_matches(key, names, n=1, cutoff=0.0) or [names[0]])[0]


def resolve(config: Config | dict) -> Config:
    """A full, checked config from one that may leave keys out (they take their defaults).

    Raises:
        ConfigError: on an unknown key, a value of the wrong type or out of range.
    """
    flat = flatten(config)
    full = defaults(str(flat.get("model.name", "mlp")))
    known = flatten(full)
    for key, value in flat.items():
        if key not in known and (owner := _model_of(key)):
            name = full.model.name
            raise ConfigError(
                f"model.name is {name!r} and {key} a key of {owner!r}: start the file from defaults({name!r})"
            )
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}; the nearest valid one is {nearest_key(key, known)!r}")
        if not _same_kind(value, known[key]):
            raise ConfigError(f"{key} must be {_kind(known[key])} like {known[key]!r}, not {value!r}")
        section, _, leaf = key.rpartition(".")
        like = known[key]
        typed = tuple(value) if isinstance(like, list) else (float(value) if isinstance(like, float) else value)
        (full[section] if section else full)[leaf] = typed
    _check_ranges(flatten(full))
    return full


def _model_of(key: str) -> str | None:
    """The model that has this key, if one has."""
    return next((name for name, own in MODEL_DEFAULTS.items() if key.removeprefix("model.") in own), None)


def _same_kind(value: Any, like: Any) -> bool:
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    if isinstance(like, float):
        return isinstance(value, int | float)
    return isinstance(value, type(like))


def _kind(like: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a name", list: "a tuple"}[type(like)]


def _check_ranges(flat: dict[str, Any]) -> None:
    for key in _POSITIVE:
        if flat[key] < 1:
            raise ConfigError(f"{key} must be at least 1, not {flat[key]}")
    if flat["mesh.data"] < 0:
        raise ConfigError(f"mesh.data is a number of devices, or 0 for all that are left, not {flat['mesh.data']}")
    for key in _NOT_NEGATIVE:
        if not flat[key] >= 0:
            raise ConfigError(f"{key} must not be negative, it is {flat[key]}")
    if flat["ema.snapshots"] < 1:
        raise ConfigError(f"ema.snapshots must be at least 1, not {flat['ema.snapshots']}")
    if any(not isinstance(s, int) or isinstance(s, bool) or s < 1 for s in flat["train.keep_at"]):
        raise ConfigError(f"train.keep_at are steps to save and keep, like (500,), not {flat['train.keep_at']}")
    if any(not isinstance(w, float | int) or not 0 < w < 12**-0.5 for w in flat["ema.widths"]):
        raise ConfigError(
            f"ema.widths are shares of the run between 0 and 0.288, like (0.05, 0.1), not {flat['ema.widths']}"
        )
    for key in ("train.beta2", "train.momentum"):
        if not 0 <= flat[key] < 1:
            raise ConfigError(f"{key} must be in [0, 1), it is {flat[key]}")
    if not flat["path.shift"] > 0:
        raise ConfigError(f"path.shift must be positive, not {flat['path.shift']}")
    if not 0 < flat["train.lr"] < float("inf"):
        raise ConfigError(f"train.lr must be positive and finite, not {flat['train.lr']}")
    if not 0 <= flat["train.label_dropout"] <= 1:
        raise ConfigError(f"train.label_dropout is a probability, not {flat['train.label_dropout']}")
    if not 0 <= flat.get("model.dropout", 0.0) < 1:
        raise ConfigError(f"model.dropout is a rate in [0, 1), not {flat['model.dropout']}")
    # 0 means: no features; as many heads as `head_width` makes
    may_be_zero = ("model.features", *(("model.heads",) if "model.head_width" in flat else ()))
    if flat.get("model.heads", 0) < 0:
        raise ConfigError(f"model.heads must not be negative, it is {flat['model.heads']}")
    for key, value in flat.items():
        if key.startswith("model.") and key not in may_be_zero and _smallest(value) < 1:
            raise ConfigError(f"{key} must be at least 1, it is {value}")
    if flat.get("model.features", 0) % 2 or flat.get("model.features", 0) < 0:
        raise ConfigError(f"model.features must be even and not negative, it is {flat['model.features']}")


def _smallest(value: Any) -> int:
    """The smallest whole number of a value that is one, or a list of them; 1 for anything else."""
    numbers = value if isinstance(value, list) else [value]
    return min((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=1)


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Keys other than `CADENCE` whose values differ, with (old, new)."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in a | b if k not in CADENCE and a.get(k) != b.get(k)}
