"""Log-densities under a run: standard errors, convergence, and points that are refused or reported."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from flowjax import likelihood, load
from flowjax.config import changed
from flowjax.data import Affine, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference import points, scoring
from flowjax.inference.choose import SolverSettings
from flowjax.inference.convergence import compared, finer
from flowjax.inference.scoring import LogDensities
from flowjax.likelihood import memory
from tests.bits.known import pixels

ROUGH, FINE = SolverSettings("euler", steps=2), SolverSettings("rk4", steps=20)
X = np.array([[1.0, 0.5], [-2.0, 3.0], [4.0, -0.5], [0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def run(tiny_run):
    return load(tiny_run)


def test_the_check_compares_the_first_points_with_twice_the_steps(run):
    """Two steps of Euler's method are not enough, and the difference is that of two calls."""
    found = scoring.log_prob(run, X, solver=ROUGH, batch=4, check=3, converged_within=1e-3)
    again = scoring.log_prob(run, X[:3], solver=dataclasses.replace(ROUGH, steps=4), batch=4)
    gap = np.abs(found.log_prob[:3] - again.log_prob)
    assert found.convergence is not None
    assert (found.convergence.num, found.convergence.finer.steps) == (3, 4)
    assert found.convergence.difference == pytest.approx(gap.mean(), rel=1e-5)
    assert found.convergence.largest == pytest.approx(gap.max(), rel=1e-5)
    assert not found.convergence.converged
    assert "with 4 instead of 2 steps" in found.convergence.describe(ROUGH)
    loose = scoring.log_prob(run, X, solver=ROUGH, batch=4, check=3, converged_within=1e3)
    assert loose.convergence is not None
    assert loose.convergence.converged
    assert again.convergence is None


def test_adaptive_solves_are_checked_with_the_same_program(run, monkeypatch):
    """The tolerances are arguments of the compiled program, and its probes and noise depend on the row only."""
    made, over_rows = [], scoring.over_rows
    monkeypatch.setattr(scoring, "over_rows", lambda f: made.append(f) or over_rows(f))
    solver = SolverSettings(rtol=1e-3, atol=1e-3)
    found = scoring.log_prob(run, X, divergence="hutchinson", probes=3, solver=solver, batch=4, check=2)
    assert len(made) == 1
    tight = scoring.log_prob(
        run, X[:2], divergence="hutchinson", probes=3, solver=dataclasses.replace(solver, rtol=1e-4, atol=1e-4), batch=4
    )
    assert found.convergence is not None
    assert found.convergence.difference == pytest.approx(np.abs(found.log_prob[:2] - tight.log_prob).mean(), abs=1e-5)


def test_the_smallest_tolerances_are_not_said_to_have_converged(run, capsys):
    """There is no finer solve to compare with in float32."""
    found = scoring.log_prob(run, X, solver=SolverSettings(rtol=2e-7, atol=2e-7), batch=4, check=4)
    assert found.convergence is None
    assert "not checked: rtol=2e-07" in capsys.readouterr().err


def test_standard_errors_of_points(run):
    score = lambda how: scoring.log_prob(run, X, divergence=how, solver=FINE, batch=4)
    exact, one, several = map(score, ("exact", "hutchinson", likelihood.Hutchinson(64, "gaussian")))
    np.testing.assert_array_equal(exact.standard_error, 0)
    assert one.standard_error is None
    assert several.standard_error is not None
    assert several.standard_error.shape == (4,)
    z = (several.log_prob - exact.log_prob) / several.standard_error
    assert 0 < np.abs(z).max() < 5


def test_the_standard_error_of_a_sum_over_classes():
    """By the delta method, with errors that the classes share: p = 0.25 e^a + 0.75 e^b moves by its terms' moves."""
    spec = DataSpec("two", (1,), num_classes=2, class_shares=(0.25, 0.75))
    values, errors = np.array([[0.0, -1.0], [-2.0, -np.inf]]), np.array([[0.01, 0.02], [0.03, 0.0]])
    of_class = lambda k: LogDensities(values[k], 7, errors[k])
    found = scoring.sum_over_classes(spec, of_class)
    total = lambda a, b: np.log(0.25 * np.exp(a) + 0.75 * np.exp(b))
    np.testing.assert_allclose(found.log_prob, total(*values))
    moved = total(*(values + 1e-4 * errors)) - total(*values)
    assert found.standard_error is not None
    np.testing.assert_allclose(found.standard_error, moved / 1e-4, rtol=1e-4)
    assert found.nfe == 14
    no_error = scoring.sum_over_classes(spec, lambda k: LogDensities(values[k], 7))
    assert no_error.standard_error is None


def test_finer_solvers():
    assert finer(SolverSettings(steps=5)).steps == 10
    tight = finer(SolverSettings(rtol=1e-5, atol=1e-6))
    assert (tight.rtol, tight.atol) == pytest.approx((1e-6, 2 * 2**-23))
    assert finer(SolverSettings(rtol=1e-7, atol=1e-3)).rtol == 1e-7  # never coarser


def test_points_outside_the_support_have_converged():
    both, one = np.array([-np.inf, 1.0]), np.array([-np.inf, 1.5])
    assert compared(both, one, 1.0, FINE).difference == 0.25
    found = compared(both, np.zeros(2), 1.0, FINE)
    assert (found.difference, found.converged) == (math.inf, False)
    assert not compared(np.array([np.nan]), np.array([np.nan]), 1.0, FINE).converged


def test_bad_points_are_refused_with_their_rows(run):
    x = np.zeros((20, 2), np.float32)
    x[[3, 7], 1] = np.nan, np.inf
    with pytest.raises(ConfigError, match="NaN or infinite values in rows 3, 7: remove or repair"):
        scoring.log_prob(run, x)


def test_integer_pixels_end_at_the_largest_level_and_dequantised_ones_at_its_upper_edge():
    spec = pixels((2,))  # the levels 0 to 3
    points.check_points(spec, np.array([[0, 3]]))
    points.check_points(spec, np.array([[0.0, 4.0]]))
    for beyond in (np.array([[0, 4]]), np.array([[0.0, 4.1]])):
        with pytest.raises(ConfigError, match="pixels of this run lie in 0 to 3, not 0 to 4"):
            points.check_points(spec, beyond)


def test_points_far_from_the_data_are_reported(capsys):
    spec = DataSpec("own", (2,), Affine(2.0, 1.0))
    points.warn_far(spec, np.array([[1.0, -9.9], [0.0, 0.0]], np.float32))
    assert capsys.readouterr().err == ""
    points.warn_far(spec, np.array([[1.0, -2.0], [0.0, -12.5]], np.float32))
    assert "row 1 of the points are up to 12.5 standard deviations from the mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": SolverSettings(rtol=1e-9, atol=1e-9)}, "below the rounding errors of float32: take 1e-6, or"),
        ({"divergence": "hutch++", "probes": 4}, "multiple of 3"),
        ({"divergence": "hutchinson", "probes": 3, "probe_kind": "orthogonal"}, "multiple of 4"),
    ],
)
def test_settings_that_cannot_work_are_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        scoring.log_prob(run, X, **options)


def test_a_divergence_that_does_not_fit_the_memory_is_refused(run, monkeypatch):
    monkeypatch.setattr(memory, "UNREPORTED", 1000)
    with pytest.raises(ConfigError, match="the divergence of 4 rows of 2 numbers needs about"):
        scoring.log_prob(run, X, solver=FINE, batch=4)


def test_without_a_density_of_the_source_both_ways_out_are_named(run):
    paired = dataclasses.replace(run, config=changed(run.config, {"data.pairs": "x0"}))
    with pytest.raises(ConfigError, match=r"train with a source that has one .* or compare samples with the data"):
        scoring.log_prob(paired, X)


def test_the_estimator_is_part_of_the_request(run, monkeypatch):
    """Calls that differ in the probes only are different requests."""
    seen = []
    monkeypatch.setattr(scoring, "open_request", lambda *_, **values: seen.append(values))
    for kind in ("rademacher", "gaussian"):
        scoring.log_prob(run, X, divergence="hutchinson", probes=2, probe_kind=kind, solver=ROUGH, batch=4)
    assert seen[0]["divergence"] == repr(likelihood.Hutchinson(2, "rademacher")) != seen[1]["divergence"]


def test_finished_batches_are_not_scored_again(run, tmp_path, monkeypatch):
    """After a fault in the second pass over the points, the same call scores only what is missing, bitwise the same."""
    points, options = np.tile(X, (3, 1)), {"solver": FINE, "batch": 4, "check": 5}
    whole = scoring.log_prob(run, points, **options)
    blocks, in_batches = [], scoring.in_batches

    def stops(block, arrays, *rest, **named):
        def once(*given):
            blocks.append(given)
            if len(blocks) == 5:  # three batches of the points, and the first of two of the check
                raise KeyboardInterrupt
            return block(*given)

        return in_batches(once, arrays, *rest, **named)

    monkeypatch.setattr(scoring, "in_batches", stops)
    with pytest.raises(KeyboardInterrupt):
        scoring.log_prob(run, points, **options, keep=tmp_path / "parts")
    kept = len(list((tmp_path / "parts").glob("*.npz")))
    again = scoring.log_prob(run, points, **options, keep=tmp_path / "parts")
    assert len(blocks) == 5 + (5 - kept)
    assert kept >= 3
    np.testing.assert_array_equal(again.log_prob, whole.log_prob)
    assert again.convergence == whole.convergence
    with pytest.raises(ConfigError, match="finished batches of another request: check is 5 there and 6 here"):
        scoring.log_prob(run, points, **(options | {"check": 6}), keep=tmp_path / "parts")


def test_python_is_told_what_the_command_line_is(run, capsys, as_users_call):
    """The line about convergence, the tolerances by name, and where to find what can be differentiated."""
    run.log_prob(X, solver="euler", steps=2, check=3, converged_within=1e-3, batch=4)
    assert "not converged: with 4 instead of 2 steps" in capsys.readouterr().err
    np.testing.assert_array_equal(
        run.log_prob(X, rtol=1e-3, atol=1e-3, batch=4),
        scoring.log_prob(run, X, solver=SolverSettings(rtol=1e-3, atol=1e-3), batch=4).log_prob,
    )
    with pytest.raises(TypeError, match=r"differentiate or compile flowjax.likelihood.log_prob"):
        jax.grad(lambda x: run.log_prob(x).sum())(X)
