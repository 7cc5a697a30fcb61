"""Scores of forecasts against closed forms for Gaussian series, the conditions of members, and the figure."""

import math

import numpy as np
import pytest

from flowjax import runs
from flowjax.config import changed, defaults
from flowjax.data import open_dataset
from flowjax.inference import evaluation, figures, forecast_metrics
from flowjax.inference.choose import SolverSettings
from flowjax.inference.forecast_metrics import climatology, draw_ensembles, has_forecasts, past_field, persistence
from flowjax.inference.sampling import Samples

PAST, FUTURE, CHANNELS = 3, 2, 3
SCALE, SHIFT = np.array([1.0, 50.0, 1e-3]), np.array([0.0, -300.0, 2e-3])
FAST = SolverSettings("euler", steps=1)


@pytest.fixture(scope="module")
def noise_run(tmp_path_factory):
    """A run of two steps on a series of independent normal numbers, and its data set."""
    folder = tmp_path_factory.mktemp("series")
    np.save(folder / "a.npy", np.random.default_rng(0).normal(size=(20_000, CHANNELS)) * SCALE + SHIFT)
    changes = {"data.name": f"series({PAST}, {FUTURE})", "data.path": str(folder / "a.npy"), "data.cond": ("past",)}
    changes |= {"model.width": 8, "model.depth": 1, "train.steps": 2, "train.batch_size": 8}
    run = runs.train(changed(defaults("resmlp"), changes), folder / "run", plots=False)
    return run, open_dataset(changes["data.name"], changes["data.path"], cond=("past",))


def test_scores_of_independent_normal_numbers_are_the_closed_forms(noise_run, monkeypatch):
    """The samples are replaced by exact ones. With D = 6 numbers of variance 1, X - X' and X - y are N(0, 2), so that
    CRPS = E|N(0, 2)| / 2 = 1 / sqrt(pi), and the energy score is E|N(0, 2 I)| / 2 = Gamma((D + 1) / 2) / Gamma(D / 2).
    Persistence is N(last, 2), so X - y is N(0, 4) and CRPS = sqrt(2 / pi) (2 - 2 / 2). A CRPS has a standard deviation
    of 0.4 over the 1,200 numbers, which is 0.012 for their mean, and 0.8 over the 600 last numbers with persistence. An
    energy score has one of 0.7 over 200 points: 0.05."""
    run, dataset = noise_run
    exact = lambda run, num, *args, **options: Samples(
        samples=np.random.default_rng(1).normal(size=(num, FUTURE, CHANNELS)) * SCALE + SHIFT, cond={}, nfe=0
    )
    monkeypatch.setattr(forecast_metrics.sampling, "sample", exact)
    found = forecast_metrics.forecast_metrics(run, dataset, 0, FAST, 0)
    assert tuple(found) == forecast_metrics.OF_FORECASTS
    d = FUTURE * CHANNELS
    score = math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    for end in ("", "_climatology"):
        assert found[f"crps{end}"] == pytest.approx(1 / math.sqrt(math.pi), abs=0.05)
        assert found[f"energy_score{end}"] == pytest.approx(score, abs=0.2)
    assert found["crps_persistence"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.13)
    assert found["energy_score_persistence"] > score + 0.4


def test_members_have_the_conditions_of_their_points(noise_run, monkeypatch):
    run, dataset = noise_run
    repeat = lambda run, num, *args, cond, **options: Samples(cond["past"][:, -FUTURE:], {}, 0)
    monkeypatch.setattr(forecast_metrics.sampling, "sample", repeat)
    drawn = draw_ensembles(run, dataset, 4, members=3)
    assert drawn.members.shape == (3, 4, FUTURE, CHANNELS)
    for member in drawn.members:
        np.testing.assert_array_equal(member, dataset.test_cond["past"][:4, -FUTURE:])
    np.testing.assert_array_equal(drawn.observed, dataset.test[:4])


def test_baselines_of_a_walk_by_hand():
    """Of a walk with steps of 1, persistence continues the last known row exactly."""
    windows = np.arange(6.0)[:, None, None] + np.arange(5.0)[None, :, None]
    past, future = windows[:, :3], windows[:, 3:]
    last = np.array([10.0, 20.0]).reshape(2, 1, 1)
    np.testing.assert_array_equal(
        persistence(future, past, last), np.tile(last + np.array([[1.0], [2.0]]), (3, 1, 1, 1))
    )
    assert climatology(future, 2).shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(np.sort(climatology(future, 2).ravel()), np.sort(future.ravel()))


@pytest.mark.slow
def test_evaluate_returns_the_scores_and_the_figure_shows_the_channels(noise_run, monkeypatch):
    run, dataset = noise_run
    assert has_forecasts(run, dataset)
    assert past_field(run) is not None
    monkeypatch.setattr(forecast_metrics, "MEMBERS", 4)
    found = evaluation.evaluate(run, dataset, solver=FAST)
    assert set(forecast_metrics.OF_FORECASTS) <= set(found) <= set(evaluation.OF_DATA)
    assert all(math.isfinite(value) for value in found.values())
    figure = figures.draw(figures.FigureInputs(run, dataset), "forecast")
    assert len(figure.axes) == 3 * CHANNELS


def test_runs_without_numbers_as_conditions_have_no_forecasts(tiny_run):
    from flowjax.inference.run import load

    run = load(tiny_run)
    assert not has_forecasts(run, open_dataset("gaussians8"))
    assert past_field(run) is None
    assert "forecast" not in figures.fitting(run)
