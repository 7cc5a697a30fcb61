"""Variables that are not parameters are updated, saved, resumed, exported and sharded, but not averaged."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flowjax.interop import open_weights
from flowjax.training.checkpoints import Checkpoints
from flowjax.training.state import abstract_state
from tests.conftest import simulated

NETS = '''
import jax
import jax.numpy as jnp
from flax import nnx


class ActNorm(nnx.Module):
    """A gain and a shift for each number; the first training batch is brought to mean 0 and variance 1."""

    def __init__(self, d):
        self.gain, self.shift = nnx.Param(jnp.ones(d)), nnx.Param(jnp.zeros(d))
        self.mean, self.std = nnx.Variable(jnp.zeros(d)), nnx.Variable(jnp.ones(d))
        self.initialised = nnx.Variable(jnp.zeros((), bool))
        self.use_running_average = True  # `nnx.Module.train` sets it to False, as for nnx.BatchNorm

    def __call__(self, x):
        if not self.use_running_average:
            seen = self.initialised[...]
            self.mean[...] = jnp.where(seen, self.mean[...], jax.lax.stop_gradient(x.mean(0)))
            self.std[...] = jnp.where(seen, self.std[...], jax.lax.stop_gradient(x.std(0)) + 1e-6)
            self.initialised[...] = jnp.ones((), bool)
        return (x - self.mean[...]) / self.std[...] * self.gain[...] + self.shift[...]


class Net(nnx.Module):
    """Batch statistics, an integer permutation, a mask and an initialisation that depends on the data."""

    def __init__(self, shape, *, width: int = 256, rngs):
        (d,) = shape
        self.order = nnx.Variable(jax.random.permutation(rngs.params(), width))
        self.mask = nnx.Variable(jnp.arange(width) % 3 > 0)
        self.first, self.out = nnx.Linear(d + 1, width, rngs=rngs), nnx.Linear(width, d, rngs=rngs)
        self.norm, self.act = nnx.BatchNorm(width, momentum=0.9, rngs=rngs), ActNorm(width)

    def __call__(self, t, x, cond=None):
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None]
        h = jax.nn.silu(self.act(self.first(jnp.concatenate([x, t], -1))))
        return self.out(self.norm(h)[:, self.order[...]] * self.mask[...])
'''

SIZES = ["--config.train.batch_size=64", "--config.train.log_every=5", "--config.train.save_every=5"]

CONFIG = """
from flowjax.config import defaults

def get_config():
    config = defaults("variable_nets:Net")
    config.data.name = "gaussians8"
    config.train.steps = 10
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    (folder / "variable_nets.py").write_text(NETS)
    (folder / "config.py").write_text(CONFIG)
    return folder


def train(folder, workdir, *more, devices=1):
    """Runs `flowjax train` in a subprocess and returns its metrics."""
    env = os.environ | {"XLA_FLAGS": simulated(devices), "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "flowjax", "train", f"--config={folder}/config.py", f"--workdir={workdir}"]
    done = subprocess.run([*command, *SIZES, *more], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def load(workdir, **options):
    import flowjax

    return flowjax.load(workdir, plugins=("variable_nets",), **options)


@pytest.fixture(scope="module")
def trained(folder):
    train(folder, folder / "whole")
    return folder / "whole"


@pytest.fixture
def on_path(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))


def named(variables):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a)
            for path, a in jax.tree_util.tree_leaves_with_path(variables)}  # fmt: skip


@pytest.mark.usefixtures("on_path")
def test_they_are_trained_and_kept_apart_from_the_parameters(trained):
    """The permutation and the mask do not change, statistics do, and the first batch initialises once."""
    run = load(trained)
    variables, first = named(run.variables), named(run.method.init(jax.random.split(jax.random.key(0))[0]).state)
    assert not set(variables) & set(named(run.params))
    np.testing.assert_array_equal(variables["order"], first["order"])
    np.testing.assert_array_equal(variables["mask"], first["mask"])
    assert variables["order"].dtype == np.int32
    assert variables["mask"].dtype == bool
    assert bool(variables["act/initialised"])
    assert not np.allclose(variables["act/std"], 1)
    assert not np.allclose(variables["norm/mean"], 0)
    early = named(load(trained, checkpoint=5).variables)
    np.testing.assert_array_equal(variables["act/mean"], early["act/mean"])  # set only by the first batch
    assert np.abs(variables["norm/mean"] - early["norm/mean"]).max() > 1e-6


@pytest.mark.usefixtures("on_path")
def test_a_resumed_run_is_bitwise_the_run_that_never_stopped(folder, trained, tmp_path):
    train(folder, tmp_path / "run", "--config.train.steps=5", "--config.train.schedule=constant")
    train(folder, tmp_path / "run", "--config.train.schedule=constant")
    train(folder, tmp_path / "whole", "--config.train.schedule=constant")
    run, whole = load(tmp_path / "run"), load(tmp_path / "whole")
    states = []
    for one in (run, whole):
        like = abstract_state(one.config, one.method)
        states.append(Checkpoints(one.workdir / "checkpoints").restore(10, like))
    data = lambda a: jax.random.key_data(a) if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    for a, b in zip(*(jax.tree.leaves(jax.tree.map(data, state)) for state in states), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("on_path")
def test_only_parameters_are_averaged(trained):
    """The statistics are not averaged: they come from the checkpoint, with averaged and with raw parameters."""
    raw, average = load(trained, ema=False), load(trained)
    for name, a in named(raw.variables).items():
        np.testing.assert_array_equal(a, named(average.variables)[name])
    assert any(np.any(a != named(average.params)[name]) for name, a in named(raw.params).items())


@pytest.mark.usefixtures("on_path")
def test_they_are_exported(trained, tmp_path):
    from flowjax.interop import export_run

    export_run(trained, tmp_path / "w.safetensors", plugins=("variable_nets",))
    opened, run = open_weights(tmp_path / "w.safetensors", plugins=("variable_nets",)), load(trained)
    for a, b in zip(*(jax.tree.leaves((one.params, one.variables)) for one in (opened, run)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    np.testing.assert_array_equal(opened.model().velocity(0.5, x), run.model().velocity(0.5, x))


@pytest.mark.slow
@pytest.mark.usefixtures("on_path")
def test_losses_are_the_same_on_two_devices(folder, trained, tmp_path):
    """On any mesh the batch statistics cover the whole batch; only the order of sums over 64 rows differs."""
    one = [r["loss"] for r in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())]
    for mesh in ("data", "fsdp"):
        records = train(folder, tmp_path / mesh, f"--config.mesh.{mesh}=2", devices=2)
        np.testing.assert_allclose([r["loss"] for r in records], one, rtol=1e-4)
        a, b = (named(load(w).variables)["norm/var"] for w in (tmp_path / mesh, trained))
        np.testing.assert_allclose(a, b, rtol=1e-3)


@pytest.mark.usefixtures("on_path")
def test_a_state_holds_them_by_name(trained):
    run = load(trained)
    state = abstract_state(run.config, run.method)
    assert {field.name for field in dataclasses.fields(state)} >= {"params", "variables", "targets"}
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)
