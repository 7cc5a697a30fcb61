"""The dequantisation of the points of a run: which noise, from its name, the data and the model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from flowjax.bits import Bins, Dequantisation, Dequantised, TruncatedNormal, Uniform, time_of_truncated_normal
from flowjax.errors import ConfigError, check_name
from flowjax.inference.divergences import described_divergence
from flowjax.inference.run import Run
from flowjax.inference.standard_errors import standard_error_of_mean
from flowjax.keys import RowKeys
from flowjax.likelihood import DivergenceEstimator
from flowjax.paths import GaussianPath
from flowjax.training.writers import say
from flowjax.typing import Batched, Cond

__all__ = [
    "DEQUANTISATIONS",
    "RunDequantisation",
    "default_dequantisation",
    "dequantisation_of",
    "described",
    "say_if_loose",
]

DEQUANTISATIONS = ("uniform", "truncated_normal", "variational")
"""The kinds of noise: `flowjax.bits.Uniform`, `flowjax.bits.TruncatedNormal`, or the noise that the model learned."""


@dataclass(frozen=True)
class RunDequantisation:
    """The dequantisation of a run's points.

    Attributes:
        name: in `DEQUANTISATIONS`.
        fixed: the noise, if it does not depend on parameters.
    """

    name: str
    fixed: Dequantisation | None = None

    @property
    def time(self) -> float | None:
        """The time at which the density is evaluated; None for that of the data."""
        return None if self.fixed is None else self.fixed.time

    def draw(self, model: Any, keys: RowKeys, edges: Batched, cond: Cond) -> Dequantised:
        """Draws the noise of each row: by the model if it has learned to."""
        return model.dequantise(keys, edges, cond) if self.fixed is None else self.fixed(keys, edges, cond)


def default_dequantisation(run: Run) -> str:
    """The noise that the model has learned, and otherwise `uniform`, also for `data.dequantisation='none'`.

    For a network without error that puts each integer into a peak within its bin, `truncated_normal` loses nothing
    (`flowjax.bits.dequantisation`). The density of a trained network can be almost constant within the bins, and then
    uniform noise is better.
    """
    return "variational" if run.spec.dequantisation == "variational" else "uniform"


def dequantisation_of(run: Run, x: np.ndarray, name: str = "", importance_samples: int = 1) -> RunDequantisation | None:
    """Returns the dequantisation of points, or None if they are real numbers.

    Args:
        run: the run.
        x: (N, *event) in data space.
        name: in `DEQUANTISATIONS`; "" for `default_dequantisation`.
        importance_samples: the number of draws of each point.

    Raises:
        ConfigError: if there are fewer than one draw, the name is unknown, the points are not integers but a name or
            several draws are asked for, or the model has not learned the noise that is asked for.
    """
    if importance_samples < 1:
        raise ConfigError(f"importance_samples must be at least 1, not {importance_samples}")
    if name:
        try:
            check_name("dequantisation", name, DEQUANTISATIONS)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    bins = run.spec.bins
    if bins is None or not run.spec.dequantises(x):
        if name or importance_samples > 1:
            what = "the points are" if bins is not None else f"the data of this run ({run.spec.name}) are"
            raise ConfigError(
                f"dequantisation and importance_samples are for integers, and {what} real numbers: leave them out"
            )
        return None
    name = name or default_dequantisation(run)
    if name == "uniform":
        return RunDequantisation(name, Uniform(bins))
    if name == "truncated_normal":
        return RunDequantisation(name, _truncated_normal(run, bins))
    if not hasattr(run.model(), "dequantise") or run.spec.dequantisation != "variational":
        raise ConfigError(
            "dequantisation 'variational' needs a model that has learned the noise: train method.name "
            "'normalizing_flow' with data.dequantisation 'variational'"
        )
    return RunDequantisation(name)


def say_if_loose(run: Run, noise: RunDequantisation | None) -> None:
    """Prints a line on stderr if truncated normal noise is taken for a network that was trained with uniform noise."""
    if noise is not None and noise.name == "truncated_normal" and run.spec.dequantisation == "uniform":
        say(
            "likelihood: warning: dequantisation truncated_normal is for networks that were trained with "
            "data.dequantisation=none and put each integer into a narrow peak; this one was trained with uniform "
            "noise, so its density has no such peaks, and the bound is loose: use dequantisation uniform"
        )


def _truncated_normal(run: Run, bins: Bins) -> TruncatedNormal:
    """The truncated normal noise of a run's path."""
    if not isinstance(run.path, GaussianPath):
        raise ConfigError(
            "dequantisation 'truncated_normal' needs a model with a Gaussian path, whose noise it is: use 'uniform', "
            "or train with source.name 'normal' and path.name 'gaussian'"
        )
    if not bins.complete:
        raise ConfigError(
            "dequantisation 'truncated_normal' needs data that are integers in all entries, because real numbers have "
            "no bins: use 'uniform'"
        )
    return TruncatedNormal(bins, run.path, time_of_truncated_normal(run.path, bins, run.interval))


def described(
    run: Run,
    x: np.ndarray,
    log_prob: Float[np.ndarray, " N"],
    estimator: DivergenceEstimator,
    name: str = "",
    importance_samples: int = 1,
) -> dict[str, Any]:
    """The bits per dimension of points, and the settings of which they depend.

    Args:
        run, x, name, importance_samples: as for `dequantisation_of`.
        log_prob: the result of `flowjax.inference.log_prob`, in nats.
        estimator: of the divergence.

    Returns:
        `bits_per_dim`, the mean of -log p / (D log 2), and `bits_per_dim_stderr`, its standard error over the points,
        None if it is infinite or there is one point. The `divergence` with its `probes` (`described_divergence`). For
        integers also the name of the `dequantisation` and `importance_samples`.
    """
    noise = dequantisation_of(run, x, name, importance_samples)
    bits = -np.asarray(log_prob, np.float64) / (run.spec.d * np.log(2))
    found = {"bits_per_dim": float(bits.mean()), "bits_per_dim_stderr": standard_error_of_mean(bits)}
    found |= described_divergence(run, estimator)
    return found | ({} if noise is None else {"dequantisation": noise.name, "importance_samples": importance_samples})
