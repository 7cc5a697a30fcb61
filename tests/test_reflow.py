"""Pairs of a trained run as a data set, and rounds of reflow: the model space, interruptions, and refusals."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build
from flowjax.config import defaults
from flowjax.data import Affine, DataError, DataSpec, open_dataset
from flowjax.data.augment import AUGMENTATIONS
from flowjax.data.batches import make_get_batch
from flowjax.data.model_pairs import PairFolder
from flowjax.errors import ConfigError, RunFault
from flowjax.inference import Run, SolverSettings, batches
from flowjax.inference import pairs as pairs_
from flowjax.inference.pairs import make_pairs
from flowjax.methods import Network

EULER = SolverSettings("euler", steps=4)


@pytest.fixture
def teacher(tmp_path):
    """A run on a file of labelled points whose velocity is (m + label, ...) + (c - 1) z, with z = x0: x1 = m + c x0."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    np.savez(tmp_path / "data.npz", x=(5 + 3 * rng.normal(size=(400, 2))).astype(np.float32), y=y)
    config = defaults("mlp")
    config.data.path, config.data.cond, config.data.cond_dropout = str(tmp_path / "data.npz"), ("label",), 0.0
    dataset = open_dataset("", config.data.path, ("label",))

    def velocity(params, t, x, cond, **inputs):
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None]
        m = 1.0 + cond["label"][:, None]
        return m + (0.5 - 1) * (x - t * m) / (1 - t + t * 0.5)

    method: Any = build(config, dataset.spec)
    method = dataclasses.replace(method, network=Network.from_function(velocity))
    return Run(tmp_path, config, 1, dataset.spec, method, {"w": jnp.zeros(1)})


def pairs_config(folder, **data):
    config = defaults("mlp")
    config.data.name, config.data.path, config.data.pairs, config.data.cond = "pairs", str(folder), "x0", ("label",)
    config.data.cond_dropout = 0.0
    for key, value in data.items():
        config.data[key] = value
    return config


def opened(folder, **changes):
    return open_dataset(**{"name": "pairs", "path": str(folder), "pairs": "x0", "cond": ("label",)} | changes)


def test_pairs_have_the_model_space_of_the_run(teacher, tmp_path):
    """Lines are solved exactly by Euler steps: x1 = 1 + label + x0 / 2 to the rounding of float32, of 8."""
    made = make_pairs(teacher, tmp_path / "pairs", 300, solver=EULER)
    dataset = opened(tmp_path / "pairs")
    assert dataset.spec == dataclasses.replace(teacher.spec, paired_source="normal")
    rows, held = dataset.arrays(), dataset.held
    assert held is not None
    assert held.cond is not None
    assert held.x0 is not None
    assert (len(rows.x1), len(held.x1)) == (270, 30)
    parts: tuple[Any, ...] = (rows, held)
    for part in parts:
        np.testing.assert_allclose(part.x1, 1 + part.cond["label"][:, None] + part.x0 / 2, atol=5e-6)
    x0 = np.concatenate([rows.x0, held.x0])
    assert abs(x0.mean()) < 5 / np.sqrt(600)
    everything = np.concatenate([rows.x1, held.x1]) - np.concatenate([held.x0, rows.x0])[np.r_[30:300, :30]]
    assert made.transport_cost == pytest.approx((everything**2).sum(1).mean(), rel=1e-6)
    # training rows are not standardised again, and the test points are those of the file
    get = make_get_batch(dataset, dataset.spec.fields, AUGMENTATIONS["none"](), 16)
    batch: Any = get(jax.tree.map(jnp.asarray, rows), jax.random.key(0), 0)
    np.testing.assert_allclose(batch.x1, 1 + batch.cond["label"][:, None] + batch.x0 / 2, atol=5e-6)
    np.testing.assert_array_equal(dataset.test, open_dataset("", teacher.config.data.path, ("label",)).test)
    assert dataset.test_x0 is None
    method: Any = build(pairs_config(tmp_path / "pairs"), dataset.spec)
    assert method.path.has_score is False


def test_real_pairs_are_training_rows_with_their_inversion(teacher, tmp_path):
    """RK4 in reverse, with 16 steps: an error below 1e-5 of lines, and the rounding of float32."""
    solver = SolverSettings("rk4", steps=16)
    make_pairs(teacher, tmp_path / "pairs", 64, solver=solver, real=0.25)
    arrays = PairFolder.open(tmp_path / "pairs").read()
    np.testing.assert_allclose(arrays["x1"], 1 + arrays["cond_label"][:, None] + arrays["x0"] / 2, atol=1e-4)
    source = open_dataset("", teacher.config.data.path, ("label",)).arrays()
    known = {
        (int(label), *row) for label, row in zip(source.cond["label"], np.asarray(source.x1).tolist(), strict=True)
    }
    found = [
        (int(label), *row) in known for label, row in zip(arrays["cond_label"], arrays["x1"].tolist(), strict=True)
    ]
    np.testing.assert_array_equal(found, np.arange(64) % 4 == 3)


def test_an_interruption_changes_nothing(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_, "_BATCHES", 1)
    options: dict[str, Any] = {"solver": EULER, "batch": 16, "real": 0.25}
    make_pairs(teacher, tmp_path / "whole", 70, **options)
    write = PairFolder.write

    def stops(self, start, block):
        if start == 48:
            raise KeyboardInterrupt
        write(self, start, block)

    with monkeypatch.context() as patched:
        patched.setattr(PairFolder, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            make_pairs(teacher, tmp_path / "parts", 70, **options)
    with pytest.raises(DataError, match="holds 48 of 70 pairs: repeat the command"):
        opened(tmp_path / "parts")
    make_pairs(teacher, tmp_path / "parts", 70, **options)
    for name in ("x0", "x1", "cond_label"):
        whole, parts = ((tmp_path / folder / f"{name}.npy").read_bytes() for folder in ("whole", "parts"))
        assert whole == parts
    with pytest.raises(ConfigError, match="pairs of another model or request: seed is 0 there and 1 here"):
        make_pairs(teacher, tmp_path / "parts", 70, seed=1, **options)
    other = dataclasses.replace(teacher, params={"w": jnp.ones(1)})
    with pytest.raises(ConfigError, match="pairs of another model or request: parameters is"):
        make_pairs(other, tmp_path / "parts", 70, **options)


def test_the_first_pairs_are_kept_early_and_progress_is_a_line_without_a_terminal(
    teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(batches, "_QUIET", -1.0)
    write, kept = PairFolder.write, []
    monkeypatch.setattr(PairFolder, "write", lambda self, start, block: (write(self, start, block), kept.append(start)))
    make_pairs(teacher, tmp_path / "pairs", 70, solver=EULER, batch=16)
    assert kept == [0, 16]  # the first batch alone, and then blocks of eight
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["pairs 16/70", "pairs 70/70"]
    assert all("pairs_per_second" in line for line in lines)


def test_pixels_stay_in_model_space(tmp_path):
    """Rows of 8-bit images are dequantised, those of pairs are not: the batch has the very numbers of the file."""
    spec = DataSpec("digits", (2, 2, 1), Affine(7.5, 7.5), levels=16, paired_source="normal")
    x = np.linspace(-1.2, 1.2, 80, dtype=np.float32).reshape(20, 2, 2, 1)
    kept = PairFolder(tmp_path / "p", spec, 20, {"name": "nothing"}, {})
    kept.create()
    kept.write(0, {"x0": -x, "x1": x})
    dataset = open_dataset("pairs", str(tmp_path / "p"), pairs="x0")
    assert dataset.test.min() >= 0
    assert dataset.test.max() <= 15
    assert any("cannot be opened, so test points are its own samples" in note for note in dataset.notes)
    batch = make_get_batch(dataset, (), AUGMENTATIONS["none"](), 8)(dataset.arrays(), jax.random.key(0), 0)
    assert {row.tobytes() for row in np.asarray(batch.x1)} <= {row.tobytes() for row in x[2:]}
    np.testing.assert_array_equal(batch.x0, -batch.x1)


def test_refusals(teacher, tmp_path):
    folder = tmp_path / "pairs"
    make_pairs(teacher, folder, 20, solver=EULER)
    for changes, message in (
        ({"pairs": ""}, "data.pairs must be x0"),
        ({"normalise": "global"}, "pairs have the scale of the model"),
        ({"cond": ("obs",)}, "the pairs in .* have the conditions: label"),
        ({"path": str(tmp_path)}, "is not a folder of pairs"),
        ({"name": "npy"}, "use data.name=pairs"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            opened(folder, **changes)
    spec = opened(folder).spec
    config = pairs_config(folder)
    config.source.name = "uniform"
    with pytest.raises(ConfigError, match="made by a model with the source 'normal'"):
        build(config, spec)
    config = defaults("mlp", method="normalizing_flow")
    config.data.name, config.data.path, config.data.pairs = "pairs", str(folder), "x0"
    with pytest.raises(ConfigError, match=r"would ignore that data\.pairs"):
        build(config, spec)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"solver": SolverSettings("ddpm", steps=3)}, "adds noise, so that x1 does not follow from x0"),
        ({"solver": SolverSettings("ddim", steps=3), "real": 0.5}, "real pairs are made by an ODE solver in reverse"),
        ({"real": 1.5}, "between 0 and 1"),
    )
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            make_pairs(teacher, tmp_path / "other", 20, **options)
    nowhere = dataclasses.replace(
        teacher.method, network=Network.from_function(lambda p, t, x, cond, **inputs: x * jnp.nan)
    )
    with pytest.raises(RunFault, match="20 of 20 pairs are not finite"):
        make_pairs(dataclasses.replace(teacher, method=nowhere), tmp_path / "other", 20, solver=EULER)
    np.save(folder / "x1.npy", np.zeros((20, 3), np.float32))
    with pytest.raises(DataError, match=r"x1.npy must be float32 of shape \(20, 2\), not float32 of shape \(20, 3\)"):
        opened(folder)


TINY = [
    "--config.train.steps=6",
    "--config.train.batch_size=32",
    "--config.train.log_every=3",
    "--config.model.width=8",
    "--config.model.depth=1",
]


def test_the_commands(flowjax, tmp_path):
    """A round, which a second call finds finished; pairs of it; samples and likelihoods need no x0."""
    command = ["reflow", "--config=reflow_gaussians8", f"--workdir={tmp_path}/r", "--rounds=1", "--num=200", *TINY]
    command += ["--solver=euler", "--steps=2", "--real=0.5"]
    code, result, err = flowjax(*command)
    assert code == 0, err
    assert result["workdir"] == f"{tmp_path}/r/round_1"
    assert len(result["transport_costs"]) == 1
    config = json.loads((tmp_path / "r/round_1/config.json").read_text())
    assert config["config"]["train"]["start_from"] == f"{tmp_path}/r/round_0"
    before = (tmp_path / "r/round_1/metrics.jsonl").read_bytes()
    assert flowjax(*command)[1] == result
    assert (tmp_path / "r/round_1/metrics.jsonl").read_bytes() == before
    out = f"--out={tmp_path}/a.npz"
    code, _, err = flowjax("sample", f"--workdir={tmp_path}/r/round_1", "--num=10", "--solver=euler", "--steps=1", out)
    assert code == 0, err
    assert "no source samples" not in err
    code, made, err = flowjax("pairs", f"--workdir={tmp_path}/r/round_1", f"--out={tmp_path}/p", "--num=20", "--real=1")
    assert code == 0, err
    assert made["num"] == 20
    code, _, err = flowjax("likelihood", f"--workdir={tmp_path}/r/round_1", "--num=4", "--solver=rk4", "--steps=2", out)
    assert code == 0, err
    for argv, message in (
        (["pairs", f"--workdir={tmp_path}/none", f"--out={tmp_path}/q"], "there is no such folder"),
        (["pairs", f"--workdir={tmp_path}/r/round_1", f"--out={tmp_path}/r"], "holds other files than pairs"),
        ([*command[:3], f"--from={tmp_path}/none"], "there is no such folder"),
        (["reflow", "--config=realnvp_moons", *command[2:5], f"--from={tmp_path}/r/round_0"], "data.pairs"),
        ([*command, "--config.source.name=uniform", f"--from={tmp_path}/r/round_0"], "has another source"),
        (
            [*command, "--config.data.name=moons", f"--from={tmp_path}/r/round_1"],
            "was trained with data.name='gaussians8', and the config has 'moons': the pairs come from the run",
        ),
    ):
        code, _, err = flowjax(*argv)
        assert code == 2, err
        assert message in err.splitlines()[-1], err
