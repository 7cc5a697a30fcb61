"""Schedules: how much data and how much source there is in a point at time t.

A schedule is the pair (alpha, sigma) of the affine path `x_t = alpha(t) x1 + sigma(t) x0`, with t = 0 the source and
t = 1 the data. Only `alpha` and `sigma` are written down; their derivatives come from `rates`, by forward-mode
differentiation, so a formula exists once. Each is written so that its small end is clean in float32.

The signal-to-noise ratio is `alpha^2 / sigma^2`; `log_snr` and its inverse `time_of_log_snr` are the change of time
that carries one schedule onto another.
"""

from flowjax.schedules.base import (
    Rates,
    Schedule,
    bisect_log_snr,
    check_monotone,
    clip_time,
    log_snr_range,
    rates,
)
from flowjax.schedules.diffusions import EDM, VE, VP, SubVP
from flowjax.schedules.discrete import Discrete, ddpm_linear, nichol_cosine
from flowjax.schedules.flows import CondOT, Cosine, Polynomial
from flowjax.schedules.shifted import Shifted

__all__ = [
    "EDM",
    "VE",
    "VP",
    "CondOT",
    "Cosine",
    "Discrete",
    "Polynomial",
    "Rates",
    "Schedule",
    "Shifted",
    "SubVP",
    "bisect_log_snr",
    "check_monotone",
    "clip_time",
    "ddpm_linear",
    "log_snr_range",
    "nichol_cosine",
    "rates",
]
