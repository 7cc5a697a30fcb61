"""Averages of other widths, from the config to `--width`."""

import jax
import numpy as np
import pytest

import flowjax as library
from tests.conftest import TINY

RUN = [*TINY, "--config.ema.widths=(0.05,0.1)", "--config.ema.snapshots=24"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from flowjax.cli.main import main

    workdir = tmp_path_factory.mktemp("widths") / "run"
    assert main(["train", *RUN, f"--workdir={workdir}"]) == 0
    return workdir


def test_snapshots_and_reconstruction(run):
    """24 snapshots of each of two widths; the tracked ones come back from their snapshots, to float16's rounding
    (2^-11 of a number) times the sum of the coefficients, below 10 here; a width between lies between."""
    assert len(list((run / "averages").glob("*.npz"))) == 2 * 24
    leaves = lambda width: jax.tree.leaves(library.load(run, width=width).params)
    raw = jax.tree.leaves(library.load(run, ema=False).params)
    narrow, between, wide = leaves(0.05), leaves(0.07), leaves(0.1)
    distance = lambda a: float(
        np.sqrt(sum(np.sum((np.asarray(x) - np.asarray(y)) ** 2) for x, y in zip(a, raw, strict=True)))
    )
    assert 0 < distance(narrow) < distance(between) < distance(wide)
    from flowjax.training.snapshots import read_params

    stored = jax.tree.leaves(read_params(max((run / "averages").glob("*-0.1.npz"))))
    for a, b in zip(wide, stored, strict=True):
        np.testing.assert_allclose(a, b, atol=10 * 2**-11 * (1e-3 + np.abs(b).max()))


def test_the_command_line_takes_a_width(flowjax, run, tiny_run, tmp_path):
    out = tmp_path / "s.npz"
    arguments = ("sample", f"--workdir={run}", "--num=4", "--solver=euler", "--steps=2", f"--out={out}")
    assert flowjax(*arguments, "--width=0.07")[0] == 0
    code, _, err = flowjax(*arguments, "--width=0.07", "--no-ema")
    assert code == 2
    assert "--width selects a moving average" in err
    code, _, err = flowjax("sample", f"--workdir={tiny_run}", "--num=4", f"--out={out}", "--width=0.07")
    assert code == 2
    assert "holds no snapshots" in err
    code, _, err = flowjax("train", *TINY, "--config.ema.widths=(0.5,)", f"--workdir={tmp_path / 'w'}")
    assert code == 2
    assert "ema.widths" in err


@pytest.mark.slow
def test_snapshots_of_a_discarded_trajectory_are_set_aside(flowjax, tmp_path):
    """Going back to step 40 with another length: the averages of the steps after it belong to no run any more. A
    checkpoint has its snapshots, so its step can be asked for."""
    workdir = tmp_path / "run"
    assert flowjax("train", *RUN, f"--workdir={workdir}")[0] == 0
    shorter = [a for a in RUN if "train.steps" not in a]
    assert flowjax("train", *shorter, "--config.train.steps=80", "--checkpoint=40", f"--workdir={workdir}")[0] == 0
    steps = {int(p.name.split("-")[0]) for p in (workdir / "averages").glob("*.npz")}
    assert max(steps) == 80
    assert {40, 80} <= steps
    assert {s for s in steps if s > 40} == {42, 45, 48, 51, 54, 57, 60, 63, 66, 69, 72, 75, 78, 80}
    assert any("-0.05.npz" in p.name for p in (workdir / "set_aside").iterdir())
