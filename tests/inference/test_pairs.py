"""Samples that start from given source samples, examples beside their source, and metrics of restored images."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build
from flowjax.cli import common
from flowjax.conditions import Field
from flowjax.config import changed, defaults
from flowjax.data import Affine, DataSpec, open_dataset
from flowjax.errors import ConfigError
from flowjax.inference import evaluation, figures, sampling
from flowjax.inference.choose import SolverSettings
from flowjax.inference.examples import examples_of, given_images
from flowjax.inference.figure_inputs import FigureInputs
from flowjax.inference.given_conditions import conditions_of_test
from flowjax.inference.run import Run
from flowjax.methods import Network

EULER = SolverSettings("euler", steps=2)
START = np.random.default_rng(0).normal(size=(20, 2)) * 4
SPEC = DataSpec("npz", (2,), Affine(3.0, 1.0))


def make_run(spec=SPEC, **keys) -> Run:
    """A network whose velocity is 1, plus the first condition where it is given."""

    def velocity(params, t, x, cond, **_):
        return 1 + 0 * x + sum(jnp.nan_to_num(a) for a in (cond or {}).values())

    config = changed(defaults("dit" if spec.is_image else "mlp"), {"data.name": "npz", "data.pairs": "start"} | keys)
    method = dataclasses.replace(build(config, spec), network=Network.from_function(velocity))
    return Run(Path("run"), config, 0, spec, method, {})


def draw(run, cond, num=20, batch=8):
    return sampling.sample(run, num, 0, EULER, batch=batch, cond=cond)


def test_samples_start_from_the_given_source_samples(capsys):
    """x1 = x0 + 1 in model space, 3 in data space; a number that is NaN is drawn as without source samples."""
    run = make_run()
    drawn = draw(run, {"start": START})
    np.testing.assert_allclose(drawn.samples, START + 3, atol=1e-5)
    np.testing.assert_array_equal(drawn.cond["start"], START)
    np.testing.assert_allclose(draw(run, {"start": START[:1]}).samples, np.repeat(START[:1] + 3, 20, 0), atol=1e-5)
    assert "no source samples" not in capsys.readouterr().err
    free = draw(run, {}).samples
    assert "no source samples 'start' are given: samples start from source.name 'normal'" in capsys.readouterr().err
    holes = np.where(np.arange(20)[:, None] % 3 == np.arange(2), np.nan, START)
    np.testing.assert_allclose(
        draw(run, {"start": holes}).samples, np.where(np.isnan(holes), free, START + 3), atol=1e-5
    )
    np.testing.assert_array_equal(draw(run, {"start": START[:7]}, 7, 4).samples, drawn.samples[:7])


def test_noise_of_the_path_at_its_start_is_added():
    """sigma = 0.5 in model space, 1.5 in data space: the estimate from n numbers is off by sigma / sqrt(2 n), here by
    five such errors at most. The path ends at 1 - 1e-3, where the step from 0 has moved by 0.999 * 3."""
    run = make_run(**{"path.noise": "fading(0.5)"})
    added = draw(run, {"start": START[:1]}, 2000, 2000).samples - START[0] - 3 * 0.999
    assert abs(added.std() - 1.5) < 5 * 1.5 / np.sqrt(2 * added.size)
    assert abs(added.mean()) < 5 * 1.5 / np.sqrt(added.size)
    assert not np.array_equal(added[0], added[1])


def test_an_array_can_be_the_source_sample_and_a_condition():
    """Each with the affine map of its own: the source sample with that of x, the condition with the other."""
    spec = dataclasses.replace(SPEC, conditions=(Field("start", "vector", (2,)),), condition_maps=(Affine(2.0, 5.0),))
    run = make_run(spec, **{"data.cond": ("start",), "data.cond_dropout": 0.0})
    np.testing.assert_allclose(draw(run, {"start": START}).samples, START + 3 * (1 + (START - 5) / 2), atol=1e-4)


def test_pixels_of_source_samples_are_dequantised_like_those_of_the_data():
    """Values k become uniform on [k, k + 1), which half a level is added to by the velocity 1 = 8 levels."""
    spec = DataSpec("npz", (4, 4, 1), Affine(8.0, 8.0), levels=17)
    start = np.random.default_rng(1).integers(0, 8, (30, 4, 4, 1))
    run = make_run(spec)
    np.testing.assert_array_equal(draw(run, {"start": start}, 30).samples, start + 8)


def test_refusals_and_files(tmp_path):
    run, path = make_run(), str(tmp_path / "c.npz")
    for cond, message in (
        ({"start": START[:, :1]}, r"condition 'start' must be \(1, 2\) for all samples"),
        ({"start": START + np.inf}, "condition 'start' must hold finite numbers"),
        ({"begin": START}, "unknown condition 'begin': the conditions of this run are 'start'"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw(run, cond)
    for start, single in ((START, False), (START[0], True)):
        np.savez(path, start=start)
        found = common.observations(run, path)
        np.testing.assert_array_equal(found[0]["start"], START if not single else START[:1])
        assert found[1] == single
    with pytest.raises(ConfigError, match=r"path\.noise 'fading\(0.5\)' is noise in given source samples"):
        build(changed(defaults("mlp"), {"path.noise": "fading(0.5)"}), SPEC)


@pytest.mark.parametrize("keys", [{"data.pairs": "degraded"}, {"data.pairs": "", "data.cond": ("degraded",)}])
def test_examples_and_metrics_of_restored_images(keys, capsys):
    """From x0 = the degraded image, the sample is one model unit (8 levels) above it; a condition is only shown."""
    dataset = open_dataset("digits", "", keys.get("data.cond", ()), keys["data.pairs"], degrade="box(4)")
    run = make_run(dataset.spec, **{"data.name": "digits", "data.degrade": "box(4)"} | keys)
    assert given_images(run) == ("degraded",)
    found = examples_of(run, dataset, 6, 3, solver=EULER)
    assert found.samples.shape == (3, 6, 8, 8, 1)
    np.testing.assert_array_equal(found.truth, dataset.test[:6])
    np.testing.assert_array_equal(found.given["degraded"], conditions_of_test(run, dataset, 6)["degraded"])
    known = ~np.isnan(found.given["degraded"])
    if keys["data.pairs"]:
        expected = np.minimum(found.given["degraded"][known] + 8, 16)
        np.testing.assert_array_equal(found.samples[:, known], np.stack([expected] * 3))
    assert (found.samples[0] != found.samples[1]).any()
    metrics = evaluation.evaluate(run, dataset, solver=EULER, batch=64)
    assert set(metrics) >= {"psnr_sample", "psnr_mean", "psnr_given", "sample_spread", "consistency"}
    assert "examples" in figures.fitting(run)
    figure = figures.draw(FigureInputs(run, dataset), "examples")
    assert [text.get_text() for text in figure.texts] == ["degraded", "sample 1", "sample 2", "sample 3", "truth"]


def test_examples_of_a_source_that_is_a_data_set_are_its_images():
    dataset = open_dataset("digits(1)")
    run = make_run(dataset.spec, **{"data.name": "digits(1)", "data.pairs": "", "source.name": "digits((0, 2))"})
    assert given_images(run) == ("source",)
    found = examples_of(run, dataset, 5, 3, solver=EULER)
    assert found.truth is None
    np.testing.assert_array_equal(found.samples[0], np.minimum(found.given["source"].astype(int) + 8, 16))
    known = {image.tobytes() for image in open_dataset("digits((0,2))").arrays().x1}
    assert {image.tobytes() for image in found.given["source"]} <= known
    assert found.samples.dtype == np.uint8
