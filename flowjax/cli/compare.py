"""Compare runs side by side on one HTML page: configs, curves, metrics and samples.

usage: flowjax compare RUN RUN [RUN ...] [--out FILE.html]

RUN is the workdir of a run, which may still be training. The page shows the config keys that differ, the curves of
metrics.jsonl on common axes, the metrics that `flowjax evaluate` has kept, and the samples in RUN/plots. It has its
images inside and needs no network, and nothing is computed. By default it is compare.html in the current folder. The
line of JSON has the differences, the last losses and the metrics.

example:
  flowjax compare runs/lr/*/ --out runs/lr/compare.html
"""

import sys
from pathlib import Path
from typing import Any

from flowjax.cli import flags
from flowjax.cli.report import define_out, page_path, write_page
from flowjax.formatting import format_number

__all__ = ["run"]

_LAST = {"step": "step", "loss": "training loss", "val_loss": "validation loss"}


def run(argv: list[str]) -> dict[str, Any]:
    """Compares the runs and writes the page."""
    values = flags.new()
    define_out(values, "the page to write; compare.html by default")
    words = flags.parse_words(values, argv, __doc__ or "")
    out = page_path(values, Path("compare.html"))
    workdirs = [Path(flags.check_workdir(word)) for word in words]

    from flowjax import pages

    try:
        pages.check_different(workdirs)
    except ValueError as error:
        raise flags.UsageError(str(error)) from None
    made = pages.compare(workdirs)
    write_page(out, made.html)
    for key, found in made.differences.items():
        sys.stderr.write(f"{key}: {', '.join(map(pages.shown, found))}\n")
    for name, last in made.last.items():
        numbers = (f"{text} {format_number(last[key])}" for key, text in _LAST.items())
        sys.stderr.write(f"{name}: {', '.join(numbers)}\n")
    names = ("runs", "differences", "last", "metrics")
    return {"out": str(out)} | {name: getattr(made, name) for name in names}
