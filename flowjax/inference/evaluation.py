"""Metrics of a run: `evaluate` computes those that suit its data set, `evaluate_images` those of Inception features.

Each returns one dictionary, which lacks the metrics that are undefined for the run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flowjax import checksums
from flowjax.conditions import named
from flowjax.data import DataError, Dataset
from flowjax.data.spec import shares_of
from flowjax.errors import ConfigError, WeightsError
from flowjax.inference import sampling, scoring
from flowjax.inference.calibration import OF_CALIBRATION, calibration_metrics, is_simulated
from flowjax.inference.choose import DEFAULT_SOLVER, Guide, SolverSettings, choose
from flowjax.inference.convergence import CHECKED, CONVERGED_WITHIN
from flowjax.inference.dequantisations import dequantisation_of, described
from flowjax.inference.divergences import say_if_no_bound
from flowjax.inference.forecast_metrics import OF_FORECASTS
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.integer_bounds import OF_BITS, check_bound, default_bound, integer_bound
from flowjax.inference.program import LabelRule
from flowjax.inference.restored import OF_RESTORED, restoration_metrics
from flowjax.inference.run import Run
from flowjax.inference.sample_metrics import DRAW_SEED, sample_metrics
from flowjax.inference.set_metrics import OF_SETS, set_metrics
from flowjax.inference.standard_errors import standard_error_of_mean
from flowjax.inference.table_metrics import OF_TABLES
from flowjax.likelihood import divergence_of
from flowjax.metrics.images import METRICS, USUAL, as_rgb, check_names, score_images
from flowjax.metrics.inception import Precision, load_inception
from flowjax.metrics.reference import reference_statistics
from flowjax.training import processes
from flowjax.training.writers import say

__all__ = ["OF_DATA", "evaluate", "evaluate_images"]

OF_DATA = (
    *("nll", "nll_stderr", "nll_difference", "nll_converged", *OF_BITS, "kl", "kl_stderr"),
    *("w2_squared", "w2", "w2_squared_true", "mmd"),
    *("npe", "path_energy", "w2_squared_source", "straightness", "transport_cost", "turning"),
    *("mode_share_min", "mode_share_max", *OF_TABLES),
    *OF_SETS,
    *OF_FORECASTS,
    *OF_CALIBRATION,
    *OF_RESTORED,
)
"""The metrics that `evaluate` computes where they are defined."""

_HELD_OUT = 20_000
_IMAGES_SCORED = 256

_EXACT_UP_TO = 64
"""The largest dimension for which log-likelihoods take the exact divergence."""


def evaluate(
    run: Run,
    dataset: Dataset,
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    labels: LabelRule = "shares",
    at_steps: Sequence[int] = (),
    check: int = CHECKED,
    converged_within: float = CONVERGED_WITHIN,
    dequantisation: str = "",
    importance_samples: int = 1,
    bound: str | None = None,
) -> dict[str, Any]:
    """Computes all metrics that are defined for a run and its data set.

    Args:
        run: opened with `flowjax.load`.
        dataset: the data set that the run was trained on.
        seed, solver, batch: as for `flowjax.inference.sample`. Log-likelihoods take adaptive steps, whatever the number
            of steps of the samples (`SolverSettings.of_densities`).
        labels: how the classes of a conditional network's samples are chosen, as for `flowjax.inference.sample`. The
            metrics compare the samples with the test set, so by default classes have their shares of the training data.
        at_steps: numbers of steps for which the distance of samples to the data is also computed, from the same source
            samples. If the solver is named and has no number of steps, the other metrics are those of the largest one.
        check, converged_within: as for `flowjax.inference.log_prob`.
        dequantisation, importance_samples: of log-likelihoods of integers, as for `flowjax.inference.log_prob`.
        bound: a variational bound on the log-probabilities of integers that is also computed, as for
            `flowjax.inference.integer_bounds.integer_bound`; None for the bound that the method minimises, if there is
            one, and "" for none.

    Returns:
        A dictionary with these keys, where they are defined:
        nll, nll_stderr: mean of -log p on held-out points in nats of the data space, and its standard error.
        nll_difference, nll_converged: the mean absolute change of log p with a tenth of the tolerances on the first
            `check` points, in nats, and whether it is within the limit (`flowjax.inference.convergence`).
        bits_per_dim, bits_per_dim_stderr: the same in bits per dimension, for data of integers, with the
        `dequantisation`, the `importance_samples`, the `divergence` and its `probes` for which it holds. Standard
        errors are left out if there is one point.
        kl, kl_stderr: mean of log p_true - log p on held-out points, where p_true is known, and its standard error.
        bound, bound_bits_per_dim, bound_bits_per_dim_stderr: the variational bound on the same points, its bits per
        dimension, and their standard error; bound_prior_bits_per_dim, bound_diffusion_bits_per_dim and
        bound_reconstruction_bits_per_dim are its terms.
        w2_squared, w2: W2^2 between samples and data, the mean over disjoint pairs of 1,000 points, and its root.
        w2_squared_true: the same between two sets of data, which is the smallest value that can be expected.
        w2_squared_N, nfe_N: for each N of `at_steps`, w2_squared of samples of N steps, and their evaluations.
        mmd: the squared maximum mean discrepancy, unbiased, on 2,000 points.
        path_energy, npe: the path energy, and the normalised path energy.
        w2_squared_source: W2^2 between source and data.
        straightness, transport_cost: the mean over time of |v(t, x_t) - (x_1 - x_0)|^2 along trajectories, divided by
        the transport cost, which is the mean of |x_1 - x_0|^2 in model space. The first is 0 for a flow that one step
        solves exactly.
        turning: the mean over trajectories of the sum of the angles by which the velocity turns, in radians.
        mode_share_min, mode_share_max: over the modes, the smallest and largest share of samples nearest to the mode.
        Data that are not images and whose density is not known also have those of `table_metrics`: distances of the
        marginals, errors of the correlations, the energy distance and the classifier two-sample test.
        Networks with conditions that are numbers also have the scores of `forecast_metrics`: the CRPS and the energy
        score of samples given the conditions of test points, and those of baselines.
        Simulations have only nll of all these, the negative mean log-density of the true parameters, and the metrics of
        `flowjax.inference.calibration.calibration_metrics`: samples of many posteriors together are distributed like
        the prior also if the network ignores the observations, so comparing them with the data would say nothing.
        Distances are in units of the data, or in standard deviations of the features if the data set has a scale for
        each of them (columns of a table, channels of series): otherwise the largest scale would decide.

        Runs on images that are made from other images (`data.cond` with an image, or `data.pairs`) have the metrics of
        `flowjax.metrics.restoration`, for 4 samples of each of 256 test images.
        Sets with a mask have only those of `flowjax.inference.set_metrics`: distances between the elements of full sets
        and those elements of test sets that exist.

    Raises:
        ConfigError: if `bound`, `dequantisation` or `importance_samples` do not fit the run; if the data have a mask
            and fewer than 4 test sets; if the solver cannot take one of the numbers of `at_steps`, or samples have no
            distance to the data (posteriors, sets with a mask, large images).
    """
    if at_steps and (is_simulated(run) or run.spec.has_mask or not _has_distance(run, dataset)):
        raise ConfigError(
            f"samples of {run.spec.name!r} have no distance to the data that at_steps could show; for images, name "
            "metrics such as fid"
        )
    solver = _checked(run, solver, at_steps)
    _check_integers(run, dequantisation, importance_samples, bound or "")
    bound = default_bound(run) if bound is None else bound
    if run.spec.has_mask:
        run = _with_shares(run, dataset) if labels == "shares" else run
        return set_metrics(run, dataset, seed, solver, batch, labels)
    restored = restoration_metrics(run, dataset, seed, solver, batch)
    if restored and run.spec.d > _EXACT_UP_TO and scoring.no_likelihood(run):
        # distances between sets of large images say little and take thousands of samples
        return _of_bound(run, dataset, bound, seed, batch) | restored
    score: dict[str, Any] = {
        "seed": seed,
        "batch": batch,
        "check": check,
        "converged_within": converged_within,
        "dequantisation": dequantisation,
        "importance_samples": importance_samples,
    }
    found = _of_densities_and_samples(run, dataset, seed, solver, batch, labels, at_steps, score)
    found = _of_bound(run, dataset, bound, seed, batch) | found | restored
    return {name: value for name, value in found.items() if value is not None}


def _check_integers(run: Run, dequantisation: str, importance_samples: int, bound: str) -> None:
    """Checks the arguments for integers before anything is computed; ConfigError if the run has no use for them."""
    noise = ["dequantisation"] * bool(dequantisation) + ["importance_samples"] * (importance_samples != 1)
    given = noise + ["bound"] * bool(bound)
    if given and (run.spec.has_mask or is_simulated(run)):
        why = "sets with absent elements have no density" if run.spec.has_mask else "parameters are real numbers"
        raise ConfigError(f"{' and '.join(given)} cannot be used for this run, because {why}: leave them out")
    if noise and (why := scoring.no_likelihood(run)):
        raise ConfigError(f"{' and '.join(noise)} cannot be used, because {why}: leave them out")
    if noise:
        dequantisation_of(run, np.zeros((1, *run.spec.shape)), dequantisation, importance_samples)
    if bound:
        check_bound(run, bound)


def _checked(run: Run, solver: SolverSettings, at_steps: Sequence[int]) -> SolverSettings:
    """Checks that the solver can take each number of steps, and gives a named one the largest if it has none."""
    for n in at_steps:
        choose(run, replace(solver, steps=n))
    return replace(solver, steps=max(at_steps)) if at_steps and solver.name and solver.steps is None else solver


def _has_distance(run: Run, dataset: Dataset) -> bool:
    """Whether W2 compares samples with the data: there are enough points, and they are not large images."""
    enough = dataset.draw is not None or len(dataset.test) >= 4
    return enough and (not run.spec.is_image or run.spec.d <= _EXACT_UP_TO)


def _of_densities_and_samples(
    run: Run,
    dataset: Dataset,
    seed: int,
    solver: SolverSettings,
    batch: int,
    labels: LabelRule,
    at_steps: Sequence[int],
    score: dict[str, Any],
) -> dict[str, Any]:
    """The metrics of `evaluate` without those of restored images; `score` are arguments of `scoring.log_prob`."""
    run = _with_shares(run, dataset) if labels == "shares" else run

    def compared() -> dict[str, Any]:
        """The metrics that compare samples with data: of posteriors if the data are simulations."""
        if is_simulated(run):
            return calibration_metrics(run, dataset, seed, solver, batch)
        return sample_metrics(run, dataset, seed, solver, batch, labels, at_steps)

    if why := scoring.no_likelihood(run):
        say(f"evaluate: {why}: no nll, no kl")
        return compared()
    points, cond = _held_out(run, dataset)
    exact = run.spec.d <= _EXACT_UP_TO
    divergence, adaptive = "exact" if exact else "hutchinson", solver.of_densities
    steps = "" if adaptive == solver else ", with adaptive steps"
    say(f"evaluate: log-likelihood of {len(points)} points ({divergence}){steps}")
    estimator = divergence_of(divergence)
    say_if_no_bound(run, cond, estimator, score["importance_samples"])
    found = scoring.log_prob(run, points, cond, estimator, solver=adaptive, show=True, **score)
    scored, checked = found.log_prob, found.convergence
    if not np.isfinite(scored).all():
        say(
            f"evaluate: {np.mean(~np.isfinite(scored)):.2%} of the points lie outside the flow's support: no nll, no kl"
        )
        return compared() if dataset.draw is not None else {}
    result: dict[str, Any] = {"nll": -float(scored.mean()), "nll_stderr": standard_error_of_mean(scored)}
    if checked is not None:
        result |= {"nll_difference": checked.difference, "nll_converged": checked.converged}
    if (bins := run.spec.bins) is not None and bins.complete:
        result |= described(run, points, scored, estimator, score["dequantisation"], score["importance_samples"])
    if dataset.log_prob is not None:
        gap = np.asarray(dataset.log_prob(jnp.asarray(points))) - scored
        result |= {"kl": float(gap.mean()), "kl_stderr": standard_error_of_mean(gap)}
    if _has_distance(run, dataset):
        result |= compared()
    return result


def _of_bound(run: Run, dataset: Dataset, bound: str, seed: int, batch: int) -> dict[str, Any]:
    """The variational bound on held-out points; empty without one."""
    if not bound:
        return {}
    points, cond = _held_out(run, dataset)
    say(f"evaluate: the bound {bound} of {len(points)} points")
    return integer_bound(run, points, cond, bound, seed, batch, show=True).described("bound_")


def _with_shares(run: Run, dataset: Dataset) -> Run:
    """The run with the classes' shares of the test set, where the shares of its training data are not known."""
    spec = run.spec
    if named(run.fields, "label") is None or spec.class_shares or dataset.test_labels is None:
        return run
    say("evaluate: the classes of the samples have their shares of the test set; those of the training set are unknown")
    return run.with_class_shares(shares_of(np.bincount(dataset.test_labels, minlength=spec.num_classes)))


def _held_out(run: Run, dataset: Dataset) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Points to score and their conditions: 20,000 new draws of a known distribution, or test rows (256 of images)."""
    if dataset.draw is not None:
        return np.asarray(dataset.draw(jax.random.key(DRAW_SEED), _HELD_OUT)), {}
    rows = slice(0, len(dataset.test) if run.spec.d <= _EXACT_UP_TO else _IMAGES_SCORED)
    names = [field.name for field in run.fields if field.name in dataset.test_cond]
    return dataset.test[rows], {name: dataset.test_cond[name][rows] for name in names}


def evaluate_images(
    run: Run,
    dataset: Dataset,
    names: Sequence[str] = METRICS,
    *,
    num: int = 50_000,
    split: Literal["train", "test"] = "train",
    samples: np.ndarray | None = None,
    precision: Precision = "highest",
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    guide: Guide | None = None,
    labels: LabelRule = "shares",
    at_steps: Sequence[int] = (),
) -> dict[str, Any]:
    """Image metrics of a run's samples against a split of its data set; see `flowjax.metrics.images.score_images`.

    All processes call it; each of them draws a share of the samples and computes their features.

    Args:
        run: opened with `flowjax.load`; its data are 8-bit images.
        dataset: the data set that the run was trained on.
        names: in `flowjax.metrics.images.METRICS`.
        num: number of samples to draw.
        split: the reference; its statistics are kept in the cache.
        samples: (N, H, W, C) uint8 samples to score; None draws new ones.
        precision: of the Inception network's convolutions.
        seed, solver, batch, guide: as for `flowjax.inference.sample`.
        labels: how the classes of a conditional network's samples are chosen, as for `flowjax.inference.sample`.
            Published values are computed with equally many samples of each class, as with `balanced`.
        at_steps: numbers of steps for which the same is computed, from the same source samples, without `samples`. If
            the solver is named and has no number of steps, the other metrics are those of the largest one.

    Returns:
        The metrics by name, and `num`. Where samples were drawn also `nfe`, evaluations of the model per sample, and
        with guidance `network_evaluations`, which are twice as many. For each number N of `at_steps`, the same with
        names that end in _N, such as `fid_N` and `nfe_N`.

    Raises:
        ConfigError: for an unknown name or split.
        DataError: if the data are not images or not resident, or the Inception weights are missing.
    """
    try:
        names = check_names(names)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    rows = _reference_images(run, dataset, split, names[0])
    solver = _checked(run, solver, at_steps)
    if samples is not None:
        _check_samples(samples, run.spec.shape)
        if at_steps:
            raise ConfigError("at_steps draws samples, and `samples` are drawn already: leave one of them out")
    elif num < 4:
        raise ConfigError(f"image metrics need at least 4 samples, not {num}")
    total = num if samples is None else len(samples)
    if total < USUAL and not {"fid", "sfid"}.isdisjoint(names):  # before minutes of work
        say(f"evaluate: FID of {total:,} samples, fewer than {USUAL:,}, is too large; the bias is estimated at the end")
    try:
        options: Any = {"network": load_inception(), "precision": precision}
    except WeightsError as error:
        raise DataError(str(error)) from None
    name = run.spec.name
    of = f"{name}_{Path(run.config.data.path).stem}" if name in ("npz", "npy", "zarr", "folder") else name
    reference = processes.primary_first(
        lambda: reference_statistics(as_rgb(rows, lambda line: None), f"{of}_{split}", say=say, **options)
    )
    if samples is not None:
        if processes.process_count() > 1:
            processes.check_same("file of samples", {"its checksum": checksums.of_arrays([samples])})
        own = samples[processes.share(len(samples))]
        say(f"evaluate: {', '.join(names)} against the {split} split of {run.spec.name}")
        scores = score_images(own, reference, names, seed=seed, say=say, gather=processes.gathered, **options)
        return {"num": len(samples)} | scores
    run = _with_shares(run, dataset) if labels == "shares" else run
    cond = conditions_of_test(run, dataset, num)

    def scored(solver: SolverSettings) -> dict[str, Any]:
        say(f"evaluate: {num} samples{'' if solver.steps is None else f' of {solver.steps} steps'}")
        more: Any = {"guide": guide, "labels": labels, "gather": False, "cond": cond}
        drawn = sampling.sample(run, num, seed, solver, batch=batch, show=True, **more)
        cost = {"nfe": drawn.nfe} | ({} if guide is None else {"network_evaluations": 2 * drawn.nfe})
        say(f"evaluate: {', '.join(names)} against the {split} split of {run.spec.name}")
        return cost | score_images(
            drawn.samples, reference, names, seed=seed, say=say, gather=processes.gathered, **options
        )

    result = scored(solver)
    for n in at_steps:
        found = result if n == solver.steps else scored(replace(solver, steps=n))
        result = result | {f"{name}_{n}": value for name, value in found.items() if name in (*_COSTS, *names)}
    return {"num": num} | result


_COSTS = ("nfe", "network_evaluations")


def _reference_images(run: Run, dataset: Dataset, split: str, metric: str) -> np.ndarray:
    """The images of a split, (N, H, W, C) uint8."""
    spec = run.spec
    if not spec.is_image or spec.levels != 256 or spec.shape[-1] not in (1, 3):
        kind = f"images of {spec.levels} levels" if spec.is_image and spec.levels else "no 8-bit images"
        raise DataError(
            f"{metric} needs 8-bit images with 1 or 3 channels, and {spec.name} holds {kind} of shape {spec.shape}"
        )
    if split == "test":
        return dataset.test.astype(np.uint8)
    if split != "train":
        raise ConfigError(f"split must be train or test, not {split!r}")
    if dataset.rows is not None:
        raise DataError(
            f"{spec.name} is streamed, and reference statistics need a resident data set: set FLOWJAX_RESIDENT_BYTES "
            "to at least its number of bytes"
        )
    return np.asarray(dataset.arrays().x1)


def _check_samples(samples: np.ndarray, shape: tuple[int, ...]) -> None:
    if samples.dtype != np.uint8 or samples.shape[1:] != tuple(shape) or len(samples) < 4:
        wanted = f"(N, {', '.join(map(str, shape))}) uint8 with N >= 4"
        raise DataError(f"samples must be {wanted}, not {samples.shape} {samples.dtype}")
