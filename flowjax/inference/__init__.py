"""What is done with a trained run: opening it, samples, log-densities, metrics and figures.

The way of a call is straight: `run` opens a workdir, `choose` builds the model that is sampled, `program` compiles the
draw, `batches` runs it over all rows and `finished_batches` keeps what is done. `sampling` and `evaluation` use them.
"""

from flowjax.inference.batches import SolverFault
from flowjax.inference.choose import Guide, Solver
from flowjax.inference.evaluation import evaluate, evaluate_images
from flowjax.inference.run import Run, load
from flowjax.inference.sampling import LogDensities, Samples, log_prob, sample

__all__ = [
    "Guide",
    "LogDensities",
    "Run",
    "Samples",
    "Solver",
    "SolverFault",
    "evaluate",
    "evaluate_images",
    "load",
    "log_prob",
    "sample",
]
