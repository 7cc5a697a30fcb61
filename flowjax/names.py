"""Every name that a config may use, bound in a table: the one place to add one.

Adding a schedule, source, path noise, coupling, prediction, loss weight, time sampler or model is one file (or class)
and one line below. A name may carry arguments: `vp(0.1, 20)`, `sinkhorn(eps=2)`. Data sets are in `data.sets`,
augmentations in `data.augment`, samplers in `solvers.names`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

from flowjax import couplings, predictions, schedules, sources
from flowjax.arguments import make
from flowjax.data import DataSpec
from flowjax.data.densities import DENSITIES
from flowjax.data.digits import digits_of
from flowjax.errors import ConfigError
from flowjax.methods import times, weights
from flowjax.models import ADM, EDM2, MLP, DiT, UNet
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths import noise as path_noise
from flowjax.plugins import Kind, Outside
from flowjax.predictions import Prediction

__all__ = [
    "COUPLING",
    "COUPLINGS",
    "MODELS",
    "NOISES",
    "PATHS",
    "PREDICTION",
    "PREDICTIONS",
    "SCHEDULE",
    "SCHEDULES",
    "SOURCE",
    "SOURCES",
    "TIMES",
    "WEIGHTS",
    "make_schedule",
]

T = TypeVar("T")


def _always(thing: T) -> Callable[[], T]:
    """A name without arguments."""
    return lambda: thing


def _density(distribution: Callable[[], sources.Source]) -> Callable[[DataSpec], sources.Source]:
    return lambda spec: distribution()


def _digits_source(spec: DataSpec, label: int) -> sources.Empirical:
    """One class of scikit-learn's digits, in model space, dequantised as the data are."""
    if not spec.name.startswith("digits"):
        raise ValueError(f"digits go to digits: data.name is {spec.name!r}")
    to_model = spec.normalise.to_model
    step = float(to_model(jnp.ones(1))[0] - to_model(jnp.zeros(1))[0])
    return sources.Empirical(to_model(jnp.asarray(digits_of(label)[0], jnp.float32)), step)


SCHEDULES: dict[str, Callable[..., Any]] = {
    "condot": schedules.CondOT,
    "cosine": schedules.Cosine,
    "polynomial": schedules.Polynomial,
    "vp": schedules.VP,
    "subvp": schedules.SubVP,
    "ve": schedules.VE,
    "edm": schedules.EDM,
    "ddpm_linear": schedules.ddpm_linear,
    "nichol_cosine": schedules.nichol_cosine,
}

NOISES: dict[str, Callable[..., Any]] = {
    "constant": path_noise.Constant,
    "bridge": path_noise.Bridge,
    "sine2": path_noise.Sine2,
}

SOURCES: dict[str, Callable[..., sources.Source]] = {
    "normal": lambda spec: sources.Normal(spec.shape),
    "uniform": lambda spec: sources.Uniform(spec.shape, -(3.0**0.5), 3.0**0.5),  # unit variance, as the normal
    "digits": _digits_source,
    **{name: _density(distribution) for name, distribution in DENSITIES.items()},
}

PATHS: dict[str, Callable[..., AffinePath]] = {"affine": AffinePath, "gaussian": GaussianPath}
"""`affine` is a Gaussian path wherever it can be: from N(0, I), independently, without noise. `gaussian` insists on
it."""

COUPLINGS: dict[str, Callable[..., couplings.Coupling]] = {
    "independent": lambda path: couplings.Independent(),
    "ot": lambda path: couplings.MinibatchOT(),
    "auction": lambda path, tolerance=0.01: couplings.MinibatchOT("auction", float(tolerance)),
    "class_ot": lambda path: couplings.MinibatchOT(condition_weight=float("inf")),
    "conditional_ot": lambda path, weight: couplings.MinibatchOT(condition_weight=float(weight)),
    "sinkhorn": lambda path, eps=None: couplings.Sinkhorn(_eps(path, eps)),
    "class_sinkhorn": lambda path, eps=None: couplings.Sinkhorn(_eps(path, eps), condition_weight=float("inf")),
    "unbalanced": lambda path, eps, tau: couplings.Sinkhorn(float(eps), tau=float(tau)),
}

PREDICTIONS: dict[str, Callable[..., Prediction]] = {
    **{
        p.name: _always(p)
        for p in (
            predictions.velocity,
            predictions.noise,
            predictions.data,
            predictions.score,
            predictions.v,
            predictions.velocity_score,
            predictions.noise_variance,
        )
    },
    "edm": predictions.edm,
}

WEIGHTS: dict[str, Callable[..., weights.Weighting]] = {
    "native": lambda: weights.NATIVE,
    **{
        p.name: _always(weights.uniform(p))
        for p in (predictions.velocity, predictions.noise, predictions.data, predictions.score, predictions.v)
    },
    "snr": lambda: weights.uniform(predictions.noise),
    "min_snr": weights.min_snr,
    "edm": lambda sigma_data=0.5: weights.uniform(predictions.edm(sigma_data)),
    "sigmoid": weights.sigmoid,
    "likelihood": weights.likelihood,
}

TIMES: dict[str, Callable[..., times.Times]] = {
    "uniform": times.Uniform,
    "stratified": times.Stratified,
    "logit_normal": times.LogitNormal,
    "log_normal": times.LogNormal,
    "levels": times.Levels,
    "importance": times.Importance,
}

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "unet": UNet,
    "adm": ADM,
    "edm2": EDM2,
    "dit": DiT,
}


SCHEDULE = Kind("a schedule", ("alpha", "sigma", "log_snr", "time_of_log_snr"), makes=schedules.Schedule)
"""A schedule from outside; called with the arguments in brackets."""

COUPLING = Kind("a coupling", ("__call__", "keeps_independence"), makes=couplings.Coupling)
"""A coupling from outside; called with the arguments in brackets."""

SOURCE = Kind("a source", ("sample", "log_prob"), makes=sources.Source)
"""A source from outside; called with the shape of an example, and with the arguments in brackets."""

PREDICTION = Kind("a prediction", base=Prediction, makes=Prediction)
"""A prediction from outside, or a function that makes one from the arguments in brackets."""


def make_schedule(text: str, shift: float = 1.0, plugins: Sequence[str] = ()) -> schedules.Schedule:
    """`condot`, `polynomial(2)`, `vp(0.1, 20)`: a name in `SCHEDULES`, shifted if shift is not 1.

    Args:
        text: the name, or that of a schedule in a module of the caller's own.
        shift: of resolution, 1 for none.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: on an unknown name, arguments it does not take, or a schedule that is not monotone.
    """
    schedule = make("path.schedule", text, SCHEDULES, outside=Outside(SCHEDULE, plugins))
    schedule = schedule if shift == 1.0 else schedules.Shifted(schedule, shift)
    try:
        schedules.check_monotone(schedule)
    except ValueError as error:
        raise ConfigError(f"path.schedule {text!r}: {error}") from None
    return schedule


def _eps(path: AffinePath, eps: float | int | None) -> float:
    """The regularisation of a bridge's coupling is 2 sigma^2 (Tong et al. 2024, sec. 3.2.4)."""
    if eps is not None:
        return float(eps)
    if not isinstance(path.noise, path_noise.Bridge):
        raise ValueError("say its regularisation eps in brackets, or take path.noise 'bridge(sigma)', for 2 sigma^2")
    return 2.0 * path.noise.scale**2
