"""List the experiments, or run one: train, sample, evaluate and draw, and write its table.

usage: flowjax reproduce
       flowjax reproduce NAME [--quick] [--out DIR] [--update]

Without a name the experiments are listed with their state and their cost: `done` means that the page of the experiment
reports results of the full form, `quick only` that it reports those of the quick form, and `not yet run` neither.

With a name the experiment is run to its end. --quick is a smaller form of at most two minutes on two CPU cores. DIR
(by default runs/reproduce/NAME, or runs/reproduce/NAME-quick) receives the runs, every finished measurement,
results.json (or quick.json), the figures, and README.md with the table. The same command continues an experiment that
was stopped: finished measurements are not repeated, and training resumes from its last checkpoint.

The values are compared with those that are expected (expected.json); each deviation is a line on stderr.
--update also writes results, figures and table into the folder experiments/NAME of a checkout.

example:
  flowjax reproduce
  flowjax reproduce gaussians8 --quick
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from flowjax.cli import flags

__all__ = ["run"]


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.new()
    absl_flags.DEFINE_bool("quick", False, "run the quick form", flag_values=values)
    absl_flags.DEFINE_string("out", None, "folder for everything that is written", flag_values=values)
    absl_flags.DEFINE_bool(
        "update", False, "also write results, figures and table into experiments/NAME", flag_values=values
    )
    flags.define_compilation_cache(values)
    words = flags.parse_words(values, argv, __doc__ or "", most=1)
    if not words:
        if values.quick or values.update or values.out:
            raise flags.UsageError("name an experiment; `flowjax reproduce` lists them")
        return _list()
    (name,) = words
    from flowjax.cli import cache
    from flowjax.reproduce.shipped import reproduce
    from flowjax.training.writers import say

    cache.use(values.compilation_cache)
    out = Path(values.out or f"runs/reproduce/{name}{'-quick' if values.quick else ''}")
    results, deviations = reproduce(name, values.quick, out, values.update)
    for line in deviations:
        say(f"reproduce: deviation: {line}")
    say(f"reproduce: results, figures and table are in {out}")
    settings = {
        setting: {
            metric: results.mean(setting, metric)
            for metric in dict.fromkeys(key for m in results.measurements for key in m.metrics)
            if results.values(setting, metric)
        }
        for setting in results.settings
    }
    return {
        "experiment": name,
        "quick": values.quick,
        "out": str(out),
        "seconds": results.seconds,
        "agrees": not deviations,
        "deviations": deviations,
        "results": settings,
    }


def _list() -> dict[str, Any]:
    from flowjax.reproduce.shipped import load_experiment, shipped_experiments, state_of

    listed = {}
    for name, folder in shipped_experiments().items():
        experiment, state = load_experiment(folder), state_of(folder)
        listed[name] = {
            "state": state,
            "cost": experiment.full.cost,
            "quick_cost": experiment.quick.cost,
            "title": experiment.title,
        }
        sys.stderr.write(f"{name:<32} {state:<12} {experiment.title}\n")
        sys.stderr.write(f"{'':<45} full: {experiment.full.cost}; quick: {experiment.quick.cost}\n")
    return {"experiments": listed}
