"""Runs that learn from a trained run, and the messages about a run that does not fit."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build
from flowjax.conditions import Field
from flowjax.config import changed, defaults
from flowjax.data import Affine, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference.run import Run, load
from flowjax.inference.teachers import check_teacher
from flowjax.methods import Context
from flowjax.methods.teacher import teacher_velocity
from tests.bits.known import pixels
from tests.conftest import TINY

SPEC = DataSpec("npz", (2,), Affine(3.0, 1.0))
WITH_LABEL = dataclasses.replace(SPEC, conditions=(Field("start", "vector", (2,)),), condition_maps=(Affine(1.0, 0.0),))
STUDENT = ["--config=mean_flow_gaussians8", *TINY[1:3], "--config.train.batch_size=64", "--config.train.steps=2"]
STUDENT += ["--config.train.log_every=2", "--config.method.improved=false", "--config.model.features=16"]


def run_of(spec: DataSpec = SPEC, method: str = "flow_matching", **keys: Any) -> Run:
    config = changed(
        defaults(method=method) if method == "normalizing_flow" else defaults("mlp", method), {"data.name": "npz"}
    )
    config = changed(config, {key.replace("__", "."): value for key, value in keys.items()})
    built = build(config, spec)
    return Run(Path("teacher"), config, 0, spec, built, built.init(jax.random.key(0)).params)


def check(teacher, spec=SPEC, **keys):
    keys = {"data.name": "npz"} | {key.replace("__", "."): value for key, value in keys.items()}
    config = changed(defaults("mlp", "mean_flow"), keys)
    check_teacher(teacher, build(config, spec, teacher=teacher.method), config, spec)


def test_a_student_needs_its_teacher_only_for_training(flowjax, tiny_run, tmp_path):
    flags = [f"--config.method.teacher={tiny_run}", f"--config.train.start_from={tiny_run}"]
    code, _, err = flowjax("train", *STUDENT, *flags, f"--workdir={tmp_path}/run")
    assert code == 0, err
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(str(tiny_run), "/nowhere"))
    code, result, err = flowjax("sample", f"--workdir={tmp_path}/run", "--num=4", f"--out={tmp_path}/x.npz")
    assert code == 0, err
    assert result["nfe"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.path.schedule=cosine"], "has path.schedule='condot', and this config has 'cosine'"),
        (["--config.method.teacher=/nowhere"], "method.teacher must be the workdir of a trained run"),
        (["--config.train.start_from=/nowhere"], "train.start_from must be the workdir of a trained run"),
        (["--config.train.start_from={}", "--config.model.width=9"], "and this config has 9: set model.width to"),
        (["--config.train.start_from={}", "--config.model.features=2"], "has model.features=16, and this config has 2"),
        (["--config.method.improved=True"], "method.improved=true has no effect with method.teacher"),
        (["--config.method.kappa=0.5"], "method.kappa has no effect with method.teacher: set method.kappa=0"),
        (["--config.method.guidance=2"], "method.guidance 2 needs conditions: set data.cond"),
    ],
)
def test_a_run_that_does_not_fit_is_one_line(flowjax, tiny_run, tmp_path, flags, message):
    flags = [f"--config.method.teacher={tiny_run}", *(flag.format(tiny_run) for flag in flags)]
    code, _, err = flowjax("train", *STUDENT, *flags, f"--workdir={tmp_path}/run")
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_a_teacher_with_learned_ends_is_refused():
    spec = dataclasses.replace(pixels((2,)), name="npz")
    teacher = run_of(spec, "variational_diffusion", path__schedule="vp", method__learn_ends=True)
    with pytest.raises(ConfigError, match=r"has learned the ends of its log-SNR \(method\.learn_ends\)"):
        check_teacher(teacher, teacher.method, teacher.config, spec)


def test_a_teacher_needs_a_velocity():
    with pytest.raises(
        ConfigError, match=r"is a run of method\.name 'normalizing_flow', which has no velocity but bijection"
    ):
        check(run_of(method="normalizing_flow"))


def test_a_teacher_with_other_data_or_conditions_is_refused():
    with pytest.raises(ConfigError, match=r"teacher was trained on other data: scale is 2.0 and was 3.0"):
        check(run_of(), dataclasses.replace(SPEC, normalise=Affine(2.0, 1.0)))
    with pytest.raises(ConfigError, match=r"trained on other data: shape is \[3\] and was \[2\]"):
        check(run_of(), dataclasses.replace(SPEC, shape=(3,)))
    with pytest.raises(ConfigError, match=r"teacher has other conditions, none there and start here: set data.cond"):
        check(run_of(WITH_LABEL), WITH_LABEL, data__cond=("start",))
    with pytest.raises(ConfigError, match=r"has source.name='uniform', and this config has 'normal': set source.name"):
        check(run_of(source__name="uniform"))


def test_a_teacher_with_data_of_another_name_is_warned_about(capsys):
    check(run_of())
    assert capsys.readouterr().err == ""
    check(run_of(dataclasses.replace(SPEC, name="moons")))
    assert "was trained on 'moons', and this run trains on 'npz': the teacher's" in capsys.readouterr().err


def test_guidance_needs_a_teacher_that_knows_the_velocity_without_conditions():
    cond: Any = {"data__cond": ("start",)}
    check(run_of(WITH_LABEL, **cond), WITH_LABEL, method__guidance=2.0, **cond)
    kept = run_of(WITH_LABEL, data__cond_dropout=0.0, **cond)
    check(kept, WITH_LABEL, **cond)
    with pytest.raises(ConfigError, match=r"was trained with 'start' in every row \(its data.cond_dropout is 0\)"):
        check(kept, WITH_LABEL, method__guidance=2.0, **cond)


@pytest.mark.parametrize("name", ["mean_flow", "shortcut", "flow_map"])
def test_guidance_without_a_teacher_needs_the_dropout_of_conditions(name):
    config = changed(defaults("mlp", name), {"data.name": "npz", "data.cond": ("start",), "method.guidance": 2.0})
    assert build(config, WITH_LABEL)
    with pytest.raises(ConfigError, match=r"'start' is never dropped: set data\.cond_dropout"):
        build(changed(config, {"data.cond_dropout": 0.0}), WITH_LABEL)


def test_a_teacher_of_sets_gets_their_mask():
    """The velocity of the elements that exist is independent of the numbers in place of the others."""
    run = run_of(DataSpec("npz", (4, 2), has_mask=True))
    params = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), run.params)
    context = Context(teacher=(params, {}))
    x, mask = jax.random.normal(jax.random.key(0), (3, 4, 2)), jnp.arange(4) < jnp.array([[1], [2], [4]])
    value = lambda x: teacher_velocity(run.method, context, jnp.full(3, 0.5), x, mask=mask)
    other = jnp.where(mask[..., None], x, 7.0)
    assert np.abs(value(x)).max() > 0
    np.testing.assert_array_equal(value(x), value(other))
    assert np.abs(teacher_velocity(run.method, context, jnp.full(3, 0.5), other) - value(x)).max() > 0.01


def test_a_resumed_student_goes_on_with_the_same_checkpoint_of_its_teacher(flowjax, tiny_run, tmp_path):
    teacher = shutil.copytree(tiny_run, tmp_path / "teacher")
    flags = [*STUDENT, "--config.train.save_every=1", f"--config.method.teacher={teacher}", "--no_plots"]
    command = ["train", *flags, f"--workdir={tmp_path}/run"]
    code, _, err = flowjax(*command)
    assert code == 0, err
    record = json.loads((tmp_path / "run" / "teacher.json").read_text())
    last = load(teacher).step
    assert record["step"] == last
    shutil.rmtree(teacher / "checkpoints" / str(last))  # another checkpoint is the last one now
    code, _, err = flowjax(*command, "--config.train.steps=3")
    assert (code, err.count("\n")) == (2, 1)
    assert f"no checkpoint {last} in" in err
