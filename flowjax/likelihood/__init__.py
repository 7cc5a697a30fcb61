"""Log-likelihoods of flows by the instantaneous change of variables, with an exact or an estimated divergence."""

from flowjax.likelihood.density import Divergence, LogDensity, divergence_of, log_prob, push_forward
from flowjax.likelihood.estimator import DivergenceEstimator, standard_error
from flowjax.likelihood.exact import Exact, exact_divergence
from flowjax.likelihood.hutch_plus_plus import HutchPlusPlus
from flowjax.likelihood.hutchinson import Hutchinson, ProbeKind, hutchinson_divergence
from flowjax.likelihood.limits import check_no_nan, check_tolerances, rows_text, smallest_tolerance
from flowjax.likelihood.memory import TooLarge

__all__ = [
    "Divergence",
    "DivergenceEstimator",
    "Exact",
    "HutchPlusPlus",
    "Hutchinson",
    "LogDensity",
    "ProbeKind",
    "TooLarge",
    "check_no_nan",
    "check_tolerances",
    "divergence_of",
    "exact_divergence",
    "hutchinson_divergence",
    "log_prob",
    "push_forward",
    "rows_text",
    "smallest_tolerance",
    "standard_error",
]
