"""The divergence with which log-densities were computed: its name in results, and a warning about its noise."""

from collections.abc import Mapping
from typing import Any

from flowjax.abilities import abilities_of
from flowjax.conditions import named
from flowjax.inference.run import Run
from flowjax.likelihood import DivergenceEstimator, Exact, Hutchinson, HutchPlusPlus
from flowjax.training.writers import say

__all__ = ["described_divergence", "say_if_no_bound"]

_NAMES = {Exact: "exact", Hutchinson: "hutchinson", HutchPlusPlus: "hutch++"}


def described_divergence(run: Run, estimator: DivergenceEstimator) -> dict[str, Any]:
    """`divergence`, the name of the estimator, and `probes`, if it is not exact; nothing for a bijection."""
    if "velocity" not in abilities_of(run.model()):
        return {}
    found: dict[str, Any] = {"divergence": _NAMES.get(type(estimator), type(estimator).__name__)}
    return found if estimator.is_exact else found | {"probes": getattr(estimator, "probes", estimator.estimates)}


def say_if_no_bound(
    run: Run, cond: Mapping[str, Any], estimator: DivergenceEstimator, importance_samples: int = 1
) -> None:
    """Prints a line on stderr if an estimated divergence is inside the logarithm of a sum of densities.

    The logarithm of a sum of exponentials is convex, so that independent noise of mean zero in the exponents raises its
    expectation (Jensen's inequality). The result is then no lower bound on the log-probability.

    Args:
        run: the run.
        cond: the conditions of the points by name.
        estimator: of the divergence.
        importance_samples: the number of draws of each point.
    """
    label = named(run.fields, "label")
    is_summed = label is not None and "label" not in cond and not label.dropout and len(run.spec.classes) > 1
    if estimator.is_exact or not described_divergence(run, estimator) or not (is_summed or importance_samples > 1):
        return
    sums = [f"{importance_samples} draws"] * (importance_samples > 1) + [f"{len(run.spec.classes)} classes"] * is_summed
    say(
        f"likelihood: warning: the divergence is estimated, and its noise raises the logarithm of a sum over "
        f"{' and '.join(sums)}: log_prob is not a lower bound; the exact divergence (flowjax likelihood --divergence "
        "exact) gives one"
    )
