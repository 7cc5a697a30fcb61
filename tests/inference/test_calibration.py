"""Calibration of the posteriors of a run on simulations, with exact and wrong posteriors in place of a network's."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest

from flowjax import metrics, plots
from flowjax.data.simulated import OBSERVATION
from flowjax.errors import ConfigError, RunFault
from flowjax.inference import calibration, figures, sampling
from flowjax.inference.data_of_run import dataset_of
from flowjax.inference.run import load
from tests.conftest import TINY

TASK = "gaussian_linear"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a few steps on a task whose posterior given x is N(x / 2, 0.05 I): prior and noise are N(0, 0.1 I)."""
    from flowjax.cli.main import main

    folder = tmp_path_factory.mktemp("simulated") / "run"
    data = ["--config.data.name=simulator", f"--config.data.simulator={TASK}", "--config.data.cond=obs"]
    assert main(["train", *TINY, *data, f"--workdir={folder}", "--no_plots"]) == 0
    return folder


@pytest.fixture(scope="module")
def opened(workdir):
    run = load(workdir)
    return run, dataset_of(run)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder with 300 samples of the exact posterior given ten observations."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(5)
    observation = math.sqrt(0.2) * rng.normal(size=(10, 10))
    reference = observation[:, None] / 2 + math.sqrt(0.05) * rng.normal(size=(10, 300, 10))
    (folder / "sbibm").mkdir()
    np.savez(
        folder / "sbibm" / f"{TASK}.npz", observation=observation, true_parameters=observation / 2, reference=reference
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWJAX_CACHE", str(folder))
        yield folder


def prior(monkeypatch) -> None:
    """Replaces the network's samples by samples of the prior, as of a network that ignores the observation."""

    def sample_each(run, num, cond, seed=0, **options):
        x = cond[OBSERVATION]
        samples = math.sqrt(0.1) * np.random.default_rng(seed + 1).normal(size=(len(x), num, x.shape[1]))
        return sampling.Samples(samples, {OBSERVATION: x}, 1)

    monkeypatch.setattr(sampling, "sample_each", sample_each)


def posterior(monkeypatch, scale: float = 1.0, shift: float = 0.0) -> None:
    """Replaces the network's samples by samples of the posterior, with another scale and shift in its deviations."""

    def sample_each(run, num, cond, seed=0, **options):
        rng, x = np.random.default_rng(seed + 1), cond[OBSERVATION]
        z = rng.normal(size=(len(x), num, x.shape[1]))
        return sampling.Samples(x[:, None] / 2 + math.sqrt(0.05) * (shift + scale * z), {OBSERVATION: x}, 1)

    monkeypatch.setattr(sampling, "sample_each", sample_each)


def test_the_right_posterior_is_calibrated(opened, monkeypatch):
    """A p-value below 1e-3 has this probability; the areas of 500 ranks are 0.31 / sqrt(500) = 0.014 on average."""
    posterior(monkeypatch)
    found = calibration.calibration_metrics(*opened)
    assert tuple(found) == calibration.OF_CALIBRATION
    assert found["rank_inside_bands"] >= 0.8
    assert min(found["rank_p_value"], found["tarp_p_value"]) > 1e-3
    assert max(found["rank_area_max"], found["tarp_area"]) < 0.05


@pytest.mark.parametrize("wrong", [{"scale": 0.5}, {"shift": 1.0}])
def test_wrong_posteriors_are_not(opened, monkeypatch, wrong):
    posterior(monkeypatch, **wrong)
    found = calibration.calibration_metrics(*opened)
    assert found["rank_inside_bands"] == found["tarp_inside_bands"] == 0
    assert max(found["rank_p_value"], found["tarp_p_value"]) < 1e-3
    assert min(found["rank_area_max"], found["tarp_area"]) > 0.05


def test_the_expected_coverage_shows_that_the_observation_is_ignored(opened, monkeypatch):
    prior(monkeypatch)
    found = calibration.calibration_metrics(*opened)
    assert found["rank_inside_bands"] >= 0.8
    assert found["tarp_p_value"] < 1e-3


@pytest.mark.slow
def test_posteriors_are_compared_with_those_of_the_benchmark(opened, monkeypatch):
    """The accuracy of ten classifiers on 200 rows each has the standard deviation 1 / sqrt(8 * 100 * 10) = 0.011 if
    the posteriors are right. If each of the ten parameters is shifted by a deviation, it is Phi(sqrt(10) / 2) = 0.94,
    less what training on 160 rows costs.
    """
    posterior(monkeypatch)
    found = calibration.reference_metrics(*opened, num=100)
    assert found["c2st_mean"] == pytest.approx(0.5, abs=5 * 0.011)
    assert found["c2st_min"] < found["c2st_mean"] < found["c2st_max"]
    posterior(monkeypatch, shift=1.0)
    assert 0.8 < calibration.reference_metrics(*opened, num=100)["c2st_mean"] < 0.94 + 5 * 0.011


def test_the_local_test_finds_a_wrong_posterior(opened, monkeypatch):
    monkeypatch.setattr(calibration, "_PAIRS", 300)
    monkeypatch.setattr(metrics, "local_c2st", partial(metrics.local_c2st, permutations=20, epochs=30))
    posterior(monkeypatch, shift=1.0)
    found = calibration.local_metrics(*opened)
    assert found["local_c2st_p_value"] == pytest.approx(1 / 21)
    assert 0 < found["local_c2st"] < 0.25


def test_posteriors_that_are_not_finite_and_too_few_test_rows_are_refused(opened, monkeypatch):
    run, dataset = opened
    posterior(monkeypatch, scale=math.nan)
    with pytest.raises(RunFault, match="10,000 of 10,000 numbers of the posterior samples are not finite"):
        calibration.calibrate(run, dataset, num=10)
    one = dataclasses.replace(
        dataset, test=dataset.test[:1], test_cond={OBSERVATION: dataset.test_cond[OBSERVATION][:1]}
    )
    with pytest.raises(ConfigError, match="needs at least 2 test rows, and the data have 1"):
        calibration.calibrate(run, one)


def test_observations_with_missing_values_have_columns_that_say_so():
    obs = np.array([[1.0, np.nan], [3.0, 4.0]])
    np.testing.assert_array_equal(calibration._without_missing(obs), [[1, 4, 0, 1], [3, 4, 0, 0]])
    np.testing.assert_array_equal(calibration._without_missing(obs[1:]), obs[1:])


@pytest.mark.slow
def test_commands_compute_and_keep_the_metrics(flowjax, workdir, tmp_path):
    """The network has hardly been trained, so its posteriors are wide: like the prior, which classifiers can tell."""
    fast = ["--solver=heun", "--steps=4"]
    code, found, err = flowjax("evaluate", f"--workdir={workdir}", *fast)
    assert code == 0, err
    assert {"nll", *calibration.OF_CALIBRATION} <= set(found)
    assert found["tarp_inside_bands"] == 0
    assert "w2" not in found
    code, found, err = flowjax("evaluate", f"--workdir={workdir}", "--metrics=c2st", "--num=100", *fast)
    assert (code, sorted(found)) == (0, ["c2st_max", "c2st_mean", "c2st_min"]), err
    assert found["c2st_mean"] > 0.55
    assert "100 samples for each of 10 observations" in err
    assert len(list((workdir / "metrics").iterdir())) == 2
    argv = ["plot", f"--workdir={workdir}", "--figures=corner,predictive", f"--out={tmp_path}"]
    assert flowjax(*argv)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"corner.png", "predictive.png"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--metrics=fid"], "metrics: unknown 'fid'"),
        (["--metrics=c2st", "--split=test"], "--split has no meaning for the metrics of a run on simulations"),
    ],
)
def test_metrics_of_images_are_refused(flowjax, workdir, argv, message):
    code, _, err = flowjax("evaluate", f"--workdir={workdir}", *argv)
    assert (code, message in err.splitlines()[-1]) == (2, True), err


def test_reference_posteriors_that_are_missing_or_incomplete_are_named(flowjax, workdir, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    code, _, err = flowjax("evaluate", f"--workdir={workdir}", "--metrics=c2st")
    assert (code, f"are not in {tmp_path}/sbibm/{TASK}.npz" in err.splitlines()[-1]) == (2, True)
    (tmp_path / "sbibm").mkdir()
    np.savez(tmp_path / "sbibm" / f"{TASK}.npz", observation=np.zeros((10, 10)))
    code, _, err = flowjax("evaluate", f"--workdir={workdir}", "--metrics=c2st")
    assert (code, "has no array 'true_parameters'" in err.splitlines()[-1]) == (2, True)


def test_figures_show_the_first_observation_of_the_benchmark_or_a_test_row(opened, cache, monkeypatch, tmp_path):
    run, dataset = opened
    posterior(monkeypatch)
    shown = []
    monkeypatch.setattr(plots, "corner", lambda samples, names, **options: shown.append((samples, options)))
    figures.draw(figures.FigureInputs(run, dataset), "corner")
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    figures.draw(figures.FigureInputs(run, dataset), "corner")
    (_, known), (_, test) = shown
    expected = np.load(cache / "sbibm" / f"{TASK}.npz")
    np.testing.assert_array_equal(known["truth"], expected["true_parameters"][0])
    np.testing.assert_array_equal(known["reference"], expected["reference"][0])
    np.testing.assert_array_equal(test["truth"], dataset.test[0])
    assert test["reference"] is None


def test_the_figure_of_calibration_has_the_curves_of_all_parameters(opened, monkeypatch):
    posterior(monkeypatch)
    ranks, coverage = figures.draw(figures.FigureInputs(*opened), "calibration").axes
    assert len(ranks.lines) == 10
    found = calibration.calibrate(*opened)
    np.testing.assert_array_equal(
        np.asarray(ranks.lines[3].get_ydata())[1:-1], found.ranks.ecdf[:, 3] - found.ranks.levels
    )
    np.testing.assert_array_equal(np.asarray(coverage.lines[-1].get_ydata())[1:-1], found.coverage.ecdf[:, 0])


def test_a_run_on_other_data_has_no_posteriors(tiny_run):
    run = load(tiny_run)
    assert "corner" not in figures.fitting(run)
    with pytest.raises(ConfigError, match="are no simulations: there is no posterior to test"):
        calibration.calibrate(run, dataset_of(run))
    with pytest.raises(ConfigError, match="c2st needs reference posteriors, which exist only for the tasks"):
        calibration.reference_metrics(run, dataset_of(run))


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [(0.5, 0.0, "too narrow"), (2.0, 0.0, "too wide"), (1.0, 1.0, "too high"), (1.0, -1.0, "too low")],
)
def test_what_is_wrong_is_said_in_words(scale, shift, words):
    """Of N(0, 1), whose samples have another scale or a shift of one standard deviation."""
    rng = np.random.default_rng(0)
    theta, samples = rng.normal(size=(500, 1)), shift + scale * rng.normal(size=(500, 100, 1))
    ranks = metrics.rank_curves(metrics.posterior_ranks(theta, samples), draws=100)
    assert calibration.what_is_wrong(ranks, 0) == words
