"""The commands on a tiny run: their files, their JSON, their arithmetic."""

import io
import json
import sys

import numpy as np
import pytest

from flowjax.data import open_dataset
from tests.conftest import TINY


def test_train_leaves_everything_behind(tiny_run):
    record = json.loads((tiny_run / "config.json").read_text())
    assert record["config"]["train"]["steps"] == 120
    assert record["versions"]["jax"]
    assert record["devices"]
    assert "git_commit" in record
    for name in ("loss", "samples", "trajectories", "density"):
        assert (tiny_run / "plots" / f"{name}.png").stat().st_size > 5000
    steps = [json.loads(line)["step"] for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [40, 80, 120]
    assert sorted(int(p.name) for p in (tiny_run / "checkpoints").iterdir() if p.name.isdigit()) == [40, 80, 120]


def test_a_finished_run_says_so(flowjax, tiny_run):
    code, result, err = flowjax("train", *TINY, f"--workdir={tiny_run}")
    assert code == 0
    assert "already finished" in err
    assert result["status"] == "already_finished"
    assert result["step"] == 120
    assert result["samples_seen"] == 120 * 64
    # 2 -> 16 -> 16 -> 2 with 16 time features: (18 * 16 + 16) + (16 * 16 + 16) + (16 * 2 + 2)
    assert result["parameters"] == 610
    assert set(result) == {
        "workdir",
        "step",
        "samples_seen",
        "loss",
        "seconds",
        "status",
        "parameters",
        "flops_per_step",
    }


def test_dry_run_builds_all_and_writes_nothing(flowjax, tmp_path):
    code, result, err = flowjax("train", *TINY, f"--workdir={tmp_path}/w", "--dry_run")
    assert (code, result["status"], result["step"]) == (0, "dry_run", 0)
    # at least the matrix products: forward, and backward twice, two FLOPs a weight and row
    assert result["flops_per_step"] > 64 * 6 * (18 * 16 + 16 * 16 + 16 * 2) * 0.8
    assert "610 parameters" in err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("solver", "per_step"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)])
def test_sample_counts_evaluations(flowjax, tiny_run, tmp_path, solver, per_step):
    code, result, _ = flowjax(
        "sample",
        f"--workdir={tiny_run}",
        "--num=5",
        f"--solver={solver}",
        "--steps=6",
        f"--out={tmp_path}/s.npz",
        "--batch=8",
    )
    assert (code, result["nfe"], result["num"]) == (0, 6 * per_step, 5)
    assert np.load(tmp_path / "s.npz")["samples"].shape == (5, 2)


def test_a_sample_depends_on_seed_and_index_alone(flowjax, tiny_run, tmp_path):
    def draw(name, *argv):
        assert flowjax("sample", f"--workdir={tiny_run}", f"--out={tmp_path}/{name}.npz", *argv)[0] == 0
        return np.load(tmp_path / f"{name}.npz")["samples"]

    many, few, small = draw("a", "--num=70"), draw("b", "--num=3"), draw("c", "--num=40", "--batch=16")
    np.testing.assert_array_equal(many[:3], few)
    np.testing.assert_allclose(many[:40], small, atol=1e-4)  # other shapes may round otherwise, below the tolerance
    assert not np.array_equal(draw("d", "--num=3", "--seed=1"), few)
    assert not np.array_equal(draw("e", "--num=3", "--no-ema"), few)


def test_likelihood_integrates_to_one_and_keeps_the_order(flowjax, tiny_run, tmp_path):
    """exp(log_prob) summed over a grid is 1; and rows come back in their order."""
    axis = np.linspace(-12, 12, 61)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    np.savez(tmp_path / "x.npz", x=np.concatenate([grid, grid[::-1]]))
    code, result, _ = flowjax(
        "likelihood",
        f"--workdir={tiny_run}",
        f"--data={tmp_path}/x.npz",
        "--divergence=exact",
        f"--out={tmp_path}/ll.npz",
        "--rtol=1e-4",
        "--atol=1e-4",
    )
    log_prob = np.load(tmp_path / "ll.npz")["log_prob"]
    n = len(grid)
    assert (code, result["num"], log_prob.shape) == (0, 2 * n, (2 * n,))
    assert np.exp(log_prob[:n].astype(np.float64)).sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(log_prob[:n], log_prob[::-1][:n], rtol=1e-3, atol=1e-3)
    assert result["mean"] == pytest.approx(float(log_prob.mean()), rel=1e-5)
    assert result["bits_per_dim"] == pytest.approx(-result["mean"] / (2 * np.log(2)))
    assert set(result) == {
        *("out", "num", "mean", "stderr", "bits_per_dim", "nfe", "standard_error", "converged", "difference"),
        *("bits_per_dim_stderr", "prior_kl", "divergence"),
    }


def test_the_file_that_sample_writes_can_be_scored(flowjax, tiny_run, tmp_path):
    drawn, scored = tmp_path / "drawn.npz", tmp_path / "scored.npz"
    assert flowjax("sample", f"--workdir={tiny_run}", "--num=16", f"--out={drawn}")[0] == 0
    np.savez(tmp_path / "x.npz", x=np.load(drawn)["samples"])
    found = []
    for data in (drawn, tmp_path / "x.npz"):
        solver = ("--solver=rk4", "--steps=4")
        assert flowjax("likelihood", f"--workdir={tiny_run}", f"--data={data}", f"--out={scored}", *solver)[0] == 0
        found.append(np.load(scored)["log_prob"])
    assert found[0].shape == (16,)
    np.testing.assert_array_equal(*found)


def test_on_a_terminal_a_table_replaces_the_line_of_json(monkeypatch, capsys):
    from flowjax.cli.main import main

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    assert main(["configs"], out) == 0
    assert out.getvalue().startswith('{"configs"')  # stderr is no terminal here, so that nothing repeats it
    monkeypatch.setattr(sys, "stderr", Terminal())
    out = Terminal()
    assert main(["configs"], out) == 0
    assert out.getvalue() == ""
    assert "gaussians8" in sys.stderr.getvalue()


def test_hutchinson_agrees_with_exact(flowjax, tiny_run, tmp_path):
    means = {}
    for kind, probes in (("exact", []), ("hutchinson", ["--probes=8"])):
        code, _, _ = flowjax(
            "likelihood",
            f"--workdir={tiny_run}",
            "--num=400",
            f"--divergence={kind}",
            *probes,
            f"--out={tmp_path}/{kind}.npz",
            "--solver=rk4",
            "--steps=20",
        )
        assert code == 0
        means[kind] = np.load(tmp_path / f"{kind}.npz")["log_prob"]
    gap = means["exact"] - means["hutchinson"]
    assert abs(gap.mean()) < 4 * gap.std() / 20 + 1e-4


def test_configs_are_listed_with_their_first_lines(flowjax):
    code, result, _ = flowjax("configs")
    assert code == 0
    assert {"gaussians8", "moons", "checkerboard", "digits", "fashion_mnist"} <= set(result["configs"])
    assert all(result["configs"].values())


@pytest.mark.parametrize(
    "command",
    [
        *("train", "sweep", "sample", "likelihood", "encode", "decode", "evaluate", "plot", "report", "compare"),
        *("export", "convert", "configs"),
    ],
)
def test_help_has_an_example(flowjax, command):
    code, text, _ = flowjax(command, "--help")
    assert code == 0
    assert "example:" in text
    assert f"flowjax {command}" in text


def test_load_gives_the_run_to_a_notebook(tiny_run):
    import jax
    import jax.numpy as jnp

    import flowjax

    run = flowjax.load(tiny_run)
    assert run.step == 120
    x = jax.random.normal(jax.random.key(0), (4, 2))
    ends = run.model().ends(0.5, x, None)
    np.testing.assert_allclose(run.path.schedule.alpha(0.5) * ends.x1 + 0.5 * ends.x0, x, atol=1e-5)
    assert run.model().velocity(0.5, x, None).shape == (4, 2)
    assert run.config.train.steps == 120
    raw = flowjax.load(tiny_run, ema=False, checkpoint=40)
    assert raw.step == 40
    assert not jnp.array_equal(raw.model().velocity(0.5, x, None), run.model().velocity(0.5, x, None))


@pytest.mark.slow
def test_conditional_images_from_config_to_grid(flowjax, tmp_path):
    """digits through a small U-Net: labels, uint8, a grid, the likelihood of the test split in bits."""
    workdir = tmp_path / "digits"
    (tmp_path / "small_unet.py").write_text(
        "from flowjax.config import defaults\n"
        "def get_config():\n"
        "    c = defaults('unet')\n"
        "    c.data.name, c.path.name, c.data.cond = 'digits', 'gaussian', ('label',)\n"
        "    c.model.channels, c.model.multipliers, c.model.blocks, c.model.heads = 8, (1, 2), 1, 1\n"
        "    c.train.steps, c.train.batch_size, c.train.log_every, c.train.save_every = 4, 16, 2, 4\n"
        "    return c\n"
    )
    code, result, _ = flowjax("train", f"--config={tmp_path}/small_unet.py", f"--workdir={workdir}")
    assert (code, result["status"]) == (0, "finished")
    assert (workdir / "plots" / "samples.png").stat().st_size > 1000
    out = tmp_path / "s.npz"
    code, result, _ = flowjax(
        "sample",
        f"--workdir={workdir}",
        "--num=10",
        "--label=7",
        "--solver=heun",
        "--steps=3",
        "--batch=16",
        f"--out={out}",
    )
    drawn = np.load(out)
    assert (code, drawn["samples"].dtype, drawn["samples"].shape) == (0, np.uint8, (10, 8, 8, 1))
    assert drawn["samples"].max() <= 16
    assert (drawn["labels"] == 7).all()
    assert out.with_suffix(".png").stat().st_size > 1000
    code, _, err = flowjax("sample", f"--workdir={workdir}", "--label=10", f"--out={out}")
    assert (code, "classes are 0 to 9" in err) == (2, True)
    code, result, _ = flowjax(
        "likelihood",
        f"--workdir={workdir}",
        "--num=8",
        "--divergence=hutchinson",
        "--solver=euler",
        "--steps=2",
        "--batch=8",
        f"--out={out}",
    )
    assert (code, result["num"]) == (0, 8)
    assert 1 < result["bits_per_dim"] < 20
    codes, steps = tmp_path / "codes.npz", ("--solver=rk4", "--steps=4", "--batch=8")
    code, result, _ = flowjax("encode", f"--workdir={workdir}", "--num=8", *steps, f"--out={codes}")
    coded = np.load(codes)
    assert (code, result["num"], coded["z"].shape, coded["y"].shape) == (0, 8, (8, 8, 8, 1), (8,))
    code, result, _ = flowjax("decode", f"--workdir={workdir}", f"--data={codes}", *steps, f"--out={out}")
    test = open_dataset("digits").test[:8]
    assert (code, result["num"]) == (0, 8)
    np.testing.assert_array_equal(np.load(out)["samples"], test)  # dequantised inside of the bins, and floored


def test_evaluate(flowjax, tiny_run, monkeypatch):
    for name, fewer in (
        ("evaluation._HELD_OUT", 2000),
        ("sample_metrics._PAIRS", 3),
        ("sample_metrics._SOURCE_PAIRS", 2),
    ):
        monkeypatch.setattr(f"flowjax.inference.{name}", fewer)
    code, result, err = flowjax("evaluate", f"--workdir={tiny_run}", "--rtol=1e-3", "--atol=1e-3")
    assert code == 0
    assert "with adaptive steps" not in err  # the samples take them too
    assert {"nll", "kl", "w2", "mmd", "npe", "mode_share_min"} <= set(result)
    assert not {"bits_per_dim", "c2st"} & set(result)
    assert result["kl"] > 0
    assert "kl" in err
