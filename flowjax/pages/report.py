"""The report of one run: what was trained, its curves, samples, likelihoods, metrics, speed, config and environment."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowjax import plots
from flowjax.config import defaults, flatten, resolve
from flowjax.formatting import format_duration, format_number
from flowjax.inference import figures
from flowjax.inference.data_of_run import dataset_of
from flowjax.inference.run import Run, at_step, load
from flowjax.pages.markup import Markup, details, figure, figure_grid, page, section, table, tag, tiles
from flowjax.pages.record import RunRecord, label_of, read_run, settings_text, shown, with_error
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.writers import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "report"]

_FIGURES = ("samples", "data", "pairs", "correlations", "trajectories", "density", "likelihood")
"""The figures of `flowjax.inference.figures` that the report shows, where a run has them."""

_CHECKPOINTS = 5
"""The largest number of checkpoints whose samples are drawn."""

_MAIN = ("kl", "nll", "bits_per_dim", "w2", "fid")
"""The metrics at the top of the page: the first two that the latest evaluation has."""


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        html: the page.
        figures: the names of the figures of the run that it shows.
        missing: why figures could not be drawn, by name.
    """

    html: str
    figures: tuple[str, ...]
    missing: dict[str, str]


def report(
    workdir: str | Path, *, checkpoint: str | int = "last", draw: bool = True, plugins: Sequence[str] = ()
) -> Report:
    """Makes the report of a run.

    Args:
        workdir: of the run, which may still be training.
        checkpoint: the checkpoint whose samples are drawn: "last", "best" or a step.
        draw: whether to open the checkpoints and draw samples where that is needed. Otherwise the report shows the
            curves, and the figures of the end of training in `plots/`.
        plugins: the modules that may be imported (`flowjax.load`).

    Raises:
        WorkdirError: if there is no run in the workdir.
        ConfigError: if the config cannot be used.
        CheckpointError: if there is no such checkpoint, or it cannot be read.
    """
    record = read_run(Path(workdir))
    run = load(workdir, checkpoint=checkpoint, plugins=plugins) if draw and _has_checkpoint(record) else None
    config = resolve(record.raw, plugins) if run is None else run.config
    usual = flatten(defaults(config.get("model", {}).get("name", "mlp"), config.method.name))
    final = record.finished and str(checkpoint) == "last"
    drawn = _Drawn(run, record.workdir / "plots" if final else None)
    samples, over_training = drawn.final(_FIGURES), drawn.over_training()
    body = [
        tag("p", _sentence(record)),
        _tiles(record),
        section("Samples", samples),
        section("Samples over training", over_training),
        *drawn.notes(),
        section("Curves", figure_grid(_curves(record))),
        section("Metrics", _metrics(record)),
        section("Speed", _speed(record)),
        section("Config", *_config(flatten(config), usual)),
        section("Environment", _environment(record)),
    ]
    names = tuple(drawn.shown)
    return Report(page(f"Run {record.workdir.absolute().name}", *body), names, drawn.missing)


def _has_checkpoint(record: RunRecord) -> bool:
    return bool(Checkpoints(record.workdir / "checkpoints").steps())


class _Drawn:
    """The figures of a run: those in the folder of its plots, and otherwise new ones.

    Attributes:
        shown: the names of the figures that were made.
        missing: why others could not be made, by name.
    """

    def __init__(self, run: Run | None, folder: Path | None):
        self._run, self._folder = run, folder
        self.shown: list[str] = []
        self.missing: dict[str, str] = {}
        self._inputs: figures.FigureInputs | None = None

    def final(self, names: Iterable[str]) -> Markup:
        """The figures with these names, as far as the run has them."""
        possible = names if self._run is None else [name for name in names if name in figures.fitting(self._run)]
        return figure_grid([one for name in possible if (one := self._figure(name)) is not None])

    def notes(self) -> list[Markup]:
        """Notes on the figures that failed so far."""
        text = "The figure {} could not be drawn: {}"
        return [tag("p", text.format(name, why), cls="note") for name, why in self.missing.items()]

    def over_training(self) -> Markup:
        """Samples of several checkpoints, if there are several."""
        run = self._run
        steps = [] if run is None else Checkpoints(run.workdir / "checkpoints").steps()
        if run is None or len(steps) < 2 or "samples" not in self.shown:
            return Markup("")
        wanted = np.linspace(steps[0], steps[-1], _CHECKPOINTS)
        chosen = sorted({min(steps, key=lambda step, at=at: abs(step - at)) for at in wanted})
        made = []
        for step in chosen:
            say(f"report: samples of step {step}")
            draw = lambda step=step: figures.draw(self.inputs_at(step), "samples")
            drawn = self._guarded(f"samples of step {step}", draw)
            if drawn is not None:
                made.append(figure(plots.to_bytes(drawn), "png", f"step {step:,}"))
        note = "Samples of the checkpoints that are kept; train.keep_every keeps more of them."
        return Markup(figure_grid(made, small=True) + tag("p", note, cls="note"))

    @property
    def inputs(self) -> figures.FigureInputs:
        """The inputs of figures of the checkpoint."""
        if self._inputs is None:
            assert self._run is not None
            self._inputs = figures.FigureInputs(self._run, dataset_of(self._run))
        return self._inputs

    def inputs_at(self, step: int) -> figures.FigureInputs:
        """The inputs of figures of a checkpoint."""
        if step == self.inputs.run.step:
            return self.inputs
        return figures.FigureInputs(at_step(self.inputs.run, step), self.inputs.dataset)

    def _figure(self, name: str) -> Markup | None:
        kept = None if self._folder is None else self._folder / f"{name}.png"
        if kept is not None and kept.exists():
            content, kind = kept.read_bytes(), "png"
        elif self._run is None:
            return None
        else:
            say(f"report: {name}")
            drawn = self._guarded(name, lambda: figures.draw(self.inputs, name))
            if drawn is None:
                return None
            kind = "svg" if name == "likelihood" else "png"
            content = plots.to_bytes(drawn, kind)
        self.shown.append(name)
        return figure(content, kind, name)

    def _guarded(self, name: str, make: "Callable[[], Figure]") -> "Figure | None":
        """The result of `make`, or None if it fails: the report is made without the figure, and says why."""
        try:
            return make()
        except Exception as error:
            self.missing[name] = " ".join(str(error).split())[:300] or type(error).__name__
            say(f"report: {name} could not be drawn: {self.missing[name]}")
            return None


def _sentence(record: RunRecord) -> str:
    """What was trained, in one sentence."""
    config, spec, last = record.config, record.spec, record.last
    parameters = record.size.get("parameters")
    network = config.get("model.name")
    what = f"network {network}" if network else "network of the method"
    size = f" with {parameters:,} parameters" if isinstance(parameters, int) else ""
    shape = " x ".join(map(str, spec.shape))
    step, steps = last.get("step", 0), config.get("train.steps", 0)
    taken = f"{step:,} steps" if record.finished else f"{step:,} of {steps:,} steps so far"
    seconds = f", in {format_duration(last['time'])}" if last else ""
    devices = record.environment["devices"]
    where = f" on {len(devices)} x {devices[0]}" if devices else ""
    return (
        f"The method {config.get('method.name')} trained the {what}{size} on the data {spec.name} of shape {shape}: "
        f"{taken} of {format_number(config.get('train.batch_size'))} samples{seconds}{where}."
    )


def _tiles(record: RunRecord) -> Markup:
    """The main numbers of the run."""
    last = record.last
    items = [("training loss", last.get("loss")), ("validation loss", last.get("val_loss"))]
    metrics = record.kept[-1].metrics if record.kept else {}
    items += [(label_of(name), metrics[name]) for name in _MAIN if name in metrics][:2]
    rates = _rates(record)
    items.append(("samples/s, median", float(np.median(rates)) if rates else None))
    return tiles([(name, format_number(value)) for name, value in items if value is not None])


def _curves(record: RunRecord) -> Iterator[Markup]:
    """The curves of the records: both losses together, and a figure for each other entry with at least two numbers."""
    if not record.records:
        return
    losses = plots.losses_of_records(record.records)
    yield figure(plots.to_bytes(losses, "svg"), "svg", "training and validation loss")
    for key, name in record.columns.items():
        curve = record.curve(key)
        if key in ("loss", "val_loss") or np.isfinite(curve[1]).sum() < 2:
            continue
        drawn = plots.training_curves({name: curve}, name, whole=key in ("learning_rate", "samples_per_second"))
        yield figure(plots.to_bytes(drawn, "svg"), "svg", name)


def _metrics(record: RunRecord) -> Markup:
    """The metrics that are kept, with a column for each evaluation."""
    if not record.kept:
        command = f"flowjax evaluate --workdir {record.workdir}"
        return tag("p", "The run has not been evaluated: ", tag("code", command), cls="note")
    names = dict.fromkeys(name for kept in record.kept for name in kept.metrics)
    rows = [[label_of(name), *(with_error(kept.metrics, name) for kept in record.kept)] for name in names]
    plain = [row for name, row in zip(names, rows, strict=True) if not name.endswith("_stderr")]
    return table(["", *map(settings_text, record.kept)], plain)


def _rates(record: RunRecord) -> list[float]:
    return [rate for one in record.records if (rate := one.get("samples_per_second"))]


def _speed(record: RunRecord) -> Markup:
    """Time and throughput of training."""
    records, rates = record.records, _rates(record)
    if not records:
        return Markup("")
    last, batch = record.last, record.config.get("train.batch_size", 0)
    total = lambda key: sum(one.get(key) or 0.0 for one in records)
    rows = [("training time", format_duration(last["time"]))]
    if rates:
        median = float(np.median(rates))
        rows += [
            ("samples/s, median", format_number(median)),
            ("time per step, median", f"{1e3 * batch / median:.3g} ms"),
        ]
        start = records[0]["time"] - records[0]["samples_seen"] / median
        rows.append(("compilation and start, estimated", format_duration(max(start, 0.0))))
    rows.append(("time in saving checkpoints", format_duration(total("checkpoint_seconds"))))
    if stalled := total("stall_seconds"):
        rows.append(("time in waiting for data", format_duration(stalled)))
    used = [(key, name) for key, name in (("mfu", "model FLOP utilisation"), ("device_gib", "device memory (GiB)"))]
    rows += [(name, format_number(last[key])) for key, name in used if last.get(key)]
    if skipped := last.get("skipped_steps"):
        rows.append(("skipped steps", format_number(skipped)))
    return table((), rows)


def _config(flat: dict[str, Any], usual: dict[str, Any]) -> list[Markup]:
    """The keys that differ from the defaults of the method and the network, and all keys."""
    changed = [key for key in flat if flat[key] != usual.get(key)]
    rows = [[tag("code", key), shown(flat[key]), shown(usual.get(key))] for key in changed]
    mark = lambda key: tag("td", shown(flat[key]), cls="changed") if key in changed else shown(flat[key])
    every = table((), [[tag("code", key), mark(key)] for key in flat])
    first = table(["key", "value", "default"], rows) if rows else tag("p", "All keys have their defaults.", cls="note")
    return [first, details(f"All {len(flat)} keys", every)]


def _environment(record: RunRecord) -> Markup:
    environment = record.environment
    devices = environment["devices"]
    kinds = ", ".join(f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices))
    rows = [("workdir", str(record.workdir.absolute())), ("devices", kinds)]
    rows.append(("git commit of flowjax", str(environment["git_commit"] or "")))
    rows += [(name, str(version)) for name, version in environment["versions"].items() if version]
    return table((), [row for row in rows if row[1]])
