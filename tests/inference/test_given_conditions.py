"""Conditions by name in samples, log-densities and files, compared with a closed form."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build
from flowjax.cli import common
from flowjax.cli.flags import UsageError
from flowjax.conditions import NO_LABEL, Field
from flowjax.config import defaults
from flowjax.data import Affine, Dataset, DataSpec
from flowjax.errors import ConfigError
from flowjax.inference import sampling, scoring
from flowjax.inference.choose import Guide, SolverSettings
from flowjax.inference.given_conditions import check_given, conditions_of_test, encode_given, say_missing
from flowjax.inference.run import Run
from flowjax.methods import Network

EULER = SolverSettings("euler", steps=2)
SPEC = DataSpec(
    "npz",
    (2,),
    Affine(3.0, 1.0),
    4,
    conditions=(Field("obs", "vector", (2,)), Field("far", "vector", (1,))),
    condition_maps=(Affine(2.0, 5.0), Affine(1.0, 0.0)),
)


def make_run(cond=("label", "obs(dropout=0)")) -> Run:
    """A network whose velocity is the observation plus the label in each coordinate: x1 = x0 + obs + label."""

    def velocity(params, t, x, cond, **_):
        label = cond["label"].astype(x.dtype)[:, None] if "label" in cond else 0.0
        obs = cond.get("obs", jnp.zeros(x.shape))
        return jnp.where(jnp.isnan(obs), 0.0, obs) + label + 0 * x

    config = defaults("mlp")
    config.data.name, config.data.cond = "npz", cond
    config.path.name = "affine"
    method = dataclasses.replace(build(config, SPEC), network=Network.from_function(velocity))
    return Run(Path("run"), config, 0, SPEC, method, {})


@pytest.fixture(scope="module")
def run():
    return make_run()


def test_a_run_on_sets_with_a_mask_samples_full_sets_and_has_no_density(capsys):
    spec = DataSpec("npz", (3, 2), Affine(2.0, 1.0), has_mask=True)
    method = build(defaults("mlp"), spec)
    method = dataclasses.replace(method, network=Network.from_function(lambda params, t, x, cond, **_: 0 * x))
    run = Run(Path("run"), defaults("mlp"), 0, spec, method, {})
    assert sampling.sample(run, 4, 0, EULER, batch=4).samples.shape == (4, 3, 2)
    assert "samples are full sets, in which all 3 elements exist" in capsys.readouterr().err
    data = Dataset(spec, np.ones((8, 3, 2), np.float32), test_mask=np.ones((8, 3), bool))
    with pytest.raises(
        ConfigError, match="data 'npz' has a mask, and sets with absent elements have no density"
    ) as error:
        scoring.log_prob(run, data.test)
    assert "\n" not in str(error.value)


def test_labels_that_are_not_given_are_filled_or_asked_for(run):
    rows = encode_given(run, {}, 3, "point", "encode", fill_labels=True).rows
    np.testing.assert_array_equal(rows["label"], np.full(3, NO_LABEL))
    assert "label" not in encode_given(run, {}, 3).rows
    with pytest.raises(ConfigError, match="encode: this network was always trained with labels"):
        encode_given(make_run(("label(dropout=0)",)), {}, 3, "point", "encode", fill_labels=True)


OBS = np.random.default_rng(0).normal(5, 2, size=(20, 2))


def draw(run, cond, num=20, batch=8, **more):
    return sampling.sample(run, num, 0, EULER, label=2, batch=batch, cond=cond, **more)


def test_samples_are_carried_by_their_own_conditions(run):
    """x1 = x0 + (obs - 5) / 2 + 2 in model space and 3 x1 + 1 in data space, exact up to float32's rounding.

    A condition that is NaN or absent is not given; this network reads it as zeros.
    """
    absent = draw(run, {}).samples
    source = absent - 3 * 2
    given = draw(run, {"obs": OBS})
    np.testing.assert_allclose(given.samples, source + 3 * (2 + (OBS - 5) / 2), atol=2e-5)
    assert set(given.cond) == {"label", "obs"}
    np.testing.assert_array_equal(given.cond["obs"], OBS)
    assert given.labels is not None
    np.testing.assert_array_equal(given.labels, np.full(20, 2))
    one = draw(run, {"obs": OBS[:1]})
    np.testing.assert_array_equal(one.samples, draw(run, {"obs": np.repeat(OBS[:1], 20, 0)}).samples)
    np.testing.assert_array_equal(draw(run, {"obs": np.full((1, 2), np.nan)}).samples, absent)
    labels = np.arange(20, dtype=np.int32) % 4
    by_row = sampling.sample(run, 20, 0, EULER, batch=8, cond={"label": labels})
    np.testing.assert_allclose(by_row.samples, source + 3 * labels[:, None], atol=2e-5)
    np.testing.assert_array_equal(by_row.cond["label"], labels)


def test_a_sample_depends_on_its_own_condition_alone(run):
    other = OBS + np.arange(20)[:, None] % 3
    a, b = draw(run, {"obs": OBS}).samples, draw(run, {"obs": other}, batch=5).samples
    same = (other == OBS).all(1)
    assert same.sum() == 7
    np.testing.assert_array_equal(a[same], b[same])
    assert (a[~same] != b[~same]).all()
    np.testing.assert_array_equal(draw(run, {"obs": OBS[:9]}, num=9, batch=3).samples, a[:9])


def test_log_densities_are_of_the_shifted_normal(run):
    """x is normal in model space, with mean obs + label: in data space log N((x - 1) / 3; mean, I) - 2 log 3."""
    x = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, -1, 1], np.int32)
    mean = (OBS[:6] - 5) / 2 + labels[:, None]
    expected = -0.5 * (((x - 1) / 3 - mean) ** 2).sum(1) - np.log(2 * np.pi) - 2 * np.log(3)
    found = scoring.log_prob(run, x, {"obs": OBS[:6], "label": labels}, solver=EULER, batch=4)
    np.testing.assert_allclose(found.log_prob, expected, rtol=1e-5)
    one = scoring.log_prob(run, x, {"obs": OBS[:1], "label": labels[:1]}, solver=EULER, batch=4)
    np.testing.assert_allclose(one.log_prob[0], expected[0], rtol=1e-5)


def test_what_does_not_fit_is_refused_in_one_line(run):
    for cond, message in (
        ({"nobs": OBS}, "unknown condition 'nobs': the conditions of this run are 'label', 'obs'"),
        ({"far": OBS}, "unknown condition 'far'"),  # in the data, but not a condition of the network
        (
            {"obs": OBS[:5]},
            r"condition 'obs' must be \(1, 2\) for all samples or \(20, 2\) with one row per sample, not \(5",
        ),
        ({"obs": np.full((1, 2), np.inf)}, "condition 'obs' must hold finite numbers"),
        ({"obs": np.array([["a", "b"]])}, "condition 'obs' must hold finite numbers"),
        ({"label": np.array([4])}, "condition 'label' must hold classes, 0 to 3, or -1 for no class"),
        ({"label": np.array([0.5])}, "condition 'label' must hold classes"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            check_given(run, cond, 20)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="the label is given twice"):
        draw(run, {"label": np.zeros(20, np.int32)})
    with pytest.raises(ConfigError, match="grid 'learned' needs one condition for all samples"):
        sampling.sample(run, 20, 0, SolverSettings("euler", steps=2, grid="learned"), cond={"obs": OBS})


def test_a_missing_condition_is_said_once_where_the_network_always_had_it(run, capsys):
    draw(run, {})
    assert capsys.readouterr().err.count("not given: obs; the network gets the null value") == 1
    draw(run, {"obs": OBS})
    say_missing(make_run(("label", "obs(dropout=0.2)")), {}, "sample")
    assert capsys.readouterr().err == ""


def test_finished_batches_of_other_conditions_are_refused(run, tmp_path):
    keep = tmp_path / "s.npz.parts"
    draw(run, {"obs": OBS}, keep=keep)
    assert len(json.loads((keep / "request.json").read_text())["conditions"]) == 8
    draw(run, {"obs": OBS}, keep=keep)
    with pytest.raises(ConfigError, match="another request: conditions is "):
        draw(run, {"obs": OBS + 1}, keep=keep)
    with pytest.raises(ConfigError, match=r"conditions is \w+ there and None here"):
        draw(run, {}, keep=keep)


def test_guidance_without_a_class_needs_only_some_condition():
    """conditional + (scale - 1) (conditional - unconditional): the shift by the observation is linear."""
    run = make_run(("obs(dropout=0.1)",))
    plain, guided = (
        sampling.sample(run, 20, 0, EULER, batch=8, cond={"obs": OBS}, guide=guide).samples
        for guide in (None, Guide("cfg", 3.0))
    )
    np.testing.assert_allclose(guided - plain, 3 * 2 * (OBS - 5) / 2, atol=1e-4)
    with pytest.raises(ConfigError, match="unknown 'far'"):
        sampling.sample(run, 2, cond={"obs": OBS[:2]}, guide=Guide("cfg", 3.0, fields=("far",)))
    with pytest.raises(ConfigError, match="guidance 'cfg' needs conditions, and this network has none"):
        sampling.sample(make_run(()), 2, guide=Guide("cfg", 3.0))


def test_samples_for_a_comparison_have_the_conditions_of_the_test_points(run):
    data = Dataset(SPEC, OBS[:3], {"label": np.arange(3), "obs": OBS[:3], "far": OBS[:3, :1]})
    cond = conditions_of_test(run, data, 5)
    assert set(cond) == {"label", "obs"}
    np.testing.assert_array_equal(cond["obs"], OBS[[0, 1, 2, 0, 1]])
    assert conditions_of_test(make_run(("label",)), data, 5) == {}


def test_files_of_conditions(run, tmp_path):
    path = str(tmp_path / "c.npz")
    np.savez(path, obs=OBS, y=np.arange(20) % 4)
    cond, is_single = common.observations(run, path)
    assert not is_single
    np.testing.assert_array_equal(cond["obs"], OBS)
    np.testing.assert_array_equal(cond["label"], np.arange(20) % 4)
    np.savez(path, y=np.array([3]))
    assert common.observations(run, path).cond["label"].tolist() == [3]
    np.savez(path, obs=OBS[0], y=np.array(2))
    cond, is_single = common.observations(run, path)
    assert is_single
    assert cond["obs"].shape == (1, *OBS.shape[1:])
    for arrays, message in (
        ({"nobs": OBS}, "c.npz: unknown condition 'nobs'"),
        ({"obs": OBS[:7], "y": np.arange(20) % 4}, "c.npz: condition 'obs' must be"),
        ({"y": np.array([9])}, "one of the classes that the run was trained on: 0 to 3"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UsageError, match=f"^--cond.*{message}"):
            common.observations(run, path)
    np.savez(path, x=np.zeros((20, 2)), obs=OBS, y=np.arange(20) % 4, x_test=OBS)
    found = common.points(run, path).first(7)
    assert {name: len(a) for name, a in found.cond.items()} == {"label": 7, "obs": 7}


def test_several_observations_have_samples_each(run):
    """Sample j of observation i is row i * num + j of the same conditions, repeated."""
    drawn = sampling.sample_each(run, 5, {"obs": OBS[:3], "label": np.array([1])}, solver=EULER, batch=8)
    assert drawn.samples.shape == (3, 5, 2)
    cond = {"obs": np.repeat(OBS[:3], 5, 0), "label": np.array([1])}
    np.testing.assert_array_equal(
        drawn.samples.reshape(15, 2), sampling.sample(run, 15, solver=EULER, batch=8, cond=cond).samples
    )
    flat = drawn.for_each_sample()
    assert flat.samples.shape == (15, 2)
    np.testing.assert_array_equal(flat.cond["obs"], cond["obs"])
    chosen = sampling.sample_each(run, 5, {"obs": OBS[:3]}, solver=EULER, batch=8)
    assert chosen.labels.shape == (3, 5)
    assert chosen.for_each_sample().labels.shape == (15,)
    with pytest.raises(ConfigError, match="their rows are: obs 3, label 2"):
        sampling.sample_each(run, 5, {"obs": OBS[:3], "label": np.array([1, 2])})


def test_an_observation_far_outside_of_the_training_data_is_reported(capsys):
    spec = dataclasses.replace(
        SPEC, condition_ranges=tuple(((-1.0,) * f.shape[-1], (9.0,) * f.shape[-1]) for f in SPEC.conditions)
    )
    far = dataclasses.replace(make_run(("obs(dropout=0.1)",)), spec=spec)
    sampling.sample(far, 2, solver=EULER, cond={"obs": np.full((1, *OBS.shape[1:]), 9.0, np.float32)})
    assert "outside the range" not in capsys.readouterr().err
    sampling.sample(far, 2, solver=EULER, cond={"obs": np.full((1, *OBS.shape[1:]), 9.0 + 3 * 2, np.float32)})
    assert "1 of 1 rows of the condition obs" in (err := capsys.readouterr().err)
    assert "by up to 3 standard deviations" in err


def test_missing_numbers_of_a_condition_without_dropout_are_reported(run, capsys):
    sampling.sample(run, 2, solver=EULER, cond={"obs": np.array([[1.0, 2.0], [np.nan, 2.0]]), "label": np.array([0])})
    assert "1 of 2 rows of obs have NaN, which means not given (the first is row 1)" in capsys.readouterr().err
