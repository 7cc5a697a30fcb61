"""Every figure that is drawn from arrays: labelled axes, no text outside of the figure, and files in each format."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from flowjax import plots

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape)
NAMES = ("a cat", "a very long name of a class", "dog")
LABELS = np.arange(60) % 3
UNIT = np.linspace(0, 1, 9)
LOSSES = {"training": np.exp(-np.arange(40.0)), "validation": np.full(40, 0.5)}
ERRORS = {"euler": ([5, 10, 50], 1 / np.arange(1, 10).reshape(3, 3)), "heun": ([10, 50], [0.1, 0.01])}
FINAL = {"two sets of data": 0.004}
SCORES = {"model": np.append(normal(99), -np.inf), "true density": normal(50)}
DENSITIES = {"true density": rng.random((9, 9)), "learned density": np.ones((9, 9))}
CONSTANT = np.append(normal(50, 5), np.full((50, 1), 0.1), 1)
LEVELS = np.arange(1, 20) / 20
COLOURS = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)

FIGURES = {
    "loss": lambda: plots.loss_curves(np.arange(40.0), LOSSES),
    "lines": lambda: plots.lines(ERRORS, "NFE", "$W_2$", references=FINAL, title="quality against the cost"),
    "likelihood": lambda: plots.likelihood_histogram(SCORES),
    "samples": lambda: plots.samples_against_data(normal(60, 2), 1e4 * normal(60, 2), LABELS, LABELS, NAMES),
    "trajectories": lambda: plots.trajectories(UNIT, normal(9, 60, 2), LABELS, NAMES),
    "trajectories over time": lambda: plots.trajectories(UNIT, normal(9, 7, 1)),
    "density": lambda: plots.density(UNIT, UNIT, DENSITIES),
    "one density": lambda: plots.density(100 * UNIT, 100 * UNIT, {"learned density": rng.random((9, 9))}),
    "marginals": lambda: plots.marginals(normal(50, 14), 1e6 * normal(40, 14)),
    "one marginal": lambda: plots.marginals(normal(50, 1), normal(40, 1), ["a feature with a long name"]),
    "pairs": lambda: plots.pairs(normal(50, 6), normal(40, 6), [f"feature {i}" for i in range(6)], most=3),
    "correlations": lambda: plots.correlations(normal(50, 30), 1e6 * normal(40, 30), most=25),
    "correlations with names": lambda: plots.correlations(CONSTANT, normal(40, 6), [f"feature {i}" for i in range(6)]),
    "corner": lambda: plots.corner(normal(90, 12), truth=np.zeros(12), reference=3 * normal(50, 12), most=4),
    "corner of a parameter": lambda: plots.corner(normal(50, 1), ["_a $ long name"], reference=normal(50, 1)),
    "corner of constants": lambda: plots.corner(np.ones((50, 2)), truth=np.ones(2), reference=np.zeros((9, 2))),
    "ranks": lambda: plots.rank_ecdf(LEVELS, rng.random((19, 30)), LEVELS - 0.1, LEVELS + 0.1),
    "coverage": lambda: plots.expected_coverage(LEVELS, LEVELS**2, LEVELS - 0.1, LEVELS + 0.1),
    "calibration": lambda: plots.calibration(LEVELS, normal(19, 9), LEVELS, *2 * [(LEVELS - 0.1, LEVELS + 0.1)]),
    "predictive": lambda: plots.predictive(normal(8), np.array([1e3] + [1] * 7) * normal(50, 8), ["a feature"] * 8),
    "predictive of channels": lambda: plots.predictive(normal(30, 5), normal(50, 30, 5)),
    "forecast": lambda: plots.forecast(normal(4, 9, 2), normal(4, 3, 2), normal(20, 4, 3, 2), ["$ rate", "_load"]),
    "forecast of many channels": lambda: plots.forecast(normal(2, 2, 8), normal(2, 9, 8), normal(20, 2, 9, 8)),
    "series": lambda: plots.series(normal(50, 20), normal(40, 20)),
    "series of channels": lambda: plots.series(normal(50, 20, 5), normal(40, 20, 5)),
    "point sets": lambda: plots.point_sets(normal(5, 7, 2), normal(4, 7, 2), rng.random((4, 7)) < 0.7),
    "images by class": lambda: plots.image_grid(COLOURS, 256, LABELS, NAMES, "samples"),
    "images in columns": lambda: plots.image_columns(
        {"given": np.full((3, 8, 8, 3), np.nan), "a sample": COLOURS[:3], "the truth": COLOURS[3:6]}, {"a sample": 256}
    ),
    "images of many classes": lambda: plots.image_grid(rng.random((5, 16, 8, 1)), 0, np.arange(5), ["x" * 30] * 5),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_labelled_and_no_text_is_cut_off(name):
    """What is drawn, which matplotlib measures with all texts, lies within the figure."""
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    for ax in figure.axes:
        grid = ax.get_subplotspec()
        if ax.axison and (grid is None or grid.is_last_row() or grid.is_first_col()):
            assert ax.get_ylabel() or (grid is not None and not grid.is_first_col())
            assert ax.get_xlabel() or (grid is None or not grid.is_last_row())
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 > -0.01
    assert drawn.y0 > -0.01
    assert drawn.x1 < width + 0.01
    assert drawn.y1 < height + 0.01


@pytest.mark.parametrize("format", plots.FORMATS)
def test_files_have_their_format_and_equal_figures_are_equal_files(format, tmp_path):
    content = plots.to_bytes(FIGURES["one marginal"](), format)
    if format == "svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert content.startswith({"png": b"\x89PNG\r\n", "pdf": b"%PDF-"}[format])
        assert b"/Type3" not in content  # fonts that journals refuse
    curves = [plots.lines({"a": ([1, 2], [3.0, 4.0])}, "x", "y") for _ in range(2)]
    plots.save(curves[0], tmp_path / "new" / f"a.{format}")
    assert (tmp_path / "new" / f"a.{format}").read_bytes() == plots.to_bytes(curves[1], format)


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match=r"unknown format 'jpg'; did you mean 'png'\? \(known: png, pdf, svg\)"):
        plots.save(plots.lines({"a": ([1], [1.0])}, "x", "y"), "a.jpg")


def test_a_notebook_shows_a_figure_without_pyplot():
    figure = FIGURES["series"]()
    assert figure._repr_png_() == plots.to_bytes(figure, "png")
    assert not matplotlib._pylab_helpers.Gcf.figs
