"""What a config may hold: types, ranges, and the arguments of names, refused in one line before anything is built."""

import time

import pytest

from flowjax.arguments import make
from flowjax.build import build
from flowjax.config import MODEL_DEFAULTS, changed, defaults, flatten, literal, resolve
from flowjax.data import DataError, DataSpec
from flowjax.data.augment import AUGMENTATIONS
from flowjax.data.requests import DataRequest
from flowjax.data.sets import DATASETS
from flowjax.errors import ConfigError
from flowjax.names import (
    COUPLINGS,
    NOISES,
    PATHS,
    PREDICTIONS,
    ROW_LOSSES,
    SCHEDULES,
    SOURCES,
    TIMES,
    WEIGHTS,
    SourceRequest,
)
from flowjax.paths import AffinePath
from flowjax.ranges import RANGES, Items
from flowjax.schedules import CondOT
from flowjax.solvers.diffusions import DIFFUSIONS
from flowjax.solvers.grids import GRIDS
from flowjax.training.optimizers import SCHEDULES as RATES

KEYS = {key: value for model in MODEL_DEFAULTS for key, value in flatten(defaults(model)).items()}
HUGE = 10**30
INF = float("inf")


def model_of(key):
    own = key.removeprefix("model.")
    return next((name for name, keys in MODEL_DEFAULTS.items() if key.startswith("model.") and own in keys), "mlp")


def refused(key, value):
    with pytest.raises(ConfigError) as error:
        changed(defaults(model_of(key)), {key: value})
    assert str(error.value).startswith(key), str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400  # the longest message names all 17 methods
    return str(error.value)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_refuses_other_types_and_what_is_out_of_range(key):
    """Every number and tuple has a finite range; a value that is not of the default's type is refused."""
    like = KEYS[key]
    others = [None, b"x", 1j, object()]
    if isinstance(like, bool):
        others += [0, 1.0, "true", HUGE]
    elif isinstance(like, int):
        others += [True, 3.0, "3", HUGE, -HUGE, 10**5000, INF, float("nan"), RANGES[key].high + 1]
    elif isinstance(like, float):
        others += [False, "1", HUGE * HUGE, -1, -INF, INF, float("nan"), 10**5000]
    elif isinstance(like, list):
        others += [3, "ab", (None,), ((1,),), (1j,), (True,), (INF,), (HUGE,), (-1,), (1,) * 100_000]
    else:
        others += [3, True, ("a",), "a\nb", "a\0", "x" * 10_000]
    for value in others:
        refused(key, value)
    assert changed(defaults(model_of(key)), {key: "mlp" if key == "model.name" else like})


def test_every_range_is_of_a_key_and_holds_its_default():
    numbers = {key for key, like in KEYS.items() if isinstance(like, int | float | list) and not isinstance(like, bool)}
    assert set(RANGES) == numbers
    for key in numbers:
        bounds = RANGES[key]
        assert (
            max(
                abs(e)
                for e in (
                    [bounds.range.low, bounds.range.high] if isinstance(bounds, Items) else [bounds.low, bounds.high]
                )
            )
            < INF
        )


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed", 2**32, "seed must be at most 4,294,967,295, not 4294967296"),
        ("seed", -1, "seed must not be negative"),
        ("model.time_scale", 0.0, "must be positive"),
        ("model.attention", ("x",), "must be a tuple of whole numbers like (16, 8)"),
        ("model.multipliers", (), "must have 1 to 10 elements"),
        ("model.multipliers", ((1,),), "one element is (1,)"),
        ("mesh.rules", (3,), "must be a tuple of strings"),
        ("train.warmup", INF, "must be a finite number, not inf"),
        ("train.batch_size", 3.0, "must be a whole number like 256, not 3.0"),
        ("train.lr", "fast", "must be a number like 0.001, not 'fast'"),
    ],
)  # fmt: skip
def test_messages_of_ranges(key, value, told):
    assert told in refused(key, value)


@pytest.mark.parametrize("text", ["condot", "{[]: 1}", "-" * 5000 + "1", "-" * 100_000 + "1", "[" * 5000, "\0"])
def test_a_text_that_is_no_python_value_is_itself(text):
    """Python's parser raises five kinds of errors on these; none of them is an internal error of a command."""
    assert literal(text) == text


@pytest.mark.parametrize("config", [None, 3, [1], "mlp"])
def test_a_config_must_be_a_dictionary(config):
    with pytest.raises(ConfigError, match="must be a dictionary"):
        resolve(config)


@pytest.mark.parametrize(
    "change",
    [
        {"path.schedule": "ddpm_linear(1000000000)"},
        {"path.schedule": "nichol_cosine(1000000000)"},
        {"method.times": "levels(1000000000)"},
        {"model.width": 65_536, "model.depth": 64},
    ],
)
def test_sizes_are_refused_before_they_are_allocated(change):
    """A billion levels would take 8 GB at least, and this network 1 TB."""
    start = time.process_time()
    with pytest.raises(ConfigError, match="at most"):
        build(changed(defaults(), change), DataSpec("moons", (2,)))
    assert time.process_time() - start < 10


def test_a_shape_of_data_is_bounded():
    with pytest.raises(ConfigError, match="at most 67,108,864 are possible"):
        build(defaults(), DataSpec("npz", (10**9, 10**9)))


TABLES = {
    "path.schedule": (SCHEDULES, ()),
    "path.name": (PATHS, (CondOT(), None, True)),
    "path.noise": (NOISES, ()),
    "source.name": (SOURCES, (SourceRequest(DataSpec("moons", (2,))),)),
    "coupling.name": (COUPLINGS, (AffinePath(CondOT()),)),
    "prediction": (PREDICTIONS, ()),
    "method.weight": (WEIGHTS, ()),
    "method.loss": (ROW_LOSSES, ()),
    "method.times": (TIMES, ()),
    "data.name": (DATASETS, (DataRequest(),)),
    "data.augment": (AUGMENTATIONS, ()),
    "train.schedule": (RATES, ()),
    "grid": (GRIDS, ()),
    "g": (DIFFUSIONS, ()),
}
NASTY = [
    "1j", "1e999", "-1e999", "10**9", "1e300", "1" + "0" * 40, "[1]", "(1,)", "{}", "b'x'", "None, None, None, None",
    "1, 2, 3, 4, 5, 6, 7, 8", "nosuch=1", "*[1]", "**{}", "open", "__import__('os')", "0.5)(0.5", "0.5", "'x'", "True",
    "1, " * 100, "(" * 90 + ")" * 90, "'\\0'", "-1", "0",
]  # fmt: skip


@pytest.mark.parametrize("key", TABLES)
def test_arguments_of_names_are_checked_against_what_the_name_takes(key):
    """Every name of every table, with arguments of a wrong kind: a ConfigError of one line that begins with the key.

    Arguments that are possible for some names (0.5 or -1) may build something; nothing else may be raised.
    """
    table, first = TABLES[key]
    lines = []
    for name in table:
        for arguments in NASTY:
            text = f"{name}({arguments})"
            try:
                make(key, text, table, *first)
                assert arguments in ("0.5", "'x'", "-1", "0", "True", "[1]", "(1,)")
            except (ConfigError, DataError) as error:
                lines.append(str(error))
    for line in lines:
        assert line.startswith(key), line
        assert "\n" not in line
        assert len(line) < 400


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("prediction", "velocity(0)", "velocity takes no arguments"),
        ("data.name", "moons(0)", "moons takes no arguments"),
        ("source.name", "moons('gaussians8')", "moons takes no arguments"),
        ("path.schedule", "vp(0.5)(0.5)", "in one pair of brackets"),
        ("prediction", "edm(1e999)", "sigma_data must be a finite number, not inf"),
        ("method.weight", "sigmoid(1j)", "bias must be a number, not 1j; the signature is sigmoid(bias: number = 0.0)"),
        (
            "path.schedule",
            "vp(1, 2, 3)",
            "at most 2 arguments, not 3; the signature is vp(beta_min: number = 0.1, beta_",
        ),
        ("path.schedule", "vp(x=1)", "vp has no argument 'x'"),
        ("path.schedule", "vp(1, beta_min=1)", "vp is given beta_min twice"),
        ("path.schedule", "polynomial", "polynomial needs its argument n; the signature is polynomial(n: number)"),
        ("path.schedule", "vp(True)", "beta_min must be a number, not True"),
        ("method.times", "levels(10.5)", "n must be a whole number, not 10.5"),
        ("method.times", "logit_normal(0, 1, 1)", "stratified must be true or false, not 1"),
        ("path.schedule", "vp(" + "1" * 300 + ")", "at most 300 characters"),
    ],
)  # fmt: skip
def test_messages_of_arguments(key, text, told):
    table, first = TABLES[key]
    with pytest.raises(ConfigError) as error:
        make(key, text, table, *first)
    assert told in str(error.value)


def test_a_fault_of_a_builder_is_not_called_a_wrong_argument():
    """An exception that no argument causes is passed on as it is, and not turned into a ConfigError."""

    def broken(n: int = 1):
        return n + "x"

    with pytest.raises(TypeError):
        make("key", "broken(2)", {"broken": broken})
    with pytest.raises(UnicodeDecodeError):
        make("key", "text", {"text": lambda: b"\xff".decode()})
