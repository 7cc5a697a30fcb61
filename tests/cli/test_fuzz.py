"""Random command lines with a fixed seed: a command ends in order whatever its arguments are.

Exit code 0 or 2; at most one line of JSON on stdout; at most one line of error on stderr; no traceback, no internal
error, no warning from a library; and a bounded time.
"""

import json
import random
import re
import time
import warnings

import pytest

from flowjax.config import MODEL_DEFAULTS, defaults, flatten
from flowjax.data.augment import AUGMENTATIONS
from flowjax.data.sets import DATASETS
from flowjax.methods import METHODS
from flowjax.names import COUPLINGS, NOISES, PREDICTIONS, SCHEDULES, SEQUENCE_MODELS, SOURCES, TIMES, WEIGHTS
from flowjax.ranges import RANGES, Range
from flowjax.solvers.grids import GRIDS
from flowjax.solvers.names import known_solvers
from flowjax.training import optimizers

NASTY = [
    "", "nan", "inf", "-inf", "-1", "0", "1", "2", "3.0", "0.5", "-0.0", "1e-300", "1e300", "1e999", "9" * 20,
    "9" * 5000, "2147483648", "4294967296", "9223372036854775808", "-9223372036854775809", "True", "False", "None",
    "é", "日本", "~", "\u202e", "a b", "'", '"', "'a'", "()", "(,)", "(1,)", "((1,),)", "(1, 2)", "[1, 2]", "[]", "{}",
    "{'a': 1}", "1j", "('x',)", "(nan,)", "(1e999,)", "(0.1,)", "(-1,)", "vp(0.5)", "vp(0.5)(0.5)", "edm(1e999)",
    "sigmoid(1j)", "vp(", "levels(1000000000)", "levels(2)", "ddpm_linear(1000000000)", "ddpm_linear(2)",
    "nichol_cosine(s=5)", "ve(1, 0.1)", "bridge(1e-13)", "sinkhorn(1e9)", "polynomial(-1)", "velocity(0)",
    "moons('gaussians8')", "digits(10)", "hybrid(1)", "digits(True)", "conditional_ot(-1)", "unbalanced(1)",
    "crop(99999)", "folder(8)", "variational('tiny')", "../x", "/dev/null", "/proc/self/mem", "%s", "{0}", "$(ls)",
    "\n", "a\nb", "\t", "\0", "lambda: 0", "__import__('os')", "x" * 5000, "0x10", "1_000", "+1", "- 1", ".5",
    "(" * 200, "model.width", "--seed=1",
]  # fmt: skip

NAMES = {
    "path.schedule": SCHEDULES,
    "path.noise": NOISES,
    "source.name": SOURCES,
    "coupling.name": COUPLINGS,
    "prediction": PREDICTIONS,
    "method.weight": WEIGHTS,
    "method.times": TIMES,
    "method.name": METHODS,
    "data.name": DATASETS,
    "data.augment": AUGMENTATIONS,
    "train.schedule": optimizers.SCHEDULES,
    "train.optimizer": optimizers.OPTIMIZERS,
}

KEYS = {key: value for model in MODEL_DEFAULTS for key, value in flatten(defaults(model)).items()}

_SMALL = ["--config.model.multipliers=(1,)", "--config.model.blocks=1"]

TINY = {
    "mlp": ["--config.model.width=8", "--config.model.depth=1"],
    "resmlp": ["--config.model.width=8", "--config.model.depth=1"],
    "transformer": ["--config.model.width=8", "--config.model.depth=1", "--config.model.heads=2"],
    "unet1d": [*_SMALL, "--config.model.channels=4"],
    "unet": [*_SMALL, "--config.model.channels=4"],
    "adm": [*_SMALL, "--config.model.channels=32", "--config.model.head_width=32", "--config.model.film=true"],
    "edm2": [*_SMALL, "--config.model.channels=32", "--config.model.head_width=32"],
    "dit": ["--config.model.width=8", "--config.model.depth=1", "--config.model.heads=2"],
}

FLAGS = {
    "sample": {
        "num": ["4"], "label": ["0", "x"], "labels": ["random", "balanced"], "seed": ["3"], "batch": ["4"],
        "solver": known_solvers(), "rtol": ["1e-3"], "atol": ["1e-3"], "steps": ["2", "3"], "grid": [*GRIDS, "learned"],
        "eta": ["0.5"], "churn": ["1"], "g": ["0.1", "sigma(1)", "canonical"], "variance": ["small", "learned"],
        "schedule": [*SCHEDULES], "guidance": ["cfg", "auto"], "scale": ["2"], "interval": ["0.1,0.9"],
        "rescale": ["0.5"], "log_prob": [], "weak_checkpoint": ["40"], "weak": [], "checkpoint": ["40", "best"],
        "width": ["0.1"], "ema": ["false"], "num_processes": ["1"], "process_id": [], "heartbeat_timeout": ["5"],
    },
    "likelihood": {
        "num": ["4"], "seed": ["3"], "batch": ["4"], "solver": known_solvers(), "rtol": ["1e-3"], "atol": ["1e-3"],
        "steps": ["2"], "divergence": ["exact", "hutchinson", "hutch++"], "probes": ["2", "6"],
        "probe_kind": ["gaussian", "orthogonal"], "check": ["0", "2"], "converged_within": ["1"],
        "split": ["test"], "data": [], "dequantisation": ["uniform"], "importance_samples": ["2"], "bound": ["ddpm(3)"],
        "checkpoint": ["40"], "width": ["0.1"], "ema": ["false"],
    },
    "encode": {
        "num": ["4"], "seed": ["3"], "batch": ["4"], "solver": known_solvers(), "rtol": ["1e-3"], "atol": ["1e-3"],
        "steps": ["2"], "split": ["test"], "data": [], "checkpoint": ["40"], "ema": ["false"],
    },
    "evaluate": {
        "metrics": ["fid"], "num": ["4"], "samples": [], "split": ["train"], "inception": ["high"],
        "labels": ["shares"], "solver": [], "checkpoint": [], "batch": [],
    },
    "export": {"dtype": ["bfloat16"], "checkpoint": ["40"], "ema": ["false"], "width": []},
    "convert": {
        "from": ["dit", "torchcfm"], "weights": [], "shape": ["8,8,3"], "classes": ["2"], "heads": ["2"],
        "head_width": ["2"], "dtype": ["bfloat16"], "config.model.width": ["8"], "config.model.depth": [],
    },
    "sweep": {"only": ["0"]},
    "train": {"trace": ["1:2"], "tensorboard": [], "wandb": [], "checkpoint": ["best"], "num_processes": ["1"]},
}  # fmt: skip


def value_of(draw, key):
    """A value for a config key: a nasty one, one at the ends of its range, or a name of its table."""
    if draw.random() < 0.2:
        return draw.choice(NASTY)
    if key in NAMES:
        return draw.choice([*NAMES[key]]) + draw.choice(["", "", "", "", "(0.5)", "(1)", "(2, 3)", "(1e-12)", "(1e9)"])
    bounds, like = RANGES.get(key), KEYS[key]
    if not isinstance(bounds, Range):
        return draw.choice(
            ["(1, 1)", "(2,)", "(1,)", "(0.1, 0.2)", "('kernel$ = -, fsdp',)", "bfloat16", "block", "true"]
        )
    ends = [bounds.low, bounds.high, bounds.low - 1, bounds.high + 1, bounds.least or bounds.low]
    inside = bounds.low + (bounds.high - bounds.low) * 10 ** draw.uniform(-12, 0)
    number = draw.choice([*ends, *[inside] * 8])
    return str(round(number) if isinstance(like, int) else float(number))


def train_case(draw, configs):
    model = draw.choice(["mlp", "mlp", *TINY])
    keys = [*flatten(defaults(model))]
    argv = ["train", f"--config={configs[model]}", "--workdir=w", "--dry_run", *TINY[model]]
    argv += [f"--config.{key}={value_of(draw, key)}" for key in draw.sample(keys, draw.choice([1, 1, 1, 2]))]
    if draw.random() < 0.05:
        argv.append(flag_of(draw, "train"))
    if draw.random() < 0.05:
        argv.append(draw.choice(["", "--"]) + draw.choice([*keys, *NASTY]) + draw.choice(["", "=3"]))
    return argv


def flag_of(draw, command):
    name = draw.choice([*FLAGS[command]])
    usual = FLAGS[command][name]
    value = draw.choice(usual) if usual and draw.random() < 0.75 else draw.choice(NASTY)
    return draw.choice([f"--{name}={value}"] * 9 + [f"--{name}"])


def other_case(draw, configs, run):
    command = draw.choice(["sample", "sample", "likelihood", "encode", "evaluate", "export", "convert", "sweep"])
    if command == "sweep":
        key = draw.choice([*flatten(defaults())])
        values = ",".join(value_of(draw, key) for _ in range(draw.choice([1, 2])))
        argv = [
            command,
            f"--config={configs['mlp']}",
            "--workdir=w",
            *TINY["mlp"],
            "--dry_run",
            f"--grid={key}={values}",
        ]
        return argv + [flag_of(draw, command)] * draw.choice([0, 0, 1])
    suffix = "safetensors" if command in ("export", "convert") else "npz"
    out = draw.choice([f"out.{suffix}"] * 9 + [draw.choice(NASTY)])
    where = draw.choice([str(run)] * 19 + [draw.choice(NASTY)])
    argv = [command, f"--out={out}"] if command != "evaluate" else [command, "--metrics=fid", "--num=4"]
    argv += [] if command == "convert" else [f"--workdir={where}"]
    argv += ["--num=4", "--steps=2", "--solver=euler"] if command == "sample" else []
    argv += ["--num=4", "--steps=2", "--solver=rk4"] if command in ("likelihood", "encode") else []
    return argv + [flag_of(draw, command) for _ in range(draw.choice([1, 1, 2, 3]))]


FAULTS = ("cannot write", "did not arrive", "not finite")
"""Exit code 1 is for a fault on the way: a file that cannot be written, or a solve that does not arrive."""


def faults_of(argv, code, out, err, seconds, warned):
    """What is wrong with how a command ended."""
    lines = out.splitlines()
    told = [line for line in err.splitlines() if line.startswith("flowjax: ")]
    if code not in (0, 2) and not (code == 1 and any(text in err for text in FAULTS)):
        yield f"exit code {code}"
    if (code == 0) != (len(lines) == 1) or len(lines) > 1:
        yield f"{len(lines)} lines on stdout"
    if lines and not isinstance(json.loads(lines[0]), dict):
        yield "no JSON object on stdout"
    if len(told) != (code != 0):
        yield f"{len(told)} lines of error"
    if told and len(told[0]) > 1000:
        yield f"an error of {len(told[0])} characters"
    if "Traceback" in err or "FLOWJAX_TRACEBACK" in err or re.search(r"^[WEF]\d{4} |Warning:", err, re.MULTILINE):
        yield "a traceback or a warning of a library"
    if warned:
        yield f"a warning: {warned[0].message}"
    if seconds > 60:
        yield f"{seconds:.0f} s of CPU time"


@pytest.fixture
def ends_in_order(capfd, tmp_path, monkeypatch, as_users_call):
    """`ends_in_order(argv)`: what is wrong with how the command ends, as a list of texts."""
    from flowjax.cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(argv):
        capfd.readouterr()
        start = time.process_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("default")
            try:
                code = main(argv)
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"
        out, err = capfd.readouterr()
        return list(faults_of(argv, code, out, err, time.process_time() - start, warned)), err, code

    return call


@pytest.fixture
def configs(tmp_path):
    """A config file for each model: densities for `mlp` and networks of sequences, digits for the others."""
    found = {}
    for model in MODEL_DEFAULTS:
        data = "gaussians8" if model in ("mlp", *SEQUENCE_MODELS) else "digits"
        text = f"from flowjax.config import defaults\n\n\ndef get_config():\n    config = defaults({model!r})\n"
        path = found[model] = tmp_path / f"{model}.py"
        path.write_text(f"{text}    config.data.name = {data!r}\n    return config\n")
    return found


def run_cases(cases, ends_in_order):
    bad, done = [], 0
    for argv in cases:
        faults, err, code = ends_in_order(argv)
        done += code == 0
        if faults:
            bad.append(f"{'; '.join(faults)}\n    {[a[:100] for a in argv]}\n    {err[-600:]}")
    assert done >= len(cases) / 10  # else no case reaches the code behind the checks
    assert not bad, f"{len(bad)} of {len(cases)} command lines:\n" + "\n".join(bad)


@pytest.mark.parametrize("part", [pytest.param(n, marks=pytest.mark.slow if n else ()) for n in range(16)])
def test_random_command_lines_end_in_order(part, configs, tiny_run, ends_in_order):
    """About 100 command lines in each part; the first part stays in the default suite."""
    draw = random.Random(part)
    cases = [train_case(draw, configs) for _ in range(60)] + [other_case(draw, configs, tiny_run) for _ in range(40)]
    run_cases(cases, ends_in_order)
