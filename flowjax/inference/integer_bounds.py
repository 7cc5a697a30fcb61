"""Variational bounds on the log-probabilities of a run's integers, in batches of one compiled size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.abilities import abilities_of
from flowjax.arguments import make
from flowjax.bits import Bins, BoundTerms, LogSnrDensity, chain_bound, continuous_bound, time_of_truncated_normal
from flowjax.errors import ConfigError, check_name
from flowjax.inference.batches import default_batch, everywhere, in_batches, over_rows, rows_of_a_block
from flowjax.inference.batches import rows_of_this_process as rows_of
from flowjax.inference.choose import DEFAULT_SOLVER
from flowjax.inference.finished_batches import open_request, unless_single
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.points import check_points
from flowjax.inference.program import keys_of_seed
from flowjax.inference.run import Run
from flowjax.inference.standard_errors import standard_error_of_mean
from flowjax.keys import RowKeys
from flowjax.methods.times import Levels
from flowjax.methods.variational import Variational
from flowjax.paths import GaussianPath
from flowjax.predictions import well_conditioned
from flowjax.ranges import Range
from flowjax.solvers import Stats
from flowjax.sources import Normal
from flowjax.training import processes
from flowjax.training.writers import say
from flowjax.typing import Batched, Cond

__all__ = ["BOUNDS", "OF_BITS", "Ddpm", "IntegerBound", "Vdm", "check_bound", "default_bound", "integer_bound"]

OF_BITS = (
    *("bits_per_dim", "bits_per_dim_stderr", "dequantisation", "importance_samples", "divergence", "probes"),
    *("bound", "bound_bits_per_dim", "bound_bits_per_dim_stderr"),
    *("bound_prior_bits_per_dim", "bound_diffusion_bits_per_dim", "bound_reconstruction_bits_per_dim"),
)
"""The metrics of integers that `flowjax evaluate` computes, and what they hold for."""

_VARIANCES = ("small", "large", "learned")
_ENDS = ("model", "bin")
_BINS = 32
"""The number of bins of the density of the log-SNR."""

Terms = Callable[[Any, RowKeys, Batched, Cond], BoundTerms]


@dataclass(frozen=True)
class Ddpm:
    """The bound of the chain of DDPM (`flowjax.bits.chain`).

    Attributes:
        steps: the number N of levels.
        draws: the number of steps that are evaluated for each point, at random; 0 for all of them.
        variance: of the reverse steps: small, large or learned; "" for that of the method `variational`, and small for
            others.
        end: the last level. "model" is the last time of the model, as in training with `variational`; it needs noise
            there. "bin" is the time at which half of the smallest bin is four standard deviations of the noise, which
            is for paths that lead to the data themselves.
    """

    steps: Annotated[int, Range(2, 1_000_000)] = 1000
    draws: Annotated[int, Range(0, 1_000_000)] = 0
    variance: str = ""
    end: str = "model"

    def __post_init__(self) -> None:
        check_name("end", self.end, _ENDS)
        if self.variance:
            check_name("variance", self.variance, _VARIANCES)

    @property
    def evaluations(self) -> int:
        """The evaluations of the network for each point."""
        return min(self.draws or self.steps - 1, self.steps - 1) + 1

    def terms(self, run: Run, bins: Bins, prior: Normal) -> Terms:
        """The function that computes the terms of the bound of a block of rows."""
        trained = run.method.variance if isinstance(run.method, Variational) else "small"
        kind = self.variance or trained
        if kind == "learned" and not run.learns_variance:
            raise ConfigError("the bound ddpm with variance 'learned' needs prediction 'noise_variance'")
        assert run.path is not None
        low, high = run.interval
        if self.end == "bin":
            high = time_of_truncated_normal(run.path, bins, run.interval)
        if float(run.path.schedule.sigma(high)) == 0:
            raise ConfigError(
                f"the bound ddpm needs noise at its last level, and this path has none at t = {high:.4g}: use "
                f"ddpm({self.steps}, end='bin')"
            )
        times = Levels(self.steps).grid(run.path, (low, high))
        given: dict[str, Any] = {"times": times, "draws": self.evaluations - 1, "variance": kind}
        return lambda model, keys, edges, cond: chain_bound(model, prior, bins, keys, edges, cond, **given)


@dataclass(frozen=True)
class Vdm:
    """The bound of variational diffusion models, in continuous time (`flowjax.bits.continuous`).

    It ends where half of the smallest bin is four standard deviations of the noise, or at the last time of the model if
    that is earlier: later times would add nothing, since the integers follow from the noisy sample without the network.

    Attributes:
        draws: the number of noise levels that are evaluated for each point.
    """

    draws: Annotated[int, Range(1, 1_000_000)] = 20

    @property
    def evaluations(self) -> int:
        """The evaluations of the network for each point."""
        return self.draws

    def terms(self, run: Run, bins: Bins, prior: Normal) -> Terms:
        """The function that computes the terms of the bound of a block of rows."""
        assert run.path is not None
        start = max(run.interval[0], well_conditioned(run.path, alpha=True)[0])
        interval = start, min(run.interval[1], time_of_truncated_normal(run.path, bins, run.interval))
        low, high = (float(run.path.schedule.log_snr(t)) for t in interval)
        density = LogSnrDensity(low, high, jnp.zeros(_BINS))
        given: dict[str, Any] = {"interval": interval, "density": density, "draws": self.draws}

        def terms(model: Any, keys: RowKeys, edges: Batched, cond: Cond) -> BoundTerms:
            learned = getattr(model, "log_snr_density", None)
            chosen = given if learned is None else given | {"density": learned(low, high)}
            return continuous_bound(model, prior, bins, keys, edges, cond, **chosen)

        return terms


BOUNDS: dict[str, Callable[..., Ddpm | Vdm]] = {"ddpm": Ddpm, "vdm": Vdm}
"""The bounds by name, with arguments in brackets as in `ddpm(1000)`."""


@dataclass(frozen=True)
class IntegerBound:
    """The result of `integer_bound`.

    Attributes:
        name: the bound, such as "ddpm(1000)".
        terms: each (N,), in nats.
        d: the number of coordinates of an example.
        nfe: the evaluations of the network for each point.
    """

    name: str
    terms: BoundTerms
    d: int
    nfe: int

    @property
    def log_prob(self) -> np.ndarray:
        """(N,) estimates of a lower bound on log P(x), in nats."""
        return -np.asarray(self.terms.total)

    def described(self, prefix: str = "") -> dict[str, Any]:
        """The bound in bits per dimension, its standard error over the points, and its three terms, by name."""
        bits = lambda nats: np.asarray(nats, np.float64) / (self.d * np.log(2))
        total = bits(self.terms.total)
        found = {"bits_per_dim": float(total.mean()), "bits_per_dim_stderr": standard_error_of_mean(total)}
        found |= {f"{name}_bits_per_dim": float(bits(term).mean()) for name, term in self.terms._asdict().items()}
        return {"bound": self.name} | {f"{prefix}{name}": value for name, value in found.items()}


def check_bound(run: Run, bound: str) -> Ddpm | Vdm:
    """Makes a bound by its name, before anything is computed.

    Raises:
        ConfigError: if it is unknown, the data of the run are not integers, or the model has no such bound.
    """
    made, bins = make("bound", bound, BOUNDS), run.spec.bins
    if bins is None or not bins.complete:
        raise ConfigError(f"bound {bound!r} is for integers, and the data of this run hold real numbers: leave it out")
    if why := _missing(run, bins):
        raise ConfigError(f"bound {bound!r} {why}")
    assert isinstance(run.prior, Normal)  # `_missing`
    made.terms(run, bins, run.prior)
    return made


def default_bound(run: Run) -> str:
    """The bound that the method of a run minimises (`Method.bound`).

    It is "" if it minimises none, or the data are not integers at the centres of their bins.
    """
    bins = run.spec.bins
    fits = bins is not None and run.spec.dequantisation == "none" and not _missing(run, bins)
    return getattr(run.method, "bound", "") if fits else ""


def integer_bound(
    run: Run,
    x: np.ndarray,
    cond: Mapping[str, Any] | None = None,
    bound: str = "vdm",
    seed: int = 0,
    batch: int = 0,
    show: bool = False,
    keep: Path | None = None,
) -> IntegerBound:
    """A variational bound on the log-probabilities of integers. All processes call it, each of them for a share.

    Args:
        run: opened with `flowjax.load`; its model has the ability `ends` on a Gaussian path.
        x: (N, *event) integers in data space.
        cond: conditions by name, as for `flowjax.inference.log_prob`. Without labels the network is evaluated without
            labels.
        bound: in `BOUNDS`, such as "ddpm(1000)" or "vdm(20)".
        seed: of the noise; the estimate of row i depends only on the seed and on i.
        batch, show: as for `flowjax.inference.sample`.
        keep: a folder for finished batches, as for `flowjax.inference.log_prob`.

    Raises:
        ConfigError: if the bound is unknown, the points are not integers or not finite, the model has no such bound,
            labels are not given and the network was always trained with them, another condition does not fit its field,
            or `keep` holds the batches of another call.
    """
    check_points(run.spec, x)
    made = check_bound(run, bound)
    bins = run.spec.bins
    assert bins is not None  # `check_bound`
    if not run.spec.dequantises(x):
        raise ConfigError(f"bound {bound!r} is for integers, and the points hold real numbers: leave it out")
    given = encode_given(run, cond, len(x), "point", "likelihood", fill_labels=True)
    if run.spec.dequantisation == "uniform":
        say(
            f"likelihood: bound {bound} takes the centres of the bins, and this network was trained with uniform noise "
            "in them, which it cannot remove: the bound is loose; train with data.dequantisation=none"
        )
    (key,) = keys_of_seed(seed, 1)
    mine = rows_of(len(x))
    prior = run.prior
    assert isinstance(prior, Normal)  # `_missing`
    terms = made.terms(run, bins, prior)
    size = rows_of_a_block(batch or default_batch(run.spec.d))
    keep = unless_single(keep, len(x) <= size)
    arrays = {"points": {"x": x}, "conditions": given.encoded}
    request = {"num": len(x), "batch": size, "seed": seed, "bound": repr(made)}
    finished = open_request(run, DEFAULT_SOLVER, None, keep, arrays, **request)

    def score(shared: Any, i: Array, edges: Array, cond: dict[str, Array]) -> tuple[dict[str, Array], Stats]:
        arrays, key = shared
        keys = jax.vmap(partial(jax.random.fold_in, key))(i)
        found = terms(run.model(*arrays), keys, edges, cond)
        return found._asdict(), Stats(jnp.full(i.shape, made.evaluations), jnp.ones(i.shape, bool))

    block = partial(over_rows(score), everywhere((run.arrays, key)))
    points = (np.arange(len(x))[mine], run.spec.to_model(x[mine]), {name: a[mine] for name, a in given.rows.items()})
    values = in_batches(block, points, size, solver=bound, label="bound", show=show, finished=finished).values
    gathered = {name: processes.gathered(values[name]) for name in BoundTerms._fields}
    return IntegerBound(bound, BoundTerms(**gathered), run.spec.d, made.evaluations)


def _missing(run: Run, bins: Bins) -> str:
    """Returns why a model has no variational bound; empty if it has one."""
    if not isinstance(run.path, GaussianPath) or "ends" not in abilities_of(run.model()):
        return (
            "needs a model that removes the noise of a Gaussian path, such as flow_matching or variational with "
            "source.name 'normal' and an independent coupling"
        )
    if not isinstance(run.prior, Normal):
        return "needs a source that is normal"
    return "" if bins.complete else "needs data that are integers in all entries"
