# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/flowjax/blob/main/experiments/notebooks/07_meshes_and_sharding.ipynb)
#
# # Meshes and sharding
#
# Training on many devices is, in JAX, the same program on arrays that lie on many devices. We simulate eight
# devices on a CPU and look at where arrays lie, write a sharded training step by hand, find the communication that
# the compiler adds, and do the same in flowjax with `config.mesh`. It runs in about a minute. (Simulated devices
# share your cores, so nothing gets faster.)

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("flowjax") is None:  # the package called flowjax on PyPI is a different library
    source = "flowjax-research[data,plots] @ git+https://github.com/OWNER/flowjax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %% [markdown]
# JAX reads the number of devices when it starts, so the setting comes before the first use of a device. (In newer
# code, `jax.config.update("jax_num_cpu_devices", 8)` does the same.)

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import flowjax

plt.rcParams["figure.dpi"] = 64
print(jax.device_count(), "devices:", jax.devices()[0], "...", jax.devices()[-1])

# %% [markdown]
# ## 1. A mesh, and where an array lies
#
# A *mesh* arranges the devices in a grid with named axes. A *sharding* says for each axis of an array over which
# mesh axis it is split, or `None` for not at all. Axes of the mesh that are not named hold copies.

# %%
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
array = jnp.zeros((8, 8))


def draw(ax, spec):
    """Colours the part of an 8 x 8 array that each device holds, and writes the numbers of the devices."""
    owner, parts = np.zeros((8, 8)), {}
    for shard in jax.device_put(array, NamedSharding(mesh, spec)).addressable_shards:
        bounds = tuple((s.start or 0, 8 if s.stop is None else s.stop) for s in shard.index)
        parts.setdefault(bounds, []).append(shard.device.id)
    for i, (((r0, r1), (c0, c1)), devices) in enumerate(parts.items()):
        owner[r0:r1, c0:c1] = i
        ax.text((c0 + c1) / 2 - 0.5, (r0 + r1) / 2 - 0.5, ", ".join(map(str, devices)), ha="center", va="center")
    ax.imshow(owner, cmap="Pastel1", vmin=0, vmax=9)
    ax.set(title=str(spec).replace("PartitionSpec", "P"), xticks=[], yticks=[], xlabel="axis 1", ylabel="axis 0")


figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for ax, spec in zip(axes, (P(), P("data"), P("data", "model"), P(None, "model")), strict=True):
    draw(ax, spec)
plt.show()

# %% [markdown]
# ## 2. A training step on one device and on eight
#
# **Data parallelism** splits the batch and copies the parameters. Nothing in the step changes: we place the
# arguments, and `jax.jit` partitions the program. The loss is a mean over the whole batch, so the compiler inserts
# a sum over devices (an *all-reduce*) for the gradient.
#
# **Fully sharded data parallelism** (FSDP) splits the parameters and the moments of the optimizer as well. Each
# device keeps
# 1/8 of them, gathers a layer where it is used (*all-gather*), and receives only its part of the gradient.

# %%
graph, params = nnx.split(flowjax.models.MLP((2,), width=256, depth=3, zero_init=False, rngs=nnx.Rngs(0)))
adam = optax.adam(1e-3)
density = flowjax.data.densities.eight_gaussians()


def step(params, moments, x0, x1, t):
    """One step of flow matching on a given batch."""

    def loss_of(params):
        x_t = t[:, None] * x1 + (1 - t[:, None]) * x0
        return jnp.mean((nnx.merge(graph, params)(t, x_t) - (x1 - x0)) ** 2)

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, moments = adam.update(gradients, moments)
    return optax.apply_updates(params, updates), moments, loss


def batch(i, rows=1024):
    key_0, key_1, key_t = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 3)
    return jax.random.normal(key_0, (rows, 2)), density.sample(key_1, rows), jax.random.uniform(key_t, (rows,))


flat = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
whole, rows = NamedSharding(flat, P()), NamedSharding(flat, P("devices"))
one = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def split(leaf):
    """FSDP: the first axis that eight devices can share; small arrays stay whole."""
    if leaf.size < 2**12:
        return whole
    axis = next(i for i, n in enumerate(leaf.shape) if n % 8 == 0)
    return NamedSharding(flat, P(*[None] * axis, "devices"))


def run(state_sharding, batch_sharding, steps=20):
    """Trains; returns the losses, the numbers that device 0 holds of the state, and the collective operations."""
    state = (params, adam.init(params))
    sharding = jax.tree.map(state_sharding, state)
    state = jax.device_put(state, sharding)
    place = lambda i: jax.device_put(batch(i), batch_sharding)
    compiled = jax.jit(step, out_shardings=(*sharding, None)).lower(*state, *place(0)).compile()
    kinds = re.findall(r"\b(all-reduce|all-gather|reduce-scatter|all-to-all)\(", compiled.as_text())
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state))
    losses = []
    for i in range(steps):
        *state, loss = compiled(*state, *place(i))
        losses.append(float(loss))
    return np.array(losses), held, {kind: kinds.count(kind) for kind in sorted(set(kinds))}


layouts = {
    "one device": (lambda leaf: one, one),
    "data parallel": (lambda leaf: whole, rows),
    "fully sharded": (split, rows),
}
results = {}
for name, (state_sharding, batch_sharding) in layouts.items():
    results[name], held, kinds = run(state_sharding, batch_sharding)
    print(f"{name:14s} last loss {results[name][-1]:.6f}; device 0 holds {held:8,} numbers; {kinds}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, losses in results.items():
    axes[0].plot(losses, label=name, lw=4 - list(results).index(name) * 1.4)
    if name != "one device":
        axes[1].semilogy(np.abs(losses / results["one device"] - 1) + 1e-9, "o-", ms=3, label=name)
axes[0].set(xlabel="step", ylabel="loss", title="the same loss in three layouts")
axes[1].set(xlabel="step", ylabel="relative difference", title="difference to one device")
for ax in axes:
    ax.legend()
    ax.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The losses agree to the rounding of float32: only the order of the sums differs (a difference of 0 is drawn at
# $10^{-9}$). (All gradients travel in one all-reduce. The compiler for GPUs and TPUs replaces it by
# reduce-scatters where each device needs only its part.)
#
# ## 3. The same in flowjax
#
# A mesh of flowjax has three axes, and a config says how large they are:
#
# | axis | what it splits |
# |---|---|
# | `mesh.data` | the batch (by default all devices that are left) |
# | `mesh.fsdp` | the batch, the parameters, the moments and the averages |
# | `mesh.tensor` | the large matrix products of the network |
#
# On the command line: `flowjax train --config gaussians8 --workdir runs/g8 --config.mesh.fsdp=4
# --config.mesh.tensor=2`, and `--dry_run` prints every array with its sharding. The batch, the learning rate and
# the noise are those of the config on any mesh.

# %%
from flowjax.config import changed
from flowjax.config_files import config_path, load_config
from flowjax.training.sharding import make_mesh, rules_of, shardings, table

config = changed(
    load_config(config_path("gaussians8")), {"model.width": 256, "mesh.fsdp": 4, "mesh.tensor": 2}, plugins=None
)
mesh = make_mesh(config)
shapes = nnx.to_pure_dict(params)  # the parameters of the network above
print(mesh.shape)
print(table(shapes, shardings(shapes, mesh, rules_of(config, shapes, mesh))))

# %% [markdown]
# `layers/1/kernel` is split twice: its input over `tensor`, by a rule for this network, and its output over
# `fsdp`. Now sixty steps on one device, on eight that share the batch, and on the mesh above.
# `flowjax.train("gaussians8", changes={"mesh.fsdp":
# 4, "mesh.tensor": 2})` does this with checkpoints and figures; here we run only its compiled loop, the `Trainer`.

# %%
from flowjax.build import build, data_arguments
from flowjax.data import open_dataset
from flowjax.training.state import with_empty_metrics
from flowjax.training.trainer import Trainer


def train(keys):
    """The mean losses of six times ten steps."""
    short = {"model.width": 128, "train.steps": 60, "train.batch_size": 512, "train.warmup": 0.0}
    config = changed(load_config(config_path("gaussians8")), short | keys, plugins=None)
    dataset = open_dataset(*data_arguments(config))
    trainer = Trainer(config, build(config, dataset.spec), dataset)
    state, losses = trainer.init(), []
    for _ in range(6):
        state, metrics = trainer.run(with_empty_metrics(state), trainer.arrays(), 10)
        losses.append(float(metrics.loss))
    return np.array(losses)


meshes = {
    "one device": {"mesh.data": 1},
    "data 8": {"mesh.data": 8},
    "fsdp 4, tensor 2": {"mesh.fsdp": 4, "mesh.tensor": 2},
}
losses = {name: train(keys) for name, keys in meshes.items()}
for name, values in losses.items():
    difference = np.abs(values / losses["one device"] - 1).max()
    print(f"{name:17s} losses {values.round(4)}; largest relative difference {difference:.1e}")

# %% [markdown]
# **Exercises.**
#
# 1. Change `batch` to 1,023 rows. What does JAX say, and what does flowjax say for `train.batch_size=1023`?
# 2. Split the *hidden* axis of two successive layers as in `flowjax.training.sharding.RULES["mlp"]`. How many
#    all-reduces does a pair of layers need, and why is it one?
# 3. Compute by hand how many numbers each device holds under FSDP, and compare with the print above.
# 4. A checkpoint of one mesh resumes on another: train 30 steps with `mesh.data=8`, then 60 with `mesh.fsdp=8` in
#    the same workdir. (`config.mesh` may change from one start to the next.)
