"""Weights out of a run and back, and published checkpoints through the command line."""

import json
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import flowjax as package
from flowjax.build import build
from flowjax.inference import sampling
from flowjax.inference.choose import SolverSettings
from flowjax.interop import WeightsError, load_weights, open_weights, save_weights
from flowjax.interop.tree import fill, flatten
from flowjax.interop.weights import Weights
from flowjax.paths.transition import step_variance, transition

DATA = Path(__file__).parent / "data"


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    from flowjax.cli.main import main

    path = tmp_path_factory.mktemp("exported") / "deep" / "w.safetensors"
    assert main(["export", f"--workdir={tiny_run}", f"--out={path}"]) == 0
    return path


def test_a_round_trip_is_bitwise(exported, tiny_run):
    run, weights = package.load(tiny_run), load_weights(exported)
    assert_same(weights.params, run.params)
    assert (weights.spec, weights.step) == (run.spec, 120)
    assert weights.config.to_dict() == run.config.to_dict()


def test_others_may_read_the_file(exported):
    (exported.parent / "plain").touch()
    assert exported.stat().st_mode == (exported.parent / "plain").stat().st_mode


def test_an_export_that_the_disk_does_not_take_is_a_fault(flowjax, tiny_run, tmp_path):
    """A limit on the size of files stands in for a full disk; nothing half-written is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, result, err = flowjax("export", f"--workdir={tiny_run}", f"--out={tmp_path}/w.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, result) == (1, None)
    assert err == f"flowjax: export: cannot write {tmp_path}/w.safetensors: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_an_opened_file_samples_as_its_run(exported, tiny_run):
    solver = SolverSettings("euler", steps=4)
    a, b = (sampling.sample(run, 5, 0, solver).samples for run in (package.load(tiny_run), open_weights(exported)))
    np.testing.assert_array_equal(a, b)


def test_what_is_in_the_file(exported, tiny_run):
    arrays = load_file(exported)
    assert set(arrays) == {
        f"{layer}.{leaf}" for layer in ("layers.0", "layers.1", "out") for leaf in ("kernel", "bias")
    }
    with safe_open(exported, "np") as file:
        record = json.loads(file.metadata()["flowjax"])
    assert record["config"] == json.loads((tiny_run / "config.json").read_text())["config"]
    assert record["data"]["shape"] == [2]


def test_raw_parameters_other_steps_and_half_precision(flowjax, tiny_run, exported, tmp_path):
    out = tmp_path / "w.safetensors"
    code, result, _ = flowjax("export", f"--workdir={tiny_run}", f"--out={out}", "--no-ema", "--checkpoint=80")
    assert (code, result["step"], result["parameters"]) == (0, 80, 610)
    assert_same(load_weights(out).params, package.load(tiny_run, ema=False, checkpoint=80).params)
    code, result, _ = flowjax("export", f"--workdir={tiny_run}", f"--out={out}", "--dtype=bfloat16")
    assert result["bytes"] == out.stat().st_size < exported.stat().st_size
    assert load_file(out)["out.bias"].dtype == ml_dtypes.bfloat16
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(a.dtype), load_weights(exported).params)
    assert_same(load_weights(out).params, half)
    assert not list(tmp_path.glob("*.part"))


def test_transposed_arrays_are_written_as_they_are(exported, tmp_path):
    """safetensors itself writes the memory of an array, whatever its strides say."""
    weights = load_weights(exported)
    turned = jax.tree.map(lambda a: np.asarray(a).T.copy().T, weights.params)
    save_weights(tmp_path / "w.safetensors", weights._replace(params=turned))
    assert_same(load_weights(tmp_path / "w.safetensors").params, weights.params)


def test_parameters_of_another_network_are_told(exported, tmp_path):
    with safe_open(exported, "np") as file:
        metadata = file.metadata()
    arrays, path = load_file(exported), tmp_path / "w.safetensors"
    renamed = {name.replace("layers.0", "blocks.0"): a for name, a in arrays.items()}
    for changed, message in (
        ({k: a for k, a in arrays.items() if k != "out.bias"}, "the file lacks out.bias"),
        (arrays | {"more": np.ones(2)}, "the file also has more"),
        (arrays | {"out.bias": np.ones(3)}, r"in another shape out.bias \(3,\) for \(2,\)"),
        (renamed, "lacks layers.0.bias, layers.0.kernel; it also has blocks.0"),
        ({}, "lacks layers.0.bias, layers.0.kernel, layers.1.bias and 3 more"),
    ):
        save_file(changed, path, metadata)
        with pytest.raises(WeightsError, match=message) as caught:
            load_weights(path)
        assert "another model" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_files_are_told(exported, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(path)
    path.write_bytes(exported.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(path)
    save_file({"a": np.ones(2)}, path)
    with pytest.raises(WeightsError, match="not written by `flowjax export`"):
        load_weights(path)
    save_file({"a": np.ones(2)}, path, {"flowjax": "{}"})
    with pytest.raises(WeightsError, match="its metadata does not hold config, data, step"):
        load_weights(path)


def test_paths_join_and_come_apart():
    tree = {"up": {0: {"kernel": jnp.ones((2, 3))}, 10: {"kernel": jnp.zeros(4)}}, "out": jnp.arange(2)}
    flat = flatten(tree)
    assert set(flat) == {"up.0.kernel", "up.10.kernel", "out"}
    assert_same(fill(tree, flat), tree)


DIT = ("--shape=8,8,4", "--classes=3", "--config.model.depth=2", "--config.model.width=32", "--config.model.heads=4",
       "--config.model.dtype=float32")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("project", "time"), [("dit", "i"), ("sit", "t")])
def test_convert_makes_a_run_of_a_published_checkpoint(flowjax, tmp_path, project, time):
    out = tmp_path / "w.safetensors"
    code, result, err = flowjax("convert", f"--from={project}", f"--weights={DATA}/dit.pt", f"--out={out}", *DIT)
    assert code == 0, err
    stored, run = np.load(DATA / "dit.npz"), open_weights(out)
    assert result["parameters"] == sum(a.size for a in jax.tree.leaves(run.params))
    t = stored["t"] if time == "t" else 1 - (stored["i"] + 1) / 1000
    got = run.method.network.bind(run.params, {})(
        jnp.asarray(t), jnp.asarray(stored["x"]), {"label": jnp.asarray(stored["y"], jnp.int32)}
    )
    np.testing.assert_allclose(got, stored[project], rtol=0, atol=1e-4 * np.abs(stored[project]).max())
    drawn = sampling.sample(run, 2, 0, SolverSettings("ddpm" if project == "dit" else "euler", steps=3), label=1)
    assert drawn.samples.shape == (2, 8, 8, 4)
    assert np.isfinite(drawn.samples).all()


@pytest.mark.parametrize("row", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_of_a_converted_dit_is_ddpms(flowjax, tmp_path, row):
    """Mean and variance of the step from i, in float64 from PyTorch's noise and v: Ho et al. 2020, eq. 6, 7 and 15, on
    1000 betas linear from 1e-4 to 0.02, and Nichol & Dhariwal 2021, eq. 15.

    float32 has the angles to 6e-5 and x1, at i = 999, as a difference of numbers 160 times as large: 1e-3 together.
    """
    out, stored = tmp_path / "w.safetensors", np.load(DATA / "dit.npz")
    assert flowjax("convert", "--from=dit", f"--weights={DATA}/dit.pt", f"--out={out}", *DIT)[0] == 0
    i, x = int(stored["i"][row]), stored["x"][row].astype(np.float64)
    eps, v = np.split(stored["dit"][row].astype(np.float64), 2, -1)
    beta = np.linspace(1e-4, 0.02, 1000)
    signal = np.cumprod(1 - beta)
    x1 = (x - np.sqrt(1 - signal[i]) * eps) / np.sqrt(signal[i])
    small = beta[i] * (1 - signal[i - 1]) / (1 - signal[i])
    mean = beta[i] * np.sqrt(signal[i - 1]) / (1 - signal[i]) * x1
    mean = mean + np.sqrt(1 - beta[i]) * (1 - signal[i - 1]) / (1 - signal[i]) * x
    variance = np.exp((v + 1) / 2 * np.log(beta[i]) + (1 - v) / 2 * np.log(small))

    run, t, like = open_weights(out), 1 - (i + 1) / 1000, jnp.asarray(stored["x"][row : row + 1])
    ends = run.model().ends(t, like, {"label": jnp.asarray(stored["y"][row : row + 1], jnp.int32)})
    q = transition(run.path, t, t + 1 / 1000, like)
    np.testing.assert_allclose((q.from_x * like + q.from_x1 * ends.x1)[0], mean, atol=1e-3)
    np.testing.assert_allclose(step_variance(q, "learned", ends.variance_fraction)[0], variance, rtol=1e-3)


def test_convert_torchcfm(flowjax, tmp_path):
    out = tmp_path / "w.safetensors"
    changes = ("--config.model.channels=32", "--config.model.multipliers=(1,2)", "--config.model.blocks=1",
               "--config.model.attention=(4,)", "--head_width=16", "--shape=8,8,3")  # fmt: skip
    code, result, err = flowjax("convert", "--from=torchcfm", f"--weights={DATA}/torchcfm.pt", f"--out={out}", *changes)
    assert (code, result and result["parameters"]) == (0, 702_499), err
    weights = load_weights(out)
    assert float(jnp.abs(weights.params["out"]["kernel"]).max()) > 0  # the average, not the zeros beside it
    # torchcfm's own way back to pixels is floor(127.5 x + 128), of x = k / 127.5 - 1
    k = np.arange(256)
    np.testing.assert_array_equal(weights.spec.finish(k / 127.5 - 1), k)
    assert flowjax("convert", "--from=torchcfm", f"--weights={DATA}/torchcfm.pt", f"--out={out}", "--no-ema", *changes)[0] == 0  # fmt: skip  # noqa: E501
    assert float(jnp.abs(load_weights(out).params["out"]["kernel"]).max()) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("export", "--out=w.safetensors"), "--workdir is required"),
        (("export", "--workdir=nowhere", "--out=w.safetensors"), "is not the workdir of a run"),
        (("export", "--workdir=w", "--out=w.npz"), "must end in .safetensors"),
        (("export", "--workdir=w", "--out=w.safetensors", "--dtype=int8"), "dtype"),
        (("convert", "--out=w.safetensors", "--weights=a.pt"), "--from is required"),
        (("convert", "--from=dit", "--out=w.safetensors"), "--weights is required"),
        (("convert", "--from=ditt", "--out=w.safetensors", "--weights=a.pt"), "from"),
        (("convert", "--from=dit", "--out=w.safetensors", "--weights=a.pt"), "no such file: a.pt"),
        (("convert", "--from=dit", "--out=w.safetensors", "--weights=a.pt", "--shape=8"), "such as 64,64,4"),
        (("convert", "--from=dit", "--out=w.safetensors", "--weights=a.pt", "--config.model.width"), "needs a value"),
        (("convert", "--from=dit", "--out=w.safetensors", "--weights=a.pt", "--config.model.wdth=8"), "model.width"),
        (("convert", "--from=sit", "--out=w.safetensors", "--weights=a.pt", "--config.model.name=mlp"),
         "must be 'dit'"),
        (("convert", "--from=dit", "--out=w.safetensors", f"--weights={DATA}/dit.pt", *DIT, "--config.model.depth=1"),
         "another model"),
        (("convert", "--from=dit", "--out=w.safetensors", "--weights=a.pt", "--config.model.width=32"),
         "(--heads) is needed"),
        (("convert", "--from=torchcfm", "--out=w.safetensors", "--weights=a.pt"), "give either --head_width 64"),
        (("convert", "--from=torchcfm", "--out=w.safetensors", "--weights=a.pt", "--heads=1", "--head_width=8"),
         "--heads and --head_width cannot be used together"),
        (("convert", "--from=dit", "--out=w.safetensors", f"--weights={DATA}/dit.pt", "--shape=16,16,4", *DIT[1:]),
         "images of 16 patches, but images of shape (16, 16, 4) have 64"),
    ],
)  # fmt: skip
def test_usage_errors(flowjax, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, result, err = flowjax(*argv)
    assert (code, result) == (2, None), err
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert not list(tmp_path.iterdir())


def test_weights_of_a_config_fit_its_network(exported):
    """What `build` makes of the file's config takes the file's parameters."""
    config, spec, params, _, variables = load_weights(exported)
    out = build(config, spec).network.bind(params, variables)(0.5, jnp.ones((3, 2)), None)
    assert out.shape == (3, 2)
    assert isinstance(load_weights(exported), Weights)
