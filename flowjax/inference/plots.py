"""Figures of a run: loss curves, samples against data, trajectories, the density in the plane, grids of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flowjax.abilities import abilities_of
from flowjax.data import Dataset
from flowjax.inference import sampling, scoring
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.program import source_noise
from flowjax.inference.run import Run
from flowjax.solvers import solve_ode
from flowjax.training.writers import read_metrics

__all__ = ["PlotError", "density", "draw_all", "image_grid", "loss_curves", "samples_against_data", "trajectories"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 5000
_LINES = 256
_FRAMES = 20
_DENSITY_SIDE = 80
_GAP = 2


class PlotError(ValueError):
    """A figure cannot be drawn because numbers of the run are not finite; the message is one line."""


def draw_all(run: Run, dataset: Dataset) -> None:
    """Draws every figure that suits the data into the folder `plots/` of the workdir: all of them or none.

    Args:
        run: opened with `flowjax.load`.
        dataset: the data set that the run was trained on.

    Raises:
        PlotError: if parameters or samples are not finite.
    """
    _check_finite("parameters", *jax.tree.leaves(run.params))
    folder, done = run.workdir / "plots.part", run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    loss_curves(folder / "loss.png", run.workdir / "metrics.jsonl")
    if run.spec.is_image:
        fast = SolverSettings("heun", steps=25) if "velocity" in abilities_of(run.model()) else DEFAULT_SOLVER
        drawn = sampling.sample(run, 64, solver=fast, batch=64, cond=conditions_of_test(run, dataset, 64)).samples
        _check_finite("values of the samples", drawn)
        image_grid(folder / "samples.png", drawn, run.spec.levels)
        image_grid(folder / "data.png", dataset.test[:64], run.spec.levels)
    elif run.spec.d == 2:
        drawn = sampling.sample(run, _POINTS, cond=conditions_of_test(run, dataset, _POINTS)).samples
        _check_finite("coordinates of the samples", drawn)
        samples_against_data(folder / "samples.png", drawn, dataset.test[:_POINTS])
        if all(field.kind == "label" for field in run.fields):  # they show one condition
            if "velocity" in abilities_of(run.model()):
                trajectories(folder / "trajectories.png", run)
            if not run.spec.has_mask and not scoring.no_likelihood(run):
                density(folder / "density.png", run, dataset)

    done.mkdir(exist_ok=True)
    for figure in folder.iterdir():
        figure.replace(done / figure.name)
    folder.rmdir()


def loss_curves(path: Path, metrics: Path) -> None:
    """Plots training and validation loss against samples seen; records without finite neighbours become points.

    Args:
        path: the .png file to write.
        metrics: `metrics.jsonl` of the run.
    """
    records = read_metrics(metrics)
    figure, axes = _figure(1, width=6.0, height=4.0)
    for key, name in (("loss", "training"), ("val_loss", "validation (average of parameters)")):
        seen, losses = (np.asarray([r[k] for r in records], float) for k in ("samples_seen", key))
        finite = np.isfinite(losses)
        padded = np.pad(finite, 1)
        isolated = finite & ~padded[:-2] & ~padded[2:]  # a line needs two points
        marker = "o" if isolated.any() else None
        axes[0].plot(seen, losses, label=name, lw=1.2, marker=marker, markersize=4, markevery=isolated)
    axes[0].set(xlabel="samples seen", ylabel="loss")
    axes[0].legend()
    axes[0].grid(alpha=0.3)
    _save(figure, path)


def samples_against_data(path: Path, samples: np.ndarray, data: np.ndarray) -> None:
    """Plots points of the data and samples, each (N, 2), side by side with equal limits."""
    figure, axes = _figure(2)
    for ax, points, title in zip(axes, (data, samples), ("data", "samples"), strict=True):
        ax.scatter(*points.T, s=2, alpha=0.5, lw=0)
        _frame(ax, data, title)
    _save(figure, path)


def trajectories(path: Path, run: Run) -> None:
    """Plots 256 trajectories of the flow from the source (black) to the data (blue), for data in the plane."""
    rows = jnp.arange(_LINES)
    t0, t1 = run.interval
    solve = jax.jit(
        lambda params, x: solve_ode(
            run.model(params).velocity,
            x,
            t0=t0,
            t1=t1,
            solver="rk4",
            steps=5 * _FRAMES,
            save_at=np.linspace(t0, t1, _FRAMES + 1),
        )[0]
    )
    lines = np.asarray(solve(run.params, source_noise(run, jax.random.key(0), rows)))
    lines = run.spec.finish(lines)
    figure, axes = _figure(1)
    axes[0].plot(lines[..., 0], lines[..., 1], c="0.6", lw=0.4, zorder=1)
    axes[0].scatter(*lines[0].T, s=4, c="k", zorder=2, label="t = 0")
    axes[0].scatter(*lines[-1].T, s=4, c="tab:blue", zorder=3, label="t = 1")
    axes[0].legend(loc="upper right")
    _frame(axes[0], lines.reshape(-1, 2), "trajectories")
    _save(figure, path)


def density(path: Path, run: Run, dataset: Dataset) -> None:
    """Plots the learned density in the plane, and the true density where it is known."""
    (x0, x1), (y0, y1) = _limits(dataset.test)
    xs, ys = np.linspace(x0, x1, _DENSITY_SIDE), np.linspace(y0, y1, _DENSITY_SIDE)
    grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)
    learned = scoring.log_prob(run, grid, solver=SolverSettings("rk4", steps=50)).log_prob
    panels = [("learned density", learned)]
    if dataset.log_prob is not None:
        panels.insert(0, ("true density", np.asarray(dataset.log_prob(jnp.asarray(grid)))))
    figure, axes = _figure(len(panels))
    peak = np.exp(panels[0][1]).max()
    for ax, (title, log_prob) in zip(axes, panels, strict=True):
        image = np.exp(log_prob).reshape(_DENSITY_SIDE, _DENSITY_SIDE)
        ax.imshow(image, origin="lower", extent=(x0, x1, y0, y1), vmin=0, vmax=peak, cmap="viridis")
        ax.set_title(title)
    _save(figure, path)


def image_grid(path: Path, images: np.ndarray, levels: int = 256) -> None:
    """Writes images as a square grid, enlarged.

    Args:
        path: the .png file to write.
        images: (N, H, W, C) in data space.
        levels: number of integer values of a pixel; 0 for floats, which are scaled to their range.
    """
    from PIL import Image

    n, h, w, c = images.shape
    side = int(np.ceil(np.sqrt(n)))
    zoom = max(1, 640 // (side * h))
    cells = np.full((side * side, h * zoom + _GAP, w * zoom + _GAP, c), 255, np.uint8)
    low, high = (0, levels - 1) if levels else (images.min(), max(images.max(), images.min() + 1e-6))
    scaled = np.clip((images.astype(np.float32) - low) / (high - low), 0, 1) * 255
    cells[:n, :-_GAP, :-_GAP] = scaled.astype(np.uint8).repeat(zoom, 1).repeat(zoom, 2)
    sheet = cells.reshape(side, side, *cells.shape[1:]).swapaxes(1, 2).reshape(side * cells.shape[1], -1, c)
    Image.fromarray(sheet[..., 0] if c == 1 else sheet[..., :3]).save(path)


def _check_finite(what: str, *arrays: Any) -> None:
    total = sum(a.size for a in arrays)
    bad = total - sum(int(jnp.isfinite(a).sum()) for a in arrays)
    if bad:
        raise PlotError(f"{bad:,} of {total:,} {what} are not finite")


def _figure(panels: int, width: float = 4.5, height: float = 4.5) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    # wide panels of equal aspect fill the height, and the layout then leaves too little of it for their titles
    figure = Figure(figsize=(width * panels, height + 0.3 * (panels > 1)), layout="compressed")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def _limits(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    low, high = points.min(0), points.max(0)
    margin = 0.08 * (high - low).max()
    middle, half = (low + high) / 2, (high - low).max() / 2 + margin
    return tuple((float(m - half), float(m + half)) for m in middle)


def _frame(ax: "Axes", points: np.ndarray, title: str) -> None:
    (x0, x1), (y0, y1) = _limits(points)
    ax.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal", title=title)
