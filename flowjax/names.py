"""Tables that bind the names which a config may use to the objects that they stand for.

Adding a schedule, source, path noise, coupling, prediction, loss weight, time sampler or network takes one file (or
class) and one line in a table. A name may have arguments: `vp(0.1, 20)`, `sinkhorn(eps=2)`. The names of data sets are
in `data.sets`, those of augmentations in `data.augment`, and those of samplers in `solvers.names`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

from flowjax import couplings, predictions, schedules, sources
from flowjax.abilities import space_of
from flowjax.arguments import make
from flowjax.data import DataSpec
from flowjax.data.densities import DENSITIES
from flowjax.data.digits import digits_of
from flowjax.data.source_points import open_source
from flowjax.errors import ConfigError
from flowjax.methods import errors_of_rows, times, weighted_times, weights
from flowjax.models import ADM, EDM2, MLP, DiT, ResMLP, Transformer, UNet, UNet1D
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths import noise as path_noise
from flowjax.plugins import Kind, Outside
from flowjax.predictions import Prediction

__all__ = [
    "COUPLING",
    "COUPLINGS",
    "IMAGE_MODELS",
    "MODELS",
    "NOISES",
    "PATH",
    "PATHS",
    "PREDICTION",
    "PREDICTIONS",
    "ROW_LOSSES",
    "SCHEDULE",
    "SCHEDULES",
    "SEQUENCE_MODELS",
    "SOURCE",
    "SOURCES",
    "TIMES",
    "WEIGHTS",
    "SourceRequest",
    "make_schedule",
]

T = TypeVar("T")


def _always(thing: T) -> Callable[[], T]:
    """Returns a constructor without arguments, for a name that stands for this object."""
    return lambda: thing


@dataclass(frozen=True)
class SourceRequest:
    """The argument with which every entry of `SOURCES` makes a source.

    Attributes:
        spec: the description of the data.
        path: `source.path`.
    """

    spec: DataSpec
    path: str = ""

    def without_path(self, name: str) -> DataSpec:
        """Returns the description of the data; ConfigError if the config gives a path to a source without a file."""
        if self.path:
            raise ConfigError(
                f"source.path is {self.path!r}, but source.name {name!r} reads no file: use source.name 'npz', or "
                "leave source.path empty"
            )
        return self.spec


def _density(name: str, distribution: Callable[[], sources.Source]) -> Callable[[SourceRequest], sources.Source]:
    def source(request: SourceRequest) -> sources.Source:
        request.without_path(name)
        return distribution()

    return source


def _normal_source(request: SourceRequest) -> sources.Normal:
    return sources.Normal(request.without_path("normal").shape)


def _uniform_source(request: SourceRequest) -> sources.Uniform:
    """Returns a uniform distribution of unit variance, like the normal."""
    return sources.Uniform(request.without_path("uniform").shape, -(3.0**0.5), 3.0**0.5)


def _npz_source(request: SourceRequest) -> sources.Empirical:
    return open_source(request.path, request.spec)


def _digits_source(request: SourceRequest, label: int | tuple[int, ...]) -> sources.Empirical:
    """Returns one class or several classes of scikit-learn's digits in model space, dequantised like the data."""
    spec = request.without_path("digits")
    if not spec.name.startswith("digits"):
        raise ValueError(f"a source of digits needs data of digits, and data.name is {spec.name!r}")
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
    "fading": path_noise.Fading,
}

SOURCES: dict[str, Callable[..., sources.Source]] = {
    "normal": _normal_source,
    "uniform": _uniform_source,
    "npz": _npz_source,
    "digits": _digits_source,
    **{name: _density(name, distribution) for name, distribution in DENSITIES.items()},
}

PATHS: dict[str, Callable[..., AffinePath]] = {
    "affine": lambda schedule, noise, gaussian: GaussianPath(schedule) if gaussian else AffinePath(schedule, noise),
    "gaussian": lambda schedule, noise, gaussian: GaussianPath(schedule),
}
"""Functions of the schedule, the noise (or None), and whether the path can be Gaussian: the source is N(0, I) and
independent of the data, and there is no noise. If it cannot, a result that is a `GaussianPath` is an error."""

COUPLINGS: dict[str, Callable[..., couplings.Coupling]] = {
    "independent": lambda path: couplings.Independent(),
    "ot": lambda path: couplings.MinibatchOT(space=space_of(path)),
    "auction": lambda path, tolerance=0.01: couplings.MinibatchOT("auction", float(tolerance), space=space_of(path)),
    "class_ot": lambda path: couplings.MinibatchOT(condition_weight=float("inf"), space=space_of(path)),
    "conditional_ot": lambda path, weight: couplings.MinibatchOT(condition_weight=float(weight), space=space_of(path)),
    "sinkhorn": lambda path, eps=None: couplings.Sinkhorn(_eps(path, eps), space=space_of(path)),
    "class_sinkhorn": lambda path, eps=None: couplings.Sinkhorn(
        _eps(path, eps), condition_weight=float("inf"), space=space_of(path)
    ),
    "unbalanced": lambda path, eps, tau: couplings.Sinkhorn(float(eps), tau=float(tau), space=space_of(path)),
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

ROW_LOSSES: dict[str, Callable[..., errors_of_rows.RowLoss]] = {
    "squared": _always(errors_of_rows.SQUARED),
    "pseudo_huber": errors_of_rows.PseudoHuber,
}

TIMES: dict[str, Callable[..., times.Times]] = {
    "uniform": times.Uniform,
    "stratified": times.Stratified,
    "logit_normal": times.LogitNormal,
    "log_normal": times.LogNormal,
    "u_shaped": times.UShaped,
    "levels": times.Levels,
    "importance": weighted_times.Importance,
    "uniform_log_snr": weighted_times.UniformLogSNR,
}

IMAGE_MODELS: dict[str, Callable[..., nnx.Module]] = {"unet": UNet, "adm": ADM, "edm2": EDM2, "dit": DiT}
"""Networks for images (H, W, C) only."""

SEQUENCE_MODELS: dict[str, Callable[..., nnx.Module]] = {"transformer": Transformer, "unet1d": UNet1D}
"""Networks for sequences or sets (L, C) and signals (L,) only."""

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "resmlp": ResMLP,
    **SEQUENCE_MODELS,
    **IMAGE_MODELS,
}
"""All networks. The others take examples of any shape."""


SCHEDULE = Kind("a schedule", ("alpha", "sigma", "log_snr", "time_of_log_snr"), makes=schedules.Schedule)
"""A schedule from outside flowjax, which is called with the arguments in brackets."""

PATH = Kind("a path (a subclass of flowjax.paths.AffinePath)", base=AffinePath, makes=AffinePath)
"""A path from outside flowjax, which is called with the schedule, the noise or None, and the arguments in brackets."""

COUPLING = Kind("a coupling", ("__call__", "keeps_independence"), makes=couplings.Coupling)
"""A coupling from outside flowjax, which is called with the arguments in brackets."""

SOURCE = Kind("a source", ("sample", "log_prob"), makes=sources.Source)
"""A source from outside flowjax, which is called with the shape of an example and the arguments in brackets."""

PREDICTION = Kind("a prediction", base=Prediction, makes=Prediction)
"""A prediction from outside flowjax, or a function that returns one for the arguments in brackets."""


def make_schedule(text: str, shift: float = 1.0, plugins: Sequence[str] = ()) -> schedules.Schedule:
    """Returns the schedule that a config names.

    Args:
        text: a name in `SCHEDULES` with its arguments, such as `vp(0.1, 20)`, or a schedule outside flowjax.
        shift: the resolution-dependent shift (`schedules.Shifted`); 1 for none.
        plugins: the modules that may be imported.

    Raises:
        ConfigError: on an unknown name or wrong arguments, or if the log-SNR of the schedule is not monotone.
    """
    schedule = make("path.schedule", text, SCHEDULES, outside=Outside(SCHEDULE, plugins))
    schedule = schedule if shift == 1.0 else schedules.Shifted(schedule, shift)
    try:
        schedules.check_monotone(schedule)
    except ValueError as error:
        raise ConfigError(f"path.schedule {text!r}: {error}") from None
    return schedule


def _eps(path: AffinePath, eps: float | int | None) -> float:
    """Returns eps, which is 2 sigma^2 by default on a bridge path (Tong et al. 2024, arXiv:2302.00482, sec. 3.2.4)."""
    if eps is not None:
        return float(eps)
    if not isinstance(path.noise, path_noise.Bridge):
        raise ValueError("give its regularisation eps in brackets, or use path.noise 'bridge(sigma)' for 2 sigma^2")
    return 2.0 * path.noise.scale**2
