"""Sampling and likelihood on several devices: the results of one device, without collectives in the program."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from flowjax import load
from flowjax.inference import sampling, scoring
from flowjax.inference.choose import SolverSettings
from tests.conftest import simulated

FOUR = """
import json, sys
import jax
import jax.numpy as jnp
import numpy as np
from flowjax import load
from flowjax.inference import batches, program, sampling, scoring
from flowjax.inference.choose import SolverSettings, choose

run = load(sys.argv[1])
x = np.load(sys.argv[2])
heun, adaptive = SolverSettings("heun", steps=3), SolverSettings("dopri5", rtol=1e-4, atol=1e-4)
result = {"devices": jax.local_device_count()}
for name, solver in (("heun", heun), ("adaptive", adaptive)):
    drawn = sampling.sample(run, 50, 0, solver, batch=22)  # rounded up to 24
    result[name] = drawn.samples.tolist()
scored = scoring.log_prob(run, x, solver=adaptive, batch=16)
result["log_prob"] = scored.log_prob.tolist()

keys = jax.random.split(jax.random.key(0), 3)
inputs = batches.everywhere(program.Inputs(run.arrays, None, *keys, jnp.asarray(0)))
choice = choose(run, adaptive)
draw = program._compiled(program.Program((choice.identity, "none", None), choice, "none", None))
result["text"] = draw.lower(inputs, np.arange(24), {}).compile().as_text()
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def four(tiny_run, tmp_path_factory):
    """The results of a process with four devices."""
    points = tmp_path_factory.mktemp("points") / "x.npy"
    np.save(points, np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32))
    flags = {"XLA_FLAGS": simulated(4), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FOUR, str(tiny_run), str(points)]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"points": np.load(points)}


def test_samples_and_densities_are_those_of_one_device(four, tiny_run):
    """Rows are solved separately, so only the rounding of matrix products of another block size differs."""
    assert (four["devices"], jax.local_device_count()) == (4, 1)
    run, adaptive = load(tiny_run), SolverSettings("dopri5", rtol=1e-4, atol=1e-4)
    heun = sampling.sample(run, 50, 0, SolverSettings("heun", steps=3), batch=22).samples
    np.testing.assert_allclose(four["heun"], heun, rtol=1e-5, atol=1e-5)
    solved = sampling.sample(run, 50, 0, adaptive, batch=22).samples
    np.testing.assert_allclose(four["adaptive"], solved, atol=1e-3)  # steps are chosen by rounded errors
    scored = scoring.log_prob(run, four["points"], solver=adaptive, batch=16)
    np.testing.assert_allclose(four["log_prob"], scored.log_prob, atol=1e-3)


def test_no_device_waits_for_another(four):
    """The program of an adaptive solve has a loop, and no collectives."""
    assert " while(" in four["text"]
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in four["text"]
