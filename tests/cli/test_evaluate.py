"""`flowjax evaluate` and `flowjax likelihood` on users' data: shares of classes, missing labels, changed files."""

import re

import numpy as np
import pytest

from tests.metrics import test_images

TINY = [
    "--config=gaussians8",
    "--config.data.name=npz",
    "--config.data.cond=label",
    "--config.model.width=32",
    "--config.model.depth=2",
    "--config.train.steps=400",
    "--config.train.batch_size=256",
    "--config.train.lr=1e-2",
    "--config.train.warmup=0",
    "--config.ema.half_life=5000",
    "--config.train.log_every=400",
    "--config.train.save_every=400",
    "--config.data.cond_dropout=0",
]
cheap, image_run = test_images.cheap, test_images.image_run
"""Fixtures: a stand-in for the Inception network, and a run on images."""

FAST = ["--solver=heun", "--steps=10"]


def _write(path, shape=(2,), far=8.0, last=1):
    """2,000 rows, sorted by class: 90% of class 1 around 0, 10% of class 2 (`last` + 1) around `far`."""
    random = np.random.default_rng(0)
    y = np.repeat([1, last + 1], [1800, 200])
    x = random.normal(size=(2000, *shape)) + far * (y == last + 1).reshape(-1, *([1] * len(shape)))
    np.savez(path, x=x.astype(np.float32), y=y)


@pytest.fixture(scope="module")
def uneven_run(tmp_path_factory):
    """A conditional run on a 90/10 set that is sorted by class and whose labels start at 1."""
    from flowjax.cli.main import main

    folder = tmp_path_factory.mktemp("uneven")
    _write(folder / "x.npz")
    assert main(["train", *TINY, f"--config.data.path={folder / 'x.npz'}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_samples_are_compared_at_the_shares_of_the_data(flowjax, uneven_run):
    """The means of the classes are 8 sqrt(2) apart. At the shares 90/10, W2^2 of 100 points to 100 others is about the
    floor of two true samples; at 50/50, 40% of the mass is moved over 128: about 51.
    """
    code, shares, _ = flowjax("evaluate", f"--workdir={uneven_run}", *FAST)
    assert code == 0
    code, random, _ = flowjax("evaluate", f"--workdir={uneven_run}", "--labels=random", *FAST)
    assert code == 0
    assert shares["w2_squared"] < 10
    assert random["w2_squared"] > 30


def test_likelihoods_take_adaptive_steps_whatever_the_samples_take(flowjax, uneven_run, tmp_path):
    code, few, err = flowjax("evaluate", f"--workdir={uneven_run}", "--solver=euler", "--steps=1")
    assert (code, "(exact), with adaptive steps" in err) == (0, True), err
    code, line, _ = flowjax("likelihood", f"--workdir={uneven_run}", f"--out={tmp_path / 'l.npz'}")
    assert few["nll"] == pytest.approx(-line["mean"], rel=1e-6)


def test_samples_of_several_numbers_of_steps_are_compared(flowjax, uneven_run):
    code, found, err = flowjax("evaluate", f"--workdir={uneven_run}", "--solver=euler", "--at_steps=8,1,100")
    assert code == 0, err
    assert [found[f"nfe_{n}"] for n in (1, 8, 100)] == [1, 8, 100]
    assert found["w2_squared_100"] == pytest.approx(found["w2_squared"], rel=1e-6)
    assert (uneven_run / "plots" / "steps.png").exists()
    assert found["nfe_1"] == 1
    code, _, err = flowjax("evaluate", f"--workdir={uneven_run}", "--solver=ddpm", "--at_steps=4,1")
    assert (code, "steps must be at least 2 for a sampler with noise" in err, "nll" in err) == (2, True, False), err
    code, _, err = flowjax("evaluate", f"--workdir={uneven_run}", "--at_steps=1,two")
    assert (code, "--at_steps must be whole numbers above 0, such as 1,2,4,8, not 1,two" in err) == (2, True), err


def test_columns_of_a_table_count_alike(flowjax, tmp_path):
    """Columns of scales 3e-5, 1 and 1e4, of which the first two are correlated. The test set has 100 + 100 rows.

    In standard deviations W2^2 between two such sets is below that of independent rows, 2 * 3; in the unit of the data
    it would be about 1e7. A classifier distinguishes the samples of a barely trained network from the data, the
    marginals of the samples are wrong, and correlations of 100 rows are within 6 / sqrt(100) of each other.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 3)) @ np.array([[1, 0.8, 0], [0, 0.6, 0], [0, 0, 1]]) * [3e-5, 1, 1e4]
    np.savez(tmp_path / "x.npz", x=x)
    tiny = [flag for flag in TINY if "data.cond" not in flag]
    data = [f"--config.data.path={tmp_path / 'x.npz'}", "--config.train.steps=20", "--no_plots"]
    cadence = ["--config.train.log_every=20", "--config.train.save_every=20"]
    code, _, err = flowjax("train", *tiny, *data, *cadence, f"--workdir={tmp_path / 'run'}")
    assert code == 0, err
    code, found, err = flowjax("evaluate", f"--workdir={tmp_path / 'run'}", *FAST)
    assert (code, "distances in standard deviations of the features" in err) == (0, True)
    assert 0 < found["w2_squared_true"] < 6
    assert 0 < found["w2_squared_source"] < 60
    assert 0 < found["marginal_w1_true"] < found["marginal_w1"] <= found["marginal_w1_max"]
    assert 0 < found["correlation_error_true"] <= found["correlation_error_max_true"] < 0.6
    assert abs(found["energy_distance_true"]) < found["energy_distance"]
    assert 0.5 < found["c2st"] <= 1
    assert "autocorrelation_error" not in found


def test_labels_in_a_file_of_samples_are_those_of_the_data(flowjax, uneven_run, tmp_path):
    out = tmp_path / "s.npz"
    assert flowjax("sample", f"--workdir={uneven_run}", "--num=300", *FAST, f"--out={out}")[0] == 0
    assert set(np.load(out)["labels"]) == {1, 2}
    code, _, err = flowjax("sample", f"--workdir={uneven_run}", "--label=0", f"--out={out}")
    assert (code, "the classes are 1, 2" in err) == (2, True)


def test_points_without_labels_are_scored_by_the_sum_over_classes(flowjax, uneven_run, tmp_path):
    """The negative log-likelihood of N(0, I) and N(8, I) with shares 0.9 and 0.1 is their entropy, 2.84 + 0.33 nats; a
    network of 400 steps is within 1 of it, and one that is evaluated with a label it never saw is 20 away.
    """
    known = np.load(uneven_run.parent / "x.npz")
    np.savez(tmp_path / "x.npz", x=known["x"][::20])
    argv = [
        "likelihood",
        f"--workdir={uneven_run}",
        f"--data={tmp_path / 'x.npz'}",
        f"--out={tmp_path / 'l.npz'}",
        *FAST,
    ]
    code, line, err = flowjax(*argv)
    assert (code, "the sum over 2 classes" in err) == (0, True)
    assert -line["mean"] == pytest.approx(2.84 + 0.33, abs=1)


@pytest.mark.parametrize(
    ("change", "message"), [({"last": 2}, "class_names is ['1', '3'] and was ['1', '2']"), ({"shape": (3,)}, "shape")]
)
def test_data_that_have_changed_since_training_are_refused(flowjax, uneven_run, tmp_path, change, message):
    path = uneven_run.parent / "x.npz"
    kept = path.read_bytes()
    try:
        _write(path, **change)
        for command in (["evaluate"], ["likelihood", f"--out={tmp_path / 'l.npz'}"]):
            code, line, err = flowjax(*command, f"--workdir={uneven_run}", *FAST)
            assert (code, line) == (2, None)
            assert message in err.splitlines()[-1]
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("y", [[3], [0], [1.5], [-1]])
def test_labels_that_the_run_does_not_know_are_refused(flowjax, uneven_run, tmp_path, y):
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 2), np.float32), y=np.array(y))
    argv = ["likelihood", f"--workdir={uneven_run}", f"--data={tmp_path / 'x.npz'}", f"--out={tmp_path / 'l.npz'}"]
    code, line, err = flowjax(*argv)
    assert (code, line) == (2, None)
    assert re.search("the classes (are|that the run was trained on:) 1, 2", err.splitlines()[-1])


def test_a_metric_from_outside(flowjax, image_run, cheap, tmp_path, monkeypatch):
    """The module is in the current folder. Commas inside of brackets belong to the arguments of the metric."""
    (tmp_path / "gap_metrics.py").write_text(
        "def gap(samples, reference, power: int = 1, factor: float = 1.0):\n"
        "    return factor * (samples.mean() - reference.mean()) ** power\n"
    )
    monkeypatch.setenv("FLOWJAX_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.savez("drawn.npz", samples=test_images.draw(24, low=60, seed=1))
    metrics = "--metrics=kid,gap_metrics:gap,gap_metrics:gap(2, factor=3.0)"
    code, result, err = flowjax("evaluate", f"--workdir={image_run}", metrics, "--samples=drawn.npz")
    assert code == 0, err
    gap = result["gap_metrics:gap"]
    assert "kid" in result
    assert result["gap_metrics:gap(2, factor=3.0)"] == pytest.approx(3 * gap**2)
    assert not (image_run / "metrics").exists(), "the samples of a file may be those of another run"
    code, _, err = flowjax("evaluate", f"--workdir={image_run}", "--metrics=gap_metrics:gone")
    assert (code, "has no gone" in err) == (2, True)


def test_results_that_have_not_converged_are_marked(flowjax, uneven_run, tmp_path):
    """A limit that no solve meets, on stderr, in the JSON line, and in the metrics; --check 0 leaves all of it out."""
    out = tmp_path / "l.npz"
    rough = ("likelihood", f"--workdir={uneven_run}", "--num=20", f"--out={out}", "--solver=euler", "--steps=2")
    estimate = ("--divergence=hutchinson", "--probes=8", "--probe_kind=orthogonal", "--converged_within=1e-6")
    code, found, err = flowjax(*rough, *estimate)
    assert (code, found["converged"], found["difference"] > 2e-6) == (0, False, True), err
    assert err.count("not converged: with 4 instead of 2 steps") == 1
    written = np.load(out)
    assert (written["standard_error"] > 0).all()
    assert found["standard_error"] == pytest.approx(written["standard_error"].mean())
    code, found, err = flowjax(*rough, "--check=0", "--converged_within=1e-6")
    assert (code, found["converged"], found["standard_error"], "not converged" in err) == (0, None, 0, False)
    code, found, err = flowjax("evaluate", f"--workdir={uneven_run}", *FAST, "--converged_within=1e-9")
    assert (found["nll_converged"], found["nll_difference"] > 2e-9) == (False, True)
    assert re.search(r"nll_converged +no\n", err)
    assert "likelihood: warning: not converged: with rtol=1e-06" in err


def test_bad_settings_of_a_divergence_and_bad_points_are_refused_in_one_line(flowjax, uneven_run, tmp_path):
    np.savez(tmp_path / "nan.npz", x=np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32), y=np.array([1, 2]))
    for given, message in (
        (["--divergence=hutch++", "--probes=4"], "--divergence hutch++: probes of hutch++ must be a multiple of 3"),
        (["--divergence=hutchinson", "--probe_kind=orthogonal"], "probes must be a multiple of 4, not 1"),
        (["--rtol=1e-9", "--atol=1e-9"], "below the rounding errors of float32"),
        ([f"--data={tmp_path / 'nan.npz'}"], "nan.npz: the points x have NaN or infinite values in row 1"),
    ):
        code, _, err = flowjax("likelihood", f"--workdir={uneven_run}", f"--out={tmp_path / 'o.npz'}", *given)
        assert (code, message in err) == (2, True), err
