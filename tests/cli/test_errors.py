"""Bad input: exit code 2, one line that names the key and the nearest valid one, nothing on stdout, nothing lost."""

import json
import math
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from flowjax.cli.cautions import cautions
from flowjax.config import changed, defaults
from flowjax.config_files import load_config, shipped_configs
from tests.conftest import TINY

TRAIN = ("train", "--config=gaussians8")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("trian",), "did you mean 'train'"),
        (("train", "--workdir=w"), "--config is required"),
        (TRAIN, "--workdir is required"),
        (("train", "--config=gausians8", "--workdir=w"), "nearest is 'gaussians8'"),
        ((*TRAIN, "--workdir=w", "--config.train.stpes=3"), "'train.stpes'; the nearest valid one is 'train.steps'"),
        ((*TRAIN, "--workdir=w", "--config.lr=3"), "nearest valid one is 'train.lr'"),
        ((*TRAIN, "--workdir=w", "--config.train.steps=many"), "must be a whole number like 7000, not 'many'"),
        ((*TRAIN, "--workdir=w", "--config.model.width=64.5"), "must be a whole number like 64, not '64.5'"),
        ((*TRAIN, "--workdir=w", "--config.train.lr=fast"), "train.lr must be a number like 0.004, not 'fast'"),
        ((*TRAIN, "--workdir=w", "--config.method.uncertainty=maybe"), "must be true or false, not 'maybe'"),
        ((*TRAIN, "--workdir=w", f"--config.train.keep_at={'-' * 5000}1"), "value of a flag is nested too deeply"),
        ((*TRAIN, "--workdir=w", "--config.train.steps=0"), "train.steps must be at least 1"),
        ((*TRAIN, "--workdir=w", "--config.train.lr=-1"), "train.lr must be positive"),
        ((*TRAIN, "--workdir=w", "--config.model.width=0"), "model.width must be at least 1"),
        ((*TRAIN, "--workdir=w", "--config.data.name=moon"), "data.name: unknown 'moon'; did you mean 'moons'"),
        ((*TRAIN, "--workdir=w", "--config.path.schedule=condott"), "path.schedule: unknown 'condott'; did you mean"),
        ((*TRAIN, "--workdir=w", "--config.path.schedule=polynomial(0)"), "n must be positive"),
        ((*TRAIN, "--workdir=w", "--config.path.schedule=polynomial"), "polynomial"),
        ((*TRAIN, "--workdir=w", "--config.coupling.name=opt"), "did you mean 'ot'"),
        ((*TRAIN, "--workdir=w", "--config.prediction=velocty"), "did you mean 'velocity'"),
        ((*TRAIN, "--workdir=w", "--config.train.optimizer=adm"), "did you mean 'adam'"),
        ((*TRAIN, "--workdir=w", "--config.train.schedule=cosin"), "did you mean 'cosine'"),
        ((*TRAIN, "--workdir=w", "--config.model.name=mpl"), "did you mean 'mlp'"),
        ((*TRAIN, "--workdir=w", "--config.model.activation=gelo"), "unknown activation 'gelo'"),
        ((*TRAIN, "--workdir=w", "--config.data.cond=label"), "has none"),
        ((*TRAIN, "--workdir=w", "--config.prediction=noise", "--config.source.name=uniform"), "not N(0, I)"),
        ((*TRAIN, "--workdir=w", "--config.prediction=score", "--config.coupling.name=ot"), "depend on the data"),
        ((*TRAIN, "--workdir=w", "--config.path.name=gaussian", "--config.coupling.name=ot"), "use 'affine'"),
        ((*TRAIN, "--workdir=w", "--config.data.name=digits", "--config.source.name=moons"), "has shape (2,)"),
        ((*TRAIN, "--workdir=w", "--config.data.name=npz"), "data.path"),
        ((*TRAIN, "--workdir=w", "--config.path.schedule=vp", "--config.source.name=uniform"), "needs the source"),
        (("train", "--config=digits", "--workdir=w", "--config.model.name=unet"), "starts from defaults('unet')"),
        ((*TRAIN, "--workdir=w", "--stpes=3"), "unknown flag --stpes; did you mean --config.train.steps?"),
        ((*TRAIN, "--workdri=w"), "unknown flag --workdri; did you mean --workdir?"),
        ((*TRAIN, "--workdir=w", "--path.schedule=vp"), "--path.schedule; did you mean --config.path.schedule?"),
        ((*TRAIN, "--workdir=w", "--lr=3"), "unknown flag --lr; did you mean --config.train.lr?"),
        ((*TRAIN, "--workdir=w", f"--{'x' * 5000}=3"), "unknown flag --xxxxxxxxxx"),
        ((*TRAIN, "--workdir=w", "--zzzzzz=3"), "unknown flag --zzzzzz; the flags are --checkpoint, "),
        ((*TRAIN, "--workdir=w", "train.lr=3"), "argument 'train.lr=3'; did you mean --config.train.lr=3?"),
        (("train", "moons", "--workdir=w"), "argument 'moons'; did you mean --config moons?"),
        ((*TRAIN, "--workdir=w", "--config.my.key=3"), "key 'my.key'; the keys and sections are coupling, "),
        ((*TRAIN, "--workdir=w", "--config.data=3"), "'data' is a section; the keys of data are augment, cond, "),
        ((*TRAIN, "--workdir=w", "--config.train.zzz=3"), "config key 'train.zzz'; the keys of train are accumulate, "),
        ((*TRAIN, "--workdir=w", "--config.seed=4294967296"), "seed must be at most 4,294,967,295"),
        ((*TRAIN, "--workdir=w", f"--config.train.steps={10**19}"), "train.steps must be at most 2,000,000,000"),
        ((*TRAIN, "--workdir=w", "--config.train.warmup=inf"), "train.warmup must be a finite number, not inf"),
        ((*TRAIN, "--workdir=w", "extra"), "unexpected argument 'extra'"),
        (("reproduce", "--quick", "nothing"), "unknown experiment 'nothing'"),
        (("reproduce", "a", "--quick", "b"), "unexpected argument 'b'"),
        (("sample", "--workdir=nowhere", "--out=a.npz", "--config.train.lr=1"), "config keys are flags of `flowjax"),
        (("sample", "--workdir=nowhere", "--out=a.npz", f"--num={10**20}"), "--num must be at most 1,000,000,000"),
        (("sample", "--workdir=nowhere", "--out=a.npz", "--rtol=inf"), "--rtol must be in [0, 1], not inf"),
        (("sample", "--workdir=nowhere", "--out=a.npz", "--rtol=nan"), "--rtol must be in [0, 1], not nan"),
        (("sample", "--workdir=nowhere", "--out=a.npz", "--churn=inf"), "--churn must be a finite number, not inf"),
        (("sample", "--workdir=a\0b", "--out=a.npz"), "--workdir must not contain control characters"),
        (("sample", "--out=a.npz"), "--workdir is required"),
        (("sample", "--workdir=nowhere", "--out=a.npz"), "is not the workdir of a run"),
        (("sample", "--workdir=w", "--out=a.png"), "must end in .npz"),
        (("sample", "--workdir=w", "--out=a.npz", "--num=0"), "num"),
        (("likelihood", "--workdir=w", "--out=a.npz", "--divergence=exakt"), "divergence"),
    ],
)  # fmt: skip
def test_usage_errors(flowjax, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, result, err = flowjax(*argv)
    assert code == 2, err
    assert result is None
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert message in lines[0]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--solver=dopry5", "did you mean 'dopri5'?"),
        ("--solver=euler", "--steps N"),
        ("--g=1e308", "--g must be at most 1e+09, not 1e+308"),
        ("--g=nan", "--g must be a finite number, not nan"),
        ("--g=sigma(1e999)", "--g 'sigma(1e999)': c must be a finite number, not inf"),
        ("--schedule=vp(1)(2)", "--schedule 'vp(1)(2)': a name, and its arguments in one pair of brackets"),
    ],
)
def test_usage_errors_of_solvers(flowjax, tiny_run, tmp_path, flag, message):
    more = [] if flag.startswith("--solver") else ["--solver=euler_maruyama", "--steps=2"]
    code, result, err = flowjax("sample", f"--workdir={tiny_run}", f"--out={tmp_path}/a.npz", *more, flag)
    assert (code, result, len(err.splitlines())) == (2, None, 1), err
    assert message in err


DEFAULTS = "from flowjax.config import defaults\ndef get_config():\n    config = defaults()\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return 1 / 0\n", "c.py, line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n", "c.py: it defines no function get_config()"),
        ("x = 1\ndef get_config(:\n", "c.py, line 2: SyntaxError: invalid syntax"),
        ("def get_config():\n    return {'train': {'stepz': 3}}\n", "nearest valid one is 'train.steps'"),
        ("def get_config():\n    return None\n", "a config must be a dictionary of keys and sections, not None"),
        ("import sys\nsys.exit(0)\n", "c.py, line 2: the file ended the program with exit code 0 instead of returning"),
        ("def get_config():\n    raise BaseException('mine')\n", "c.py, line 2: BaseException: mine"),
        ("def get_config():\n    return get_config()\n", "c.py, line 2: RecursionError: maximum recursion depth"),
        (f"{DEFAULTS}    config.my.key = 3\n", "line 4: unknown config key 'my'; the keys and sections are coupling"),
        (f"{DEFAULTS}    config.train.stepz += 3\n", "the nearest valid one is 'train.steps', in the line `config.t"),
        (f"{DEFAULTS}    config.my = 3\n    return config\n", "unknown config key 'my'; the keys and sections are"),
        (f"{DEFAULTS}    config.seed = 2**40\n    return config\n", "seed must be at most 4,294,967,295"),
        (f"{DEFAULTS}    config.method.name = 'gan'\n    return config\n", "config file from defaults(method='gan')"),
        ("d = {}\nd['a'] = d\ndef get_config():\n    return d\n", "unknown config key 'a.a'"),
    ],
)  # fmt: skip
def test_a_config_file_that_fails_is_one_line(flowjax, tmp_path, monkeypatch, text, message):
    """Whatever a file raises is one line with its line number; nothing is written, neither on stdout nor on disk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(text)
    code, result, err = flowjax("train", "--config=c.py", f"--workdir={tmp_path}/w")
    assert (code, result, len(err.strip().splitlines())) == (2, None, 1), err
    assert message in err
    assert not (tmp_path / "w").exists()


def test_a_flag_replaces_the_method_of_a_config_before_its_keys(flowjax, tmp_path):
    """The section has the keys of the new method, those of the network stay, and sections that it lacks are gone."""
    name, key = ["--config.method.name=mean_flow"], ["--config.method.kappa=0.5"]
    for method in (name, name[0].split("=")):
        argv = [*TINY, *key, *method, f"--workdir={tmp_path}/w", "--dry_run"]
        code, _, err = flowjax("train", *argv)
        assert code == 0, err
        config = json.loads(err[err.index("{") : err.index("\n}") + 2])
        expected = defaults("mlp", "mean_flow").to_dict()["method"]
        assert config["method"] == {**expected, "kappa": 0.5}
        assert config["model"]["width"] == 16
        assert "prediction" not in config
    code, _, err = flowjax("train", *TINY, *name, "--config.method.uncertainty=true", f"--workdir={tmp_path}/w")
    assert (code, "unknown config key 'method.uncertainty'; the keys of method are" in err) == (2, True)
    assert changed(defaults(), {"method.name": "gan"}) == defaults("mlp", "gan")


def test_what_a_config_file_prints_goes_to_stderr(flowjax, tmp_path):
    (tmp_path / "c.py").write_text(f"print('hello')\n{DEFAULTS}    print('there')\n    return config\n")
    argv = [f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/w", "--grid=seed=0..1"]
    code, result, err = flowjax("sweep", *argv, "--dry_run")
    assert (code, result["points"]) == (0, ["seed=0", "seed=1"])
    assert err.splitlines()[:2] == ["hello", "there"]


def test_a_missing_workdir_is_reported_before_jax_is_imported(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "flowjax"]
    for argv in (
        ["sample", "--out=a.npz"],
        ["likelihood", "--out=a.npz"],
        ["evaluate"],
        ["export", "--out=a.safetensors"],
    ):
        done = subprocess.run([*command, *argv, f"--workdir={tmp_path}/w"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1] == (
            f"flowjax: {argv[0]}: {tmp_path}/w is not the workdir of a run: there is no such folder"
        )
        assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() in ("jax", "numpy")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train.clip": 1e-300}, "train.clip = 1e-300 makes all gradients too small to train"),
        ({"train.lr": 1e-12}, "train.lr = 1e-12 is so small"),
        ({"train.lr": 100.0}, "train.lr = 100 is so large"),
        ({"train.optimizer": "adamw", "train.weight_decay": 1e5}, "each step shrinks the parameters to zero or beyond"),
        ({"train.weight_decay": 0.1}, "has no effect on train.optimizer 'adam'"),
        ({"data.cond": ("label",), "data.cond_dropout": 1.0}, "hides 'label' from the network"),
        ({"ema.half_life": 1.0}, "the moving average equals the parameters"),
        ({"train.keep_at": (5, 20_000)}, "train.keep_at has steps after train.steps = 10000: 20000"),
        ({"train.log_every": 20_000}, "only the last step is logged"),
        ({"train.batch_size": 1, "coupling.name": "ot", "ema.half_life": 1.0}, "but train.batch_size is 1"),
    ],
)
def test_settings_that_train_nothing_are_warned_about(change, told):
    [line] = cautions(changed(defaults(), change))
    assert told in line


def test_no_shipped_config_is_warned_about():
    for path in shipped_configs().values():
        assert cautions(load_config(path)) == []


@pytest.fixture
def copy(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def test_another_config_is_refused_and_cadence_is_not(flowjax, copy):
    before = (copy / "metrics.jsonl").read_text()
    code, _, err = flowjax("train", *TINY, f"--workdir={copy}", "--config.train.lr=0.5")
    assert code == 2
    assert "another config: train.lr is 0.004 there and 0.5 here" in err
    code, result, _ = flowjax("train", *TINY, f"--workdir={copy}", "--config.train.log_every=7")
    assert (code, result["status"]) == (0, "already_finished")
    assert (copy / "metrics.jsonl").read_text() == before


def test_a_damaged_checkpoint_offers_the_one_before_and_nothing_is_lost(flowjax, copy):
    for path in (copy / "checkpoints" / "120" / "default" / "d").iterdir():
        path.write_bytes(b"")
    code, _, err = flowjax("sample", f"--workdir={copy}", f"--out={copy}/s.npz", "--num=4")
    assert code == 2
    assert "the one before it is 80: add --checkpoint 80" in err
    code, result, _ = flowjax(
        "sample", f"--workdir={copy}", f"--out={copy}/s.npz", "--num=4", "--checkpoint=80", "--steps=5"
    )
    assert (code, result["num"]) == (0, 4)
    code, result, err = flowjax("train", *TINY, f"--workdir={copy}", "--checkpoint=80")
    assert (code, result["status"], result["step"]) == (0, "finished", 120)
    assert list((copy / "set_aside").glob("120-*"))


def test_bad_points_are_refused(flowjax, copy, tmp_path):
    for x, message in (
        (np.zeros((3, 5)), "x must be (N, 2)"),
        (np.full((3, 2), np.nan), "finite"),
        (np.zeros((0, 2)), "N >= 1"),
    ):
        np.savez(tmp_path / "x.npz", x=x)
        code, _, err = flowjax(
            "likelihood", f"--workdir={copy}", f"--data={tmp_path}/x.npz", f"--out={tmp_path}/ll.npz"
        )
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_an_output_that_cannot_be_written_is_a_fault(flowjax, copy):
    code, result, err = flowjax("sample", f"--workdir={copy}", "--num=4", "--steps=2", "--out=/dev/null/a.npz")
    assert (code, result) == (1, None)
    assert "cannot write /dev/null/a.npz" in err


def test_a_broken_config_json(flowjax, copy):
    (copy / "config.json").write_text("{")
    code, _, err = flowjax("evaluate", f"--workdir={copy}")
    assert code == 2
    assert "config.json cannot be read" in err
    assert json.loads((copy / "metrics.jsonl").read_text().splitlines()[0])["step"] == 40


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("path", "schedule", "ddpm_linear(1000000000)", "steps must be at most 100,000, not 1000000000"),
        ("model", "depth", 10**7, "model.depth must be at most 64, not 10000000"),
        ("model", "width", 1e9, "model.width must be a whole number like 128, not 1000000000.0"),
        ("path", "shift", math.nan, "path.shift must be a finite number, not nan"),
        ("prediction", None, "velocity(0)", "velocity takes no arguments"),
        ("seed", None, 2**32, "seed must be at most 4,294,967,295"),
        ("train", None, [1], "'train' is a section; the keys of train are accumulate"),
    ],
)
def test_a_strangers_config_json_is_checked_before_anything_is_built(flowjax, copy, section, key, value, told):
    record = json.loads((copy / "config.json").read_text())
    if key is None:
        record["config"][section] = value
    else:
        record["config"][section][key] = value
    (copy / "config.json").write_text(json.dumps(record))
    code, result, err = flowjax("sample", f"--workdir={copy}", f"--out={copy}/s.npz", "--num=4", "--steps=2")
    assert (code, result) == (2, None), err
    [line] = [line for line in err.splitlines() if line.startswith("flowjax: ")]  # beside a warning about the checksum
    assert told in line


def test_checkpoints_without_their_config_are_not_overwritten(flowjax, copy):
    (copy / "config.json").unlink()
    code, _, err = flowjax("train", *TINY, f"--workdir={copy}")
    assert code == 2
    assert "belong to no run" in err


def test_damaged_metrics_do_not_stop_a_resume(flowjax, copy):
    (copy / "checkpoints" / "120" / "metrics" / "metrics").write_text("")
    code, result, _ = flowjax("train", *TINY, f"--workdir={copy}", "--config.train.steps=130")
    assert (code, result["status"], result["step"]) == (0, "finished", 130)


def test_plots_that_were_cut_short_are_drawn_again_unless_none_are_wanted(flowjax, copy):
    shutil.rmtree(copy / "plots")
    assert flowjax("train", *TINY, f"--workdir={copy}", "--no_plots")[1]["status"] == "already_finished"
    assert not (copy / "plots").exists()
    code, result, _ = flowjax("train", *TINY, f"--workdir={copy}")
    assert (code, result["status"]) == (0, "already_finished")
    assert (copy / "plots" / "density.png").exists()


@pytest.mark.slow
def test_data_that_changed_under_the_same_name_are_refused(flowjax, tmp_path):
    mine = ["--config.data.name=npz", f"--config.data.path={tmp_path}/mine.npz", f"--workdir={tmp_path}/run"]
    x = np.random.default_rng(0).normal(size=(200, 2))
    np.savez(tmp_path / "mine.npz", x=x)
    assert flowjax("train", *TINY, *mine)[0] == 0
    np.savez(tmp_path / "mine.npz", x=3 * x)
    code, _, err = flowjax("train", *TINY, *mine, "--config.train.steps=200")
    assert (code, "have changed" in err) == (2, True)


def test_data_that_would_come_in_another_order_are_refused(flowjax, copy, tmp_path, monkeypatch):
    """A run of data on the device cannot go on as one of streamed data."""
    record = json.loads((copy / "config.json").read_text())
    assert record["data"]["streamed"] is False
    record["data"]["streamed"] = True
    (copy / "config.json").write_text(json.dumps(record))
    code, _, err = flowjax("train", *TINY, f"--workdir={copy}", "--config.train.steps=200")
    assert (code, "were streamed and would now be on the device" in err) == (2, True), err
    monkeypatch.setenv("FLOWJAX_RESIDENT_BYTES", "2GiB")
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 2), np.float32))
    mine = ["--config.data.name=npz", f"--config.data.path={tmp_path}/a.npz", f"--workdir={tmp_path}/other"]
    code, _, err = flowjax("train", *TINY, *mine)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "FLOWJAX_RESIDENT_BYTES must be a number of bytes, like 2147483648, not '2GiB'" in err


def test_a_file_of_weights_is_not_a_workdir(flowjax, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    code, _, err = flowjax("sample", f"--workdir={tmp_path}/w.safetensors", f"--out={tmp_path}/a.npz")
    assert (code, "is a file, not the workdir of a run; files of weights are for Python" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.54GiB.\n[tf-allocator]",
            "allocate 9.54GiB): use a",
        ),
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 6.27GiB (6727663616B)", "(6727663616B)): use a"),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", "OUT_OF_MEMORY: out of memory): use a"),
    ],
)
def test_too_little_device_memory_names_the_knobs(flowjax, copy, monkeypatch, words, told):
    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr("flowjax.training.trainer.Trainer.val_loss", full)
    monkeypatch.setattr("flowjax.inference.sampling.sample", full)
    monkeypatch.setattr("flowjax.inference.scoring.log_prob", full)
    monkeypatch.setattr("flowjax.inference.evaluation.evaluate", full)
    out = f"--out={copy}/a.npz"
    for command, flags, knob in (
        ("train", [*TINY, "--config.train.steps=130"], "smaller train.batch_size, then model.remat='block'"),
        ("sample", [out], "smaller --batch"),
        ("likelihood", [out], "smaller --batch"),
        ("evaluate", [], "smaller --batch"),
    ):
        code, _, err = flowjax(command, f"--workdir={copy}", *flags)
        line = err.splitlines()[-1]
        assert (code, line.startswith(f"flowjax: {command}: the device is out of memory (")) == (1, True), err
        assert told in line
        assert knob in line


def test_what_else_runs_out_is_not_called_device_memory():
    from flowjax.errors import out_of_memory

    for words in (
        "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 262144, available: 232448",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem",
        "RESOURCE_EXHAUSTED: No space left on device",
        "INVALID_ARGUMENT: shapes",
    ):
        assert out_of_memory(jax.errors.JaxRuntimeError(words)) is None
    assert out_of_memory(ValueError("RESOURCE_EXHAUSTED: Out of memory")) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 32}, "layers.0.bias has shape (16,) there and has shape (32,) in"),
        ({"depth": 3}, "layers.2.bias is missing there and has shape (16,) in"),
        ({"depth": 1}, "layers.1.bias has shape (16,) there and is missing in"),
    ],
)
def test_a_checkpoint_of_another_network_names_the_first_parameter(flowjax, copy, change, told):
    record = json.loads((copy / "config.json").read_text())
    record["config"]["model"] |= change
    del record["crc32"]  # or a warning would say that the file has been edited
    (copy / "config.json").write_text(json.dumps(record))
    code, _, err = flowjax("sample", f"--workdir={copy}", f"--out={copy}/s.npz", "--num=4", "--steps=2")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert f"is of another network: {told} the network of this config" in err
