"""Figures for papers and notebooks: functions from arrays to matplotlib figures, and files of these figures.

`flowjax.inference.figures` draws the figures of a run with these functions. Matplotlib is imported on first use. No
function uses pyplot, so that figures need no display and are freed with the last reference; the settings in
`matplotlib.rcParams` apply.
"""

from flowjax.plots.calibration import calibration, expected_coverage, predictive, rank_ecdf
from flowjax.plots.corner import corner
from flowjax.plots.correlations import correlations
from flowjax.plots.curves import likelihood_histogram, lines, loss_curves, losses_of_records, training_curves
from flowjax.plots.features import marginals, pairs
from flowjax.plots.forecast import forecast
from flowjax.plots.images import image_columns, image_grid
from flowjax.plots.plane import density, samples_against_data, trajectories
from flowjax.plots.sequences import point_sets, series
from flowjax.plots.style import DATA, FORMATS, PALETTE, SAMPLES, save, square_limits, to_bytes

__all__ = [
    "DATA",
    "FORMATS",
    "PALETTE",
    "SAMPLES",
    "calibration",
    "corner",
    "correlations",
    "density",
    "expected_coverage",
    "forecast",
    "image_columns",
    "image_grid",
    "likelihood_histogram",
    "lines",
    "loss_curves",
    "losses_of_records",
    "marginals",
    "pairs",
    "point_sets",
    "predictive",
    "rank_ecdf",
    "samples_against_data",
    "save",
    "series",
    "square_limits",
    "to_bytes",
    "training_curves",
    "trajectories",
]
