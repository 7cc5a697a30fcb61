"""Training gives the same losses on any mesh, and the shardings by rules."""

import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import defaults, resolve
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Limit, Loss, MethodDefaults
from flowjax.names import SEQUENCE_MODELS
from flowjax.training import sharding
from flowjax.training.sharding import RULES, make_mesh, rules_of, shardings, table
from flowjax.training.state import TrainState, init_state, no_metrics
from flowjax.training.step import make_step
from flowjax.trees import path_name
from tests.conftest import simulated

KEY = jax.random.key(1)
SPEC = DataSpec("images", (16, 16, 3), num_classes=0, levels=256)


def config_of(model, **mesh):
    config = defaults(model)
    small = {"channels": 64, "multipliers": (1, 2), "blocks": 1, "attention": (8,)}
    own = {
        "adm": small,
        "edm2": small,
        "unet": {"multipliers": (1, 2), "blocks": 1},
        "unet1d": {"multipliers": (1, 2)},
        "dit": {"depth": 2},
    }
    for key, value in own.get(model, {}).items():
        config.model[key] = value
    for key, value in mesh.items():
        config.mesh[key] = value
    return resolve(config)


def shapes_of(config, spec=SPEC):
    return jax.eval_shape(lambda: init_state(config, build(config, spec)))


def mesh_of(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def specs(tree, mesh, rules, whole=False):
    found = jax.tree_util.tree_leaves_with_path(shardings(tree, mesh, rules, whole))
    return {path_name(path): place.spec for path, place in found}


# Rules


@pytest.mark.parametrize("model", list(RULES))
def test_every_rule_of_a_model_matches_and_cuts_something(model):
    config = config_of(model)
    spec = DataSpec("series", (16, 3)) if model in SEQUENCE_MODELS else SPEC
    params = shapes_of(config, spec).params
    for rule in RULES[model]:
        cut = specs(params, mesh_of(1, 1, 2), [rule])
        assert any("tensor" in spec for spec in cut.values()), rule


def test_the_first_rule_holds_and_reads_from_the_last_dimension():
    tree = {"a": {"kernel": jnp.zeros((3, 3, 8, 6))}, "b": {"kernel": jnp.zeros((8, 6))}, "bias": jnp.zeros(6)}
    rules = [("a/kernel$", (None, "tensor")), ("kernel$", ("tensor", None)), ("bias$", (None, "tensor"))]
    assert specs(tree, mesh_of(1, 1, 2), rules) == {
        "a/kernel": P(None, None, None, "tensor"),
        "b/kernel": P("tensor"),
        "bias": P("tensor"),  # a rule with more axes than dimensions applies to the last ones
    }
    # 6 is not divisible by 4, so the array is not split
    assert specs(tree, mesh_of(1, 1, 4), rules) == {"a/kernel": P(), "b/kernel": P("tensor"), "bias": P()}


def test_fsdp_cuts_the_first_free_dimension_of_what_is_large(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 48)
    tree = {"tall": jnp.zeros((12, 4)), "odd": jnp.zeros((7, 9)), "small": jnp.zeros(40), "wide": jnp.zeros((6, 8))}
    rules = [("tall", ("tensor", None))]
    assert specs(tree, mesh_of(1, 4, 1), rules) == {
        "tall": P("fsdp"),
        "odd": P(),
        "small": P(),
        "wide": P(None, "fsdp"),
    }
    assert specs(tree, mesh_of(1, 2, 2), rules)["tall"] == P("tensor", "fsdp")
    assert specs(tree, mesh_of(1, 2, 2), rules, whole=True)["tall"] == P("tensor")
    assert set(specs(tree, mesh_of(8, 1, 1), rules).values()) == {P()}


def test_optimizer_and_averages_lie_as_their_parameters(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 1)
    config = config_of("dit")
    config.ema.widths = (0.1,)
    state, mesh = shapes_of(config), mesh_of(1, 2, 2)
    where = specs(state, mesh, RULES["dit"])
    params = specs(state.params, mesh, RULES["dit"])
    assert len({str(spec) for spec in params.values()}) > 3
    for name, spec in params.items():
        same = [path for path in where if re.fullmatch(rf"(params|ema|.*/[mn]u|averages/0)/{name}", path)]
        assert len(same) == 5, same  # parameters, two moments, two averages
        assert {where[path] for path in same} == {spec}


def test_a_models_rules_come_after_ones_own():
    config = config_of("dit", rules=("mlp1/kernel$ = tensor, -",))
    params = shapes_of(config).params
    mesh = mesh_of(1, 1, 2)
    assert specs(params, mesh, rules_of(config, params, mesh))["blocks/0/mlp1/kernel"] == P("tensor")
    for text, message in [
        ("nothing = tensor", r"mesh.rules: 'nothing = tensor' matches no parameter; the first is blocks/0/mlp1/bias"),
        ("kernel", r"'kernel' is not PATTERN = AXIS, AXIS"),
        ("kernel = model", r"each AXIS is - or one of data, fsdp, tensor, which may occur once"),
        (
            "stem/kernel = tensor, -, -",
            r"'stem/kernel = tensor, -, -' splits nothing: stem/kernel is 12 x 384, and mesh.ten",
        ),
        ("( = tensor", r"mesh.rules: '\( = tensor'"),
        ("kernel = tensor, tensor", r"each AXIS is - or one of data, fsdp, tensor, which may occur once"),
    ]:
        config = config_of("dit", rules=(text,))
        with pytest.raises(ConfigError, match=message):
            rules_of(config, params, mesh)


def test_bytes_on_a_device():
    """A (64, 8) array of float32 split in 4, and a scalar."""
    tree = {"w": jax.ShapeDtypeStruct((64, 8), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
    text = table(tree, shardings(tree, mesh_of(1, 2, 2), [("w", ("fsdp", "tensor"))]))
    assert [line.split() for line in text.splitlines()] == [
        ["n", "whole", "4"],
        ["w", "64x8", "fsdp,", "tensor", "512"],
        ["516", "bytes", "on", "each", "device"],
    ]


def test_a_mesh_that_does_not_fit_is_told(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    for mesh, train, message in [
        ({"data": 16}, {}, "mesh.data 16 x mesh.fsdp 1 x mesh.tensor 1 is a mesh of 16 devices; there are 8"),
        ({"fsdp": 3}, {}, "mesh.data 2 x mesh.fsdp 3 x mesh.tensor 1 leaves some of the 8 devices idle"),
        ({"fsdp": 2}, {"batch_size": 12}, "train.batch_size 12 does not divide among 8 devices"),
        ({}, {"batch_size": 24, "accumulate": 2}, "24 does not divide among 8 devices and train.accumulate 2 parts"),
    ]:
        config = config_of("mlp", **mesh)
        for key, value in train.items():
            config.train[key] = value
        with pytest.raises(ConfigError, match=message):
            make_mesh(config)


# Steps


def test_parts_of_a_batch_give_its_gradient():
    """The gradient of a mean over rows, in equal parts, up to the rounding of sums of 8 numbers of order 1."""

    class Linear(MethodDefaults):
        network = prior = None
        model = from_config = print
        metrics = ("mean", "largest")
        limits = {"largest": Limit(math.inf, "")}  # noqa: RUF012

        def loss(self, params, context, key, batch):
            error, seen = batch.x1 @ params["w"] - 1.0, batch.x1
            metrics = {"mean": jnp.mean(seen), "largest": jnp.max(seen)}
            return Loss(jnp.mean(error**2), metrics, {"rows": context.state["rows"] + len(seen)})

    batch = Batch(jax.random.normal(jax.random.key(0), (8, 3)), None)
    params = {"w": jnp.arange(3.0)}
    tx = optax.sgd(0.1)
    rows, running = {"rows": jnp.zeros((), jnp.int32)}, no_metrics(Linear.metrics)
    start = TrainState(jnp.zeros((), jnp.int32), params, rows, tx.init(params), params, (), {}, KEY, running)
    step = lambda parts: jax.jit(make_step(Linear(), tx, 8, 0.0, accumulate=parts))
    whole, parts = (step(n)(start, KEY, batch) for n in (1, 4))
    np.testing.assert_allclose(whole[0].params["w"], parts[0].params["w"], atol=1e-6)
    np.testing.assert_allclose(whole[1].grad_norm, parts[1].grad_norm, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(whole[1].loss), jax.tree.leaves(parts[1].loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert int(whole[0].variables["rows"]) == int(parts[0].variables["rows"]) == 8


def test_a_loss_scale_keeps_small_gradients_of_float16():
    """Gradients near 1e-9 are 0 in float16, whose smallest number is 6e-8; with 2^20 they are those of float32.

    A power of two changes no digit in float32. In float16 two roundings of 2^-11 remain.
    """

    class Product(MethodDefaults):
        network = prior = None
        model = from_config = print
        dtype = jnp.float32

        def loss(self, params, context, key, batch):
            y = batch.x1.astype(self.dtype) @ params["w"].astype(self.dtype)
            return Loss(1e-9 * jnp.mean(y.astype(jnp.float32)), {}, {})

    class Half(Product):
        dtype = jnp.float16

    batch, params, tx = Batch(jnp.arange(1.0, 25.0).reshape(8, 3), None), {"w": jnp.arange(3.0)}, optax.sgd(1.0)
    start = TrainState(jnp.zeros((), jnp.int32), params, {}, tx.init(params), params, (), {}, KEY, no_metrics(()))
    norm = lambda method, scale: float(
        jax.jit(make_step(method, tx, 8, 0.0, loss_scale=scale))(start, KEY, batch)[1].grad_norm
    )
    exact = norm(Product(), 1.0)
    assert norm(Product(), 2.0**20) == exact > 0
    assert norm(Half(), 1.0) == 0
    assert norm(Half(), 2.0**20) == pytest.approx(exact, rel=2 * 2**-11)


EIGHT = """
import json, sys
import jax
import numpy as np
from flowjax.build import build
from flowjax.config import defaults, resolve
from flowjax.data import Dataset, DataSpec
from flowjax.batch import Batch
from flowjax.data.dataset import sample_rows
from flowjax.data.affine import image_scale
from flowjax.batch import Batch
from flowjax.training import parameters, sharding
from flowjax.training.state import with_empty_metrics
from flowjax.training.trainer import Trainer

sharding.SMALL = 256
x = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
data = Dataset(DataSpec("images", (16, 16, 3), image_scale(256), levels=256), x[:8].astype(np.float32),
               arrays=lambda: Batch(x), sample=sample_rows)

def losses(model, own, mesh):
    config = defaults(model)
    config.train.batch_size, config.train.warmup, config.train.lr = 16, 64.0, 1e-3
    config.train.accumulate = 2 if "parts" in sys.argv[1] else 1
    config.method.uncertainty = "uncertainty" in sys.argv[1]  # parameters beside those of the network
    for section, values in (("model", own), ("mesh", mesh)):
        for key, value in values.items():
            config[section][key] = value
    config = resolve(config)
    trainer = Trainer(config, build(config, data.spec), data)
    if own.get("dtype") is None and mesh.get("fsdp", 1) > 1 and model == "dit":
        assert {str(dtype) for dtype in jax.tree.leaves(trainer._types)} == {"float32", "bfloat16"}
    if parameters.PLATFORMS == ("cpu",):
        step = jax.make_jaxpr(trainer.make_step())(trainer._shapes, trainer._shapes.key, trainer._batch_like)
        assert ("shard_map" in str(step)) == (mesh.get("data", 1) > 1)
        assert (trainer.stacks is not None) == (model != "adm")  # its convolutions need the loop on the host
    state, found = trainer.init(), []
    for _ in range(4):
        state, metrics = trainer.run(with_empty_metrics(state), trainer.arrays(), 5)
        found.append(float(metrics.loss))
    cut = any(a.sharding.spec for a in jax.tree.leaves((state.params, state.ema)))
    assert cut == (mesh.get("fsdp", 1) > 1)
    return found + [trainer.val_loss(state)]

MODELS = {
    "mlp": {},
    "mlp_as_on_gpu": {},
    "mlp_parts_as_on_gpu": {},
    "mlp_uncertainty_as_on_gpu": {},
    "dit": {"width": 64, "depth": 2, "heads": 4, "patch": 4, "dtype": "float32"},
    "dit_bf16": {"width": 64, "depth": 1, "heads": 4, "patch": 4},
    "adm": {"channels": 64, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "head_width": 32,
            "dtype": "float32", "film": True, "dropout": 0.1},
}
MODELS["adm_as_on_gpu"] = MODELS["adm"] | {"channels": 32}
MODELS["dit_bf16_as_on_gpu"] = MODELS["dit_bf16"]
MESHES = [{"data": 1}, {"data": 2}, {"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2},
          {"data": 2, "fsdp": 2, "tensor": 2}]
model, chosen = sys.argv[1], json.loads(sys.argv[2])
if model.endswith("_as_on_gpu"):
    parameters.PLATFORMS = ("cpu",)
print(json.dumps([losses(model.split("_")[0], MODELS[model], MESHES[i]) for i in chosen]))
"""


def _eight(model, meshes=(0, 5)):
    flags = {"XLA_FLAGS": simulated(8), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", EIGHT, model, json.dumps(meshes)],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return np.array(json.loads(run.stdout.splitlines()[-1]))


_SLOW = [
    pytest.param(*one, marks=pytest.mark.slow)
    for one in (
        ("mlp", (0, 1, 3, 4)),
        ("mlp_parts_as_on_gpu", (0, 1, 2)),
        ("adm_as_on_gpu", (0, 1, 2)),
        ("dit", (0, 5)),
        ("adm", (0, 5)),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "meshes"), [("dit_bf16", (0, 5)), ("dit_bf16_as_on_gpu", (0, 1, 2))])
def test_losses_of_a_network_in_bfloat16_whose_parameters_travel_so(model, meshes):
    """A cast commutes with a gather, so only the order of sums differs, as in float32 (below), and a sum in bfloat16.

    The part of a gradient on each device is rounded to bfloat16, a random error of 2^-9. The loss changes by a tenth in
    20 steps, so its relative error is below 2e-4, twice the tolerance for the order of sums.
    """
    found = _eight(model, meshes)
    rtol = 2e-4 if model.endswith("_as_on_gpu") else 1e-4
    np.testing.assert_allclose(found[1:], np.broadcast_to(found[0], found[1:].shape), rtol=rtol)
    assert np.ptp(found[0, :-1]) > 0.03  # it did train


@pytest.mark.parametrize(
    ("model", "meshes"),
    [("mlp", (0, 2, 5)), ("mlp_as_on_gpu", (0, 1, 2)), ("mlp_uncertainty_as_on_gpu", (0, 1)), *_SLOW],
)
def test_losses_are_the_same_on_any_mesh(model, meshes):
    """20 steps and the validation loss on 1, 2 and 8 devices: data parallel, FSDP, tensor sharding, and all of them.

    Sums over a batch have another order: about a hundred random roundings of 2^-24, 1e-6 of the loss. The first steps
    of Adam take the sign of gradients, which amplifies rounding from step to step in a deep network; hence 1e-4.
    """
    found = _eight(model, meshes)
    np.testing.assert_allclose(found[1:], np.broadcast_to(found[0], found[1:].shape), rtol=1e-4)
    assert np.ptp(found[0, :-1]) > 1e-3  # it did train
