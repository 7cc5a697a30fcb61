"""Use of trained runs: opening them, samples, log-densities, metrics and figures.

A call of `sample` uses one module after the other: `run` opens a workdir, `given_conditions` checks the caller's
conditions, `choose` finds what is sampled, `program` compiles it, `batches` evaluates it on all rows, and
`finished_batches` keeps the finished ones. `scoring`, `evaluation` and `figures` build on the same modules.
`data_of_run` opens the data set of a run.
"""

from flowjax.inference.batches import SolverFault
from flowjax.inference.choose import Guide, SolverSettings
from flowjax.inference.composition import sample_composed
from flowjax.inference.encoding import Mapped, decode, encode
from flowjax.inference.evaluation import evaluate, evaluate_images
from flowjax.inference.integer_bounds import IntegerBound, integer_bound
from flowjax.inference.run import Run, load
from flowjax.inference.sampling import Samples, sample, sample_each
from flowjax.inference.scoring import LogDensities, log_prob

__all__ = [
    "Guide",
    "IntegerBound",
    "LogDensities",
    "Mapped",
    "Run",
    "Samples",
    "SolverFault",
    "SolverSettings",
    "decode",
    "encode",
    "evaluate",
    "evaluate_images",
    "integer_bound",
    "load",
    "log_prob",
    "sample",
    "sample_composed",
    "sample_each",
]
