"""The bound that `evaluate` reports of a run of `variational` is its loss; interrupted bounds continue."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.errors import ConfigError
from flowjax.inference.finished_batches import FinishedBatches
from flowjax.inference.integer_bounds import default_bound, integer_bound
from flowjax.inference.run import Run
from flowjax.methods import Context, Network
from tests.bits.known import pixels

LEVELS, MEAN, STD, FRACTION = 12, 0.1, 0.4, 0.3


def run_of_chain(kind):
    """A run of `variational` on one pixel of four levels, whose network is that of data with the density N(MEAN,
    STD^2). A learned variance is between the others, at FRACTION on the logarithmic scale."""
    spec = pixels((1,))
    keys = {"data.name": "npz", "data.dequantisation": "none", "path.name": "gaussian", "path.schedule": "vp"}
    keys |= {"prediction": "noise_variance" if kind == "learned" else "noise"}
    config = changed(defaults("mlp", "variational"), {**keys, "method.levels": LEVELS, "method.variance": kind})
    method = build(config, spec)
    oracle = oracles.gaussian(method.path, MEAN, STD)

    def apply(params, t, x, cond):
        noise = oracle.ends(t, x).x0
        return jnp.concatenate([noise, jnp.full_like(x, 2 * FRACTION - 1)], -1) if kind == "learned" else noise

    method = dataclasses.replace(method, network=Network.from_function(apply))
    return Run(Path("run"), config, 0, spec, method, {})


def expected(run, kind, c):
    """The sum of the divergences of the reverse steps, and the density of the last one, of data at c, in nats. By
    Bayes' rule for normals in float64; the prediction is linear in z, so that the mean of its squared error has a
    closed form."""
    with jax.enable_x64(True):
        times = np.linspace(*run.interval, LEVELS)
        a, s = (np.asarray(f(jnp.asarray(times))) for f in (run.path.schedule.alpha, run.path.schedule.sigma))
    gain = a * STD**2 / (a**2 * STD**2 + s**2)
    error = ((c - MEAN) * (1 - gain * a)) ** 2 + (gain * s) ** 2
    total = 0.0
    for k in range(LEVELS - 1):
        ratio = a[k] / a[k + 1]
        large = s[k] ** 2 - ratio**2 * s[k + 1] ** 2
        small = 1 / (1 / s[k + 1] ** 2 + ratio**2 / large)
        var = {"small": small, "large": large, "learned": large**FRACTION * small ** (1 - FRACTION)}[kind]
        of_data = small * a[k + 1] / s[k + 1] ** 2
        total += 0.5 * (small / var - 1 - math.log(small / var) + of_data**2 * error[k] / var)
    decoder = (s[-1] / a[-1]) ** 2
    return total, 0.5 * (error[-1] / decoder + math.log(2 * math.pi * decoder))


@pytest.mark.analytic
@pytest.mark.parametrize("kind", ["small", "large", "learned"])
def test_the_bound_of_a_variational_run_is_the_loss_of_its_method(kind):
    """The diffusion terms of the default bound, and the mean loss without its last term, against closed forms. Means of
    4,000 rows and of 100,000, within 4 standard errors and a rounding of 1e-3 relative to the terms."""
    run = run_of_chain(kind)
    assert default_bound(run) == f"ddpm({LEVELS}, 50, variance={kind!r})"
    x = np.full((4000, 1), 2.0, np.float32)
    c = float(run.spec.to_model(np.full((1, 1), 2.5))[0, 0])
    diffusion, last = expected(run, kind, c)
    found = integer_bound(run, x, bound=default_bound(run)).terms.diffusion
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - diffusion) < 4 * error + 1e-3 * diffusion
    assert error < 0.05 * diffusion
    batch = Batch(jnp.full((5000, 1), c))
    loss = jax.jit(lambda key: run.method.loss({}, Context(), key, batch).value)
    values = np.array([float(loss(jax.random.key(i))) for i in range(20)])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - last - diffusion) < 4 * error + 1e-3 * diffusion
    assert error < 0.05 * diffusion


def test_the_three_variances_have_different_bounds():
    """So that a bound of another variance than that of the method would be noticed above."""
    sums = [expected(run_of_chain(kind), kind, 0.4)[0] for kind in ("small", "large", "learned")]
    assert min(abs(a - b) / a for a in sums for b in sums if a is not b) > 0.2


class Interrupted(Exception):
    """The process was killed."""


def test_an_interrupted_bound_continues_with_the_same_bits(tmp_path, monkeypatch, capsys):
    run, keep = run_of_chain("small"), tmp_path / "b.npz.parts"
    x = (np.arange(70) % 4).astype(np.float32)[:, None]
    call = lambda seed=0, **more: integer_bound(run, x, bound="ddpm(12)", seed=seed, batch=16, **more)
    write = FinishedBatches.write

    def dying(self, start, block):
        if start == 48:
            raise Interrupted
        write(self, start, block)

    with monkeypatch.context() as patch:
        patch.setattr(FinishedBatches, "write", dying)
        with pytest.raises(Interrupted):
            call(keep=keep)
    assert len(list(keep.glob("*.npz"))) == 3
    with pytest.raises(ConfigError, match="seed is 0 there and 1 here"):
        call(seed=1, keep=keep)
    capsys.readouterr()
    resumed = call(keep=keep)
    assert "going on from the 3 finished batches" in capsys.readouterr().err
    whole = call()
    for name, term in whole.terms._asdict().items():
        np.testing.assert_array_equal(getattr(resumed.terms, name), term)
