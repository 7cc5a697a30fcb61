"""`flowjax sample` with every kind of solver, grid, schedule and guidance, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

DIGITS = [
    "--config=digits",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.train.steps=20",
    "--config.train.batch_size=32",
    "--config.train.warmup=0",
    "--config.train.log_every=20",
    "--config.train.save_every=20",
    "--config.train.keep_at=(3,)",
]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The workdir of a conditional run that was trained for a moment."""
    from flowjax.cli.main import main

    workdir = tmp_path_factory.mktemp("digits") / "run"
    assert main(["train", *DIGITS, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.mark.parametrize(
    ("flags", "nfe"),
    [
        ("--solver unipc --steps 6 --guidance cfg --scale 2 --label 7 --interval 0.2,0.8 --rescale 0.5", 6),
        ("--solver edm --steps 5 --churn 4", 9),
        ("--solver euler --steps 5 --g sigma(0.5)", 5),
        pytest.param("--solver ddim --steps 5 --eta 1 --grid log_snr", 5, marks=pytest.mark.slow),
        ("--solver dpmpp_2m --steps 4 --schedule vp", 4),
        ("--solver ab2 --steps 4 --grid learned", 4),
        pytest.param("--solver sra1 --steps 4", 7, marks=pytest.mark.slow),
    ],
)
def test_samplers_from_the_command_line(flowjax, digits_run, tmp_path, flags, nfe):
    out = tmp_path / "s.npz"
    code, line, err = flowjax("sample", f"--workdir={digits_run}", "--num=16", f"--out={out}", *flags.split())
    assert code == 0, err
    assert line["nfe"] == nfe
    samples = np.load(out)
    assert samples["samples"].shape == (16, 8, 8, 1)
    assert len(np.unique(samples["samples"])) > 2
    if "--label" in flags:
        assert set(samples["labels"]) == {7}
    if "--schedule" in flags:
        assert "the solve runs from" not in err  # CondOT has seen all of VP's noise levels


def test_autoguidance(flowjax, digits_run, tmp_path):
    """weak + scale (strong - weak): weak = strong changes nothing, whatever the scale; an early checkpoint does, and
    scale 0 is that checkpoint alone.
    """
    a, b, c, d = (tmp_path / f"{name}.npz" for name in "abcd")
    common = ["sample", f"--workdir={digits_run}", "--num=8", "--solver=heun", "--steps=3"]
    assert flowjax(*common, f"--out={a}")[0] == 0
    auto = ["--guidance=auto", f"--weak={digits_run}", "--scale=3"]
    assert flowjax(*common, f"--out={b}", *auto)[0] == 0
    gap = np.load(a)["samples"].astype(int) - np.load(b)["samples"]
    assert np.abs(gap).max() <= 1  # a rounding of a pixel
    assert flowjax(*common, f"--out={c}", "--guidance=auto", "--weak_checkpoint=3", "--scale=0")[0] == 0
    assert flowjax(*common, f"--out={d}", "--checkpoint=3")[0] == 0
    early = np.load(d)["samples"].astype(int)
    assert np.abs(early - np.load(c)["samples"]).max() <= 1
    assert (early != np.load(a)["samples"]).mean() > 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--solver ddim --steps 5 --churn 1", "ddim does not accept churn, which is an option of edm"),
        ("--solver unipc", "pass --steps N"),
        ("--solver heun", "heun needs a fixed number of steps: pass --steps N"),
        ("--solver langevin --steps 5", "needs a path with alpha = 1 at all times: take the schedule 've', not"),
        ("--grid edm", "an adaptive solve chooses its own times"),
        ("--solver ddim --steps 5 --grid edn", "did you mean 'edm'"),
        ("--solver dpmpp_sde --steps 1", "at least 2"),
        ("--solver ddpm --steps 5 --variance learned", "needs prediction 'noise_variance'"),
        ("--solver euler --steps 5 --g -1", "--g must not be negative, it is -1.0"),
        ("--solver euler --steps 5 --g foo(1)", "unknown 'foo'"),
        ("--schedule vpp", "did you mean 'vp'"),
        ("--scale 2", "--scale needs --guidance cfg"),
        ("--guidance cfg", "needs --scale"),
        ("--guidance cgf --scale 2", "did you mean 'cfg'"),
        ("--guidance auto --scale 2", "--weak_checkpoint with an early step"),
        ("--guidance auto --scale 2 --weak_checkpoint 7", "no checkpoint 7"),
        ("--guidance cfg --scale 2 --weak x", "--weak cannot be used with --guidance cfg"),
        ("--guidance cfg --scale 2 --interval 0.8,0.2", "two times in order"),
    ],
)
def test_what_is_refused(flowjax, digits_run, tmp_path, flags, message):
    code, line, err = flowjax(
        "sample", f"--workdir={digits_run}", "--num=4", f"--out={tmp_path / 's.npz'}", *flags.split()
    )
    assert (code, line) == (2, None)
    assert message in err.splitlines()[-1]
    assert "Error" not in err


def test_guidance_without_labels_and_noise_without_a_score(flowjax, tiny_run, tmp_path):
    common = ["sample", f"--workdir={tiny_run}", "--num=4", f"--out={tmp_path / 's.npz'}"]
    code, _, err = flowjax(*common, "--guidance=cfg", "--scale=2")
    assert code == 2
    assert "train with data.cond=label" in err


@pytest.mark.slow
def test_sde_sampling_after_optimal_transport_is_refused(flowjax, tmp_path):
    workdir = tmp_path / "ot"
    tiny = [
        "--config.model.width=8",
        "--config.train.steps=2",
        "--config.train.batch_size=16",
        "--config.train.warmup=0",
    ]
    assert flowjax("train", "--config=gaussians8", *tiny, "--config.coupling.name=ot", f"--workdir={workdir}")[0] == 0
    code, _, err = flowjax(
        "sample", f"--workdir={workdir}", "--solver=ddpm", "--steps=5", f"--out={tmp_path / 's.npz'}"
    )
    assert code == 2
    assert "this path has no score" in err


def test_a_plan_that_has_not_converged_stops_the_run(flowjax, tmp_path):
    tiny = [
        "--config.model.width=8",
        "--config.train.steps=4",
        "--config.train.batch_size=64",
        "--config.train.warmup=0",
    ]
    code, _, err = flowjax(
        "train", "--config=gaussians8", *tiny, "--config.coupling.name=sinkhorn(1e-7)", f"--workdir={tmp_path / 'w'}"
    )
    assert code == 1
    assert "the coupling has not converged: at step 1" in err.splitlines()[-1]


def test_balanced_labels_are_the_index_modulo_the_classes(flowjax, digits_run, tmp_path):
    """Whatever the batches; random ones are others, of the same noise."""
    common = ["sample", f"--workdir={digits_run}", "--num=25", "--solver=euler", "--steps=2", "--batch=8"]
    code, line, err = flowjax(*common, "--labels=balanced", f"--out={tmp_path / 'a.npz'}")
    assert code == 0, err
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["labels"], np.arange(25) % 10)
    assert line["samples_per_second"] > 0
    code, line, _ = flowjax(*common[:-1], "--batch=32", f"--out={tmp_path / 'b.npz'}")
    labels = np.load(tmp_path / "b.npz")["labels"]
    assert (code, line["samples_per_second"], labels.shape) == (0, None, (25,))
    assert (labels != np.arange(25) % 10).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.png", "b.npz", "b.png"]


def test_labels_of_nothing_are_refused(flowjax, digits_run, tiny_run, tmp_path):
    out = f"--out={tmp_path / 's.npz'}"
    for argv, message in (
        (
            ["sample", f"--workdir={digits_run}", out, "--label=3", "--labels=balanced"],
            "--labels and --label cannot be used together",
        ),
        (["sample", f"--workdir={tiny_run}", out, "--labels=balanced"], "has no classes as a condition"),
        (["sample", f"--workdir={digits_run}", out, "--labels=all"], "--labels"),
        (["evaluate", f"--workdir={tiny_run}", "--labels=random"], "has no classes as a condition"),
        (["sample", f"--workdir={digits_run}", out, "--label=10"], "the classes are 0"),
        (
            ["evaluate", "--metrics=fid", "--samples=x.npz", "--labels=random"],
            "--labels and --samples cannot be used together",
        ),
    ):
        code, line, err = flowjax(*argv)
        assert (code, line) == (2, None)
        assert message in err.splitlines()[-1]


def test_a_label_is_a_class_name_or_a_number(flowjax, digits_run, tmp_path):
    """A run with class names: a name wins over a number, and its case is ignored where only one name fits."""
    named = tmp_path / "named"
    shutil.copytree(digits_run, named)
    record = json.loads((named / "config.json").read_text())
    record["data"]["class_names"] = ["zero", "One", "two", "3", "four", "five", "six", "seven", "eight", "4"]
    (named / "config.json").write_text(json.dumps(record))
    draw = ["sample", "--num=2", "--solver=euler", "--steps=2", "--batch=8", f"--out={tmp_path / 's.npz'}"]
    for text, label in (("seven", 7), ("one", 1), ("2", 2), ("4", 9)):
        code, _, err = flowjax(*draw, f"--workdir={named}", f"--label={text}")
        assert code == 0, err
        assert set(np.load(tmp_path / "s.npz")["labels"]) == {label}
    for workdir, text, message in (
        (named, "sevn", "no class 'sevn': did you mean 'seven'? the classes are 0 (zero), 1 (One)"),
        (named, "10", "no class '10': the classes are 0 (zero)"),
        (digits_run, "circles", "no class 'circles': the classes are 0 to 9; this run has no class names"),
        (digits_run, "-1", "no class '-1'"),
    ):
        code, line, err = flowjax(*draw, f"--workdir={workdir}", f"--label={text}")
        assert (code, line) == (2, None)
        assert message in err.splitlines()[-1]


@pytest.mark.slow
def test_a_folder_of_classes_is_trained_on_and_sampled_by_name(flowjax, tmp_path):
    """Class names reach config.json and files of weights; one line says what was found; grey images stay grey."""
    from flowjax.interop.weights import load_weights

    for name in ("circles", "squares"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((8, 8), 12 * i, np.uint8)).save(tmp_path / "data" / name / f"{i:02d}.png")
    data = ["--config.data.name=folder(8)", f"--config.data.path={tmp_path / 'data'}"]
    workdir, out = tmp_path / "run", tmp_path / "s.npz"
    code, _, err = flowjax("train", *DIGITS, *data, f"--workdir={workdir}")
    assert code == 0, err
    assert "36 training images, 2 classes (circles 18, squares 18); 4 test images" in err.splitlines()[0]
    draw = ["--num=3", "--solver=euler", "--steps=2", "--batch=8", f"--out={out}"]
    code, _, err = flowjax("sample", f"--workdir={workdir}", "--label=squares", *draw)
    assert code == 0, err
    drawn = np.load(out)
    assert (drawn["labels"].tolist(), drawn["samples"].shape) == ([1, 1, 1], (3, 8, 8, 1))
    code, _, err = flowjax("export", f"--workdir={workdir}", f"--out={tmp_path / 'w.safetensors'}")
    assert code == 0, err
    assert load_weights(tmp_path / "w.safetensors").spec.class_names == ("circles", "squares")


def test_metrics_are_of_samples_with_the_shares_of_the_training_data(flowjax, digits_run, monkeypatch):
    from flowjax.inference import evaluation

    asked = []
    note = lambda *a, labels="shares", **more: asked.append(labels) or {}
    monkeypatch.setattr(evaluation, "evaluate_images", note)
    monkeypatch.setattr(
        evaluation, "evaluate", lambda run, data, seed, solver, batch, labels, *_, **more: note(labels=labels)
    )
    for flags in (["--metrics=fid"], ["--metrics=fid", "--labels=balanced"], [], ["--labels=random"]):
        assert flowjax("evaluate", f"--workdir={digits_run}", *flags)[0] == 0
    assert asked == ["shares", "balanced", "shares", "random"]


def test_a_killed_job_goes_on_to_the_same_bits(flowjax, tiny_run, tmp_path):
    """SIGKILL in the middle, another request in between, the same command again; against one that was never stopped."""
    common = ["sample", f"--workdir={tiny_run}", "--num=12000", "--solver=heun", "--steps=2", "--batch=16"]
    out, folder = tmp_path / "s.npz", tmp_path / "s.npz.parts"
    argv = [sys.executable, "-m", "flowjax", *common, f"--out={out}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list(folder.glob("[0-9]*.npz"))) < 20 and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert 20 <= len(list(folder.glob("[0-9]*.npz"))) < 750
    assert not out.exists()
    code, _, err = flowjax(*common, f"--out={out}", "--seed=1")
    assert (code, "seed is 0 there and 1 here; remove the folder" in err.splitlines()[-1]) == (2, True)
    code, line, err = flowjax(*common, f"--out={out}")
    assert (code, line["num"]) == (0, 12000)
    assert "going on from the" in err
    assert not folder.exists()
    assert flowjax(*common, f"--out={tmp_path / 'whole.npz'}")[0] == 0
    np.testing.assert_array_equal(np.load(out)["samples"], np.load(tmp_path / "whole.npz")["samples"])
