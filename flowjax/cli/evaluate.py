"""The metrics that fit the run's data set, as a table on stderr.

usage: flowjax evaluate --workdir DIR

Densities: nll, kl (where the true density is known), w2, mmd, npe, mode shares. Images: nll, bits_per_dim; small ones
also w2, mmd.

example:
  flowjax evaluate --workdir runs/g8
"""

import sys
from typing import Any

from flowjax.cli import flags


def run(argv: list[str]) -> dict[str, Any]:
    values = flags.new("evaluate")
    flags.define_solver(values)
    flags.parse(values, argv, __doc__ or "")
    workdir = flags.require(values, "workdir")

    from flowjax import evaluation
    from flowjax.cli.common import open_run, solver
    from flowjax.data import open_dataset

    opened = open_run(values, workdir)
    dataset = open_dataset(opened.config.data.name, opened.config.data.path)
    result = evaluation.evaluate(opened, dataset, values.seed, solver(values), values.batch)
    for key, value in result.items():
        sys.stderr.write(f"{key:<18}{value:>12.5g}\n")
    return result
