"""`flowjax plot` and `run.plot`: files in each format, and one line about a figure that a run does not have."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from flowjax import load
from flowjax.data import Affine, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference import figures


def test_figures_are_drawn_again_in_each_format(flowjax, tiny_run, tmp_path):
    code, result, err = flowjax(
        "plot", f"--workdir={tiny_run}", "--figures=loss,trajectories", "--format=pdf,svg", f"--out={tmp_path}/new"
    )
    files = {
        name: [f"{tmp_path}/new/{name}.{suffix}" for suffix in ("pdf", "svg")] for name in ("loss", "trajectories")
    }
    assert (code, result) == (0, {"figures": files})
    for pdf, svg in files.values():
        with open(pdf, "rb") as file:
            assert file.read(5) == b"%PDF-"
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert "this run also has the figures samples, marginals, density, likelihood" in err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--figures=loss,data",
            "this run has no figure 'data'; its figures are loss, samples, marginals, trajectories, density, "
            "likelihood",
        ),
        ("--format=jpg", "--format: unknown 'jpg'; did you mean 'png'? (known: png, pdf, svg)"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(flowjax, tiny_run, tmp_path, flag, message):
    code, _, err = flowjax("plot", f"--workdir={tiny_run}", flag, f"--out={tmp_path}/new")
    assert (code, err) == (2, f"flowjax: plot: {message}\n")
    assert not (tmp_path / "new").exists()


def test_a_run_in_python_draws_a_figure_and_writes_it(tiny_run, tmp_path):
    (tmp_path / "checkpoints").symlink_to(tiny_run / "checkpoints")
    run = dataclasses.replace(load(tiny_run), workdir=tmp_path)
    figure = run.plot("trajectories", format="svg")
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlabel() == "$x_{1}$"
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["trajectories.svg"]
    with pytest.raises(ConfigError, match="this run has no figure 'loss_curve'; its figures are loss, samples"):
        run.plot("loss_curve")


@pytest.mark.parametrize("flag", ["--checkpoint=40", "--no-ema", "--seed=1"])
def test_the_folder_of_the_run_holds_figures_of_its_end_only(flowjax, tiny_run, flag):
    before = (tiny_run / "plots" / "loss.png").stat().st_mtime_ns
    code, _, err = flowjax("plot", f"--workdir={tiny_run}", "--figures=loss", flag)
    assert (code, err.count("\n")) == (2, 1)
    assert "plots/ of the workdir holds figures of the last checkpoint with the moving average and seed 0 only" in err
    assert "give --out" in err
    assert (tiny_run / "plots" / "loss.png").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="save this one with"):
        load(tiny_run, ema=False).plot("loss", format="png")


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (DataSpec("table", (5,)), "loss samples pairs correlations series likelihood"),
        (
            DataSpec("table", (90,), Affine((1.0,) * 90, (0.0,) * 90)),
            "loss samples pairs correlations series likelihood",
        ),
        (DataSpec("series", (90,)), "loss samples correlations marginals likelihood"),
        (DataSpec("series", (90, 2)), "loss samples marginals points likelihood"),
        (DataSpec("sets", (9, 3), has_mask=True), "loss samples"),
        (DataSpec("images", (8, 8, 1), levels=17), "loss samples data likelihood"),
        (DataSpec("line", (1,)), "loss samples trajectories likelihood"),
    ],
)
def test_the_figures_of_a_run_are_those_of_its_data(tiny_run, spec, names):
    assert " ".join(figures.fitting(dataclasses.replace(load(tiny_run), spec=spec))) == names
