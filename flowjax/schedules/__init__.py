"""Schedules: the coefficients alpha and sigma of the affine path `x_t = alpha(t) x1 + sigma(t) x0`.

t = 0 is the source and t = 1 the data. A schedule implements `alpha` and `sigma` only; `rates` computes their
derivatives by forward-mode differentiation. Each coefficient is implemented so that it keeps its relative accuracy in
float32 where it is small.

`log_snr` is log(alpha^2 / sigma^2), the log signal-to-noise ratio. With its inverse `time_of_log_snr`, the time of one
schedule is converted to the time of another at equal signal-to-noise ratio.
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
