"""Samples given several independent observations of the same parameters, from a network of single observations."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowjax.errors import ConfigError
from flowjax.guidance.composed import Composed, precisions_of
from flowjax.inference.batches import default_batch, everywhere, in_batches, over_rows, rows_of_a_block
from flowjax.inference.choose import DEFAULT_SOLVER, SolverSettings, choose
from flowjax.inference.given_conditions import encode_given
from flowjax.inference.program import keys_of_seed, other_seed, solve, source_noise
from flowjax.inference.run import Run
from flowjax.inference.sampling import Samples, sample_each
from flowjax.solvers import Stats
from flowjax.training.writers import say

__all__ = ["sample_composed"]

_OF_EACH = 1000
"""Number of samples given each single observation, from which covariances are estimated."""

_MOST = 128
"""The largest number of coordinates: the covariances are full matrices."""


def sample_composed(
    run: Run,
    num: int,
    cond: Mapping[str, Any],
    seed: int = 0,
    solver: SolverSettings = DEFAULT_SOLVER,
    batch: int = 0,
    show: bool = False,
) -> Samples:
    """Draws samples given all of several independent observations together (`flowjax.guidance.composed`).

    The distribution without observations is what the network has learned for a condition that is not given, if the
    dropout of its conditions is above 0. Otherwise it is taken as standard normal in model space. For independent
    uniform, normal and log-normal priors (`flowjax.data.bounds`) this is exact, up to the mean and the scale that were
    estimated from the training data; for other priors it is not.

    Args:
        run: opened with `flowjax.load`, trained on single observations.
        num: number of samples.
        cond: conditions by name, in data space, (n, *shape): n independent observations of the same parameters.
        seed, solver, batch, show: as for `flowjax.inference.sample`.

    Returns:
        Samples (num, *event), without conditions. All processes draw all of them.

    Raises:
        ConfigError: if the path has no normal source, the data have more than 128 coordinates or are integers, or as
            for `sample`.
    """
    if run.path is None or not run.path.has_score or run.path.noise is not None:
        raise ConfigError("observations are composed along a path with a normal source and no further noise")
    if solver.schedule is not None or solver.learns_grid:
        raise ConfigError("observations are composed on the trained schedule, with a grid that is not learned")
    if run.spec.d > _MOST or run.spec.levels or run.spec.integers:
        raise ConfigError(f"observations are composed for real data of at most {_MOST} coordinates")
    if any(field.kind == "label" for field in run.fields):
        raise ConfigError(
            "observations are composed for networks whose conditions are numbers, and this one has labels"
        )
    n = max((len(a) for a in cond.values()), default=0)
    if not cond or any(len(a) != n for a in cond.values()):
        raise ConfigError("observations are composed if each condition has one row for each observation")
    encoded = {name: jnp.asarray(a) for name, a in encode_given(run, cond, n, "observation").encoded.items()}
    learned = all(field.dropout for field in run.fields)
    if not learned:
        say("sample: the prior is taken as normal in model space, because the network has not learned it (dropout 0)")
    say(f"sample: {_OF_EACH} samples given each of {n} observations, for their covariances")
    options: dict[str, Any] = {"solver": solver, "batch": batch}
    vectors = lambda x: jnp.asarray(run.spec.to_model(x)).reshape(len(x), run.spec.d)
    each = vectors(sample_each(run, _OF_EACH, cond, other_seed(seed), **options).for_each_sample().samples)
    if learned:
        without = {field.name: np.full((1, *field.shape), field.null) for field in run.fields}
        free = vectors(sample_each(run, _OF_EACH, without, other_seed(seed + 1), **options).samples[0])
        mean, covariance = free.mean(0), jnp.cov(free.T).reshape(run.spec.d, run.spec.d)
    else:
        mean, covariance = jnp.zeros(run.spec.d), jnp.eye(run.spec.d)
    precisions, prior = precisions_of(each.reshape(n, _OF_EACH, run.spec.d), covariance)
    choice = choose(run, solver, None, show)
    noise, steps = keys_of_seed(seed, 2)
    null = tuple((field.name, float(field.null)) for field in run.fields) if learned else None

    def draw(shared: Any, rows: Array) -> tuple[dict[str, Array], Stats]:
        arrays, observations, precisions, mean, prior, noise, steps = shared
        model = Composed(run.model(*arrays), observations, precisions, mean, prior, null)
        x0 = choice.source_scale * source_noise(run, noise, rows)
        x, stats = solve(choice, model, x0, steps, rows)
        return {"samples": x}, stats

    shared = everywhere((run.arrays, encoded, precisions, mean, prior, noise, steps))
    size = rows_of_a_block(batch or default_batch(run.spec.d))
    values, rate = in_batches(
        partial(over_rows(draw), shared),
        (np.arange(num, dtype=np.int32),),
        size,
        solver=choice.solver.name,
        label="sample",
        show=show,
    )
    return Samples(run.spec.finish(values["samples"]), {}, int(values["nfe"].max()), rate)
