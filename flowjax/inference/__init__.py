"""What is done with a trained run: opening it, samples, log-densities, metrics and figures.

The way of a call is straight: `run` opens a workdir, `choose` builds the model that is sampled, `program` compiles the
draw, `batches` runs it over all rows and `finished_batches` keeps what is done. `sampling`, `scoring`, `evaluation` and
`plots` use them.
"""

from flowjax.inference.batches import SolverFault
from flowjax.inference.choose import Guide, SolverSettings
from flowjax.inference.evaluation import evaluate, evaluate_images
from flowjax.inference.run import Run, load
from flowjax.inference.sampling import Samples, sample
from flowjax.inference.scoring import LogDensities, log_prob

__all__ = [
    "Guide",
    "LogDensities",
    "Run",
    "Samples",
    "SolverFault",
    "SolverSettings",
    "evaluate",
    "evaluate_images",
    "load",
    "log_prob",
    "sample",
]
