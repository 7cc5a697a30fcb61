"""What results state beside bits per dimension, and the flags of integers that `evaluate` refuses before it starts."""

import dataclasses
import math

import numpy as np
import pytest

from flowjax import oracles
from flowjax.config import changed
from flowjax.data import Dataset, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference import evaluate
from flowjax.inference.dequantisations import dequantisation_of, described, say_if_loose
from flowjax.inference.divergences import say_if_no_bound
from flowjax.inference.standard_errors import standard_error_of_mean
from flowjax.likelihood import Exact, Hutchinson, HutchPlusPlus
from tests.bits.known import pixels, run_of


@pytest.fixture(scope="module")
def run():
    return run_of(pixels((2,)), "condot", lambda path: oracles.gaussian(path, 0.0, 0.5))


def test_bits_per_dimension_state_the_divergence(run):
    x, log_prob = np.ones((4, 2)), np.log([0.1, 0.2, 0.3, 0.4])
    exact = described(run, x, log_prob, Exact())
    assert (exact["divergence"], exact["dequantisation"], exact["importance_samples"]) == ("exact", "uniform", 1)
    assert "probes" not in exact
    assert exact["bits_per_dim_stderr"] == pytest.approx(np.std(np.log2([0.1, 0.2, 0.3, 0.4]), ddof=1) / 4)  # D sqrt(N)
    estimated = described(run, x, log_prob, Hutchinson(3), importance_samples=5)
    assert (estimated["divergence"], estimated["probes"], estimated["importance_samples"]) == ("hutchinson", 3, 5)
    assert described(run, x, log_prob, HutchPlusPlus())["divergence"] == "hutch++"
    assert described(run, x[:1], log_prob[:1], Exact())["bits_per_dim_stderr"] is None


def test_an_estimated_divergence_inside_a_logarithm_is_warned_about(run, capsys):
    """It is inside with several draws, or where the density is a sum over classes."""
    labelled = dataclasses.replace(run, spec=dataclasses.replace(run.spec, num_classes=3))
    labelled = dataclasses.replace(
        labelled, config=changed(run.config, {"data.cond": ("label",), "data.cond_dropout": 0.0})
    )
    for case, cond, estimator, k, text in (
        (run, {}, Exact(), 5, ""),
        (run, {}, Hutchinson(2), 1, ""),
        (run, {}, Hutchinson(2), 5, "over 5 draws: log_prob is not a lower bound"),
        (labelled, {}, Hutchinson(2), 1, "over 3 classes: log_prob is not a lower bound"),
        (labelled, {"label": np.zeros(1)}, Hutchinson(2), 1, ""),
    ):
        say_if_no_bound(case, cond, estimator, k)
        err = capsys.readouterr().err
        assert text in err
        assert bool(err) == bool(text)


def test_truncated_normal_noise_of_a_network_without_peaks_is_warned_about(run, capsys):
    uniform = dataclasses.replace(run, spec=pixels((2,), "uniform"))
    x = np.ones((1, 2))
    for case, name, warned in (
        (uniform, "truncated_normal", True),
        (run, "truncated_normal", False),
        (uniform, "uniform", False),
    ):
        say_if_loose(case, dequantisation_of(case, x, name))
        assert ("warning: dequantisation truncated_normal" in capsys.readouterr().err) == warned


def test_the_standard_error_of_a_mean():
    assert standard_error_of_mean(np.array([1.0, 3.0])) == 1  # s^2 = 2
    assert standard_error_of_mean(np.array([1.0])) is None
    assert standard_error_of_mean(np.array([1.0, math.inf])) is None


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("integers", {"bound": "elbo"}, "unknown 'elbo'"),
        ("integers", {"bound": "ddpm(9)"}, r"use ddpm\(9, end='bin'\)"),
        ("integers", {"dequantisation": "normal"}, "unknown dequantisation 'normal'"),
        ("integers", {"importance_samples": 0}, "importance_samples must be at least 1"),
        ("real", {"bound": "vdm"}, "the data of this run hold real numbers"),
        ("mask", {"bound": "vdm", "importance_samples": 2}, "importance_samples and bound cannot be used for this run"),
        ("mask", {"dequantisation": "uniform"}, "sets with absent elements have no density: leave them out"),
    ],
)
def test_evaluate_refuses_flags_of_integers_before_anything_is_computed(run, kind, options, message):
    """The data set is empty, so that anything that used it would fail."""
    specs = {"integers": run.spec, "real": DataSpec("x", (2,)), "mask": DataSpec("x", (3, 2), has_mask=True)}
    with pytest.raises(ConfigError, match=message) as error:
        evaluate(dataclasses.replace(run, spec=specs[kind]), object.__new__(Dataset), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--bound=vdm(2)", "--dequantisation=uniform", "--importance_samples=2"])
def test_metrics_of_images_refuse_flags_of_integers(flowjax, tmp_path, flag):
    code, _, err = flowjax("evaluate", f"--workdir={tmp_path}", "--metrics=fid", flag)
    assert code != 0
    assert f"{flag.split('=')[0]} is for log-likelihoods" in err.splitlines()[-1]
