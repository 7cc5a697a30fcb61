"""Write a report of a run as one HTML page: what was trained, curves, samples, metrics, speed and config.

usage: flowjax report --workdir DIR [--out FILE.html] [--checkpoint STEP] [--no-draw]

The page contains its images and needs no network. Figures of the end of training are taken from WORKDIR/plots; samples
of earlier checkpoints and likelihoods are computed, and --no-draw leaves out what has to be computed. The metrics are
those that `flowjax evaluate` has kept in WORKDIR/metrics. By default the page is WORKDIR/report.html.

example:
  flowjax report --workdir runs/g8
"""

from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["define_out", "page_path", "run", "write_page"]

_SUFFIXES = (".html", ".htm")


def run(argv: list[str]) -> dict[str, Any]:
    """Makes the report and writes it."""
    values = flags.of_run(trained=False)
    values[
        "checkpoint"
    ].help = "checkpoint to draw samples of: last, best (lowest validation loss) or the number of a step"
    flags.define_plugins(values)
    define_out(values, "the page to write; WORKDIR/report.html by default")
    absl_flags.DEFINE_bool("draw", True, "open the checkpoints and draw samples and likelihoods", flag_values=values)
    flags.parse(values, argv, __doc__ or "")
    if values["checkpoint"].present and not values.draw:
        raise flags.UsageError("--checkpoint and --no-draw cannot be used together: no checkpoint is opened")
    workdir = flags.run_workdir(values)
    out = page_path(values, Path(workdir) / "report.html")
    plugins = flags.plugins(values)

    from flowjax import pages
    from flowjax.cli import cache

    cache.use(values.compilation_cache)
    made = pages.report(workdir, checkpoint=values.checkpoint, draw=values.draw, plugins=plugins)
    write_page(out, made.html)
    return {"out": str(out), "workdir": workdir, "figures": list(made.figures), "missing": made.missing}


def define_out(values: absl_flags.FlagValues, text: str) -> None:
    """Defines --out, the page to write."""
    absl_flags.DEFINE_string("out", None, text, flag_values=values)


def page_path(values: absl_flags.FlagValues, usual: Path) -> Path:
    """Returns --out or its default, or raises UsageError unless it ends in .html."""
    out = Path(values.out or usual)
    if out.suffix not in _SUFFIXES:
        raise flags.UsageError(f"--out must end in .html, not {out.name!r}")
    return out


def write_page(path: Path, html: str) -> None:
    """Writes a page atomically.

    Raises:
        RunFault: if it cannot be written; the message is one line.
    """
    from flowjax.errors import RunFault
    from flowjax.files import written

    try:
        with written(path) as part:
            part.write_text(html)
    except OSError as error:
        raise RunFault(f"cannot write {path}: {error.strerror}") from None
