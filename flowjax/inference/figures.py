"""The figures of a run by name: loss curves, samples against data, trajectories, densities and likelihoods."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import plots
from flowjax.conditions import named
from flowjax.data import Dataset
from flowjax.data.degrade import DEGRADED
from flowjax.data.series import PAST
from flowjax.errors import ConfigError
from flowjax.inference import posterior_figures, scoring
from flowjax.inference.calibration import is_simulated
from flowjax.inference.choose import SolverSettings
from flowjax.inference.examples import examples_of, given_images
from flowjax.inference.figure_inputs import (
    LARGE,
    PER_ROW,
    POINTS,
    FigureInputs,
    PlotError,
    check_finite,
    has_velocity,
    labels_of_rows,
    only_labels,
)
from flowjax.inference.forecast_metrics import draw_ensembles, past_field
from flowjax.inference.program import source_noise
from flowjax.inference.run import Run
from flowjax.ranges import shown
from flowjax.solvers import solve_ode
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.writers import Progress, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FIGURES",
    "NOT_OF_THE_END",
    "FigureInputs",
    "NamedFigure",
    "PlotError",
    "check_figure",
    "draw",
    "draw_all",
    "fitting",
    "of_the_end",
    "of_training",
]

NOT_OF_THE_END = "plots/ of the workdir holds figures of the last checkpoint with the moving average and seed 0 only"
"""The start of the error for a figure that must not be written into the folder `plots/` of its run."""

_LINES = 256
_FEWEST = 1000
_FEW_CLASSES = 10
"""Up to this number of classes, the learned density is the sum over the classes, as samples are drawn."""

_EXAMPLES, _EACH = 8, 3
"""The number of rows of the figure `examples`, and of samples in each."""

_WINDOWS = 3
_FRAMES = 20
_DENSITY_SIDE = 80
_SCORED, _LARGE_SCORED = 2000, 128
_LONG = 20
"""From this length on, vectors are drawn as series, unless their features have scales of their own."""

_SOLVER_OF_DENSITY = SolverSettings("rk4", steps=50)


class NamedFigure(NamedTuple):
    """A figure of a run that has a name.

    Attributes:
        fits: whether the figure can be drawn for a run.
        draw: draws it.
        of_training: whether it is drawn at the end of training.
    """

    fits: Callable[[Run], bool]
    draw: "Callable[[FigureInputs], Figure]"
    of_training: bool = True


def fitting(run: Run) -> tuple[str, ...]:
    """Returns the names of the figures that can be drawn for a run."""
    return tuple(name for name, figure in FIGURES.items() if figure.fits(run))


def of_training(run: Run) -> tuple[str, ...]:
    """Returns the names of the figures that are drawn for a run at the end of its training."""
    return tuple(name for name in fitting(run) if FIGURES[name].of_training)


def of_the_end(run: Run, seed: int) -> bool:
    """Returns whether a figure of a run with this seed may replace one in `plots/`, which show the end of training."""
    return run.averaged and seed == 0 and Checkpoints(run.workdir / "checkpoints").steps()[-1:] == [run.step]


def check_figure(run: Run, name: str) -> None:
    """Raises a ConfigError, which lists the figures of the run, if it has no figure of this name."""
    if name not in (names := fitting(run)):
        raise ConfigError(f"this run has no figure {shown(name)}; its figures are {', '.join(names)}")


def draw(inputs: FigureInputs, name: str) -> "Figure":
    """Draws a figure of a run.

    Args:
        inputs: the run, and what was already computed from it for other figures.
        name: of the figure, one of `fitting(run)`.

    Raises:
        ConfigError: if the run has no figure of this name; the message lists those that it has.
        PlotError: if parameters or samples are not finite.
    """
    check_figure(inputs.run, name)
    if name != "loss":
        check_finite("parameters", *jax.tree.leaves(inputs.run.params))
    return FIGURES[name].draw(inputs)


def draw_all(run: Run, dataset: Dataset) -> None:
    """Draws the figures of the end of training as PNG into the folder `plots/` of the workdir: all of them or none.

    Args:
        run: opened with `flowjax.load`.
        dataset: the data set that the run was trained on.

    Raises:
        PlotError: if parameters or samples are not finite.
    """
    check_finite("parameters", *jax.tree.leaves(run.params))
    folder, done = run.workdir / "plots.part", run.workdir / "plots"
    inputs, names = FigureInputs(run, dataset), of_training(run)
    with closing(Progress(len(names), 0, "plots", "figure")) as progress:
        for drawn, name in enumerate(names, 1):
            plots.save(draw(inputs, name), folder / f"{name}.png")
            progress.advance(drawn)
    done.mkdir(exist_ok=True)
    for figure in folder.iterdir():
        figure.replace(done / figure.name)
    folder.rmdir()


def _loss(inputs: FigureInputs) -> "Figure":
    return plots.losses_of_records(read_metrics(inputs.run.workdir / "metrics.jsonl"))


def _samples(inputs: FigureInputs) -> "Figure":
    return _KINDS[_kind(inputs.run)](inputs)


def _plane(inputs: FigureInputs) -> "Figure":
    samples, test = inputs.rows
    samples = samples[: max(len(test), _FEWEST)]  # as many as test points, so that the clouds look equally dense
    labels = inputs.samples.labels
    of_test, spec = inputs.dataset.test_labels, inputs.run.spec
    if labels is None or of_test is None or len(spec.classes) > len(plots.PALETTE):
        return plots.samples_against_data(samples, test)
    return plots.samples_against_data(samples, test, labels[: len(samples)], of_test[: len(test)], spec.class_names)


def _images(inputs: FigureInputs) -> "Figure":
    spec, drawn = inputs.run.spec, inputs.samples
    return plots.image_grid(drawn.samples, spec.levels, drawn.labels, spec.class_names, "samples")


def _data(inputs: FigureInputs) -> "Figure":
    run, test, labels = inputs.run, inputs.dataset.test, inputs.dataset.test_labels
    rows, wanted = np.arange(min(len(test), len(inputs.samples.samples))), labels_of_rows(run)
    if labels is None or named(run.fields, "label") is None:
        return plots.image_grid(test[rows], run.spec.levels, title="data")
    if wanted is not None:
        rows = np.concatenate([np.flatnonzero(labels == k)[:PER_ROW] for k in np.unique(wanted)])
    return plots.image_grid(test[rows], run.spec.levels, labels[rows], run.spec.class_names, "data")


def _examples(inputs: FigureInputs) -> "Figure":
    run, levels = inputs.run, inputs.run.spec.levels
    found = examples_of(run, inputs.dataset, _EXAMPLES, _EACH, inputs.seed, batch=inputs.batch)
    check_finite("numbers of the samples", found.samples)
    in_units_of_data = (DEGRADED, run.given_source, "source")
    columns, of_column = dict(found.given), {name: levels for name in found.given if name in in_units_of_data}
    for i, images in enumerate(found.samples, 1):
        columns["sample" if len(found.samples) == 1 else f"sample {i}"] = images
    columns |= {} if found.truth is None else {"truth": found.truth}
    return plots.image_columns(columns, {name: levels for name in columns if name not in found.given} | of_column)


def _marginals(inputs: FigureInputs) -> "Figure":
    return plots.marginals(*inputs.rows)


def _series(inputs: FigureInputs) -> "Figure":
    return plots.series(inputs.samples.samples, inputs.dataset.test[:POINTS])


def _forecast(inputs: FigureInputs) -> "Figure":
    run = inputs.run
    drawn = draw_ensembles(run, inputs.dataset, _WINDOWS, seed=inputs.seed, batch=inputs.batch)
    check_finite("numbers of the samples", drawn.members)
    names = [column.name for column in run.spec.columns]
    return plots.forecast(drawn.cond[PAST], drawn.observed, drawn.members, names, _WINDOWS)


def _points(inputs: FigureInputs) -> "Figure":
    return plots.point_sets(inputs.samples.samples, inputs.dataset.test, inputs.dataset.test_mask)


def _trajectories(inputs: FigureInputs) -> "Figure":
    run, rows = inputs.run, np.arange(_LINES)
    t0, t1 = run.interval
    times = np.linspace(t0, t1, _FRAMES + 1)
    classes = np.asarray(run.spec.classes, np.int32)
    labels = None if named(run.fields, "label") is None else classes[np.arange(_LINES) % len(classes)]

    paired = inputs.dataset.test_x0 if run.given_source else None
    given = None if paired is None else run.spec.to_model(paired[rows % len(paired)])

    @jax.jit
    def solve(arrays: Any, rows: jax.Array, cond: Any) -> jax.Array:
        x = source_noise(run, jax.random.key(inputs.seed), rows) if given is None else jnp.asarray(given)
        velocity = run.model(*arrays).velocity
        return solve_ode(velocity, x, cond=cond, t0=t0, t1=t1, solver="rk4", steps=5 * _FRAMES, save_at=times)[0]

    lines = np.asarray(solve(run.arrays, rows, None if labels is None else {"label": jnp.asarray(labels)}))
    shown = labels if len(classes) <= len(plots.PALETTE) else None
    lines = run.spec.to_data(lines)  # integers are not floored on the way
    return plots.trajectories(times, lines, shown, run.spec.class_names)


def _density(inputs: FigureInputs) -> "Figure":
    dataset = inputs.dataset
    xs, ys = (np.linspace(*limits, _DENSITY_SIDE) for limits in plots.square_limits(dataset.test))
    grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    on_grid = lambda log_prob: np.exp(np.asarray(log_prob)).reshape(_DENSITY_SIDE, _DENSITY_SIDE)
    densities = {}
    if dataset.log_prob is not None:
        densities["true density"] = on_grid(dataset.log_prob(jnp.asarray(grid)))
    run, score = inputs.run, partial(scoring.log_prob, inputs.run, grid, solver=_SOLVER_OF_DENSITY, batch=inputs.batch)
    has_few_classes = named(run.fields, "label") is not None and len(run.spec.classes) <= _FEW_CLASSES
    of_class = lambda k: score(cond={"label": np.full(1, k, np.int32)})
    learned = scoring.sum_over_classes(run.spec, of_class) if has_few_classes else score()
    densities["learned density"] = on_grid(learned.log_prob)
    return plots.density(xs, ys, densities)


def _likelihood(inputs: FigureInputs) -> "Figure":
    run, dataset = inputs.run, inputs.dataset
    large = run.spec.d > LARGE
    num = _LARGE_SCORED if large else _SCORED
    names = [f.name for f in run.fields if f.name in dataset.test_cond]
    points, cond = dataset.test[:num], {name: dataset.test_cond[name][:num] for name in names}
    divergence = "hutchinson" if large else "exact"
    scored = scoring.log_prob(run, points, cond, divergence, inputs.seed, solver=_SOLVER_OF_DENSITY, batch=inputs.batch)
    values = {"test points, model": scored.log_prob}
    if dataset.log_prob is not None and not names:  # the true density is that of the data without conditions
        values["test points, true density"] = np.asarray(dataset.log_prob(jnp.asarray(points)))
    return plots.likelihood_histogram(values)


def _kind(run: Run) -> str:
    """The kind of figure that shows samples of a run."""
    spec = run.spec
    if spec.is_image:
        return "images"
    if spec.has_mask:
        return "points"
    if spec.shape == (2,):
        return "plane"
    long = len(spec.shape) == 1 and spec.d >= _LONG and spec.normalise.features is None
    return "series" if len(spec.shape) == 2 or long else "marginals"


_KINDS: "dict[str, Callable[[FigureInputs], Figure]]" = {
    "plane": _plane,
    "images": _images,
    "marginals": _marginals,
    "series": _series,
    "points": _points,
}
"""The figure `samples` of each kind of data."""


def _is_another(name: str, run: Run) -> bool:
    """Whether a kind of figure is not already the figure `samples` of a run on arrays of numbers."""
    return not run.spec.is_image and not run.spec.has_mask and _kind(run) != name


def _has_correlations(run: Run) -> bool:
    return len(run.spec.shape) == 1 and run.spec.d > 2


def _has_likelihood(run: Run) -> bool:
    return not run.spec.has_mask and not scoring.no_likelihood(run)


FIGURES: dict[str, NamedFigure] = {
    "loss": NamedFigure(lambda run: True, _loss),
    "samples": NamedFigure(lambda run: True, _samples),
    "data": NamedFigure(lambda run: run.spec.is_image, _data),
    "examples": NamedFigure(lambda run: bool(given_images(run)), _examples),
    "pairs": NamedFigure(
        lambda run: _kind(run) == "marginals" and run.spec.d > 2, lambda inputs: plots.pairs(*inputs.rows)
    ),
    "correlations": NamedFigure(_has_correlations, lambda inputs: plots.correlations(*inputs.rows)),
    "marginals": NamedFigure(lambda run: _is_another("marginals", run), _marginals, of_training=False),
    "series": NamedFigure(
        lambda run: _is_another("series", run) and len(run.spec.shape) == 1 and run.spec.d > 2,
        _series,
        of_training=False,
    ),
    "points": NamedFigure(
        lambda run: _is_another("points", run) and len(run.spec.shape) == 2 and run.spec.shape[1] > 1,
        _points,
        of_training=False,
    ),
    "forecast": NamedFigure(lambda run: past_field(run) is not None, _forecast),
    "trajectories": NamedFigure(
        lambda run: run.spec.shape in ((1,), (2,)) and only_labels(run) and has_velocity(run), _trajectories
    ),
    "density": NamedFigure(lambda run: run.spec.shape == (2,) and only_labels(run) and _has_likelihood(run), _density),
    "likelihood": NamedFigure(_has_likelihood, _likelihood, of_training=False),
    "corner": NamedFigure(is_simulated, posterior_figures.corner),
    "predictive": NamedFigure(is_simulated, posterior_figures.predictive, of_training=False),
    "calibration": NamedFigure(is_simulated, posterior_figures.calibration, of_training=False),
}
"""The figures of runs by name."""
