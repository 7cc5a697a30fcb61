"""The numbers that figures show, against NumPy."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from flowjax import plots
from flowjax.plots.corner import highest_density_levels

rng = np.random.default_rng(1)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(110)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize("losses", [[2.0], [2.0, float("nan"), 1.0], [2.0, 1.0]])
def test_every_finite_loss_is_visible(losses):
    """Pixels of the curve's colour, a blue, reach from the first to the last record, in a figure without its legend.

    Where the curve is blended half with the white or grey background, its blue is still 60 above its red.
    """
    nothing = np.full(len(losses), np.nan)
    figure = plots.loss_curves(10.0 * np.arange(len(losses)), {"training": np.array(losses), "validation": nothing})
    figure.axes[0].get_legend().remove()
    shown = pixels(figure)
    columns = np.flatnonzero((shown[..., 2] - shown[..., 0] > 60).any(0))
    assert len(columns) >= 2
    if len(losses) > 1:  # from the first record to the last
        assert np.ptp(columns) > 0.5 * shown.shape[1]


def test_the_first_losses_do_not_squeeze_the_others():
    steps = np.arange(50.0)
    losses = np.where(steps < 2, 1000.0, -1 + 0.1 * np.cos(steps))
    low, high = plots.loss_curves(steps, {"training": losses}).axes[0].get_ylim()
    assert -1.15 < low < -1.1
    assert -0.9 < high < -0.85
    falling = plots.loss_curves(steps, {"training": 10.0 ** (-steps / 10)}).axes[0]
    assert falling.get_yscale() == "log"
    assert falling.get_ylim()[0] < 10**-4.9


def test_lines_have_the_mean_and_the_standard_deviation_of_seeds():
    y = np.array([[1.0, 0.1], [2.0, 0.2], [6.0, 0.3]])
    [drawn] = plots.lines({"euler": ([5, 10], y)}, "NFE", "error").axes[0].containers
    np.testing.assert_allclose(drawn[0].get_ydata(), [3.0, 0.2])
    [segments] = [bars.get_segments() for bars in drawn[2]]
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], [2 * 7**0.5, 0.2])  # variances 7 and 0.01


def test_histograms_are_densities_of_all_rows():
    """Rows outside the limits, which are those of the data, count in the total."""
    samples, data = np.array([[0.5]] * 3 + [[50.0]]), rng.random((1000, 1))
    _, drawn = plots.marginals(samples, data).axes[0].patches
    heights, edges, _ = drawn.get_data()
    assert (heights * np.diff(edges)).sum() == pytest.approx(0.75)
    assert edges[0] < 0 < 1 < edges[-1] < 2


def test_regions_of_a_corner_plot_hold_their_share():
    """On a fine grid, the regions of a standard normal density have the levels (1 - mass) / (2 pi): it exceeds c within
    the radius sqrt(-2 log(2 pi c)), which holds 1 - 2 pi c. A cell of 0.02 changes the mass by less than 0.1%.
    """
    x = np.arange(-6, 6, 0.02)
    density = np.exp(-(x**2 + x[:, None] ** 2) / 2) / (2 * np.pi)
    levels = highest_density_levels(density, (0.95, 0.5))
    np.testing.assert_allclose(levels, np.array([0.05, 0.5]) / (2 * np.pi), rtol=0.02)


def test_corner_marginals_are_densities_with_the_true_parameters_marked():
    samples = rng.normal(size=(500, 2))
    figure = plots.corner(samples, truth=np.array([0.5, -7.0]))
    first, _, pair, second = figure.axes
    for ax in (first, second):
        heights, edges, _ = ax.patches[0].get_data()
        assert (heights * np.diff(edges)).sum() == pytest.approx(1)
    assert second.get_xlim()[0] < -7
    assert [line.get_xdata()[0] for line in (first.lines[0], second.lines[0])] == [0.5, -7.0]
    assert pair.lines[-1].get_xydata().tolist() == [[0.5, -7.0]]


def test_rank_curves_are_drawn_as_differences_and_intervals_are_quantiles():
    levels = np.array([0.25, 0.5])
    [ax] = plots.rank_ecdf(levels, np.array([[0.5], [0.5]]), levels - 0.1, levels + 0.1).axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0], [0.25, 0.25], [0.5, 0], [1, 0]])
    simulations = np.append(np.arange(101.0)[:, None] + [0, 1000], [[np.nan, np.inf]], 0)
    [ax] = plots.predictive(np.array([3.0, 4.0]), simulations).axes
    wide, _ = ax.collections
    np.testing.assert_allclose([s[:, 1] for s in wide.get_segments()], [[5, 95], [1005, 1095]])
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [3, 4])


def test_features_of_very_different_spread_are_drawn_in_their_own_units():
    simulations = np.stack([np.arange(5.0), 1e3 * np.arange(5.0)], 1)
    [ax] = plots.predictive(np.array([2.0, 4e3]), simulations).axes
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0, 2 / 2**0.5])  # the variance of 0, ..., 4 is 2
    assert ax.get_ylabel() == "($x$ - median) / std"


def test_images_keep_their_pixels_and_classes_have_rows():
    """Each of 3 classes has 2 images of one colour; the colours of the first row are those of class 0."""
    images = rng.integers(0, 256, (6, 1, 1, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    labels = np.array([2, 0, 1, 1, 2, 0])
    shown = pixels(plots.image_grid(images, labels=labels))
    colours = [tuple(images[i, 0, 0]) for i in (1, 5, 2, 3, 0, 4)]
    places = [np.argwhere((shown == colour).all(-1)) for colour in colours]
    assert len({len(place) for place in places}) == 1
    assert len(places[0]) % 16 == 0  # enlarged by a whole number
    tops, lefts = (np.array([place.min(0)[axis] for place in places]).reshape(3, 2) for axis in (0, 1))
    assert (tops[:, 0] == tops[:, 1]).all()
    assert (np.diff(tops[:, 0]) > 0).all()
    assert (lefts == lefts[0]).all()


def test_density_colours_are_one_scale_whose_bar_says_that_values_are_cut():
    true, learned = np.full((3, 4), 0.5), np.full((3, 4), 2.0)
    figure = plots.density(np.arange(4.0), np.arange(3.0), {"true": true, "learned": learned})
    first, second = (ax.images[0] for ax in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (0, 0.5)
    assert second.colorbar.extend == "max"
    np.testing.assert_array_equal(second.get_array(), learned)


def test_names_of_folders_are_labels_as_they_are():
    """A leading underscore does not hide a curve from the legend, and dollars are not a formula."""
    names = ["_run", "a$^2$", "b$"]
    figure = plots.training_curves({name: ([0, 1], [1.0, 2.0]) for name in names}, "loss")
    legend = figure.axes[0].get_legend()
    assert legend is not None
    drawn = [text._preprocess_math(text.get_text()) for text in legend.get_texts()]
    assert drawn == [("\u200b_run", False), ("a$^2$", False), ("b$", False)]


def test_likelihoods_that_are_not_finite_are_counted_by_kind():
    figure = plots.likelihood_histogram({"model": np.array([1.0, 3.0, -np.inf, np.nan, np.nan])})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["model, mean 2.00; 1 infinite; 2 NaN"]


@pytest.mark.parametrize("labels", [None, np.zeros(16, int), np.repeat([0, 1], [4, 12])])
def test_no_image_is_left_out_of_a_grid(labels):
    greys = np.arange(16, dtype=np.uint8) * 9 + 60
    images = np.broadcast_to(greys[:, None, None, None], (16, 2, 2, 1))
    shown = pixels(plots.image_grid(images, labels=labels))
    counts = [(shown == grey).all(-1).sum() for grey in greys.astype(int)]
    assert min(counts) >= 4
