"""`flowjax sample` with every kind of solver, grid, schedule and guidance, and what it refuses."""

import numpy as np
import pytest

DIGITS = [
    "--config=digits",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.train.steps=20",
    "--config.train.batch_size=32",
    "--config.train.warmup=0",
    "--config.train.log_every=20",
    "--config.train.save_every=20",
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
        ("--solver ddim --steps 5 --eta 1 --grid log_snr", 5),
        ("--solver dpmpp_2m --steps 4 --schedule vp", 4),
        ("--solver ab2 --steps 4 --grid learned", 4),
        ("--solver sra1 --steps 4", 7),
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


def test_autoguidance_by_itself_is_the_network(flowjax, digits_run, tmp_path):
    """weak + scale (strong - weak) with weak = strong changes nothing, whatever the scale."""
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    common = ["sample", f"--workdir={digits_run}", "--num=8", "--solver=heun", "--steps=3"]
    assert flowjax(*common, f"--out={a}")[0] == 0
    auto = ["--guidance=auto", f"--weak={digits_run}", "--scale=3"]
    assert flowjax(*common, f"--out={b}", *auto)[0] == 0
    gap = np.load(a)["samples"].astype(int) - np.load(b)["samples"]
    assert np.abs(gap).max() <= 1  # a rounding of a pixel


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--solver ddim --steps 5 --churn 1", "ddim takes no churn; it is for edm"),
        ("--solver unipc", "say how many with --steps N"),
        ("--grid edm", "an adaptive solve chooses its own times"),
        ("--solver ddim --steps 5 --grid edn", "did you mean 'edm'"),
        ("--solver dpmpp_2m --steps 1", "at least 2"),
        ("--solver ddpm --steps 5 --variance learned", "needs prediction 'noise_variance'"),
        ("--solver euler --steps 5 --g -1", "g(t) >= 0"),
        ("--solver euler --steps 5 --g foo(1)", "unknown 'foo'"),
        ("--schedule vpp", "did you mean 'vp'"),
        ("--scale 2", "--scale is of --guidance"),
        ("--guidance cfg", "needs --scale"),
        ("--guidance cgf --scale 2", "did you mean 'cfg'"),
        ("--guidance auto --scale 2", "needs --weak WORKDIR"),
        ("--guidance cfg --scale 2 --weak x", "--weak is not of --guidance cfg"),
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
    assert "train with model.conditional=true" in err


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
