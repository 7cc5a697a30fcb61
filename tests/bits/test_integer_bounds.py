"""Variational bounds of runs, the metrics and flags of integers, and `data.dequantisation`."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import oracles
from flowjax.bits.decoders import log_posterior_of_bin
from flowjax.data import DataError, DataSpec, open_dataset
from flowjax.data.affine import Affine
from flowjax.errors import ConfigError
from flowjax.inference.integer_bounds import default_bound, integer_bound
from flowjax.paths import AffinePath
from flowjax.schedules import CondOT
from tests.bits.known import IMAGES, SHARES, pixels, points, run_of
from tests.data.stored import store

SPEC = pixels((2, 2, 1))
ROWS = 300


@pytest.fixture(scope="module")
def run():
    return run_of(SPEC, "condot", lambda path: points(path, SPEC, IMAGES, SHARES))


@pytest.mark.analytic
def test_the_continuous_bound_of_an_exact_network_is_the_probability_of_each_image(run):
    """300 estimates for each of three known images, within 4 standard errors, and 1e-3 for what both ends lose: the
    first log-SNR is -13.8, and the decoder's noise of 4 standard deviations to half a bin."""
    x = np.repeat(IMAGES, ROWS, 0).astype(np.float32)
    found = integer_bound(run, x, bound="vdm(40)")
    nats = found.terms.total.reshape(3, ROWS)
    stderr = nats.std(1) / math.sqrt(ROWS)
    assert np.all(np.abs(nats.mean(1) + np.log(SHARES)) < 4 * stderr + 1e-3)
    assert stderr.max() < 0.15
    described = found.described()
    terms = [described[f"{name}_bits_per_dim"] for name in ("prior", "diffusion", "reconstruction")]
    assert described["bits_per_dim"] == pytest.approx(nats.mean() / (4 * math.log(2)), rel=1e-4) == sum(terms)
    stderr_of_all = nats.std() / math.sqrt(3 * ROWS)
    assert described["bits_per_dim_stderr"] == pytest.approx(stderr_of_all / (4 * math.log(2)), rel=0.01)
    again = integer_bound(run, x[:5], bound="vdm(40)", batch=16)
    np.testing.assert_allclose(again.terms.total, found.terms.total[:5], rtol=1e-4, atol=1e-4)
    assert (found.nfe, described["bound"]) == (40, "vdm(40)")


@pytest.mark.analytic
def test_the_bound_of_a_chain_tightens_with_its_steps_and_some_of_them_estimate_all(run):
    x = np.repeat(IMAGES, 600, 0).astype(np.float32)
    mean = {}
    for bound in ("ddpm(10, end='bin')", "ddpm(80, end='bin')", "ddpm(80, 20, end='bin')"):
        nats = integer_bound(run, x, bound=bound).terms.total.reshape(3, 600)
        mean[bound] = float(SHARES @ nats.mean(1)), float(np.sqrt((SHARES**2 * nats.var(1) / 600).sum()))
    entropy = -float(SHARES @ np.log(SHARES))
    assert mean["ddpm(80, end='bin')"][0] > entropy - 4 * mean["ddpm(80, end='bin')"][1]
    assert mean["ddpm(10, end='bin')"][0] > mean["ddpm(80, end='bin')"][0] + 0.1
    error = math.hypot(mean["ddpm(80, end='bin')"][1], mean["ddpm(80, 20, end='bin')"][1])
    assert abs(mean["ddpm(80, end='bin')"][0] - mean["ddpm(80, 20, end='bin')"][0]) < 4 * error


def counts_as_users_open_them(folder):
    """The description of a data set with two columns of integers, without noise: a balanced binary one, whose mean is
    at the edge of a bin, and one of counts."""
    x = np.stack([np.arange(2000) % 2, np.random.default_rng(0).poisson(3.5, 2000)], 1)
    return open_dataset("npz", store(folder, x=x, x_test=x[:100]), dequantisation="none").spec


@pytest.mark.parametrize("std", [0.06, 0.5, 2.0])
def test_the_probabilities_of_all_integers_given_a_sample_sum_to_one(tmp_path, std):
    """The noise is that of `std` bins of counts, at three samples. Integers further away than 14 standard deviations
    have less than exp(-98) of the largest term, and float32 sums the others to 1e-5."""
    spec = counts_as_users_open_them(tmp_path / "a")
    assert spec.bins.levels == 0
    noise = std * spec.bins.widths[1]
    k = np.stack(np.meshgrid(np.arange(-40, 45), np.arange(-40, 45), indexing="ij"), -1).reshape(-1, 2)
    edges = jnp.asarray(spec.to_model(k))
    for sample in ([0.5, 3.5], [0.93, 2.1], [1.0, 4.0]):  # a centre of both columns, between them, and at their edges
        z = jnp.broadcast_to(jnp.asarray(spec.to_model(np.array([sample]))), edges.shape)
        found = np.asarray(log_posterior_of_bin(z, noise, edges, spec.bins), np.float64)
        assert np.exp(found).sum() == pytest.approx(1, abs=1e-4)
        logits = -0.5 * ((k + 0.5 - np.array(sample)) / (noise / np.array(spec.bins.widths))) ** 2
        exact = (logits - np.logaddexp.reduce(logits, 0)).sum(1)  # the pairs repeat each integer 85 times
        near = exact > exact.max() - 20
        np.testing.assert_allclose(found[near], exact[near] + 2 * math.log(85), atol=2e-3)


@pytest.mark.analytic
@pytest.mark.parametrize("bound", ["vdm(20)", "ddpm(100, 50)"])
def test_the_bound_of_counts_is_their_entropy(tmp_path, bound):
    """A fair coin and independent counts with the distribution Poisson(3.5), up to 15, as columns of a data set. The
    exact network has the entropy as its mean bound in continuous time, and more for a chain of 100 levels; 300
    estimates for each of the 32 examples, within 4 standard errors, and 2e-3 for both ends."""
    spec = counts_as_users_open_them(tmp_path / "a")
    x = np.stack(np.meshgrid(np.arange(2), np.arange(16), indexing="ij"), -1).reshape(-1, 2)
    shares = 0.5 * stats.poisson.pmf(x[:, 1], 3.5)
    shares /= shares.sum()
    run = run_of(spec, "vp", lambda path: points(path, spec, x, shares))
    nats = integer_bound(run, np.repeat(x, 300, 0).astype(np.float32), bound=bound).terms.total.reshape(32, 300)
    mean, stderr = shares @ nats.mean(1), math.sqrt(shares**2 @ nats.var(1, ddof=1) / 300)
    gap = mean + shares @ np.log(shares)
    assert stderr < 0.05
    assert -4 * stderr - 2e-3 < gap < 4 * stderr + (2e-3 if bound == "vdm(20)" else 0.6)


@pytest.mark.parametrize(
    ("bound", "x", "message"),
    [
        ("elbo", [1.0], "unknown 'elbo'"),
        ("ddpm(1)", [1.0], "ddpm"),
        ("ddpm(10)", [1.0], r"none at t = 1: use ddpm\(10, end='bin'\)"),
        ("ddpm(10, end='data')", [1.0], "unknown end 'data'"),
        ("vdm(20)", [math.nan], "points have NaN or infinite values"),
        ("ddpm(10, variance='learned')", [1.0], "needs prediction 'noise_variance'"),
        ("ddpm(10, variance='tiny')", [1.0], "unknown variance 'tiny'"),
        ("vdm(20)", [0.5], "is for integers, and the points hold real numbers"),
    ],
)
def test_refusals(run, bound, x, message):
    with pytest.raises(ConfigError, match=message) as error:
        integer_bound(run, np.broadcast_to(np.asarray(x, np.float32), (3, 2, 2, 1)), bound=bound)
    assert "\n" not in str(error.value)


def test_a_path_that_is_not_gaussian_has_no_bound(run):
    other = dataclasses.replace(run, method=dataclasses.replace(run.method, path=AffinePath(CondOT())))
    with pytest.raises(ConfigError, match="needs a model that removes the noise of a Gaussian path"):
        integer_bound(other, IMAGES.astype(np.float32))
    assert default_bound(other) == ""


def test_a_network_that_was_trained_with_uniform_noise_is_warned_about(capsys):
    spec = dataclasses.replace(SPEC, dequantisation="uniform")
    run = run_of(spec, "condot", lambda path: oracles.gaussian(path, 0.0, 0.5))
    integer_bound(run, IMAGES.astype(np.float32), bound="vdm(2)")
    assert "the bound is loose; train with data.dequantisation=none" in capsys.readouterr().err


def test_integers_without_noise_are_the_centres_of_their_bins(tmp_path):
    x = np.random.default_rng(0).poisson(4.0, (200, 3))
    path = store(tmp_path / "a", x=x)
    dataset = open_dataset("npz", path, dequantisation="none")
    spec, rows = dataset.spec, jnp.asarray(dataset.arrays().x1)
    trained = np.delete(x, dataset.test_rows, 0)
    prepared = spec.prepare(jax.random.key(0), rows)
    np.testing.assert_allclose(spec.to_data(prepared), trained + 0.5, atol=1e-4)
    np.testing.assert_array_equal(spec.finish(prepared), trained)
    np.testing.assert_allclose(spec.bins.centres(jnp.asarray(spec.to_model(trained))), prepared, atol=1e-5)
    assert DataSpec.from_record(spec.to_record()) == spec
    assert "dequantisation is none and was uniform" in spec.differences(
        dataclasses.replace(spec, dequantisation="uniform")
    )
    record = spec.to_record()
    del record["dequantisation"]
    assert DataSpec.from_record(record).dequantisation == "uniform"
    with pytest.raises(DataError, match="dequantisation is 'some'; it must be one of uniform, none, variational"):
        DataSpec.from_record(record | {"dequantisation": "some"})


def test_data_of_real_numbers_have_no_dequantisation():
    with pytest.raises(ConfigError, match=r"data \(gaussians8\) are not integers"):
        open_dataset("gaussians8", dequantisation="none")
    with pytest.raises(ConfigError, match=r"data.dequantisation: unknown 'non'; did you mean 'none'"):
        open_dataset("digits", dequantisation="non")
    assert DataSpec("x", (2,), Affine()).bins is None


@pytest.mark.slow
def test_the_commands_state_what_their_bits_hold_for(flowjax, tmp_path):
    """A flow of counts with learned schedule: its bits per dimension by K draws and by both bounds, and the metrics."""
    data = store(tmp_path / "a", x=np.random.default_rng(0).poisson(3.0, (300, 2)))
    workdir, out = tmp_path / "run", tmp_path / "a.npz"
    tiny = ["--config.model.width=16", "--config.model.depth=1", "--config.train.steps=20"]
    tiny += ["--config.train.log_every=10", "--config.method.name=variational_diffusion", "--config.path.schedule=vp"]
    tiny += [f"--config.data.path={data}", "--config.data.dequantisation=none", "--config.data.name=npz"]
    code, _, err = flowjax("train", "--config=gaussians8", *tiny, f"--workdir={workdir}")
    assert code == 0, err
    common = ["likelihood", f"--workdir={workdir}", f"--out={out}", "--num=20"]
    loose = ["--rtol=1e-3", "--atol=1e-3"]
    _, found, _ = flowjax(*common, *loose, "--importance_samples=3")
    assert (found["dequantisation"], found["importance_samples"]) == ("uniform", 3)
    assert found["bits_per_dim"] == pytest.approx(-found["mean"] / (2 * math.log(2)))
    assert found["bits_per_dim_stderr"] == pytest.approx(found["stderr"] / (2 * math.log(2)), rel=1e-4)
    _, found, _ = flowjax(*common, "--bound=ddpm(20, 5)")
    assert (found["bound"], found["nfe"]) == ("ddpm(20, 5)", 6)
    assert -np.load(out)["log_prob"].mean() / (2 * math.log(2)) == pytest.approx(found["bits_per_dim"], rel=1e-5)
    for flags, message in (
        (["--bound=vdm(2)", "--importance_samples=2"], "--importance_samples and --bound cannot be used together"),
        (["--bound=vdm(2)", "--rtol=1e-3"], "--rtol and --bound cannot be used together: the bound takes no solver"),
        (["--importance_samples=0"], "--importance_samples must be at least 1, not 0"),
        (["--dequantisation=normal"], "--dequantisation"),
        (["--dequantisation=variational"], "needs a model that has learned the noise"),
    ):
        code, _, err = flowjax(*common, *flags)
        assert code != 0
        assert message in err.splitlines()[-1]
    _, found, _ = flowjax("evaluate", f"--workdir={workdir}", *loose, "--solver=euler", "--steps=4")
    assert found["bound"] == "vdm(20)"
    assert {"bound_bits_per_dim", "bound_bits_per_dim_stderr", "bits_per_dim_stderr"} <= set(found)
    assert (found["dequantisation"], found["importance_samples"]) == ("uniform", 1)
    code, _, err = flowjax("report", f"--workdir={workdir}", f"--out={tmp_path / 'a.html'}")
    assert code == 0, err
    assert "uniform" in (tmp_path / "a.html").read_text()
