"""Draw figures of a trained run again, as PNG, PDF or SVG.

usage: flowjax plot --workdir DIR [--figures NAME,...] [--format png,pdf,svg] [--out DIR]

Without --figures, the figures that `flowjax train` draws at the end are drawn again. The figures that fit a run depend
on its data:

  loss          training and validation loss
  samples       samples beside data: points, a grid of images, histograms of features, series or sets of points
  data          images of the test split, beside which the samples can be judged
  examples      given images, samples and the truth, for images that are made from images
  pairs         pairs of features of a table
  correlations  the correlations of features of data and samples, and their difference
  marginals     histograms of features, for vectors and series
  series        vectors as series
  points        arrays (n, C) as sets of points
  forecast      the past, the truth and intervals of samples, for windows of a series
  trajectories  the paths from the source to samples, for data in the plane or on the line
  density       the learned density in the plane, beside the true one where it is known
  likelihood    histogram of the log-likelihoods of test points
  corner        of a run on simulations: the posterior of one observation, over the reference posterior if it is there
  predictive    of a run on simulations: an observation over simulations from samples of its posterior
  calibration   of a run on simulations: ranks of the true parameters, and the coverage of credible regions

Each figure is one file NAME.FORMAT in --out, by default the folder plots/ of the workdir. That folder holds figures of
the last checkpoint with the moving average and seed 0; --checkpoint, --no-ema, --width and --seed need --out. The
settings of a `matplotlibrc` file apply. In Python, `run.plot("samples")` returns the figure.

example:
  flowjax plot --workdir runs/g8 --figures samples,density,likelihood --format pdf,png --out figures
"""

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags
from flowjax.errors import unknown

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.of_run()
    flags.define_plugins(values)
    figures = "names of figures, with commas between; by default those that train draws"
    absl_flags.DEFINE_list("figures", [], figures, flag_values=values)
    absl_flags.DEFINE_list("format", ["png"], "formats of the files: png, pdf, svg", flag_values=values)
    absl_flags.DEFINE_string("out", None, "folder of the files; by default plots/ of the workdir", flag_values=values)
    flags.parse(values, argv, __doc__ or "")
    workdir = flags.run_workdir(values)

    from flowjax import plots

    for name in values.format:
        if name not in plots.FORMATS:
            raise flags.UsageError(f"--format: {unknown(name, plots.FORMATS)}")

    from flowjax.cli import cache
    from flowjax.cli.common import open_run
    from flowjax.inference.figures import (
        NOT_OF_THE_END,
        FigureInputs,
        check_figure,
        draw,
        fitting,
        of_the_end,
        of_training,
    )
    from flowjax.training.writers import say

    cache.use(values.compilation_cache)
    opened = open_run(values, workdir)
    if values.out is None and not of_the_end(opened, values.seed):
        raise flags.UsageError(f"{NOT_OF_THE_END}: give --out")
    for name in values.figures:
        check_figure(opened, name)
    names = values.figures or of_training(opened)
    if more := [name for name in fitting(opened) if name not in names]:
        say(f"plot: this run also has the figures {', '.join(more)}")
    folder, written = Path(values.out or opened.workdir / "plots"), {}
    inputs = FigureInputs(opened, None, values.seed, values.batch)
    for name in dict.fromkeys(names):
        figure = draw(inputs, name)
        written[name] = [str(folder / f"{name}.{suffix}") for suffix in dict.fromkeys(values.format)]
        for path in written[name]:
            plots.save(figure, path)
    return {"figures": written}
