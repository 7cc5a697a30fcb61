"""Counts of floating-point operations against hand counts, and the utilisation computed from them."""

import jax
import jax.numpy as jnp
import pytest

from flowjax.build import build
from flowjax.config import defaults, resolve
from flowjax.data import open_dataset
from flowjax.training import profiling
from flowjax.training.profiling import count_flops
from flowjax.training.trainer import Trainer


def test_products_convolutions_and_loops():
    """A product of (m, k) and (k, n) has 2 m n k operations, and each of its two gradients as many. A scan counts its
    length, and a cond its larger branch."""
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    product = 2 * 3 * 5 * 7
    assert count_flops(lambda a, b: jnp.tanh(a @ b), a, b) == product
    loss = lambda a, b: jnp.sum((a @ b) ** 2)
    assert count_flops(jax.grad(loss, (0, 1)), a, b) == 3 * product
    assert count_flops(jax.jit(jax.checkpoint(lambda a, b: a @ b)), a, b) == product
    again = lambda a: jax.lax.scan(lambda x, _: (x @ a[:, :3], None), a[:, :3], None, length=4)[0]
    assert count_flops(again, a) == 4 * 2 * 3 * 3 * 3
    branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: (a @ b).sum(), lambda: a.sum())
    assert count_flops(branch, a, b) == product


def test_an_equation_without_outputs_is_free():
    def f(a, b):
        jax.debug.print("{}", a.sum())
        return a @ b

    a, b = jnp.zeros((2, 3)), jnp.zeros((3, 4))
    assert count_flops(f, a, b) == 2 * 2 * 3 * 4


def test_rematerialisation_and_the_optimizer_are_not_model_flops():
    """The count depends neither on recomputation nor on the optimizer."""

    def of(**changes):
        c = defaults("adm")
        c.data.name, c.model.channels, c.model.multipliers, c.model.blocks = "digits", 32, (1,), 1
        c.model.head_width, c.model.film = 32, True
        c.model.update(changes.pop("model", {}))
        c.train.update(changes)
        dataset = open_dataset("digits")
        return Trainer(resolve(c), build(resolve(c), dataset.spec), dataset).flops_per_step

    plain = of()
    assert plain > 0
    assert of(model={"remat": "block"}) == plain
    assert of(optimizer="muon") == plain


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients(stride):
    """Each of the two gradients of a convolution has as many operations as the convolution, with any stride."""
    x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    conv = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    forward = 2 * 2 * (8 // stride) ** 2 * 4 * 9 * 3
    assert count_flops(conv, x, k) == forward
    assert count_flops(jax.grad(lambda x, k: jnp.sum(conv(x, k) ** 2), (0, 1)), x, k) == 3 * forward


def test_utilisation_and_peak(monkeypatch):
    assert profiling.peak_flops(790.0) == 790e12
    assert profiling.peak_flops() is None  # CPUs are not in the table
    assert profiling.utilisation(1e12, 50.0, 100e12) == pytest.approx(0.5 / jax.device_count())
    assert profiling.utilisation(None, 50.0, 100e12) is None
    kind = type("Device", (), {"device_kind": "TPU v5 lite", "memory_stats": lambda self: {"peak_bytes_in_use": 2**31}})
    monkeypatch.setattr(jax, "devices", lambda: [kind()])
    monkeypatch.setattr(jax, "local_devices", lambda: [kind(), kind()])
    assert profiling.peak_flops() == 197e12  # not the rate of the v5
    assert profiling.memory_gib() == 2.0
