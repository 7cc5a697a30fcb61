"""One-step distillation: its loss in closed form, what its model can do, and a run on pairs of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.abilities import abilities_of
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import defaults
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Context, Distillation, Network
from flowjax.solvers import sample
from flowjax.sources import Normal

KEY = jax.random.key(0)


def affine(params, t, x, cond):
    return params["a"] * x + params["b"] + 100.0 * jnp.reshape(t, (-1, 1))


def test_the_loss_is_the_squared_error_at_time_zero():
    """For x1 = m + c x0 and net = a x + b the error is (a + 1 - c) x0 + b - m, in float64 to 1e-12."""
    with jax.enable_x64(True):
        x0 = jax.random.normal(KEY, (64, 3))
        batch = Batch(2.0 + 0.5 * x0, x0=x0)
        method = Distillation(Network.from_function(affine), Normal((3,)))
        loss = lambda a, b: method.loss({"a": a, "b": b}, Context(), KEY, batch)
        assert abs(float(loss(-0.5, 2.0).value)) < 1e-28
        expected = np.mean((0.5 * np.asarray(x0) - 1.5) ** 2)
        assert float(loss(0.0, 0.5).value) == pytest.approx(expected, rel=1e-12)
        assert float(loss(0.0, 0.5).metrics["squared_error"]) == pytest.approx(expected, rel=1e-12)


def test_the_model_maps_the_source_to_the_data_in_one_evaluation_only():
    model = Distillation(Network.from_function(affine), Normal((3,))).model({"a": -0.5, "b": 2.0}, {})
    x = jax.random.normal(KEY, (5, 3))
    assert abilities_of(model) == ("to_data",)
    y, stats = sample(model, x, solver="push_forward")
    np.testing.assert_allclose(y, 2.0 + 0.5 * x, atol=1e-6)
    assert int(stats.nfe[0]) == 1
    for options in ({"solver": "flow_map", "steps": 2}, {"solver": "euler", "steps": 1}):
        with pytest.raises(ValueError, match=r"this model offers to_data: use push_forward$"):
            sample(model, x, **options)


def test_data_without_pairs_are_refused_before_anything_is_compiled():
    with pytest.raises(ConfigError, match=r"learns from given pairs, and data\.pairs is empty: make them with flowjax"):
        build(defaults(method="distillation"), DataSpec("npz", (3,)))


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1"]
    assert flowjax("train", "--config=gaussians8", f"--workdir={tmp_path}/a", "--no-plots", *tiny)[0] == 0
    solver = ["--solver=euler", "--steps=2"]
    assert flowjax("pairs", f"--workdir={tmp_path}/a", f"--out={tmp_path}/p", "--num=100", *solver)[0] == 0
    config = tmp_path / "c.py"
    config.write_text("from flowjax.config import defaults\nget_config = lambda: defaults(method='distillation')\n")
    pairs = ["--config.data.name=pairs", f"--config.data.path={tmp_path}/p", "--config.data.pairs=x0"]
    start = [f"--config.train.start_from={tmp_path}/a", "--no-plots"]
    code, _, err = flowjax("train", f"--config={config}", f"--workdir={tmp_path}/b", *tiny, *pairs, *start)
    assert code == 0, err
    code, result, err = flowjax("sample", f"--workdir={tmp_path}/b", "--num=10", f"--out={tmp_path}/x.npz")
    assert code == 0, err
    assert result["nfe"] == 1
    sample_again = ["sample", f"--workdir={tmp_path}/b", "--num=10", f"--out={tmp_path}/y.npz"]
    assert flowjax(*sample_again, "--steps=1")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["samples"], np.load(tmp_path / "x.npz")["samples"])
    code, _, err = flowjax(*sample_again, "--steps=1", "--grid=uniform")
    assert (code, "so it has no grid: leave the grid out" in err) == (2, True)
